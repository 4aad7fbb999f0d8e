"""Roots of many functions at once, each inside of a bracket of its own.

A root is where a function loses the sign that it has at the left end of its bracket: zero, infinity of the other sign,
and NaN lie beyond it. So where a function jumps that is the time of the jump, where it stays zero the start of that,
and where it is NaN beyond its root the root itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastode.events import arrays as xp
from fastode.events.arrays import Array

Function = Callable[[Array], Array]
"""Values (m, n) at points (m, n), column i in bracket i."""

_MOST = 60
"""Rounds after which the bracket is taken as it is: twice what quartering needs from any bracket."""
_FINEST = 60
"""Halvings of a bracket in the search for a point that has left a root."""
_SECTIONS = 16
"""Sections into which a bracket is cut where interpolation is of no use."""
_JUMP = 0.25
"""A change at a root of at least this part of the values at the ends of its bracket is a jump."""
_TOUCH = 1e-6
"""Width up to which a function may be zero around a root, instead of staying zero."""
_DIP_POINTS = 7
"""Points of a round of the search for a dip, of which each is four times as fine as the one before."""
_DIP_ROUNDS = 4
_FALLS = 0.75
"""A function that ends at a root, and is undefined beyond, falls at least to this part from 16 roundings to one."""


@dataclass(frozen=True)
class Roots:
    """Where functions lose their signs.

    Attributes:
        at: (n,) float64, the first point known to be beyond.
        jumps: (n,) bool, whether the function jumps there instead of passing through zero.
    """

    at: Array
    jumps: Array


def leave_root(fn: Function, a: Array, b: Array, sign: Array) -> tuple[Array, Array]:
    """Moves the left end of brackets that begin at a root, or too near to one for the sign to be seen.

    Args:
        fn: the functions.
        a: (n,) left ends.
        b: (n,) right ends, where the sign is another one.
        sign: (n,) the sign that the function has just after a.

    Returns:
        The rightmost a + (b - a) 2^-k with this sign, and the point after it, where the sign is another one; both equal
        a where there is none.
    """
    k = _FINEST - xp.count_up_real(a, _FINEST + 1)
    points = a + (b - a) * (0.5**k)[:, None]
    has_sign = xp.sign_of(fn(points)) == sign
    # From the right: the root that is looked for is the last one before b, as no two are told apart within a part.
    numbers = xp.where(has_sign, xp.count_up(a, _FINEST + 1)[:, None], -1)
    last = xp.running_max(numbers)[-1]
    found = (last >= 0) & (last < _FINEST)
    at = xp.where(found, last, 0)
    left, right = xp.take(points, xp.stack([at, at + 1]))
    return xp.where(found, left, a), xp.where(found, right, a)


def _shrink(points: Array, values: Array, sign: Array) -> tuple[Array, Array]:
    """The neighbours (2, n) among points (m, n), and the values there, between which functions lose their signs.

    The first point is one before, the last one beyond, whatever the values.
    """
    same = values * sign > 0  # NaN is beyond
    same[0], same[-1] = True, False
    at = xp.where(same, 1, 0).argmin(0)
    pair = xp.stack([at - 1, at])
    return xp.take(points, pair), xp.take(values, pair)


def other_sign(fn: Function, a: Array, b: Array, sign: Array, tol: Array, noise: float) -> tuple[Array, Array]:
    """Looks from a, where functions have a sign, towards b, where they are NaN, for a point with another sign.

    Args:
        fn: the functions.
        a: (n,) float64.
        b: (n,) float64, before or after a.
        sign: (n,) float64, 1 or -1.
        tol: (n,) float64, how near to get to where the function is no longer defined.
        noise: rounding of the argument.

    Returns:
        Points (n,) and values there. Where no other sign is found it is the last point at which the function is
        defined, with the value zero if the function falls to zero there, as sqrt does.
    """
    cuts = (xp.count_up_real(a, _SECTIONS)[1:] / _SECTIONS)[:, None]
    x1, x2, f1, f2 = a, b, sign, sign * math.nan
    for _ in range(_MOST):
        done = (abs(x2 - x1) <= tol) | ~xp.isnan(f2)
        if bool(done.all()):
            break
        points = x1 + (x2 - x1) * cuts
        values = xp.cat([f1[None], fn(points), f2[None]])
        (left, right), (f_left, f_right) = _shrink(xp.cat([x1[None], points, x2[None]]), values, sign)
        x1, f1 = xp.where(done, x1, left), xp.where(done, f1, f_left)
        x2, f2 = xp.where(done, x2, right), xp.where(done, f2, f_right)
    step = xp.sign_of(a - b) * xp.larger(4 * tol, 16 * noise)
    near, far = fn(xp.stack([x1 + step, x1 + 16 * step]))
    falls = (near * sign > 0) & (abs(near) <= _FALLS * abs(far))
    last = xp.where(falls, 0.0, f1)
    found = ~xp.isnan(f2)
    return xp.where(found, x2, x1), xp.where(found, f2, last)


def find_dips(fn: Function, a: Array, b: Array, sign: Array) -> tuple[Array, Array]:
    """Looks inside of [a, b] for a point at which functions do not have the sign that they have at both ends.

    Args:
        fn: the functions.
        a: (n,) float64.
        b: (n,) float64.
        sign: (n,) float64, 1 or -1.

    Returns:
        The points (n,) where the functions go deepest, of those that were looked at, and the values there.
    """
    cuts = ((xp.count_up_real(a, _DIP_POINTS) + 1) / (_DIP_POINTS + 1))[:, None]
    best, lowest = a, sign * sign * math.inf
    for _ in range(_DIP_ROUNDS):
        gap = (b - a) / (_DIP_POINTS + 1)
        points = a + (b - a) * cuts
        depth = fn(points) * sign
        depth = xp.where(xp.isnan(depth), math.inf, depth)
        at = depth.argmin(0)[None]
        x, found = xp.take(points, at)[0], xp.take(depth, at)[0]
        deeper = (found < lowest) & (lowest > 0)  # whatever the others still look for
        best, lowest = xp.where(deeper, x, best), xp.where(deeper, found, lowest)
        if bool((lowest <= 0).all()):
            break
        a, b = xp.larger(a, best - gap), xp.smaller(b, best + gap)
    return best, lowest * sign


def find_roots(fn: Function, a: Array, b: Array, fa: Array, fb: Array, sign: Array, tol: Array, noise: float) -> Roots:
    """The root in each bracket, to within ``tol``.

    Each round evaluates three points, around the zero of the parabola through the last ones as a function of the value
    (inverse quadratic interpolation), so that the bracket becomes as narrow as this was uncertain; or, where the last
    round did not quarter the bracket, three that do.

    Args:
        fn: the functions.
        a: (n,) float64, left ends of the brackets.
        b: (n,) float64, right ends.
        fa: (n,) float64, values at the left ends.
        fb: (n,) float64, values at the right ends.
        sign: (n,) float64, 1 or -1: the sign before the root.
        tol: (n,) float64, widths at which to stop.
        noise: width at which zero counts as the root, in units of the bracket's argument; below it a function that
            stays zero is one that rounding makes so.
    """
    scale = abs(fa) + xp.where(xp.finite(fb), abs(fb), 0.0)
    f1, f2, x1, x2 = fa, fb, a, b
    guess = a + (b - a) * (fa / (fa - fb))
    radius = (b - a) / 8
    for _ in range(_MOST):
        width = x2 - x1
        done = (width <= tol) | ((f2 == 0) & (width <= noise))
        if bool(done.all()):
            break
        usable = (guess > x1) & (guess < x2) & (radius < width / 2)
        x = xp.where(usable, guess, x1 + width / 2)
        r = xp.where(usable, xp.larger(radius, tol / 2), width / 4)
        points = xp.stack([xp.larger(x - r, x1), x, xp.smaller(x + r, x2)])
        values = fn(points)
        (left, right), (f_left, f_right) = _shrink(
            xp.cat([x1[None], points, x2[None]]), xp.cat([f1[None], values, f2[None]]), sign
        )
        x1, f1 = xp.where(done, x1, left), xp.where(done, f1, f_left)
        x2, f2 = xp.where(done, x2, right), xp.where(done, f2, f_right)
        progress = (x2 - x1) <= width / 4
        guess, radius = _next(points, values, x1, x2, f1, f2)
        at_zero = f2 == 0  # whether it is a root at one point, or the function stays there
        guess = xp.where(progress, xp.where(at_zero, x2 - noise, guess), math.nan)
        radius = xp.where(at_zero, noise / 4, radius)
    touches = (fb == 0) & (x2 < b) & (b - x2 <= _TOUCH)
    if bool(touches.any()):  # rounding makes a function zero around a root where it only touches
        touches &= fn((b + 4 * (b - x2))[None])[0] != 0
        x2 = xp.where(touches, b, x2)
    share = xp.larger(xp.where(b > a, 4 * (x2 - x1) / (b - a), 1.0), _JUMP)  # what a smooth function may change by
    return Roots(x2, ~(abs(f2 - f1) <= share * scale))


def _next(x: Array, f: Array, x1: Array, x2: Array, f1: Array, f2: Array) -> tuple[Array, Array]:
    """Where the functions may be zero, from three points and the ends of the bracket, and how uncertain that is."""
    secant = x1 + (x2 - x1) * (f1 / (f1 - f2))
    (xa, xb, xc), (fa, fb, fc) = x, f
    # Newton's form in the values: x = xa + (y - fa) d1 + (y - fa) (y - fb) d2 at y = 0.
    d1, d3 = (xb - xa) / (fb - fa), (xc - xb) / (fc - fb)
    zero = xa - fa * d1 + fa * fb * ((d3 - d1) / (fc - fa))
    inside = (zero > x1) & (zero < x2)
    guess = xp.where(inside, zero, secant)
    return guess, xp.where(inside, 2 * abs(zero - secant), (x2 - x1) / 8)
