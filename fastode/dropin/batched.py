"""Solves by ``fastode.solve``, for what neither programs nor single steps can do."""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import Any

from fastode.dropin import programs
from fastode.dropin.arguments import Arguments
from fastode.dropin.failure import OdeintError
from fastode.solve import solve
from fastode.status import SolveError
from fastode.tree import tree_map


def can_run(args: Arguments) -> bool:
    """Whether ``solve`` can do what is asked for with the whole state as one sample."""
    return programs.can_run(args) and (args.shapes is None or not programs.is_adaptive(args.solver_class))


def per_sample(args: Arguments) -> Any:
    """The states (T, *state) with one step size per sample, because the user says so.

    Raises:
        ValueError: options that refer to the whole state, or a state without common leading dimension.
        OdeintError: samples failed.
    """
    if not programs.can_run(args):
        raise ValueError(
            "step_control='per_sample' needs an explicit Runge-Kutta method of fastode's, a real state, and no option "
            "that refers to the whole state (norm, min_step, step_t, jump_t, perturb, callbacks, or fixed steps with a "
            "gradient by t)"
        )
    if len({part.shape[:1] for part in args.parts}) != 1 or args.parts[0].ndim == 0:
        raise ValueError("step_control='per_sample' needs a leading dimension that all parts of y0 share")
    try:
        found = programs.per_sample(args)
    except programs.NeverHere:
        found = None
    if found is not None:
        return found
    field = args.func if args.shapes is None else functools.partial(programs.returning_tuple, args.func)
    try:
        rtol, atol = programs.tolerances_of_rows(args)
    except programs.NotHere:
        raise ValueError("step_control='per_sample' needs tolerances that are the same for all samples") from None
    times, read = programs.grid(args)
    return _solve(args, field, args.y0, times, rtol, atol, read, "checkpoint")


def implicit(args: Arguments) -> Any:
    """The states (T, *state) by an implicit method, or None where only single steps will do.

    Newton's method then has a Jacobian for each row of the state, if the function treats rows apart, and else one for
    the whole state.

    Raises:
        OdeintError: the equations of a step could not be solved.
    """
    usual = all(part.dtype in programs.FLOATS and part.numel() > 0 for part in args.parts)
    plain = args.is_own and not args.callbacks and args.event_fn is None and args.t.shape[0] > 1
    if not (usual and plain and programs.is_plain_grid(args)) or len({part.dtype for part in args.parts}) > 1:
        return None
    times, read = programs.grid(args)
    field = programs.rows_field(args)
    if field is not None:
        with suppress(programs.NotHere):
            rtol, atol = programs.tolerances_of_rows(args)
            return _solve(args, field, args.y0, times, rtol, atol, read, "checkpoint")
    field = functools.partial(programs.on_whole_states, args.func)
    rtol, atol = programs.tolerances_of_whole(args)
    y0 = tree_map(lambda part: part[None], args.y0)
    ys = _solve(args, field, y0, times, rtol, atol, read, "checkpoint")
    return tree_map(lambda part: part[:, 0], ys)


def whole_state(args: Arguments) -> Any:
    """The states (T, *state) with one step size for the whole state and a record of the steps; None if it fails.

    The parts of a tuple have tolerances as described at ``programs.tolerances_of_rows``.
    """
    field = functools.partial(programs.on_whole_states, args.func)
    y0 = tree_map(lambda part: part[None], args.y0)
    times, read = programs.grid(args)
    rtol, atol = programs.tolerances_of_whole(args)
    try:
        ys = _solve(args, field, y0, times, rtol, atol, read, "checkpoint")
    except OdeintError:
        return None
    return tree_map(lambda part: part[:, 0], ys)


def under_transforms(args: Arguments) -> Any:
    """The states (T, *state) inside of ``torch.func`` transforms, with one step size for the whole state."""
    field = functools.partial(programs.on_whole_states, args.func)
    y0 = tree_map(lambda part: part[None], args.y0)
    times, read = programs.grid(args)
    ys = _solve(args, field, y0, times, args.rtol, args.atol, read, "backprop")
    return tree_map(lambda part: part[:, 0], ys)


def _solve(args: Arguments, field: Any, y0: Any, times: Any, rtol: Any, atol: Any, read: Any, gradient: Any) -> Any:
    try:
        sol = solve(
            field,
            y0,
            times,
            method=args.solver_class.method,
            rtol=rtol,
            atol=atol,
            controller=programs.controller(args),
            max_steps=programs.max_steps(args),
            gradient=gradient,
        )
    except SolveError as error:
        raise OdeintError(*error._given) from None
    return sol.ys if read is None else tree_map(read, sol.ys)
