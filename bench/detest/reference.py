"""Solutions to about 15 digits: Gragg's extrapolated midpoint rule in numpy's long doubles.

It has no coefficients that could be wrong, nothing in common with the methods that are measured, and where long
doubles have 64 bits of mantissa (x86) its rounding is a thousandth of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.detest.problems import END, Problem

_SEQUENCE = range(2, 26, 2)
_GOAL = 1e-17
"""Relative change in the last extrapolation at which a step is accepted; with doubles their rounding."""

Array = np.ndarray[Any, Any]


def times(outputs: int) -> Array:
    """0, output times that no step length divides, and the end."""
    inner = (np.arange(1, outputs) + 0.37) * END / outputs
    return np.concatenate([[0.0], inner, [END]])


def solution(problem: Problem, at: Array) -> Array:
    """States (T, D) at times (T,) float64, the first of them the start."""
    real = np.longdouble
    y, t, step = np.array(problem.start, dtype=real), real(at[0]), real(END / 64)
    states = [y.astype(np.float64)]
    for end in at[1:].astype(real):
        while t < end:
            h = min(step, end - t)
            new, error = _step(problem.array, t, y, h)
            if error <= max(_GOAL, 4 * float(np.finfo(real).eps)):
                last = h == end - t
                t, y = end if last else t + h, new
                step = max(step, h) * (real(1.5) if error < 0.01 * _GOAL else real(1))
            else:
                step = h / 2
        states.append(y.astype(np.float64))
    return np.stack(states)


def _step(f: Callable[[Any, Array], Array], t: Any, y: Array, h: Any) -> tuple[Array, float]:
    """The extrapolated end, and the last correction relative to the state."""
    rows: list[Array] = []
    slope = f(t, y)
    for k, n in enumerate(_SEQUENCE):
        small = h / n
        before, now = y, y + small * slope
        for i in range(1, n):
            before, now = now, before + 2 * small * f(t + i * small, now)
        row = [(now + before + small * f(t + h, now)) / 2]
        for j in range(1, k + 1):
            factor = (np.longdouble(n) / _SEQUENCE[k - j]) ** 2 - 1
            row.append(row[-1] + (row[-1] - rows[j - 1]) / factor)
        error = float(np.max(np.abs(row[-1] - row[-2]) / (1 + np.abs(y)))) if k else np.inf
        rows = row
        if k > 3 and error < 0.01 * _GOAL:
            break
    return rows[-1], error
