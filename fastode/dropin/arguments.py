"""Arguments of ``odeint`` checked, with torchdiffeq's errors, and in the form that solvers take."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastode.backends.implicit.forward import FIXED_ITERS
from fastode.dropin.functions import CALLBACKS, SolverEvent, SolverFunction, flatten, no_callback, separate, unflatten
from fastode.dropin.methods import OWN, SOLVERS, is_implicit, known_options, takes_grid
from fastode.dropin.norms import mixed_norm, rms_norm
from fastode.dropin.solvers import regular_grid
from fastode.tracers import check_device, check_memory

STEP_CONTROLS = ("auto", "batch", "per_sample")
_CONSTANT = ("first_step", "min_step", "max_step", "step_t", "safety", "ifactor", "dfactor")
"""Options of adaptive methods, by which there is no gradient."""


@dataclass(frozen=True)
class Arguments:
    """A solve as the user asked for it.

    Attributes:
        func: ``func(t, y)``.
        y0: a tensor, or a tuple of tensors.
        t: (T,), on the device of y0.
        rtol: as given.
        atol: as given.
        method: a key of ``SOLVERS``.
        options: of the solver, only those that it knows if it is one of fastode's.
        event_fn: ``event_fn(t, y)``, or None.
        shapes: of the parts of y0 where it is a tuple, else None.
        backward: whether t decreases.
        step_control: one of ``STEP_CONTROLS``.
    """

    func: Callable[..., Any]
    y0: Any
    t: Tensor
    rtol: Any
    atol: Any
    method: str
    options: dict[str, Any]
    event_fn: Callable[..., Any] | None
    shapes: tuple[torch.Size, ...] | None
    backward: bool
    step_control: str

    @property
    def solver_class(self) -> Any:
        """The class of the method."""
        return SOLVERS[self.method]

    @property
    def is_own(self) -> bool:
        """Whether the method is one of fastode's, and none that a user has put into ``SOLVERS``."""
        return OWN.get(self.method) is self.solver_class

    def replace(self, **changes: Any) -> Arguments:
        """A copy with changes; those of t are of its graph only."""
        made = replace(self, **changes)
        known = vars(self).get("grid")
        if known is not None and not known.requires_grad and "options" not in changes:
            vars(made)["grid"] = known  # a user's constructor is called once
        return made

    @property
    def callbacks(self) -> set[str]:
        """Names of the callbacks that the function has."""
        return {name for name in CALLBACKS if getattr(self.func, name, no_callback) is not no_callback}

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors of the state."""
        return (self.y0,) if self.shapes is None else self.y0

    @property
    def tolerances(self) -> tuple[tuple[str, Any], tuple[str, Any]]:
        """The tolerances with their names."""
        return ("rtol", self.rtol), ("atol", self.atol)

    @property
    def shapes_of_row(self) -> list[torch.Size]:
        """Shapes of the parts without the leading dimension."""
        return [part.shape[1:] for part in self.parts]

    def flat_state(self) -> Tensor:
        """The state as solvers hold it."""
        return self.y0 if self.shapes is None else flatten(self.y0)

    def restore(self, solution: Tensor) -> Any:
        """States (T, *state) of a solver in the form of y0."""
        return solution if self.shapes is None else separate(solution, solution.shape[:1], self.shapes)

    @cached_property
    def grid(self) -> Tensor | None:
        """Points of a fixed grid in the user's time, with their graph; None where the grid is t. Computed once."""
        step_size, constructor = self.options.get("step_size"), self.options.get("grid_constructor")
        if constructor is not None:
            return constructor(self.solver_function(), self.flat_state(), self.t)
        if step_size is None:
            return None
        points = regular_grid(self.solver_times(), step_size)
        return -points if self.backward else points

    @property
    def steps_vary(self) -> bool:
        """Whether options make steps functions of tensors other than t that require grad."""
        if not torch.is_grad_enabled():
            return False
        given = [self.options.get("jump_t")]
        if self.is_own and takes_grid(self.solver_class):
            apart = self.replace(t=self.t.detach()) if self.t.requires_grad else self
            given.append(apart.grid)
        return any(isinstance(x, Tensor) and x.requires_grad for x in given)

    def solver_times(self) -> Tensor:
        """Times as solvers see them, increasing."""
        return -self.t if self.backward else self.t

    def solver_function(self) -> SolverFunction:
        """The function as solvers call it."""
        return SolverFunction(self.func, self.shapes, self.backward)

    def solver_event(self) -> SolverEvent:
        """The event as solvers call it."""
        assert self.event_fn is not None
        return SolverEvent(self.event_fn, self.t[0], self.y0, self.shapes, self.backward)

    def solver_options(self) -> dict[str, Any]:
        """Options as the method's class takes them."""
        options = dict(self.options)
        shapes = self.shapes
        norm = options.get("norm", rms_norm if shapes is None else mixed_norm)
        options["norm"] = norm if shapes is None else lambda flat: norm(unflatten(flat, (), shapes))
        if self.backward:
            for name in ("step_t", "jump_t"):
                if options.get(name) is not None:
                    options[name] = -torch.as_tensor(options[name])
            constructor = options.get("grid_constructor")
            if constructor is not None:
                options["grid_constructor"] = lambda func, y0, t: -constructor(func, y0, -t)
        if self.is_own and options.get("grid_constructor") is not None and options.get("step_size") is None:
            points = self.grid
            assert points is not None
            options["grid_constructor"] = lambda func, y0, t: -points if self.backward else points
        return options

    def solver(self) -> Any:
        """An instance of the method's class, ready for ``integrate``."""
        rtol, atol = (flat_tolerance(name, tol, self.shapes) for name, tol in self.tolerances)
        func, y0 = self.solver_function(), self.flat_state()
        return self.solver_class(func=func, y0=y0, rtol=rtol, atol=atol, **self.solver_options())


