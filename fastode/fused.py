"""The autograd node of ``gradient="checkpoint"`` for backends that execute programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastode.autograd import boundary_gradients, differentiable, replayed, replayed_clock
from fastode.backends.base import Forward, ProgramBackend
from fastode.backends.healthy import healthy_index
from fastode.backends.leaves import leaves_for_kernels
from fastode.checked import compare, is_checking
from fastode.checkpoint import Checkpoint
from fastode.problem import Inputs, Plan
from fastode.program.capture import Capture
from fastode.program.evaluate import evaluate
from fastode.status import Status


def _replay_node(ctx: Any, sources: Sequence[Tensor]) -> Sequence[Tensor]:
    """The result of ``_ProgramSolve`` in a graph."""
    y0, times, *leaves = sources
    sizes, leaves = leaves[: ctx.n_sizes], leaves[ctx.n_sizes :]
    solved = ctx.solved
    ys, _ = replayed(ctx.plan, _field(ctx.capture, leaves), ctx.record, solved, y0, times, sizes)
    return (ys if solved is None else torch.where(solved[:, None], ys, 0.0),)


def _field(capture: Capture, leaves: Sequence[Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The program with these leaves as a function of times (n,), states (n, D) and of the samples (n,)."""
    program = capture.program
    shared, sample = leaves[: len(program.shared)], leaves[len(program.shared) :]

    def field(t: Tensor, y: Tensor, index: Tensor) -> Tensor:
        return evaluate(program, t, y, shared, [leaf[index] for leaf in sample])

    return field


