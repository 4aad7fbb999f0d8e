"""The autograd node of ``gradient="checkpoint"``: any backend's forward solve, and its discrete adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastode.backends.base import Backend, Forward
from fastode.checkpoint import Checkpoint
from fastode.externals import owned_leaves, watch
from fastode.problem import Inputs, Plan
from fastode.status import Status
from fastode.vjp import FieldVjp


class _CheckpointSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        plan: Plan,
        policy: Checkpoint,
        k1: Tensor,
        n_controls: int,
        y0: Tensor,
        times: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor | None, Forward]:
        result = backend.forward(plan, y0.contiguous(), tensors[:n_controls], k1, policy)
        ctx.backend, ctx.plan, ctx.n_controls = backend, plan, n_controls
        ctx.record, ctx.solved = result.record, result.status == Status.SUCCESS
        ctx.save_for_backward(k1, result.ys if times.requires_grad else None, *tensors)
        ctx.set_materialize_grads(False)
        return result.ys, None if result.dense is None else result.dense.coefs, result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ys: Tensor | None, grad_coefs: Tensor | None, _: None) -> tuple[Any, ...]:
        k1, ys, *tensors = ctx.saved_tensors
        plan: Plan = ctx.plan
        controls, externals = tensors[: ctx.n_controls], tensors[ctx.n_controls :]
        needed = ctx.needs_input_grad[7:]
        if grad_ys is None:
            grad_ys = k1.new_zeros(plan.times.shape[0], *k1.shape)
        lam = torch.where(ctx.solved[:, None], grad_ys, 0.0)
        controls_needed = needed[: ctx.n_controls]
        external_wanted = [t for t, flag in zip(externals, needed[ctx.n_controls :], strict=True) if flag]
        vjp = FieldVjp(plan.field, controls_needed, external_wanted)
        grads = ctx.backend.backward(plan, ctx.record, controls, vjp, lam, grad_coefs)
        grad_y0, grad_times = boundary_gradients(plan, controls, k1, ys, lam, grads.y0, ctx.solved)
        wanted = iter([*grads.controls, *grads.externals])
        grad_tensors = [next(wanted) if flag else None for flag in needed]
        return None, None, None, None, None, grad_y0, grad_times, *grad_tensors


def boundary_gradients(
    plan: Plan, controls: Sequence[Tensor], k1: Tensor, ys: Tensor | None, lam: Tensor, a0: Tensor, solved: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients by the initial state, (B, D), and, where ys is given, by the output times, (T, B) float64.

    Args:
        plan: the solve.
        controls: leaves (B, ...).
        k1: (B, D), the field at the start.
        ys: (T, B, D), the outputs; None if no gradient by the times is wanted.
        lam: (T, B, D), gradients of the outputs, zero for failed samples.
        a0: (B, D), adjoint at the start from the outputs after it.
        solved: (B,) bool.
    """
    at_start = (plan.times[1:] == plan.times[0])[..., None]
    a0 = a0 + torch.where(at_start, lam[1:], 0.0).sum(0)
    if ys is None:
        return a0 + lam[0], None

    def inner(a: Tensor, slope: Tensor) -> Tensor:
        return torch.where(solved, (a * slope).double().sum(1), 0.0)

    later = zip(lam[1:], plan.times[1:], ys[1:], strict=True)
    grad_times = [-inner(a0, k1)] + [inner(a, plan.field(t, y, controls)) for a, t, y in later]
    return a0 + lam[0], torch.stack(grad_times)


def start_of(plan: Plan, inputs: Inputs) -> tuple[Tensor, list[Tensor] | None]:
    """The field at the start, (B, D), and the tensors outside the arguments that a gradient may be wanted for.

    None instead of the tensors means that there is nothing to differentiate.
    """

    def start() -> Tensor:
        return plan.field(plan.times[0], inputs.y0.detach(), [c.detach() for c in inputs.controls])

    if not torch.is_grad_enabled():
        return start(), None
    k1, read = watch(start)
    arguments = [inputs.y0, inputs.times, *inputs.controls]
    known = {id(t) for t in arguments}
    externals = {id(t): t for t in [*read, *owned_leaves(plan.field.field)] if id(t) not in known}
    nothing = not externals and not any(t.requires_grad for t in arguments)
    return k1, None if nothing else list(externals.values())


def checkpoint_solve(
    backend: Backend, plan: Plan, inputs: Inputs, policy: Checkpoint
) -> tuple[Tensor, Tensor | None, Forward]:
    """Solves with the exact discrete adjoint: ys (T, B, D) and dense coefficients with their graph, and the rest.

    Without anything to differentiate nothing is recorded.
    """
    k1, externals = start_of(plan, inputs)
    if externals is None:
        with torch.no_grad():
            result = backend.forward(plan, inputs.y0.detach().contiguous(), inputs.controls, k1, None)
        return result.ys, None if result.dense is None else result.dense.coefs, result
    return _CheckpointSolve.apply(
        backend, plan, policy, k1, len(inputs.controls), inputs.y0, inputs.times, *inputs.controls, *externals
    )
