"""Roots of many functions at once, each inside of a bracket of its own.

A root is where a function loses the sign that it has at the left end of its bracket: zero, infinity of the other sign,
and NaN lie beyond it. So where a function jumps that is the time of the jump, where it stays zero the start of that,
and where it is NaN beyond its root the root itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
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

    at: Tensor
    jumps: Tensor


def leave_root(fn: Function, a: Tensor, b: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
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
    k = torch.arange(_FINEST, -1, -1, dtype=torch.float64, device=a.device)
    points = a + (b - a) * torch.exp2(-k)[:, None]
    has_sign = torch.sign(fn(points)) == sign
    # From the right: the root that is looked for is the last one before b, as no two are told apart within a part.
    last = _FINEST - has_sign.flip(0).to(torch.int8).argmax(0)
    found = has_sign.any(0) & (last < _FINEST)
    at = torch.where(found, last, 0)
    left, right = points.gather(0, at[None])[0], points.gather(0, (at + 1)[None])[0]
    return torch.where(found, left, a), torch.where(found, right, a)


def other_sign(fn: Function, a: Tensor, b: Tensor, sign: Tensor, tol: Tensor, noise: float) -> tuple[Tensor, Tensor]:
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
    cuts = torch.arange(1, _SECTIONS, dtype=torch.float64, device=a.device)[:, None] / _SECTIONS
    x1, x2 = a, b
    f1, f2 = sign.clone(), torch.full_like(a, torch.nan)
    for _ in range(_MOST):
        done = ((x2 - x1).abs() <= tol) | ~f2.isnan()
        if bool(done.all()):
            break
        points = x1 + (x2 - x1) * cuts
        values = torch.cat([f1[None], fn(points), f2[None]])
        points = torch.cat([x1[None], points, x2[None]])
        same = values * sign > 0
        same[0] = True
        same[-1] = False
        at = same.to(torch.int8).argmin(0)
        pair = torch.stack([at - 1, at])
        (left, right), (f_left, f_right) = points.gather(0, pair), values.gather(0, pair)
        x1, f1 = torch.where(done, x1, left), torch.where(done, f1, f_left)
        x2, f2 = torch.where(done, x2, right), torch.where(done, f2, f_right)
    step = torch.sign(a - b) * torch.maximum(4 * tol, torch.full_like(tol, 16 * noise))
    near, far = fn(torch.stack([x1 + step, x1 + 16 * step]))
    falls = (near * sign > 0) & (near.abs() <= _FALLS * far.abs())
    last = torch.where(falls, 0.0, f1)
    found = ~f2.isnan()
    return torch.where(found, x2, x1), torch.where(found, f2, last)


def find_dips(fn: Function, a: Tensor, b: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Looks inside of [a, b] for a point at which functions do not have the sign that they have at both ends.

    Args:
        fn: the functions.
        a: (n,) float64.
        b: (n,) float64.
        sign: (n,) float64, 1 or -1.

    Returns:
        The points (n,) where the functions go deepest, of those that were looked at, and the values there.
    """
    cuts = torch.arange(1, _DIP_POINTS + 1, dtype=torch.float64, device=a.device)[:, None] / (_DIP_POINTS + 1)
    best, value = a, sign * torch.inf
    for _ in range(_DIP_ROUNDS):
        gap = (b - a) / (_DIP_POINTS + 1)
        points = a + (b - a) * cuts
        values = fn(points)
        lowest, at = (values * sign).nan_to_num(torch.inf).min(0)
        x = points.gather(0, at[None])[0]
        deeper = lowest < value * sign
        best, value = torch.where(deeper, x, best), torch.where(deeper, lowest * sign, value)
        if bool((value * sign <= 0).all()):
            break
        a, b = torch.maximum(a, best - gap), torch.minimum(b, best + gap)
    return best, value


def find_roots(
    fn: Function, a: Tensor, b: Tensor, fa: Tensor, fb: Tensor, sign: Tensor, tol: Tensor, noise: float
) -> Roots:
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
    scale = fa.abs() + torch.where(torch.isfinite(fb), fb.abs(), 0.0)
    f1, f2, x1, x2 = fa, fb, a, b
    guess = a + (b - a) * (fa / (fa - fb))
    radius = (b - a) / 8
    middle = torch.full_like(a, torch.nan)
    for _ in range(_MOST):
        width = x2 - x1
        done = (width <= tol) | ((f2 == 0) & (width <= noise))
        if bool(done.all()):
            break
        usable = (guess > x1) & (guess < x2) & (radius < width / 2)
        x = torch.where(usable, guess, x1 + width / 2)
        r = torch.where(usable, torch.maximum(radius, tol / 2), width / 4)
        points = torch.stack([torch.maximum(x - r, x1), x, torch.minimum(x + r, x2)])
        values = fn(points)
        points = torch.cat([x1[None], points, x2[None]])
        values = torch.cat([f1[None], values, f2[None]])
        same = values * sign > 0  # NaN is beyond
        same[0] = True
        same[-1] = False
        at = same.to(torch.int8).argmin(0)
        pair = torch.stack([at - 1, at])
        (left, right), (f_left, f_right) = points.gather(0, pair), values.gather(0, pair)
        x1, f1 = torch.where(done, x1, left), torch.where(done, f1, f_left)
        x2, f2 = torch.where(done, x2, right), torch.where(done, f2, f_right)
        progress = (x2 - x1) <= width / 4
        guess, radius = _next(points[1:4], values[1:4], x1, x2, f1, f2)
        at_zero = f2 == 0  # whether it is a root at one point, or the function stays there
        guess = torch.where(progress, torch.where(at_zero, x2 - noise, guess), middle)
        radius = torch.where(at_zero, noise / 4, radius)
    touches = (fb == 0) & (x2 < b) & (b - x2 <= _TOUCH)
    if bool(touches.any()):  # rounding makes a function zero around a root where it only touches
        touches &= fn((b + 4 * (b - x2))[None])[0] != 0
        x2 = torch.where(touches, b, x2)
    share = torch.where(b > a, 4 * (x2 - x1) / (b - a), 1.0).clamp_min(_JUMP)  # what a smooth function may change by
    return Roots(x2, ~((f2 - f1).abs() <= share * scale))


def _next(x: Tensor, f: Tensor, x1: Tensor, x2: Tensor, f1: Tensor, f2: Tensor) -> tuple[Tensor, Tensor]:
    """Where the functions may be zero, from three points and the ends of the bracket, and how uncertain that is."""
    secant = x1 + (x2 - x1) * (f1 / (f1 - f2))
    (xa, xb, xc), (fa, fb, fc) = x, f
    # Newton's form in the values: x = xa + (y - fa) d1 + (y - fa) (y - fb) d2 at y = 0.
    d1, d3 = (xb - xa) / (fb - fa), (xc - xb) / (fc - fb)
    zero = xa - fa * d1 + fa * fb * ((d3 - d1) / (fc - fa))
    inside = (zero > x1) & (zero < x2)
    guess = torch.where(inside, zero, secant)
    return guess, torch.where(inside, 2 * (zero - secant).abs(), (x2 - x1) / 8)