class _ProgramSolve(torch.autograd.Function):
    """Ties the result of a solve to what it was computed from."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: ProgramBackend,
        plan: Plan,
        capture: Capture,
        result: Forward,
        at_times: tuple[Tensor, tuple[list[Tensor], list[Tensor]]] | None,
        n_sizes: int,
        y0: Tensor,
        times: Tensor,
        *sizes_and_leaves: Tensor,
    ) -> Tensor:
        leaves = sizes_and_leaves[n_sizes:]
        ctx.n_sizes = n_sizes
        ctx.clock_varies = plan.controller is None and (n_sizes > 0 or times.requires_grad)
        ctx.backend, ctx.plan, ctx.capture, ctx.record = backend, plan, capture, result.record
        ctx.solved = result.status == Status.SUCCESS if result.failed else None
        if at_times is None:
            ctx.leaves_at_times = None
            ctx.save_for_backward(*leaves)
        else:
            k1, ctx.leaves_at_times = at_times
            ctx.save_for_backward(*leaves, k1, result.ys)
        ctx.sources = (y0, times, *sizes_and_leaves)
        ctx.set_materialize_grads(False)
        return result.ys

    @staticmethod
    @differentiable(_replay_node)
    def backward(ctx: Any, grad_ys: Tensor | None) -> tuple[Any, ...]:
        leaves, at_times, solved = ctx.saved_tensors, ctx.leaves_at_times, ctx.solved
        k1: Any = None
        ys = None
        if at_times is not None:
            *leaves, k1, ys = leaves
        first = 8 + ctx.n_sizes
        plan, capture, wanted = ctx.plan, ctx.capture, ctx.needs_input_grad[first:]
        if grad_ys is None:
            return (None,) * (first + len(leaves))
        if ctx.clock_varies:
            return *[None] * 6, *_pull_clock(ctx, grad_ys, k1)
        n = len(capture.program.shared)
        shared, sample = leaves_for_kernels(leaves[:n], leaves[n:])
        a0, grads = ctx.backend.backward(plan, capture, ctx.record, shared, sample, wanted, solved, grad_ys)
        if k1 is None and solved is None and not plan.starts_again:
            return *[None] * 6, a0.add_(grad_ys[0]), None, *grads
        lam = grad_ys if solved is None else torch.where(solved[:, None], grad_ys, 0.0)
        if solved is None:
            solved = torch.ones_like(grad_ys[0, :, 0], dtype=torch.bool)
        grad_y0, grad_times = boundary_gradients(
            plan, lambda t, y: ctx.backend.evaluate(capture, t, y, *at_times), k1, ys, lam, a0, solved
        )
        return *[None] * 6, grad_y0, grad_times, *grads


def _pull_clock(ctx: Any, grad_ys: Tensor, k1: Tensor) -> list[Tensor | None]:
    """Gradients by all sources of fixed steps whose sizes they change, through a graph of all steps.

    Kernels take the sizes as constants.
    """
    solved = torch.ones_like(k1[:, 0], dtype=torch.bool) if ctx.solved is None else ctx.solved
    lam = torch.where(solved[:, None], grad_ys, 0.0)
    with torch.enable_grad():
        sources = [x.detach().requires_grad_(x.requires_grad) for x in ctx.sources]
        y0, times, *rest = sources
        sizes, leaves = rest[: ctx.n_sizes], rest[ctx.n_sizes :]
        defined = solved & torch.isfinite(k1).all(1)
        ys, _ = replayed_clock(ctx.plan, _field(ctx.capture, leaves), ctx.record, defined, y0, times, sizes)
        wanted = [x for x in sources if x.requires_grad]
        found = iter(torch.autograd.grad(ys, wanted, lam, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in sources]


def program_solve(
    backend: ProgramBackend, plan: Plan, inputs: Inputs, capture: Capture, tensors: Sequence[Tensor], policy: Checkpoint
) -> tuple[Tensor, Tensor | None, Forward]:
    """Solves with the exact discrete adjoint: ys (T, B, D) with their graph, and the rest.

    Without anything to differentiate nothing is recorded.

    Args:
        backend: what executes the program.
        plan: the solve.
        inputs: its inputs.
        capture: the field's program.
        tensors: what the field holds now.
        policy: what the record keeps.
    """
    leaves = capture.leaves(tensors, inputs.controls, plan.batch, backend.reads_halves)
    both = (*leaves[0], *leaves[1])
    y0, times = inputs.y0, inputs.times
    sizes = [] if inputs.step_size is None else [inputs.step_size]
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (y0, times, *sizes, *both)):
        kernel_leaves = leaves_for_kernels(*leaves)
        result = backend.forward(plan, capture, y0.contiguous(), *kernel_leaves, None, None)
        if is_checking():
            _check(backend, plan, inputs, capture, kernel_leaves, result)
        return result.ys, None if result.dense is None else result.dense.coefs, result
    with torch.no_grad():
        kernel_leaves = leaves_for_kernels(*leaves)
        k1 = torch.empty(y0.shape, dtype=y0.dtype, device=y0.device) if times.requires_grad or sizes else None
        result = backend.forward(plan, capture, y0.contiguous(), *kernel_leaves, policy, k1)
    if is_checking():
        _check(backend, plan, inputs, capture, kernel_leaves, result)
    if not capture.is_plain(backend.reads_halves) and inputs.controls:
        both = _leaves_of_healthy(backend, plan, inputs, capture, tensors, result, both)
    at_times = None if k1 is None else (k1, kernel_leaves)
    ys = _ProgramSolve.apply(backend, plan, capture, result, at_times, len(sizes), y0, times, *sizes, *both)
    return ys, None, result


def _check(
    backend: ProgramBackend,
    plan: Plan,
    inputs: Inputs,
    capture: Capture,
    leaves: tuple[list[Tensor], list[Tensor]],
    result: Forward,
) -> None:
    own = [x.detach() for x in leaves[0]], [x.detach() for x in leaves[1]]
    compare(plan, inputs, capture, own, lambda t, y: backend.evaluate(capture, t, y, *own), result.ys)


def _leaves_of_healthy(
    backend: ProgramBackend,
    plan: Plan,
    inputs: Inputs,
    capture: Capture,
    tensors: Sequence[Tensor],
    result: Forward,
    leaves: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """The leaves with a graph in which samples that failed, or took no step, are copies of a healthy one.

    The prologue of such a sample may be infinite, and a cotangent of zero does not silence that (0 * inf).
    """
    healthy = (result.status == Status.SUCCESS) & (result.stats.n_accepted > 0)
    if bool(healthy.all()):
        return leaves
    if not bool(healthy.any()):  # nothing has a gradient; zeros for whatever asks for one
        zeros = [(c * 0.0).nan_to_num(0.0) for c in (*inputs.controls, *tensors) if c.is_floating_point()]
        total = sum((z.sum() for z in zeros if z.requires_grad), torch.zeros(()))
        return tuple(leaf.detach() + total.to(leaf) if leaf.requires_grad else leaf for leaf in leaves)
    index = healthy_index(healthy)
    own = [c[index] for c in inputs.controls]
    shared, sample = capture.leaves(tensors, own, plan.batch, backend.reads_halves)
    return (*shared, *sample)
