"""Base classes of step-by-step solvers, with the interface that torchdiffeq gives its own.

A solver is made from a function, a start and tolerances, and then asked for ``integrate(t)`` with increasing times or
``integrate_until_event(t0, event_fn)``. Whatever it computes is made of torch operations, so that results can be
differentiated to any order. Users derive from these classes and put theirs into ``SOLVERS``.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastode.dropin.functions import Perturb
from fastode.dropin.norms import Norm
from fastode.dropin.roots import find_root
from fastode.tableaus import Tableau, get_tableau

MAX_EVENT_STEPS = 20_000
"""Fixed steps after which the search for an event is given up."""
EVENT_ROUNDINGS = 4
"""Width of an interval at which the time of an event counts as found, in roundings of the clock."""


def warn_unused(solver: object, unused: dict[str, Any]) -> None:
    """Warns about options that a solver does not know."""
    if unused:
        warnings.warn(f"{type(solver).__name__}: Unexpected arguments {unused}", stacklevel=2)


def event_sign(event_fn: Callable[..., Any], t: Tensor, y: Tensor) -> float:
    """The sign of an event, without gradient; NaN, which is another one than any, where the event is NaN."""
    with torch.no_grad():
        value = float(event_fn(t, y))
    return value if math.isnan(value) else float((value > 0) - (value < 0))


def start_sign(event_fn: Callable[..., Any], t: Tensor, y: Tensor) -> float:
    """The sign of an event at the start of a solve.

    Raises:
        ValueError: it is NaN, so that there is no sign to change.
    """
    sign = event_sign(event_fn, t, y)
    if math.isnan(sign):
        raise ValueError(f"event_fn is NaN at the start, t = {float(t):.9g}, so that no change of its sign can be seen")
    return sign


def locate_event(
    state_at: Callable[[Tensor], Tensor], sign0: float, t0: Tensor, t1: Tensor, event_fn: Callable[..., Any]
) -> Tensor:
    """The time in [t0, t1] at which an event changes its sign, from the state between steps. No gradient.

    Found to four roundings of the clock, whatever the units of time and state: torchdiffeq stops at an interval of
    ``atol``, which is in units of the state.

    Args:
        state_at: the state at a time between the two.
        sign0: sign of the event at t0.
        t0: start of a step, 0-d.
        t1: its end, 0-d.
        event_fn: of time and state, one number.
    """
    with torch.no_grad():
        low, high = float(t0.detach()), float(t1.detach())
        tol = EVENT_ROUNDINGS * torch.finfo(t0.dtype).eps * max(abs(low), abs(high))

        def value(t: float) -> float:
            time = torch.tensor(t, dtype=t0.dtype, device=t0.device)
            return float(event_fn(time, state_at(time)))

        root = find_root(value, low, high, sign0, tol)
        return torch.tensor(root, dtype=t0.dtype, device=t0.device)


class AdaptiveStepsizeODESolver(ABC):
    """A solver that chooses its steps and gives the state at any time.

    Args:
        dtype: of the solver's clock.
        y0: the start.
        norm: of errors.
    """

    def __init__(self, dtype: torch.dtype, y0: Tensor, norm: Norm, **unused_kwargs: Any) -> None:
        warn_unused(self, unused_kwargs)
        self.y0 = y0
        self.dtype = dtype
        self.norm = norm

    def _before_integrate(self, t: Tensor) -> None:  # noqa: B027 - not every solver has something to prepare
        """Prepares a solve over the times t."""

    @abstractmethod
    def _advance(self, next_t: Tensor) -> Tensor:
        """The state at a time not before the last one that was asked for."""

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        """Callbacks that the solver calls."""
        return set()

    def integrate(self, t: Tensor) -> Tensor:
        """The states (T, *state) at increasing times (T,)."""
        t = t.to(self.dtype)
        self._before_integrate(t)
        return torch.stack([self.y0, *[self._advance(next_t) for next_t in t[1:]]])


class AdaptiveStepsizeEventODESolver(AdaptiveStepsizeODESolver):
    """An adaptive solver that can stop at an event."""

    @abstractmethod
    def _advance_until_event(self, event_fn: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        """Time and state at which ``event_fn(t, y)`` changes its sign."""

    def integrate_until_event(self, t0: Tensor, event_fn: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        """The time of the event, 0-d, and the states (2, *state) at the start and there."""
        t0 = t0.to(self.y0.device, self.dtype)
        self._before_integrate(t0.reshape(-1))
        event_time, y1 = self._advance_until_event(event_fn)
        return event_time, torch.stack([self.y0, y1])


class FixedGridODESolver(ABC):
    """A solver whose steps lead from one point of a grid to the next. Subclasses say what a step is.

    Args:
        func: ``func(t, y, perturb=...)``, with callbacks as attributes.
        y0: the start.
        step_size: width of the grid, in units of t; the last step is shorter.
        grid_constructor: ``grid_constructor(func, y0, t)`` makes the grid instead, from t[0] to t[-1]. Without either
            the grid is t.
        interp: ``"linear"`` or ``"cubic"``, for times between points of the grid.
        perturb: whether the function is evaluated just inside of each step instead of at its ends.

    Raises:
        ValueError: both step_size and grid_constructor, or an unknown interpolation.
    """

    order: int

    def __init__(
        self,
        func: Any,
        y0: Tensor,
        step_size: Any = None,
        grid_constructor: Callable[..., Tensor] | None = None,
        interp: str = "linear",
        perturb: bool = False,
        **unused_kwargs: Any,
    ) -> None:
        self.atol = unused_kwargs.pop("atol")
        unused_kwargs.pop("rtol", None)
        unused_kwargs.pop("norm", None)
        warn_unused(self, unused_kwargs)
        if step_size is not None and grid_constructor is not None:
            raise ValueError("step_size and grid_constructor are mutually exclusive arguments.")
        self.func = func
        self.y0 = y0
        self.dtype = y0.dtype
        self.device = y0.device
        self.step_size = step_size
        self.interp = interp
        self.perturb = perturb
        self.grid_constructor = grid_constructor or self._grid_constructor_from_step_size(step_size)

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        """Callbacks that the solver calls."""
        return {"callback_step"}

    @staticmethod
    def _grid_constructor_from_step_size(step_size: Any) -> Callable[..., Tensor]:
        return lambda func, y0, t: t if step_size is None else regular_grid(t, step_size)

    @abstractmethod
    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        """The change of the state over a step from t0 to t1 = t0 + dt, and the slope at its start."""

    def integrate(self, t: Tensor) -> Tensor:
        """The states (T, *state) at increasing times (T,)."""
        grid = self.grid_constructor(self.func, self.y0, t)
        points, wanted = grid.tolist(), t.tolist()
        if points[0] != wanted[0] or points[-1] != wanted[-1]:
            raise AssertionError("the grid must begin and end where t does")
        solution, y0 = [self.y0], self.y0
        for i, (t0, t1) in enumerate(pairwise(grid), start=1):
            dt = t1 - t0
            self.func.callback_step(t0, y0, dt)
            dy, f0 = self._step_func(self.func, t0, dt, t1, y0)
            y1 = y0 + dy
            while len(solution) < len(wanted) and points[i] >= wanted[len(solution)]:
                state_at = self._between(t0, y0, f0, t1, y1, points[i - 1], points[i])
                solution.append(state_at(t[len(solution)], wanted[len(solution)]))
            y0 = y1
        return torch.stack(solution)

    def integrate_until_event(self, t0: Tensor, event_fn: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        """The time of the event, 0-d, and the states (2, *state) at the start and there.

        Raises:
            AssertionError: no step_size.
            RuntimeError: no event within ``MAX_EVENT_STEPS`` steps.
        """
        if self.step_size is None:
            raise AssertionError(
                "Event handling for fixed step solvers currently requires `step_size` to be provided in options."
            )
        t0, y0 = t0.to(torch.float64), self.y0  # the clock, whatever the dtype of the state
        sign0 = start_sign(event_fn, t0, y0)
        if sign0 == 0.0:
            return t0.detach(), torch.stack([y0, y0])
        for _ in range(MAX_EVENT_STEPS):
            t1 = t0 + self.step_size
            dt = t1 - t0 if isinstance(self.step_size, Tensor) else t1.detach() - t0.detach()  # not a function of t0
            dy, f0 = self._step_func(self.func, t0, dt.to(y0.dtype.to_real()), t1, y0)
            y1 = y0 + dy
            if event_sign(event_fn, t1, y1) != sign0:
                between = self._between(t0, y0, f0, t1, y1, *(float(t.detach()) for t in (t0, t1)))
                inside = partial(_at_tensor, between)
                event_time = locate_event(inside, sign0, t0, t1, event_fn)
                return event_time, torch.stack([self.y0, inside(event_time)])
            t0, y0 = t1, y1
        raise RuntimeError(f"Reached maximum number of iterations {MAX_EVENT_STEPS}.")

    def _between(
        self, t0: Tensor, y0: Tensor, f0: Tensor, t1: Tensor, y1: Tensor, start: float, end: float
    ) -> Callable[[Tensor, float], Tensor]:
        """The state at a time of a step, as a function of the time as a tensor and as a number."""
        if self.interp == "linear":

            def linear(t: Tensor, at: float) -> Tensor:
                if at in (start, end):  # exact, and with the gradient of no time
                    return y0 if at == start else y1
                return self._linear_interp(t0, t1, y0, y1, t)

            return linear
        if self.interp == "cubic":
            f1 = self.func(t1, y1)
            return lambda t, at: self._cubic_hermite_interp(t0, y0, f0, t1, y1, f1, t)
        raise ValueError(f"Unknown interpolation method {self.interp}")

    def _linear_interp(self, t0: Tensor, t1: Tensor, y0: Tensor, y1: Tensor, t: Tensor) -> Tensor:
        """The state at a time t of a step, on the line through those at its ends."""
        theta = ((t - t0) / (t1 - t0)).to(y0.dtype.to_real())  # a 0-d time of another dtype would change a 0-d state's
        return y0 + theta * (y1 - y0)

    def _cubic_hermite_interp(
        self, t0: Tensor, y0: Tensor, f0: Tensor, t1: Tensor, y1: Tensor, f1: Tensor, t: Tensor
    ) -> Tensor:
        """The same on the cubic with the slopes at both ends."""
        dt, theta = (x.to(y0.dtype.to_real()) for x in (t1 - t0, (t - t0) / (t1 - t0)))
        rest = 1 - theta
        at_start = (1 + 2 * theta) * rest**2 * y0 + theta * rest**2 * dt * f0
        return at_start + theta**2 * (3 - 2 * theta) * y1 - theta**2 * rest * dt * f1


def _at_tensor(between: Callable[[Tensor, float], Tensor], t: Tensor) -> Tensor:
    return between(t, float(t))


def regular_grid(t: Tensor, step_size: Any) -> Tensor:
    """Points t[0], t[0] + step_size, ... and t[-1], with the gradient of t."""
    first, last = t[0], t[-1]
    n = int(torch.ceil((last - first) / step_size + 1).item())
    grid = torch.arange(0, n, dtype=t.dtype, device=t.device) * step_size + first
    return torch.cat([grid[:-1], last.reshape(1)])


class RungeKuttaGrid(FixedGridODESolver):
    """An explicit Runge-Kutta method on a fixed grid; subclasses name its tableau."""

    method: str

    @property
    def tableau(self) -> Tableau:
        """The coefficients, in first-same-as-last form: the last stage is left out here."""
        return get_tableau(self.method)

    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        tableau = self.tableau
        slopes: list[Tensor] = []
        for i in range(tableau.n_stages - 1):
            c, side, t = float(tableau.c[i]), Perturb.NONE, t0
            if c == 1.0:
                t, side = t1, Perturb.PREV if self.perturb else Perturb.NONE
            elif c > 0.0:
                t = t0 + c * dt
            elif self.perturb:
                side = Perturb.NEXT
            y = y0 + dt * weighted(tableau.a[i], slopes) if i else y0
            slopes.append(func(t, y, perturb=side))
        return dt * weighted(tableau.b, slopes), slopes[0]


def weighted(weights: Any, slopes: list[Tensor]) -> Tensor:
    """sum_j weights[j] slopes[j], without the zero weights; weights are numbers, or tensors with a graph."""
    total = None
    for weight, slope in zip(weights, slopes, strict=False):
        if isinstance(weight, Tensor):
            term = weight.to(slope.dtype.to_real()) * slope
            total = term if total is None else total + term
        elif weight:
            total = slope * float(weight) if total is None else torch.add(total, slope, alpha=float(weight))
    return torch.zeros_like(slopes[0]) if total is None else total
