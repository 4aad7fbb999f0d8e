"""Step-size control: one dataclass of constants, handed unchanged to every backend, and its reference arithmetic.

The error ratio r_n of an attempted step is the RMS over the sample's state of
err / (atol + rtol max(|y_n|, |y_{n+1}|)). A step is accepted when r_n <= 1. With k = 1 / ``Tableau.error_exponent``
(one more than the order of the error estimate) the next step size is h * factor,

    accepted:  factor = clamp(safety r_n^-b1 r_{n-1}^-b2 r_{n-2}^-b3, min_factor, max_factor)
    rejected:  factor = clamp(safety r_n^(-1/k),                      min_factor, 1)
    b1 = (pcoeff + icoeff + dcoeff) / k,   b2 = -(pcoeff + 2 dcoeff) / k,   b3 = dcoeff / k

which is the digital-filter form of Soderlind, "Automatic control and adaptive time-stepping", Numer. Algorithms 31
(2002), and "Digital filters in adaptive time-stepping", ACM TOMS 29 (2003). A ratio that is not finite takes
min_factor. Where a step was cut at an output time, its ratio says little: the next step is at least as long as the one
that was cut, and r_{n-1}, r_{n-2} stay those of the steps before.

The clock. A step of size h leads to t_{n+1} = fl(t_n + h) in float64, and the step that is taken is t_{n+1} - t_n, so
that clock and state agree however large t is; only a step cut at a given time ends there exactly. Fixed steps hand what
the rounding took from one on to the next, so that a million of them end where they should.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

RATIO_FLOOR = 1e-10
"""Error ratios below this count as this: keeps negative powers finite when a step is exact."""

LAST_STEP_STRETCH = 1e-8
"""A step that would leave less than this fraction of itself before the end is stretched to the end."""

MIN_STEP_ULPS = 16.0
"""No adaptive step is shorter than this many units of float64 rounding of its starting time: the clock must move."""


def least_step(dtype: torch.dtype) -> float:
    """The least adaptive step, by the dtype of the state, from a time of zero, which has no rounding."""
    return 1e-100 if dtype == torch.float64 else 1e-25


def shortest_step(t: Tensor, dtype: torch.dtype, min_step: float = 0.0) -> Tensor:
    """The least size (B,) of an adaptive step from times t (B,) float64: the clock moves, and the state may.

    Args:
        t: start of the step.
        dtype: of the state.
        min_step: the controller's.
    """
    ulps = MIN_STEP_ULPS * torch.finfo(torch.float64).eps * t.abs()
    return ulps.clamp_min(max(min_step, least_step(dtype)))


def power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent of positive numbers, with the same rounding wherever in a tensor a number stands.

    ``torch.pow`` computes what is left over after whole vectors by other code.
    """
    return torch.exp(exponent * torch.log(x))


