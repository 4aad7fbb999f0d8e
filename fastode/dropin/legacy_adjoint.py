"""Parts of ``odeint_adjoint`` that programs written for torchdiffeq import, to put together one of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastode.dropin.adjoint import AdjointJob, adjoint_gradients
from fastode.dropin.adjoint_norms import adjoint_norm
from fastode.dropin.arguments import check
from fastode.dropin.crossing import differentiable
from fastode.dropin.norms import Norm
from fastode.dropin.odeint import odeint


def handle_adjoint_norm(adjoint_options: dict[str, Any], shapes: Sequence[torch.Size] | None, state_norm: Norm) -> None:
    """Puts the norm of the adjoint equation into its options, in place.

    Args:
        adjoint_options: may have a ``norm``, as for ``odeint_adjoint``.
        shapes: of the parts where the state is a tuple, else None.
        state_norm: of a state as solvers hold it.
    """
    adjoint_options["norm"] = adjoint_norm(adjoint_options.get("norm"), state_norm, shapes)


class OdeintAdjointMethod(torch.autograd.Function):
    """A solve whose gradient comes from the adjoint equation, for arguments as ``_check_inputs`` returns them.

    ``apply(shapes, func, y0, t, rtol, atol, method, options, event_fn, adjoint_rtol, adjoint_atol, adjoint_method,
    adjoint_options, t_requires_grad, *adjoint_params)`` returns the states (T, *state), or with an event its time, 0-d,
    and the states (2, *state). A subclass may have a ``forward`` that sets the same attributes of ``ctx``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        shapes: Any,
        func: Any,
        y0: Tensor,
        t: Tensor,
        rtol: Any,
        atol: Any,
        method: str,
        options: dict[str, Any],
        event_fn: Any,
        adjoint_rtol: Any,
        adjoint_atol: Any,
        adjoint_method: str,
        adjoint_options: dict[str, Any],
        t_requires_grad: bool,
        *adjoint_params: Tensor,
    ) -> Any:
        ctx.shapes, ctx.func, ctx.t_requires_grad = shapes, func, t_requires_grad
        ctx.adjoint_rtol, ctx.adjoint_atol = adjoint_rtol, adjoint_atol
        ctx.adjoint_method, ctx.adjoint_options = adjoint_method, adjoint_options
        ctx.event_mode = event_fn is not None
        with torch.no_grad():
            found = odeint(func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event_fn)
        if event_fn is None:
            ctx.save_for_backward(t, found, *adjoint_params)
        else:
            event_t, states = found
            ctx.save_for_backward(t, states, event_t, *adjoint_params)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        t, states, *params = ctx.saved_tensors
        event_t = params.pop(0) if ctx.event_mode else None
        with torch.no_grad():
            times = t.detach().requires_grad_(ctx.t_requires_grad)
            args = check(ctx.func, states[0], times, ctx.adjoint_rtol, ctx.adjoint_atol, ctx.adjoint_method, None, None)
            job = AdjointJob(
                args, tuple(params), False, args.rtol, args.atol, args.method, ctx.adjoint_options, event_t=event_t
            )
            by_y0, by_t, *by_params = adjoint_gradients(job, (states,), (grads[-1],))
        return None, None, by_y0, by_t, *[None] * 10, *by_params


class ImplicitFnGradientRerouting:
    """Time and state of an event as functions of all that they depend on; called by ``apply``."""

    apply = staticmethod(differentiable)
