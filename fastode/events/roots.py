"""Roots of many functions at once, each inside a bracket of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MOST = 120
"""Evaluations after which the best point so far is taken: twice what bisection needs from any bracket."""
_FINEST = 60
"""Halvings of a bracket in the search for a point that has left a root."""


def leave_root(fn: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Moves the left end of brackets that begin at a root, or too near to one for the sign to be seen.

    Args:
        fn: values (m, n) at points (m, n), column i in bracket i.
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


def find_roots(fn: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, fa: Tensor, fb: Tensor, tol: Tensor) -> Tensor:
    """A root in each bracket, to within ``tol``.

    Chandrupatla's method (Advances in Engineering Software 28 (1997) 145-149): inverse quadratic interpolation where
    the three last points show that it converges, bisection where not. NaN counts as lying beyond the root.

    Args:
        fn: values (n,) at points (n,), one in each bracket.
        a: (n,) float64, left ends of the brackets.
        b: (n,) float64, right ends.
        fa: (n,) float64, values at the left ends.
        fb: (n,) float64, values at the right ends, of the other sign; a value of zero is a root.
        tol: (n,) float64, widths of the brackets at which to stop.
    """
    x1, f1, x2, f2 = a, fa, b, fb
    t = torch.full_like(a, 0.5)
    for _ in range(_MOST):
        best = torch.where(f1.abs() < f2.abs(), x1, x2)
        width = (x2 - x1).abs()
        done = (width <= tol) | (f1 == 0) | (f2 == 0)
        if bool(done.all()):
            break
        margin = (0.5 * tol / width).clamp_max(0.5)
        x = torch.where(done, x1, x1 + torch.minimum(torch.maximum(t, margin), 1 - margin) * (x2 - x1))
        f = fn(x)
        f = torch.where(done, f1, torch.where(f.isnan(), fb, f))
        same = torch.sign(f) == torch.sign(f1)
        x3, f3 = torch.where(same, x1, x2), torch.where(same, f1, f2)
        x2, f2 = torch.where(same | done, x2, x1), torch.where(same | done, f2, f1)
        x1, f1 = x, f
        xi, phi = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
        fits = (1 - torch.sqrt(1 - xi) < phi) & (phi < torch.sqrt(xi))
        quadratic = f1 / (f1 - f2) * f3 / (f3 - f2) - (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f2 - f3)
        t = torch.where(fits & torch.isfinite(quadratic), quadratic, 0.5)
    return best
