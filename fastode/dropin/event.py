"""``odeint_event``: solves that end at an event, with gradients to its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastode.dropin.adaptive import carry
from fastode.dropin.compiled import outside_of_graphs
from fastode.dropin.functions import SolverEvent, SolverFunction, flatten, unflatten
from fastode.dropin.odeint import odeint

_CORRECTIONS = 2
"""Newton corrections, each of which doubles the order of the derivatives that are exact: 1, then 3."""


@outside_of_graphs
def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Any],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Solves until ``event_fn(t, y)`` changes its sign; a drop-in for ``torchdiffeq.odeint_event``.

    The time of the event is a function of everything that the solution and ``event_fn`` depend on, and differentiable.

    Args:
        func: as for ``odeint``.
        y0: as for ``odeint``.
        t0: the initial time, a tensor of one entry.
        event_fn: of time and state, a tensor of any shape; the first of its entries to change its sign is the event.
            One that is zero at the start counts as an event there.
        reverse_time: whether to solve backward in time.
        odeint_interface: ``odeint``, ``odeint_adjoint`` or a function with the same interface.
        **kwargs: further arguments of that function.

    Returns:
        The time of the event, 0-d, and the solution (2, *y0.shape) at the start and at the event.
    """
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    if not torch.is_grad_enabled():
        return event_t, solution
    shapes = None if isinstance(y0, Tensor) else tuple(part.shape for part in y0)
    event = SolverEvent(event_fn, t[0].detach(), y0, shapes, False)
    last = solution[-1] if shapes is None else flatten([part[-1] for part in solution])
    event_t, state = _differentiable(SolverFunction(func, shapes, False), event, event_t.detach(), last)
    if shapes is None:
        return event_t, torch.cat([solution[:-1], state[None]])
    parts = unflatten(state, (), shapes)
    return event_t, tuple(torch.cat([s[:-1], part[None].to(s.dtype)]) for s, part in zip(solution, parts, strict=True))


def _differentiable(func: SolverFunction, event: SolverEvent, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Time and state of an event with their derivatives; the values stay what they are.

    With c(t, y) the event, dc/dt = c_t + c_y f along the solution, one Newton correction t - (c - c*) / (dc/dt), c* the
    value of c, and the state carried there, have the derivatives of the event's time and state: the implicit function
    theorem.

    Args:
        func: the slope.
        event: the event.
        t: its time, 0-d, without graph.
        y: the state there, with its graph for fixed t.
    """
    for _ in range(_CORRECTIONS):
        with torch.enable_grad():
            here = t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
            state = y.view_as(y)
            if not state.requires_grad:
                state = state.detach().requires_grad_()
            value = event(here, state)
            if not value.requires_grad:
                return t, y
            by_t, by_y = torch.autograd.grad(value, (here, state), create_graph=True, allow_unused=True)
            slope = func(here, state)
            rate = torch.zeros((), dtype=value.dtype, device=value.device)
            if by_t is not None:
                rate = rate + by_t
            if by_y is not None:
                rate = rate + (by_y.conj() * slope).sum().real
            safe = torch.where(rate == 0, torch.inf, rate)  # an event function without slope has no derivative
            level = event(t, y)
            later = t - ((level - level.detach()) / safe).to(t.dtype)
            y = carry(func, t, later, y)
            t = later
    return t, y
