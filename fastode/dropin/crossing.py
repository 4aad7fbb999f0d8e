"""The time of an event, and the state there, as functions of all that they depend on.

With c(t, y) the event, dc/dt = c_t + c_y f along the solution, one Newton correction t - (c - c*) / (dc/dt), c* the
value of c, and the state carried there, have the derivatives of the event's time and state: the implicit function
theorem. The values stay what they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastode.dropin.arguments import Arguments
from fastode.dropin.functions import SolverEvent, SolverFunction, flatten
from fastode.dropin.times import carry
from fastode.hostflags import may_vary

_CORRECTIONS = 2
"""Newton corrections, each of which doubles the order of the derivatives that are exact: 1, then 3."""


def differentiable(func: SolverFunction, event: SolverEvent, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Time and state of an event with their derivatives.

    Args:
        func: the slope, in the user's time.
        event: the event, likewise.
        t: its time, 0-d, without graph.
        y: the state there, with its graph for fixed t.
    """
    time = differentiable_time(func, event, t, y)
    return time, carry(func, t, time, y) if may_vary(time) else y


def differentiable_time(func: SolverFunction, event: SolverEvent, t: Tensor, y: Tensor) -> Tensor:
    """The time alone; see ``differentiable``."""
    for left in reversed(range(_CORRECTIONS)):
        level = event(t, y)
        if not may_vary(level):
            break
        with torch.enable_grad():
            here = t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
            state = y.view_as(y)
            if not state.requires_grad:
                state = state.detach().requires_grad_()
            value = event(here, state)
            by_t, by_y = torch.autograd.grad(value, (here, state), create_graph=True, allow_unused=True)
            slope = func(here, state)
            rate = torch.zeros((), dtype=value.dtype, device=value.device)
            if by_t is not None:
                rate = rate + by_t
            if by_y is not None:
                rate = rate + (by_y.conj() * slope).sum().real
            safe = torch.where(rate == 0, torch.inf, rate)  # an event function without slope has no derivative
            later = t - ((level - level.detach()) / safe).to(t.dtype)
            y = carry(func, t, later, y) if left else y
            t = later
    return t


def with_time_gradient(args: Arguments, result: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """The result of a solve to an event, its time with its derivatives.

    Args:
        args: the solve.
        result: the time, 0-d, and the states at the start and, for a fixed time, at the event.
    """
    if not torch.is_grad_enabled():
        return result
    t, solution = result
    assert args.event_fn is not None
    event = SolverEvent(args.event_fn, args.t[0].detach(), args.y0, args.shapes, False)
    last = solution[-1] if args.shapes is None else flatten([part[-1] for part in solution])
    return differentiable_time(SolverFunction(args.func, args.shapes, False), event, t.detach(), last), solution
