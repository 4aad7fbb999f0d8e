"""The root of a function of one number, inside of a bracket."""

from __future__ import annotations

import math
from collections.abc import Callable

_INTERPOLATED = 40
"""Steps after which there is only bisection: none of the functions that the method is for needs as many."""


def find_root(fn: Callable[[float], float], a: float, b: float, sign: float, tol: float) -> float:
    """A point of [a, b], to within ``tol``, at which the function loses the sign that it has at a.

    Chandrupatla's method (Advances in Engineering Software 28 (1997) 145-149): inverse quadratic interpolation where
    the three last points show that it converges, bisection where not. Only the sign decides on which side a point lies;
    zero and NaN lie beyond the root, so that where the function stays zero the start of that is found.
    """
    x1, x2, f1, f2, t, steps, before = a, b, fn(a), fn(b), 0.5, 0, True
    while abs(x2 - x1) > tol:
        margin = 0.5 * tol / abs(x2 - x1)
        x = x1 + min(max(t, margin), 1.0 - margin) * (x2 - x1)
        if x in (x1, x2):  # neighbouring numbers
            break
        f = fn(x)
        if (f * sign > 0.0) == before:  # on the side of x1
            x3, f3 = x1, f1
        else:
            x3, f3, x2, f2, before = x2, f2, x1, f1, not before
        x1, f1, steps = x, f, steps + 1
        t = _quadratic(x1, x2, x3, f1, f2, f3) if steps < _INTERPOLATED else 0.5
    return (x1 + x2) / 2


def _quadratic(x1: float, x2: float, x3: float, f1: float, f2: float, f3: float) -> float:
    """Where to go between x1 and x2, as a part of the way."""
    try:
        xi, phi = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
        if not 1 - math.sqrt(1 - xi) < phi < math.sqrt(xi):
            return 0.5
        t = f1 / (f1 - f2) * f3 / (f3 - f2) - (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f2 - f3)
    except (ZeroDivisionError, ValueError):
        return 0.5
    return t if math.isfinite(t) else 0.5