@dataclass(frozen=True)
class PIDController:
    """PID step-size control, applied to every sample by itself.

    Args:
        pcoeff, icoeff, dcoeff: proportional, integral and derivative coefficient, dimensionless; they are divided by
            the order of the error estimate plus one.
        safety: factor on every proposed step, in (0, 1].
        min_factor: least ratio of successive steps, in (0, 1).
        max_factor: greatest ratio of successive steps, > 1.
        min_step: least step, in units of t, >= 0. A step of this size that is still rejected ends the sample with
            ``Status.STEP_UNDERFLOW``. Only a step that is cut at the end, or at an output, may be shorter. By default
            the least step is a few roundings of the time at its start.
        max_step: greatest step, in units of t, > 0.
        first_step: size of the first step, in units of t; ``None`` chooses it by Hairer, Norsett and Wanner, "Solving
            Ordinary Differential Equations I", section II.4, at the price of one evaluation of the field.

    Raises:
        ValueError: a constant outside its range.
    """

    pcoeff: float
    icoeff: float
    dcoeff: float
    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 10.0
    min_step: float = 0.0
    max_step: float = math.inf
    first_step: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "first_step" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
                raise ValueError(f"{field.name} must be a number, got {value!r}")
        if not 0 < self.safety <= 1:
            raise ValueError(f"safety must lie in (0, 1], got {self.safety}")
        if not 0 < self.min_factor < 1:
            raise ValueError(f"min_factor must lie in (0, 1), got {self.min_factor}")
        if not 1 < self.max_factor < math.inf:
            raise ValueError(f"max_factor must be finite and greater than 1, got {self.max_factor}")
        if not 0 <= self.min_step < math.inf:
            raise ValueError(f"min_step must be finite and at least 0, got {self.min_step}")
        if not self.max_step > 0 or self.max_step < self.min_step:
            raise ValueError(f"max_step must be positive and at least min_step={self.min_step}, got {self.max_step}")
        if self.first_step is not None and not 0 < self.first_step < math.inf:
            raise ValueError(f"first_step must be finite and positive, got {self.first_step}")
        if not all(math.isfinite(c) for c in (self.pcoeff, self.icoeff, self.dcoeff)):
            raise ValueError(f"coefficients must be finite, got {(self.pcoeff, self.icoeff, self.dcoeff)}")

    def exponents(self, error_exponent: float) -> tuple[float, float, float]:
        """The powers (b1, b2, b3) of r_n, r_{n-1}, r_{n-2}, for an error estimate with exponent 1/k."""
        p, i, d = self.pcoeff, self.icoeff, self.dcoeff
        return (p + i + d) * error_exponent, -(p + 2 * d) * error_exponent, d * error_exponent

    def constants(self, error_exponent: float, step_to_outputs: bool, dtype: torch.dtype) -> dict[str, float]:
        """Everything that kernels need, the values of ``csrc/core/step_control.h``."""
        b1, b2, b3 = self.exponents(error_exponent)
        return {
            "exponent": error_exponent,
            "b1": b1,
            "b2": b2,
            "b3": b3,
            "safety": self.safety,
            "min_factor": self.min_factor,
            "max_factor": self.max_factor,
            "min_step": max(self.min_step, least_step(dtype)),
            "max_step": self.max_step,
            "ratio_floor": RATIO_FLOOR,
            "last_stretch": LAST_STEP_STRETCH,
            "min_ulps": MIN_STEP_ULPS,
            "to_outputs": float(step_to_outputs),
        }

    def factor(
        self, error_exponent: float, ratio: Tensor, previous: Tensor, before: Tensor, accepted: Tensor
    ) -> Tensor:
        """Ratio of the next step to this one, the specification that kernels follow.

        Args:
            error_exponent: 1/k of the tableau.
            ratio: (B,) float64, r_n.
            previous: (B,) float64, r_{n-1}; 1 before the first step.
            before: (B,) float64, r_{n-2}; 1 before the second step.
            accepted: (B,) bool.

        Returns:
            (B,) float64.
        """
        b1, b2, b3 = self.exponents(error_exponent)
        finite = torch.isfinite(ratio)
        r0, r1, r2 = (r.clamp_min(RATIO_FLOOR) for r in (ratio, previous, before))
        grow = (self.safety * power(r0, -b1) * power(r1, -b2) * power(r2, -b3)).clamp(self.min_factor, self.max_factor)
        shrink = (self.safety * power(r0, -error_exponent)).clamp(self.min_factor, 1.0)
        return torch.where(finite, torch.where(accepted, grow, shrink), self.min_factor)


@dataclass(frozen=True)
class IController(PIDController):
    """Integral control, the rule of most textbooks and of torchdiffeq: factor = safety r_n^(-1/k)."""

    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0


@dataclass(frozen=True)
class PIController(PIDController):
    """Proportional-integral control: fewer rejections where stability limits the step (Hairer, Wanner II, IV.2)."""

    pcoeff: float = 0.4
    icoeff: float = 0.3
    dcoeff: float = 0.0
