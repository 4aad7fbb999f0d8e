"""The autograd node of ``gradient="checkpoint"`` for backends that execute programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastode.autograd import boundary_gradients, once_only
from fastode.backends.base import Forward
from fastode.backends.cpu.backend import CpuBackend, leaves_for_kernels
from fastode.checkpoint import Checkpoint
from fastode.problem import Inputs, Plan
from fastode.program.capture import Capture
from fastode.status import Status


class _ProgramSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: CpuBackend,
        plan: Plan,
        capture: Capture,
        policy: Checkpoint,
        y0: Tensor,
        times: Tensor,
        *leaves: Tensor,
    ) -> tuple[Tensor, Forward]:
        n = len(capture.program.shared)
        shared, sample = leaves_for_kernels(leaves[:n], leaves[n:])
        k1 = torch.empty_like(y0, memory_format=torch.contiguous_format) if ctx.needs_input_grad[5] else None
        result = backend.forward(plan, capture, y0.detach().contiguous(), shared, sample, policy, k1)
        ctx.backend, ctx.plan, ctx.capture = backend, plan, capture
        ctx.record, ctx.failed = result.record, result.failed
        ctx.solved = result.status == Status.SUCCESS
        ctx.save_for_backward(k1, None if k1 is None else result.ys, *leaves)
        ctx.sources = (y0, times, *leaves)
        ctx.set_materialize_grads(False)
        return result.ys, result

    @staticmethod
    @once_only("checkpoint")
    def backward(ctx: Any, grad_ys: Tensor | None, _: None) -> tuple[Any, ...]:
        k1, ys, *leaves = ctx.saved_tensors
        plan, capture = ctx.plan, ctx.capture
        if grad_ys is None:
            return (None,) * (6 + len(leaves))
        n = len(capture.program.shared)
        shared, sample = leaves_for_kernels(leaves[:n], leaves[n:])
        wanted = ctx.needs_input_grad[6:]
        a0, grads = ctx.backend.backward(plan, capture, ctx.record, shared, sample, tuple(wanted), ctx.solved, grad_ys)
        if k1 is None and not ctx.failed and not _starts_again(plan):
            return None, None, None, None, a0.add_(grad_ys[0]), None, *grads
        lam = torch.where(ctx.solved[:, None], grad_ys, 0.0) if ctx.failed else grad_ys
        grad_y0, grad_times = boundary_gradients(
            plan, lambda t, y: ctx.backend.evaluate(capture, t, y, shared, sample), k1, ys, lam, a0, ctx.solved
        )
        return None, None, None, None, grad_y0, grad_times, *grads


def _starts_again(plan: Plan) -> bool:
    """Whether an output after the first is at the start, too."""
    times = plan.times
    if times.shape[0] < 2:
        return False
    return bool((times[1, :1] == times[0, :1]) if times.stride(1) == 0 else (times[1] == times[0]).any())


def program_solve(
    backend: CpuBackend,
    plan: Plan,
    inputs: Inputs,
    capture: Capture,
    leaves: tuple[list[Tensor], list[Tensor]],
    policy: Checkpoint,
) -> tuple[Tensor, None, Forward]:
    """Solves with the exact discrete adjoint: ys (T, B, D) with their graph, and the rest.

    Without anything to differentiate nothing is recorded.
    """
    tensors = [*leaves[0], *leaves[1]]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (inputs.y0, inputs.times, *tensors)):
        ys, result = _ProgramSolve.apply(backend, plan, capture, policy, inputs.y0, inputs.times, *tensors)
        return ys, None, result
    shared, sample = leaves_for_kernels(*leaves)
    result = backend.forward(plan, capture, inputs.y0.detach().contiguous(), shared, sample, None, None)
    return result.ys, None, result
