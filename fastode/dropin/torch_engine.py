"""Solves by the step-by-step solvers: any function, state, option and event; made of torch operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastode.dropin.arguments import Arguments


def integrate(args: Arguments) -> Any:
    """The states (T, *state), in the form of y0."""
    flat = args.flat_state()
    if flat.numel() == 0:
        return args.restore(flat.expand(args.t.shape[0], *flat.shape).clone())
    return args.restore(args.solver().integrate(args.solver_times()))


def integrate_until_event(args: Arguments) -> tuple[Tensor, Any]:
    """The time of the event, 0-d in the dtype of t, and the states (2, *state) at the start and there."""
    event = args.solver_event()
    event_t, solution = args.solver().integrate_until_event(args.solver_times()[0], event)
    event_t = event_t.to(args.t)
    return -event_t if args.backward else event_t, args.restore(solution)
