"""The autograd node of ``gradient="checkpoint"``: any backend's forward solve, and its discrete adjoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastode.backends.base import Backend, Forward
from fastode.checkpoint import Checkpoint
from fastode.externals import Externals, owned_tensors, watch
from fastode.problem import Inputs, Plan
from fastode.status import Status
from fastode.vjp import FieldVjp


def once_only(gradient: str) -> Callable[[Callable[..., tuple[Any, ...]]], Callable[..., tuple[Any, ...]]]:
    """Marks a backward pass, which has no derivative itself: to ask for one raises ``RuntimeError``.

    ``once_differentiable`` would raise only where the incoming gradient requires grad, and leave a loss like
    ``ys.sum() + y0.square().sum()`` with a part of its second derivative. Expects the inputs in ``ctx.sources``.
    """

    def decorate(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        def marked(ctx: Any, *incoming: Any) -> tuple[Any, ...]:
            if any(isinstance(grad, Tensor) and _is_batched(grad) for grad in incoming):
                raise RuntimeError(f"the gradient of gradient={gradient!r} cannot be vmapped; use gradient='backprop'")
            with torch.no_grad():
                grads = backward(ctx, *incoming)
            if not torch.is_grad_enabled():
                return grads
            found = [grad for grad in grads if grad is not None]
            sources = [t for t in (*ctx.sources, *incoming) if isinstance(t, Tensor) and t.requires_grad]
            guarded = iter(_OnceOnly.apply(gradient, len(found), *found, *sources))
            return tuple(None if grad is None else next(guarded) for grad in grads)

        return marked

    return decorate


def _is_batched(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


class _OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: str, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.gradient = gradient
        return tuple(tensor.view_as(tensor) for tensor in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"gradient={ctx.gradient!r} can be differentiated only once; use gradient='backprop' for higher derivatives"
        )


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
        controls = [c.detach() for c in tensors[:n_controls]]
        result = backend.forward(plan, y0.detach().contiguous(), controls, k1, policy)
        ctx.backend, ctx.plan, ctx.n_controls = backend, plan, n_controls
        ctx.record, ctx.solved = result.record, result.status == Status.SUCCESS
        ctx.save_for_backward(k1, result.ys if times.requires_grad else None, *tensors[:n_controls])
        ctx.externals = Externals(tensors[n_controls:])
        ctx.sources = (y0, times, *tensors)
        ctx.set_materialize_grads(False)
        return result.ys, None if result.dense is None else result.dense.coefs, result

    @staticmethod
    @once_only("checkpoint")
    def backward(ctx: Any, grad_ys: Tensor | None, grad_coefs: Tensor | None, _: None) -> tuple[Any, ...]:
        k1, ys, *controls = ctx.saved_tensors
        plan: Plan = ctx.plan
        externals = ctx.externals.unchanged()
        needed = ctx.needs_input_grad[7:]
        if grad_ys is None:
            grad_ys = k1.new_zeros(plan.times.shape[0], *k1.shape)
        lam = torch.where(ctx.solved[:, None], grad_ys, 0.0)
        controls_needed = needed[: ctx.n_controls]
        external_wanted = [t for t, flag in zip(externals, needed[ctx.n_controls :], strict=True) if flag]
        vjp = FieldVjp(plan.field, controls_needed, external_wanted)
        grads = ctx.backend.backward(plan, ctx.record, controls, vjp, lam, grad_coefs)
        grad_y0, grad_times = boundary_gradients(
            plan, lambda t, y: plan.field(t, y, controls), k1, ys, lam, grads.y0, ctx.solved
        )
        wanted = iter([*grads.controls, *grads.externals])
        grad_tensors = [next(wanted) if flag else None for flag in needed]
        return None, None, None, None, None, grad_y0, grad_times, *grad_tensors


def boundary_gradients(
    plan: Plan,
    field: Callable[[Tensor, Tensor], Tensor],
    k1: Tensor,
    ys: Tensor | None,
    lam: Tensor,
    a0: Tensor,
    solved: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Gradients by the initial state, (B, D), and, where ys is given, by the output times, (T, B) float64.

    Args:
        plan: the solve.
        field: dy/dt (B, D) at times (B,) float64 and states (B, D).
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

    defined = solved & torch.isfinite(k1).all(1)  # a sample without a step succeeds with any field

    def inner(a: Tensor, slope: Tensor) -> Tensor:
        products = torch.where(a != 0, a * slope, 0.0)  # where nothing comes in, the field may be anything
        return torch.where(defined, products.double().sum(1), 0.0)

    later = zip(lam[1:], plan.times[1:], ys[1:], strict=True)
    grad_times = [-inner(a0, k1)] + [inner(a, field(t, y)) for a, t, y in later]
    return a0 + lam[0], torch.stack(grad_times)


def start_of(plan: Plan, inputs: Inputs) -> tuple[Tensor, list[Tensor] | None]:
    """The field at the start, (B, D), and the tensors outside the arguments that a gradient may be wanted for.

    None instead of the tensors means that there is nothing to differentiate.
    """
    # Detached before watching: an argument counts as read only where the field also holds it by other means. The state
    # is copied, should the field write into it, or ask for its gradient as those of continuous normalizing flows do.
    y0, controls = inputs.y0.detach().clone(), [c.detach() for c in inputs.controls]

    def start() -> Tensor:
        return plan.field(plan.times[0], y0, controls).clone()  # the field may return the same buffer every time

    if not torch.is_grad_enabled():
        return start(), None
    k1, read = watch(start)
    given = {id(t) for t in (y0, *controls)}
    externals = {id(t): t for t in [*read, *owned_tensors(plan.field.field)] if id(t) not in given}
    nothing = not externals and not any(t.requires_grad for t in [inputs.y0, inputs.times, *inputs.controls])
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
