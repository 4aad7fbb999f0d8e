"""Event functions on the polynomials of steps. No gradient.

Everything here is elementwise: a sample's values do not depend on how many others are in the call, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor

from fastode.events import arrays as xp
from fastode.events.arrays import Array
from fastode.events.event import FlatEvents
from fastode.solution import DenseOutput

_ROUNDING = torch.finfo(torch.float64).eps


class Polynomials:
    """The polynomials of all steps, in powers of the place in a step and in float64 whatever the dtype of the state.

    Args:
        events: the functions.
        dense: the steps.
        controls: leaves (B, ...), without graph.
    """

    def __init__(self, events: FlatEvents, dense: DenseOutput, controls: Sequence[Tensor]) -> None:
        self.events, self.dtype = events, dense.coefs.dtype
        self.powers = _powers(dense.coefs.detach().double())
        self.start, self.size, self.rows = xp.of(dense.start), xp.of(dense.size), xp.of(dense.rows)
        self.controls = list(controls) if events.fn_reads else []

    def of(self, step: Array, sample: Array) -> Steps:
        """Those of steps (n,) of samples (n,)."""
        return Steps(self, step, sample)


class Steps:
    """The steps (n,) of samples (n,). Arguments and values are arrays of the search.

    Args:
        all_of: the polynomials of all.
        step: (n,) int64, which step.
        sample: (n,) int64, of which sample.
    """

    def __init__(self, all_of: Polynomials, step: Array, sample: Array) -> None:
        self._events, self._dtype = all_of.events, all_of.dtype
        self.start, self.size = all_of.start[step, sample], all_of.size[step, sample]
        self._start, self._size = xp.tensor(self.start), xp.tensor(self.size)
        self._powers = all_of.powers[:, xp.tensor(all_of.rows[step, sample])].unbind()
        self._controls = [c[xp.tensor(sample)] for c in all_of.controls]

    def times(self, theta: Array) -> Array:
        """(..., n) float64."""
        return self.start + self.size * theta

    def resolution(self, roundings: int) -> Array:
        """(n,) float64: so many roundings of the clock, as places in the steps."""
        largest = xp.larger(abs(self.start), abs(self.start + self.size))
        return roundings * _ROUNDING * largest / abs(self.size)

    def value(self, e: int, theta: Array) -> Array:
        """Event function e, (..., n) float64, at places (..., n) in the steps."""
        return xp.of(self._of(e, *self._states(xp.tensor(theta))))

    def values(self, theta: Array) -> list[Array]:
        """All event functions, each (..., n) float64, at places (..., n) in the steps."""
        times, states = self._states(xp.tensor(theta))
        return [xp.of(self._of(e, times, states)) for e in range(len(self._events))]

    def _states(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Times (..., n) and states (..., n, D) in the dtype of the solve."""
        total = self._powers[-1]
        place = theta[..., None]
        for power in reversed(self._powers[:-1]):
            total = total * place + power
        return self._start + self._size * theta, total.to(self._dtype)

    def _of(self, e: int, times: Tensor, states: Tensor) -> Tensor:
        n = times.shape[-1]
        many = times.numel() // max(1, n)
        controls = self._controls
        if many > 1 and self._events.reads(e):
            controls = [c.repeat(many, *[1] * (c.ndim - 1)) for c in controls]
        found = self._events.value(e, times.reshape(-1), states.reshape(times.numel(), -1), controls)
        return found.reshape(times.shape)


def _powers(coefs: Tensor) -> Tensor:
    """Coefficients (degree + 1, R, D) of 1, theta, ... from those (R, degree + 1, D) of ``interpolant.basis``."""
    degree = coefs.shape[1] - 1
    differences = coefs.movedim(1, 0)
    powers = [differences[0]]
    differences = torch.cat([torch.zeros_like(differences[:1]), differences[1:]])  # Bernstein: b_0 = 0 beside the start
    for j in range(1, degree + 1):
        differences = differences[1:] - differences[:-1]
        powers.append(comb(degree, j) * differences[0])
    return torch.stack(powers)
