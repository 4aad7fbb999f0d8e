"""``odeint_event``: solves that end at an event, with gradients to its time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastode.dropin.adjoint import odeint_adjoint
from fastode.dropin.compiled import outside_of_graphs
from fastode.dropin.crossing import differentiable
from fastode.dropin.functions import SolverEvent, SolverFunction, flatten, unflatten
from fastode.dropin.odeint import odeint
from fastode.dropin.times import carry
from fastode.hostflags import may_vary


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
            One that is zero at the start counts as an event there, and so does becoming NaN. Signs are compared at the
            ends of steps: of two changes within one step nothing is seen, and ``options={"max_step": ...}`` makes steps
            short enough. Time and state at the event do not depend on units: the time is found to a few roundings of
            the clock, which is float64 whatever the dtype of the state.
        reverse_time: whether to solve backward in time.
        odeint_interface: ``odeint``, ``odeint_adjoint`` or a function with the same interface.
        **kwargs: further arguments of that function.

    Returns:
        The time of the event, 0-d, and the solution (2, *y0.shape) at the start and at the event.
    """
    start = t0.reshape(-1)
    ahead = start.detach().abs().clamp_min(1.0)  # only the direction counts; 1 later is the same time where t0 is large
    t = torch.cat([start, start.detach() + (-ahead if reverse_time else ahead)])
    event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    if not torch.is_grad_enabled():
        return event_t, solution
    shapes = None if isinstance(y0, Tensor) else tuple(part.shape for part in y0)
    slope = SolverFunction(func, shapes, False)
    last = solution[-1] if shapes is None else flatten([part[-1] for part in solution])
    if _gives_derivatives(odeint_interface):
        state = carry(slope, event_t.detach(), event_t, last) if may_vary(event_t) else last
    else:
        event = SolverEvent(event_fn, t[0].detach(), y0, shapes, False)
        event_t, state = differentiable(slope, event, event_t.detach(), last)
    if shapes is None:
        return event_t, torch.cat([solution[:-1], state[None]])
    parts = unflatten(state, (), shapes)
    return event_t, tuple(torch.cat([s[:-1], part[None].to(s.dtype)]) for s, part in zip(solution, parts, strict=True))


def _gives_derivatives(interface: Callable[..., Any]) -> bool:
    """Whether a function with the interface of ``odeint`` is known to give the time of an event its derivatives."""
    while isinstance(interface, partial):
        interface = interface.func
    return interface in (odeint, odeint_adjoint)
