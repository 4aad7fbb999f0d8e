"""``odeint`` with torchdiffeq's signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastode.dropin import batched, programs, torch_engine
from fastode.dropin.arguments import Arguments, check
from fastode.dropin.compiled import outside_of_graphs
from fastode.dropin.crossing import with_time_gradient
from fastode.dropin.methods import is_implicit
from fastode.hostflags import differentiation_hidden


@outside_of_graphs
def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> Any:
    """Solves dy/dt = func(t, y) with y(t[0]) = y0; a drop-in for ``torchdiffeq.odeint``.

    Gradients reach y0, t and every tensor that ``func`` depends on, and can be differentiated again.

    Args:
        func: ``func(t, y)``, t a 0-d tensor in the real dtype of y, or, while a program is recorded, one time per
            sample as (n, 1, ..., 1); returns dy/dt, shaped like y.
        y0: a tensor of any shape, floating or complex, or a tuple of tensors.
        t: (T,), floating, strictly increasing or decreasing; t[0] is the initial time.
        rtol: relative tolerance: a number, a tensor that broadcasts to y0, or for a tuple one for each part.
        atol: absolute tolerance, likewise, in units of y.
        method: a key of ``fastode.compat.torchdiffeq.SOLVERS``; ``"dopri5"`` by default.
        options: of the method, as torchdiffeq documents them. Besides, for every method ``step_control``:
            ``"batch"`` is torchdiffeq's, one step size for the whole state. ``"per_sample"`` takes the leading
            dimension as samples, each with a step size of its own. ``"auto"``, the default, is per sample where the
            function is proven to treat the rows alike and apart and no option refers to the whole state, and else
            batch.
        event_fn: ``event_fn(t, y)``; the solve ends where it changes its sign from one step's end to the next's. t then
            has two entries, of which the second only tells the direction.

    Returns:
        Solution (T, *y0.shape), or a tuple of such. With ``event_fn`` a pair: the time of the event, 0-d, and the
        solution (2, *y0.shape) at the start and at the event. The time is differentiable; the state at the event has
        its derivatives for a fixed time, as in torchdiffeq, and ``odeint_event`` adds what the time contributes.

    Raises:
        ValueError: an unknown method, or options that exclude each other.
        AssertionError: y0 that is neither tensor nor tuple; t that is not one-dimensional and strictly monotone.
        TypeError: a state or times that are not floating.
        OdeintError: the solve failed; an ``AssertionError`` and a ``fastode.SolveError`` that names the samples.
    """
    args = check(func, y0, t, rtol, atol, method, options, event_fn)
    return run(args) if event_fn is None else with_time_gradient(args, run(args))


def run(args: Arguments) -> Any:
    """The result of ``odeint`` for checked arguments; the time of an event is without graph."""
    control = args.step_control
    if args.event_fn is not None:
        if control == "per_sample":
            raise ValueError("step_control='per_sample' does not go with event_fn; use fastode.solve(events=...)")
        return torch_engine.integrate_until_event(args)
    if control == "per_sample":
        return batched.per_sample(args)
    if differentiation_hidden():
        return batched.under_transforms(args) if batched.can_run(args) else torch_engine.integrate(args)
    solution = batched.implicit(args) if is_implicit(args.solver_class) else by_program(args)
    return torch_engine.integrate(args) if solution is None else solution


def by_program(args: Arguments) -> Any:
    """The result of ``odeint`` from a backend that executes programs, or None if there is none that can.

    With ``step_control="batch"`` only of fixed steps: kernels may shrink the step after one that was accepted, which
    torchdiffeq does not.
    """
    if not programs.can_run(args) or (args.step_control == "batch" and programs.is_adaptive(args.solver_class)):
        return None
    try:
        found = programs.per_sample(args)
        return programs.whole_state(args) if found is None else found
    except programs.NeverHere:
        return None