def flat_tolerance(name: str, tol: Any, shapes: tuple[torch.Size, ...] | None) -> Any:
    """A tolerance for the state as solvers hold it: of a tuple there may be one for each part.

    Raises:
        AssertionError: several tolerances, but not one for each part.
    """
    if shapes is None or not is_several(tol):
        return tol
    parts = tolerances_of_parts(name, tol, shapes)
    return torch.cat([torch.as_tensor(part).expand(shape.numel()) for part, shape in zip(parts, shapes, strict=True)])


def is_several(tol: Any) -> bool:
    """Whether a tolerance is a sequence of them."""
    return tol.ndim > 0 if isinstance(tol, Tensor) else hasattr(tol, "__iter__")


def tolerances_of_parts(name: str, tol: Any, shapes: tuple[torch.Size, ...]) -> list[Any]:
    """One tolerance for each part of a tuple.

    Raises:
        AssertionError: several tolerances, but not one for each part.
    """
    parts = list(tol) if is_several(tol) else [tol] * len(shapes)
    if len(parts) != len(shapes):
        raise AssertionError(f"If using tupled {name} it must have the same length as the tuple y0")
    return parts


def check_times(t: Any) -> None:
    """Raises unless t is a floating tensor (T,), strictly increasing or decreasing.

    Raises:
        AssertionError: no tensor, not one-dimensional, or not strictly monotone.
        TypeError: not floating.
    """
    if not isinstance(t, Tensor):
        raise AssertionError("t must be a torch.Tensor")
    if not t.is_floating_point():
        raise TypeError(f"`t` must be a floating point Tensor but is a {t.type()}")
    if t.ndim != 1:
        raise AssertionError("t must be one dimensional")
    known = t.tolist()
    if not known:
        raise AssertionError("t must have at least one entry")
    steps = list(pairwise(known))
    if not (all(a < b for a, b in steps) or all(a > b for a, b in steps)):
        raise AssertionError("t must be strictly increasing or decreasing")


