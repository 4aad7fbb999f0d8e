"""Solves by the backends that execute programs: the function recorded once, the whole solve in one call.

Two readings of ``func(t, y)`` are tried. First that the leading dimension of the state counts samples that the function
treats alike and apart; recording it at two batch sizes proves that or refuses, and each sample then has steps of its
own. Otherwise the whole state is one sample, and ``torch.vmap`` of the function has a program that treats samples
apart.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastode.backends.choose import choose
from fastode.checkpoint import Checkpoint
from fastode.controllers import IController
from fastode.dropin.arguments import Arguments, tolerances_of_parts
from fastode.dropin.failure import OdeintError
from fastode.dropin.functions import like_state
from fastode.dropin.methods import is_adaptive, is_fixed, is_implicit
from fastode.dropin.norms import mixed_norm, rms_norm
from fastode.fused import program_solve
from fastode.problem import Inputs, Plan, make_problem
from fastode.program.capture import Capture, capture_field
from fastode.program.evaluate import evaluate
from fastode.tree import tree_map

_CONTROL = {
    "safety": "safety",
    "ifactor": "max_factor",
    "dfactor": "min_factor",
    "max_step": "max_step",
    "first_step": "first_step",
}
_LARGEST_WHOLE_STATE = 512
"""Entries of a state up to which it is tried as one sample: a program is written out entry by entry."""
FLOATS = (torch.float32, torch.float64)
_MANY_STEPS = 2**62


class NotHere(Exception):  # noqa: N818 - not an error: another solver takes over
    """This solve is none for programs."""


class NeverHere(Exception):  # noqa: N818 - likewise
    """Nor is it under any other reading of the function: its numbers are others at every solve."""


def per_sample(args: Arguments) -> Any:
    """The states (T, *state) with one step size per sample, or None if that cannot be.

    Raises:
        NeverHere: it need not be tried in another way.
        OdeintError: samples failed.
    """
    lengths = {part.shape[:1] for part in args.parts}
    if len(lengths) != 1 or lengths == {torch.Size([])}:
        return None
    try:
        rtol, atol = tolerances_of_rows(args)
    except NotHere:
        return None
    # With a time for each sample, and where the function wants one of no dimension, of single rows under vmap.
    for called_with_times in (True, False):
        if called_with_times:
            field = args.func if args.shapes is None else functools.partial(returning_tuple, args.func)
        elif _rows_are_apart(args):
            field = functools.partial(on_single_rows, args.func)
        else:
            return None
        with suppress(NotHere):
            return _solve(args, field, args.y0, rtol, atol, lambda ys: ys, OdeintError)
    return None


def rows_field(args: Arguments) -> Callable[..., Any] | None:
    """The function of rows apart, of whatever kind its time is; None if it does not treat them so."""
    if len({part.shape[:1] for part in args.parts}) != 1 or args.parts[0].ndim == 0 or not _rows_are_apart(args):
        return None
    return functools.partial(on_single_rows, args.func)


def _rows_are_apart(args: Arguments) -> bool:
    """Whether the function treats the rows of the state alike and apart at a fixed time, and so at any."""
    field = functools.partial(_at_fixed_time, args.func)
    plan, inputs = make_problem(field, args.y0, args.t.detach(), None, "dopri5", 1.0, 1.0, None, None, 1, False)
    found, _ = capture_field(plan.field, plan.times, inputs.y0, inputs.controls)
    return isinstance(found, Capture)


def _at_fixed_time(func: Callable[..., Any], t: Tensor, y: Any) -> Any:
    """The function at a time that is a constant."""
    value = func(torch.full((), 0.5, dtype=t.dtype, device=t.device), y)
    return value if isinstance(y, Tensor) else tuple(value)


def on_single_rows(func: Callable[..., Any], t: Tensor, y: Any) -> Any:
    """The function on n rows, each by itself as a state of one row; t (n, 1, ..., 1) and y (n, *state)."""

    def call(t: Tensor, row: Any) -> Any:
        value = func(t, tree_map(lambda part: part[None], row))
        return tree_map(lambda part: part[0], value if isinstance(row, Tensor) else tuple(value))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some operation is slow under vmap; it is recorded once
        return torch.vmap(call)(t.reshape(t.shape[0]), y)


def whole_state(args: Arguments) -> Any:
    """The states (T, *state) with one step size for everything, or None if that cannot be."""
    if sum(part.numel() for part in args.parts) > _LARGEST_WHOLE_STATE:
        return None
    if args.shapes is not None and is_adaptive(args.solver_class):
        return None  # the norm of a tuple is the largest of its parts', which no kernel computes
    field = functools.partial(on_whole_states, args.func)
    y0 = tree_map(lambda part: part[None], args.y0)
    try:
        rtol, atol = tolerances_of_whole(args)
        return _solve(args, field, y0, rtol, atol, lambda ys: tree_map(lambda part: part[:, 0], ys), None)
    except NotHere:
        return None


def returning_tuple(func: Callable[..., Any], t: Tensor, y: Any) -> Any:
    """The function with its value as a tuple, whatever kind of sequence it returns."""
    return tuple(func(t, y))


def on_whole_states(func: Callable[..., Any], t: Tensor, y: Any) -> Any:
    """The function on n whole states, t (n, 1, ..., 1) and y (n, *state)."""
    n = t.shape[0]
    t = t.reshape(n)

    def call(t: Tensor, y: Any) -> Any:
        return like_state(func(t, y), y)

    if n == 1:
        return tree_map(lambda part: part[None], call(t[0], tree_map(lambda part: part[0], y)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some operation is slow under vmap; it is recorded once
        return torch.vmap(call)(t, y)


def can_run(args: Arguments) -> bool:
    """Whether kernels can do what is asked for, whatever the function."""
    solver = args.solver_class
    if not args.is_own or args.callbacks or args.event_fn is not None or args.t.shape[0] < 2:
        return False
    first = args.parts[0]
    if first.dtype not in FLOATS or any(part.dtype != first.dtype or part.numel() == 0 for part in args.parts):
        return False
    if is_adaptive(solver):
        return has_only(args, _ADAPTIVE)
    return is_fixed(solver) and is_plain_grid(args)


_Allowed = dict[str, Callable[[Arguments, Any], bool]]


def has_only(args: Arguments, allowed: _Allowed) -> bool:
    """Whether all options that are given are among the allowed ones, with values that are allowed."""
    return all(value is None or (key in allowed and allowed[key](args, value)) for key, value in args.options.items())


def _positive(args: Arguments, value: Any) -> bool:
    return bool(value > 0)


def _anything(args: Arguments, value: Any) -> bool:
    return True


def _no(args: Arguments, value: Any) -> bool:
    return not value


_ADAPTIVE: _Allowed = {
    "norm": lambda args, norm: norm is (rms_norm if args.shapes is None else mixed_norm),
    "first_step": _positive,
    "min_step": _no,
    "max_step": _positive,
    "safety": _positive,
    "ifactor": _positive,
    "dfactor": _positive,
    "max_num_steps": _positive,
    "dtype": _anything,  # of the times that callbacks and events get, and here are none
}
"""Options of adaptive methods that kernels, ``solve`` and their gradients obey, by what must hold of their values."""
_GRID: _Allowed = {
    "norm": _anything,  # of no use to fixed steps, and no error in torchdiffeq
    "step_size": _anything,
    "grid_constructor": _anything,
    "interp": lambda args, interp: interp == "linear" or (interp == "cubic" and args.grid is None),
    "perturb": _no,
}
"""Likewise of explicit and implicit methods on fixed grids."""
_IMPLICIT: _Allowed = {**_GRID, "max_iters": _anything}


def is_plain_grid(args: Arguments) -> bool:
    """Whether the points of a fixed grid, and outputs linearly between them, are all that the options ask for.

    Points that depend on tensors that require grad, t among them, are left to the step-by-step solvers.
    """
    options = args.options
    if options.get("step_size") is not None and options.get("grid_constructor") is not None:
        return False  # an error, which those solvers raise
    varying = torch.is_grad_enabled() and args.t.requires_grad
    allowed = _IMPLICIT if is_implicit(args.solver_class) else _GRID
    return not varying and has_only(args, allowed) and not args.steps_vary


def tolerances_of_rows(args: Arguments) -> tuple[Any, Any]:
    """Rtol and atol for one sample.

    Of a tuple every part gets sqrt(entries of the part / entries of all): an error ratio of at most 1 over all entries
    then means at most 1 in each part, which is what torchdiffeq demands of them.
    """
    if args.shapes is None:
        return _of_row(args.rtol, args.shapes_of_row[0]), _of_row(args.atol, args.shapes_of_row[0])
    return _scaled(args, args.shapes_of_row, _of_row)


def tolerances_of_whole(args: Arguments) -> tuple[Any, Any]:
    """Rtol and atol for the whole state; of a tuple as in ``tolerances_of_rows``."""
    if args.shapes is None:
        rtol, atol = (tol if isinstance(tol, Tensor) and tol.ndim else float(tol) for tol in (args.rtol, args.atol))
        return rtol, atol
    return _scaled(args, args.shapes, lambda tol, shape: tol if isinstance(tol, Tensor) else float(tol))


def _scaled(args: Arguments, shapes: Sequence[torch.Size], read: Callable[[Any, torch.Size], Any]) -> tuple[Any, Any]:
    sizes = [shape.numel() for shape in shapes]
    scales = [math.sqrt(size / max(sum(sizes), 1)) for size in sizes]
    found = []
    for name, tol in (("rtol", args.rtol), ("atol", args.atol)):
        parts = tolerances_of_parts(name, tol, args.shapes or ())
        found.append(tuple(read(p, s) * w for p, s, w in zip(parts, shapes, scales, strict=True)))
    return found[0], found[1]


def _of_row(tol: Any, shape: torch.Size) -> Any:
    """A tolerance that broadcasts to (B, *shape) as one for (*shape)."""
    if not isinstance(tol, Tensor):
        return float(tol)
    if tol.ndim <= len(shape):
        return float(tol) if tol.ndim == 0 else tol
    if tol.shape[0] == 1:
        return tol[0]
    raise NotHere


def controller(args: Arguments) -> IController | None:
    """Step control with the options' constants; None for the default, and for fixed steps.

    Raises:
        NotHere: constants that a controller refuses.
    """
    options = args.options
    if not is_adaptive(args.solver_class):
        return None
    known = {theirs: options.get(theirs) for theirs in _CONTROL}
    given = {_CONTROL[theirs]: float(value) for theirs, value in known.items() if value is not None}
    try:
        return IController(**given) if given else None
    except ValueError:  # values that only torchdiffeq's formulas allow
        raise NotHere from None


def max_steps(args: Arguments) -> int:
    """Limit on the steps of the whole solve, from the one on the steps between two outputs."""
    each = args.options.get("max_num_steps")
    return _MANY_STEPS if each is None else int(each) * (args.t.shape[0] - 1)


def grid(args: Arguments) -> tuple[Tensor, Any]:
    """Times for ``solve``, and how to read the outputs (T, ...) from its states, None if they are the outputs.

    Methods without step control step from each of these times to the next.
    """
    t = args.t
    points = None if is_adaptive(args.solver_class) else args.grid
    if points is None:
        return t, None
    return points.detach(), functools.partial(_read, points.tolist(), t.tolist())


def _read(points: list[float], wanted: list[float], ys: Tensor) -> Tensor:
    """States at the wanted times, linearly between those at the points of the grid."""
    if points[0] != wanted[0] or points[-1] != wanted[-1]:
        raise AssertionError("the grid must begin and end where t does")
    sign = 1.0 if points[-1] > points[0] else -1.0
    after, weights, j = [], [], 0
    for t in wanted:
        while sign * points[j] < sign * t:
            j += 1
        after.append(j)
        weights.append(1.0 if points[j] == t else (t - points[j - 1]) / (points[j] - points[j - 1]))
    exact = all(weight == 1.0 for weight in weights)
    late = ys[after]
    if exact:
        return late
    early = ys[[max(j - 1, 0) for j in after]]
    weight = torch.tensor(weights, dtype=ys.dtype, device=ys.device).reshape(-1, *[1] * (ys.ndim - 1))
    return torch.where(weight == 1.0, late, early + weight * (late - early))


def _solve(
    args: Arguments,
    field: Callable[..., Any],
    y0: Any,
    rtol: Any,
    atol: Any,
    restore: Callable[[Any], Any],
    failure: type[OdeintError] | None,
) -> Any:
    times, read = grid(args)
    plan, inputs = make_problem(
        field, y0, times, None, args.solver_class.method, rtol, atol, None, controller(args), max_steps(args), False
    )
    choice = choose("auto", plan, inputs)
    if choice.refusal is not None and choice.refusal.numbers_change:
        raise NeverHere
    if (
        choice.programs is None
        or choice.capture is None
        or not _same_as_called(args, choice.capture, choice.tensors, plan, inputs)
    ):
        raise NotHere
    ys, _, result = program_solve(choice.programs, plan, inputs, choice.capture, choice.tensors, Checkpoint())
    if result.failed:
        if failure is None or not is_adaptive(args.solver_class):
            raise NotHere  # the step-by-step solver returns the infinities of fixed steps, or finds the rows at fault
        raise failure(result.status, result.reached)
    ys = plan.field.state.separate(ys if read is None else read(ys))
    return restore(ys)


_called: WeakKeyDictionary[Capture, bool] = WeakKeyDictionary()


def _same_as_called(args: Arguments, capture: Capture, tensors: Sequence[Tensor], plan: Plan, inputs: Inputs) -> bool:
    """Whether the program has the values of the function called as torchdiffeq does, with a time of no dimension.

    Compared once for each program, at a time inside the solve.
    """
    known = _called.get(capture)
    if known is not None:
        return known
    spec, batch = plan.field.state, plan.batch
    t = (0.382 * plan.times[0, 0] + 0.618 * plan.times[-1, 0]).to(spec.dtype)
    with torch.no_grad():
        held = tree_map(lambda part: part.detach().clone(), args.y0)
        try:
            value = like_state(args.func(t, held), held)
        except Exception:  # the step-by-step solver calls it in the same way, and lets the user see the error
            return False
        if field_is_whole(plan):
            value = tree_map(lambda part: part[None], value)
        actual = spec.flatten(value, "the value", batch)
        shared, sample = capture.leaves(tensors, [], batch)
        expected = evaluate(capture.program, t.expand(batch), inputs.y0.detach(), shared, sample)
    bound = 1e-4 if spec.dtype == torch.float32 else 1e-9
    scale = float(expected.abs().nan_to_num(0.0, 0.0, 0.0).amax())
    same = torch.allclose(actual, expected, rtol=bound, atol=bound * scale, equal_nan=True)
    _called[capture] = same
    return same


def field_is_whole(plan: Plan) -> bool:
    """Whether the plan's field takes the whole state as one sample."""
    return getattr(plan.field.field, "func", None) is on_whole_states
