"""Adaptive Runge-Kutta methods with one step size for the whole state: torchdiffeq's step control and its options.

This solver is for what the batched ones cannot do: functions that have no program, norms of the user's own, times at
which steps must end, callbacks, complex states, events. The clock and the step sizes are numbers of the host, so that a
step costs one synchronisation with the device; step sizes are constants of every gradient, and attempts that are
rejected never enter a graph.

    ratio = norm( error / (atol + rtol max(|y0|, |y1|)) ),  accepted where ratio <= 1
    accepted: factor = clamp(safety ratio^(-1/k), 1, ifactor);   rejected: clamp(safety ratio^(-1/k), dfactor, ifactor)

with 1/k the tableau's ``error_exponent``. The first step is that of Hairer, Norsett and Wanner, "Solving Ordinary
Differential Equations I", algorithm II.4. Two things differ from torchdiffeq: the last step ends at the last time
instead of going beyond it, and the state between steps comes from the interpolants of ``fastode.tableaus``.
"""

from __future__ import annotations

import bisect
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastode.controllers import LAST_STEP_STRETCH, MIN_STEP_ULPS, least_step
from fastode.dropin.failure import OdeintError, whole_state_error
from fastode.dropin.functions import CALLBACKS, Perturb
from fastode.dropin.norms import Norm, rms_norm
from fastode.dropin.rk_state import DrivenByStates, Step, interpolation_evaluate
from fastode.dropin.solvers import AdaptiveStepsizeEventODESolver, event_sign, locate_event, start_sign
from fastode.dropin.times import carry
from fastode.status import Status
from fastode.tableaus import Tableau, get_tableau