def check(
    func: Callable[..., Any],
    y0: Any,
    t: Any,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: dict[str, Any] | None,
    event_fn: Callable[..., Any] | None,
) -> Arguments:
    """Checks the arguments of ``odeint``.

    Raises:
        ValueError: an unknown method, more or less than two times with an event, or options that require grad though
            no gradient by them is taken.
        AssertionError: y0 that is neither tensor nor tuple, bad times, tolerances that require grad.
        TypeError: times that are not floating, a state that is neither floating nor complex.
    """
    if event_fn is not None and len(t) != 2:
        raise ValueError(f"We require len(t) == 2 when in event handling mode, but got len(t)={len(t)}.")
    shapes = None
    if not isinstance(y0, Tensor):
        if not isinstance(y0, tuple) or not y0:
            raise AssertionError("y0 must be either a torch.Tensor or a tuple")
        for part in y0:
            if not isinstance(part, Tensor):
                raise TypeError(f"the parts of y0 must be tensors, got {type(part).__name__}")
        shapes = tuple(part.shape for part in y0)
        for name, tol in (("rtol", rtol), ("atol", atol)):
            tolerances_of_parts(name, tol, shapes)
    for part in (y0,) if shapes is None else y0:
        check_memory(part, "y0")
        check_device(part, "y0")
        if not (part.is_floating_point() or part.is_complex()):
            raise TypeError(f"`y0` must be a floating point or complex Tensor but is a {part.type()}")
        if part.layout is not torch.strided:
            raise TypeError(f"`y0` must be a dense Tensor but its layout is {part.layout}; y0.to_dense() is")
    method = "dopri5" if method is None else method
    if method not in SOLVERS:
        names = '", "'.join(SOLVERS)
        raise ValueError(f'Invalid method "{method}". Must be one of {{"{names}"}}.')
    check_times(t)
    for name, tol in (("rtol", rtol), ("atol", atol)):
        if isinstance(tol, Tensor) and tol.requires_grad:
            raise AssertionError(f"{name} cannot require gradient")
    device = (y0 if shapes is None else y0[0]).device
    if t.device != device:
        warnings.warn("t is not on the same device as y0. Coercing to y0.device.", stacklevel=4)
        t = t.to(device)
    options = dict(options or {})
    step_control = options.pop("step_control", "auto")
    if step_control not in STEP_CONTROLS:
        raise ValueError(f"step_control must be one of {STEP_CONTROLS}, got {step_control!r}")
    backward = t.shape[0] > 1 and bool(t[0] > t[1])
    args = Arguments(func, y0, t, rtol, atol, method, options, event_fn, shapes, backward, step_control)
    if args.is_own:
        _drop_unknown(args)
        if is_implicit(args.solver_class) and args.options.get("max_iters", FIXED_ITERS) < FIXED_ITERS:
            warnings.warn(
                f"max_iters={args.options['max_iters']} is no limit here: the equations of a step are solved to "
                f"rounding, by up to {FIXED_ITERS} iterations of Newton's method",
                stacklevel=4,
            )
        for name in _CONSTANT:
            value = args.options.get(name)
            if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
                raise ValueError(
                    f"options[{name!r}] requires grad, but steps that are chosen by their error are constants of the "
                    f"gradient; pass {name}.detach()"
                )
    unsupported = args.callbacks - args.solver_class.valid_callbacks()
    if unsupported:
        warnings.warn(f"Solver '{method}' does not support callbacks {unsupported}", stacklevel=4)
    return args


_known_options = lru_cache(maxsize=64)(known_options)


def _drop_unknown(args: Arguments) -> None:
    """Warns about options that the solver does not know, and leaves them out."""
    if not args.options:
        return
    unknown = {key: value for key, value in args.options.items() if key not in _known_options(args.solver_class)}
    for key in unknown:
        del args.options[key]
    if unknown:
        warnings.warn(f"{args.solver_class.__name__}: Unexpected arguments {unknown}", stacklevel=5)
