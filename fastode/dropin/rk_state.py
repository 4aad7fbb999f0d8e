"""The state of an adaptive Runge-Kutta method between steps, in torchdiffeq's form: for programs that drive one."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastode.tableaus import Tableau

RungeKuttaState = namedtuple("RungeKuttaState", "y1, f1, t0, t1, dt, interp_coeff")
"""State and slope at t1, the ends t0 and t1 of the last step, the next step's size, and a polynomial over the last."""

_COEFFICIENTS = 5
"""Coefficients of torchdiffeq's polynomials, for which programs make room; shorter ones are filled with zeros."""


@dataclass(frozen=True)
class Step:
    """An accepted step.

    Attributes:
        t, t1: its ends, in the solver's time.
        jumps_before: whether the function jumps at t, so that the first stage is evaluated just after it.
        jumps_after: whether it jumps, or may, at t1, so that stages there are evaluated just before it.
    """

    t: float
    t1: float
    jumps_before: bool = False
    jumps_after: bool = False

    @property
    def h(self) -> float:
        """Its size."""
        return self.t1 - self.t


class DrivenByStates:
    """``rk_state`` and ``_adaptive_step``, in terms of what a solver knows between steps."""

    dtype: torch.dtype
    y0: Tensor
    _t: float
    _h: float
    _y: Tensor
    _k1: Tensor
    _step: Step | None
    _start: Tensor
    _slopes: list[Tensor]
    _polynomial: Sequence[Tensor] | None = None
    _state: RungeKuttaState | None = None

    @property
    def coefficients(self) -> Tableau:
        """The method's tableau."""
        raise NotImplementedError

    def _attempt(self) -> None:
        """Tries one step."""
        raise NotImplementedError

    @property
    def rk_state(self) -> RungeKuttaState:
        """The state now; before the first step the polynomial is constant. May be replaced, wholly or in parts."""
        if self._state is None:
            start, end = (self._t, self._t) if self._step is None else (self._step.t, self._step.t1)
            t0, t1, dt = torch.tensor([start, end, self._h], dtype=self.dtype, device=self.y0.device)
            self._state = RungeKuttaState(self._y, self._k1, t0, t1, dt, self._power_coefficients())
        return self._state

    @rk_state.setter
    def rk_state(self, state: Any) -> None:
        if state is self._state:
            return
        y1, f1, t0, t1, dt, polynomial = state
        self._y, self._k1, self._t, self._h = y1, f1, float(t1), float(dt)
        self._step = Step(float(t0), self._t) if self._t > float(t0) else None
        self._polynomial = polynomial
        self._state = RungeKuttaState(*state)

    def _adaptive_step(self, rk_state: Any) -> Any:
        """The state after one attempt at a step; of one that is rejected only ``dt`` differs."""
        self.rk_state = rk_state
        self._attempt()
        return self.rk_state

    def _advance_once(self) -> None:
        """One attempt, by way of ``_adaptive_step`` where a subclass has one of its own."""
        if type(self)._adaptive_step is DrivenByStates._adaptive_step:
            self._attempt()
        else:
            self.rk_state = self._adaptive_step(self.rk_state)

    def _power_coefficients(self) -> list[Tensor]:
        if self._polynomial is not None:
            return list(self._polynomial)
        if self._step is None:
            return [self._y] * _COEFFICIENTS
        tableau = self.coefficients
        d, h = tableau.degree, self._step.h
        found = [self._start]
        for power in range(1, d + 1):
            # The interpolant's basis is C(d, m) x^m (1 - x)^(d - m), m = 1 ... d.
            parts = [
                math.comb(d, m) * math.comb(d - m, power - m) * (-1) ** (power - m) if power >= m else 0
                for m in range(1, d + 1)
            ]
            weights = (tableau.q @ parts).tolist()
            terms = (slope * (h * weight) for slope, weight in zip(self._slopes, weights, strict=True))
            found.append(sum(terms, torch.zeros_like(self._start)))
        return found + [torch.zeros_like(self._start)] * (_COEFFICIENTS - len(found))


def interpolation_fit(y0: Tensor, y1: Tensor, y_mid: Tensor, f0: Tensor, f1: Tensor, dt: Tensor) -> list[Tensor]:
    """Coefficients, lowest power of theta first, of the quartic through three states and the slopes at both ends."""
    rise, curve = y1 - y0 - dt * f0, dt * (f1 - f0)
    # With p = y0 + dt f0 theta + theta^2 (a + b theta + c theta^2): p(1) = y1, p'(1) = dt f1, p(1/2) = y_mid.
    middle = 4 * (y_mid - y0 - dt * f0 / 2)
    # a + b + c = rise; 2a + 3b + 4c = curve; a + b/2 + c/4 = middle
    c = 2 * curve - 8 * rise + 4 * middle
    b = curve - 2 * rise - 2 * c
    a = rise - b - c
    return [y0, dt * f0, a, b, c]


def interpolation_evaluate(coefficients: Sequence[Tensor], t0: Tensor, t1: Tensor, t: Tensor) -> Tensor:
    """A polynomial with coefficients as those of ``interpolation_fit``, of any degree, at a time in [t0, t1]."""
    if not bool((t0 <= t) & (t <= t1)):
        raise AssertionError(f"invalid interpolation, fails `t0 <= t <= t1`: {t0}, {t}, {t1}")
    theta = ((t - t0) / (t1 - t0)).to(coefficients[0].dtype.to_real())
    total = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = coefficient + theta * total
    return total