class RungeKuttaSteps:
    """Single steps of an explicit method in first-same-as-last form, as differentiable torch operations.

    Args:
        tableau: the method.
        func: ``func(t, y, perturb=...)``.
        y0: a state of the dtype and on the device of those to come.
    """

    def __init__(self, tableau: Tableau, func: Any, y0: Tensor) -> None:
        self.tableau = tableau
        self.func = func
        self.dtype = y0.dtype.to_real()
        self.device = y0.device
        self._rows = [tableau.a[i, :i].tolist() for i in range(tableau.n_stages)]
        self._c = tableau.c.tolist()
        self._e = [] if tableau.e is None else tableau.e.tolist()
        self._combinations = [math.comb(tableau.degree, m) for m in range(1, tableau.degree + 1)]
        self._q = tableau.q.tolist()

    def time(self, t: float) -> Tensor:
        """A time as the function gets it, 0-d."""
        return torch.tensor(t, dtype=self.dtype, device=self.device)

    def first_slope(self, step: Step, y: Tensor) -> Tensor:
        """The first stage of a step."""
        return self.func(self.time(step.t), y, perturb=Perturb.NEXT if step.jumps_before else Perturb.NONE)

    def stages(self, step: Step, y: Tensor, k1: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The state at the end of a step, and all stages."""
        h, slopes, state = step.h, [k1], y
        at = [step.t1 if c == 1.0 else step.t + c * h for c in self._c]
        times = torch.tensor(at, dtype=self.dtype, device=self.device)  # one transfer to the device
        for i in range(1, len(self._c)):
            state = combine(y, h, self._rows[i], slopes)
            side = Perturb.PREV if step.jumps_after and self._c[i] == 1.0 else Perturb.NONE
            slopes.append(self.func(times[i], state, perturb=side))
        return state, slopes

    def error(self, step: Step, slopes: Sequence[Tensor]) -> Tensor:
        """The estimate of the error of a step."""
        return combine(None, step.h, self._e, slopes)

    def between(self, step: Step, y: Tensor, slopes: Sequence[Tensor], t: float) -> Tensor:
        """The state at a time inside of a step."""
        theta, degree = (t - step.t) / step.h, len(self._combinations)
        basis = [c * theta**m * (1 - theta) ** (degree - m) for m, c in enumerate(self._combinations, start=1)]
        return combine(y, step.h, [sum(map(_product, row, basis)) for row in self._q], slopes)


def _product(a: float, b: float) -> float:
    return a * b


def combine(y: Tensor | None, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Y + h sum_j weights[j] slopes[j], without the zero weights; y = None stands for zero."""
    fresh = False  # whether the sum is a tensor of its own, which may be written into where no graph is made
    total = y
    for weight, slope in zip(weights, slopes, strict=False):
        if weight == 0.0:
            continue
        if total is None:
            total = slope * (h * weight)
        elif fresh and not torch.is_grad_enabled():
            total.add_(slope, alpha=h * weight)
        else:
            total = torch.add(total, slope, alpha=h * weight)
        fresh = True
    return torch.zeros_like(slopes[0]) if total is None else total


def first_step_size(
    slope: Callable[[float], Tensor],
    y0: Tensor,
    f0: Tensor,
    scale: Tensor,
    norm: Norm,
    exponent: float,
    span: float = math.inf,
) -> float:
    """Size of a first step (Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, II.4).

    Args:
        slope: the slope after an Euler step of a size.
        y0: the start.
        f0: the slope there.
        scale: error that is tolerated in each entry of the state.
        norm: of a state.
        exponent: 1 / order of the error that is controlled.
        span: time to the end.
    """
    d0, d1 = abs(float(norm(y0 / scale))), abs(float(norm(f0 / scale)))
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    if span == 0.0:
        return 1e-6
    h0 = min(h0 if 0.0 < h0 < math.inf else 1e-6, span)
    d2 = abs(float(norm((slope(h0) - f0) / scale))) / h0
    steepest = max(d1, d2)
    h1 = max(1e-6, h0 * 1e-3) if steepest <= 1e-15 else (0.01 / steepest) ** exponent
    return min(100 * h0, h1) if 0.0 < h1 < math.inf else h0


def step_factor(ratio: float, safety: float, ifactor: float, dfactor: float, exponent: float) -> float:
    """Next size of a step over its last one, from the error in units of its tolerance."""
    if ratio == 0.0:
        return ifactor
    return min(ifactor, max(safety / ratio**exponent, 1.0 if ratio < 1 else dfactor))


class RungeKutta(DrivenByStates, AdaptiveStepsizeEventODESolver):
    """An adaptive explicit Runge-Kutta method; subclasses name its tableau.

    Args:
        func: ``func(t, y, perturb=...)``, with callbacks as attributes.
        y0: the start.
        rtol: relative tolerance, a number or a tensor that broadcasts to the state.
        atol: absolute tolerance, likewise.
        min_step: steps that would be smaller have this size, and are accepted whatever their error.
        max_step: largest step.
        first_step: size of the first step; None chooses it.
        step_t: times at which a step must end.
        jump_t: times at which the function jumps: a step ends there, and the function is evaluated on either side. A
            tensor that requires grad gets its gradient.
        safety: factor on every step that is proposed.
        ifactor: largest factor by which a step may grow.
        dfactor: smallest factor by which a step may shrink.
        max_num_steps: largest number of attempts from one output to the next.
        dtype: of the times that callbacks and event functions get; the clock itself is float64.
        norm: of errors, of a state in the form in which the user holds it.
    """

    order: int
    method: str

    def __init__(
        self,
        func: Any,
        y0: Tensor,
        rtol: Any,
        atol: Any,
        min_step: Any = 0.0,
        max_step: Any = math.inf,
        first_step: Any = None,
        step_t: Any = None,
        jump_t: Any = None,
        safety: Any = 0.9,
        ifactor: Any = 10.0,
        dfactor: Any = 0.2,
        max_num_steps: Any = 2**31 - 1,
        dtype: torch.dtype = torch.float64,
        norm: Norm = rms_norm,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype=torch.promote_types(dtype, y0.dtype.to_real()), y0=y0, norm=norm, **kwargs)
        self.func = func
        self.steps = RungeKuttaSteps(self.coefficients, func, y0)
        self.rtol, self.atol = (self._tolerance(x) for x in (rtol, atol))
        self.min_step, self.max_step = float(min_step), float(max_step)
        self.first_step = None if first_step is None else float(first_step)
        self.safety, self.ifactor, self.dfactor = float(safety), float(ifactor), float(dfactor)
        self.max_num_steps = int(max_num_steps)
        self.step_t = _numbers(step_t)
        self.jump_t = _numbers(jump_t)
        self._varying_jumps: dict[float, Tensor] = {}
        if isinstance(jump_t, Tensor) and jump_t.requires_grad and torch.is_grad_enabled():
            self._varying_jumps = {float(t.detach()): t for t in jump_t.reshape(-1)}
        if len({*self.step_t, *self.jump_t}) < len(self.step_t) + len(self.jump_t):
            raise ValueError("`step_t` and `jump_t` must not have any repeated elements between them.")
        self.accepted: list[tuple[Step, Tensor, list[Tensor]]] | None = None
        """Every accepted step with its state and stages, if this is a list."""

    @property
    def coefficients(self) -> Tableau:
        """The method's tableau."""
        return get_tableau(self.method)

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        """Callbacks that the solver calls."""
        return set(CALLBACKS)

    def _tolerance(self, value: Any) -> Any:
        value = torch.as_tensor(value, dtype=torch.float64, device=self.y0.device)
        return float(value) if value.ndim == 0 else value

    def _before_integrate(self, t: Tensor | Sequence[Tensor]) -> None:
        t = t if isinstance(t, Tensor) else torch.stack(list(t))
        known = t.tolist()
        self._end = known[-1] if len(known) > 1 else math.inf
        self._t, self._y = known[0], self.y0
        if t.requires_grad and torch.is_grad_enabled():
            self._y = carry(self.func, t[0], t[0].detach(), self.y0)
        self._stops = sorted(x for x in (*self.step_t, *self.jump_t) if x > self._t)
        self._jumped = False
        self._step: Step | None = None
        self._k1 = self.steps.first_slope(Step(self._t, self._t), self._y)
        with torch.no_grad():
            self._h = self._first_size() if self.first_step is None else self.first_step
        self._scaled: Tensor | None = None
        self._ratio = 0.0
        self._polynomial = self._state = None

    def _scale(self, size: Tensor) -> Tensor:
        tiny = torch.finfo(size.dtype).tiny
        return (self.atol + self.rtol * size).clamp_min(tiny)

    def _first_size(self) -> float:
        y0, f0 = self._y.detach(), self._k1.detach()

        def slope(h: float) -> Tensor:
            return self.func(self.steps.time(self._t + h), torch.add(y0, f0, alpha=h))

        scale, exponent = self._scale(y0.abs()), self.steps.tableau.error_exponent
        return first_step_size(slope, y0, f0, scale, self.norm, exponent, self._end - self._t)

    def _advance(self, next_t: Tensor) -> Tensor:
        target = float(next_t.detach())
        n_steps = 0
        while target > self._t:
            self._require_steps(n_steps)
            self._advance_once()
            n_steps += 1
        y = self._y if target == self._t or self._step is None else self._inside(target)
        if next_t.requires_grad and torch.is_grad_enabled():
            y = carry(self.func, next_t.detach(), next_t, y)
        return y

    def _inside(self, t: float) -> Tensor:
        assert self._step is not None
        if self._polynomial is not None:
            return interpolation_evaluate(self._polynomial, *map(self._clock, (self._step.t, self._step.t1, t)))
        return self.steps.between(self._step, self._start, self._slopes, t)

    def _advance_until_event(self, event_fn: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        sign0 = start_sign(event_fn, self._clock(self._t), self._y)
        if sign0 == 0.0:
            return self._clock(self._t), self._y
        n_steps = 0
        while event_sign(event_fn, self._clock(self._t), self._y) == sign0:
            self._require_steps(n_steps)
            self._advance_once()
            n_steps += 1
        assert self._step is not None
        ends = self._clock(self._step.t), self._clock(self._step.t1)
        event_time = locate_event(lambda t: self._inside(float(t)), sign0, *ends, event_fn)
        return event_time, self._inside(float(event_time))

    def _clock(self, t: float) -> Tensor:
        return torch.tensor(t, dtype=self.dtype, device=self.y0.device)

    def _require_steps(self, n_steps: int) -> None:
        if n_steps >= self.max_num_steps:
            raise self._failure(Status.MAX_STEPS, f"max_num_steps exceeded ({n_steps}>={self.max_num_steps})")

    def _failure(self, why: Status, detail: str) -> OdeintError:
        unflatten = getattr(self.func, "shapes", None)
        return whole_state_error(why, self._t, detail, self._scaled if unflatten is None else None)

    def _attempt(self) -> None:
        """Tries one step; on acceptance the state is that at its end."""
        t, y, self._state = self._t, self._y, None
        h = min(max(self._h, self.min_step), self.max_step)
        if self.func.callback_step is not None:
            self.func.callback_step(self._clock(t), y, self._clock(h))
        shortest = max(MIN_STEP_ULPS * sys.float_info.epsilon * abs(t), least_step(self.steps.dtype))
        h = max(h, shortest)
        if not t + h > t:
            raise self._underflow(h)
        t1, stop = t + h, None
        if math.isinf(self._end) and not math.isfinite(10 * t1):
            raise self._failure(Status.NON_FINITE, "no event, whatever the time")
        if h * (1 + LAST_STEP_STRETCH) >= self._end - t:
            t1 = self._end
        index = bisect.bisect(self._stops, t)
        if index < len(self._stops) and self._stops[index] < t1:
            t1 = self._stops[index]
        if index < len(self._stops) and self._stops[index] == t1:
            stop = t1
        step = Step(t, t1, self._jumped, stop is not None)
        y1, slopes = self.steps.stages(step, y, self._k1)
        with torch.no_grad():
            size = torch.maximum(y.detach().abs(), y1.detach().abs())
            self._scaled = self.steps.error(step, slopes) / self._scale(size)
            measured = torch.as_tensor(self.norm(self._scaled), device=y.device).abs()
            ratio, largest = torch.stack([measured.to(size.dtype), size.amax()]).tolist()
        self._ratio = ratio if math.isfinite(largest) else math.nan
        tried = min(step.h, h)  # what rounding the clock adds does not count
        accept = self._ratio <= 1 or (tried <= self.min_step and math.isfinite(self._ratio))
        callback = self.func.callback_accept_step if accept else self.func.callback_reject_step
        callback(self._clock(t), y, self._clock(tried))
        if accept:
            if self.accepted is not None:
                self.accepted.append((step, y, slopes))
            self._step, self._start, self._slopes, self._polynomial = step, y, slopes, None
            self._t, self._y, self._k1 = t1, y1, slopes[-1]
            self._jumped = stop is not None and stop in self.jump_t
            if self._jumped:
                moving = self._varying_jumps.get(t1)
                if (
                    moving is not None
                ):  # the state before it carried to it, and the one after it back to where it is now
                    before, after = (partial(self.func, perturb=side) for side in (Perturb.PREV, Perturb.NEXT))
                    y1 = carry(after, moving, moving.detach(), carry(before, moving.detach(), moving, y1))
                    self._y = y1
                self._k1 = self.steps.first_slope(Step(t1, t1, jumps_before=True), y1)
        elif tried <= max(shortest, self.min_step):
            raise self._underflow(tried)
        self._h = tried * self._factor()

    def _underflow(self, h: float) -> OdeintError:
        if math.isfinite(self._ratio):
            return self._failure(Status.STEP_UNDERFLOW, f"underflow in dt {h}")
        return self._failure(Status.NON_FINITE, f"non-finite values in state `y`, underflow in dt {h}")

    def _factor(self) -> float:
        if not math.isfinite(self._ratio):
            return self.dfactor
        return step_factor(self._ratio, self.safety, self.ifactor, self.dfactor, self.steps.tableau.error_exponent)


def _numbers(times: Any) -> list[float]:
    if times is None:
        return []
    return sorted(torch.as_tensor(times).detach().double().reshape(-1).tolist())


class Dopri8Solver(RungeKutta):
    """Prince-Dormand pair, orders 8(7)."""

    order = 8
    method = "dopri8"


class Dopri5Solver(RungeKutta):
    """Dormand-Prince pair, orders 5(4)."""

    order = 5
    method = "dopri5"


class Tsit5Solver(RungeKutta):
    """Tsitouras' pair, orders 5(4)."""

    order = 5
    method = "tsit5"


class Bosh3Solver(RungeKutta):
    """Bogacki-Shampine pair, orders 3(2)."""

    order = 3
    method = "bosh3"


class Fehlberg2(RungeKutta):
    """Fehlberg's pair, orders 2(1)."""

    order = 2
    method = "fehlberg2"


class AdaptiveHeunSolver(RungeKutta):
    """Heun's method with Euler's, orders 2(1)."""

    order = 2
    method = "adaptive_heun"
