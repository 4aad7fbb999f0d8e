"""One event function along the steps of a window, at the ends of equal parts of each step and where else it is needed.

Between two points with the same sign a parabola through three points tells whether the function may pass through zero
and back; next to a point where it is NaN there may be a root before that or after it. In these parts it is looked for a
point in between. NaN itself has no sign: the last one that was seen counts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastode.events.roots import Function, find_dips, find_roots, leave_root, other_sign
from fastode.events.steps import Steps
from fastode.hostflags import host_any

_ROUNDINGS = 4
"""Width of a bracket at which a root counts as found, in roundings of the clock."""
_DEEP = 0.5
"""A parabola that leaves less than this part of the value in its middle is followed to its vertex."""

StepsOf = Callable[[Tensor, Tensor], Steps]
"""The polynomials of steps (n,) of samples (n,)."""


def sign_of(x: Tensor) -> Tensor:
    """-1, 0 or 1, and NaN for NaN, of which ``torch.sign`` says 0."""
    return torch.where(x.isnan(), x, torch.sign(x))


class Line:
    """The points of one event function, (M, B): those of a sample along its steps, ``slots`` to a step.

    Attributes:
        slots: parts, or twice as many where any part holds a point besides its end.
        last: (B,) values at the end of the window.
        last_sign: (B,) the last sign that was seen.

    Args:
        e: which function.
        values: (N * parts, B), at the ends of the parts of all steps; NaN where there is no step.
        taken: (N * parts, B) bool, where there is one.
        first: (B,), the value at the start.
        sign: (B,), the sign just after it.
        parts: of each step.
        steps_of: their polynomials.
        noise: rounding of the state.
    """

    def __init__(
        self,
        e: int,
        values: Tensor,
        taken: Tensor,
        first: Tensor,
        sign: Tensor,
        parts: int,
        steps_of: StepsOf,
        noise: float,
    ) -> None:
        self.e, self.slots, self._steps_of, self._noise = e, parts, steps_of, noise
        n_points = values.shape[0]
        number = torch.arange(n_points, device=values.device)
        number = number % parts
        self._left = (number.double() / parts)[:, None].expand_as(values)
        self._right = ((number + 1).double() / parts)[:, None].expand_as(values)
        self._before, self._after = torch.cat([first[None], values])[:-1], values
        self._signs = sign_of(values)
        self._earlier = torch.cat([sign[None], self._signs])[:-1]
        undefined = values.isnan() & taken
        dips = self._dips()
        enters = undefined & (self._earlier.abs() == 1)
        leaves = self._before.isnan() & (self._signs.abs() == 1)
        if host_any(torch.stack([dips, undefined, leaves])):
            self._insert(dips, enters, leaves, sign)
        count = taken.sum(0) * (self.slots // parts)
        at = (count - 1).clamp_min(0)[None]
        self.last = torch.where(count > 0, self._after.gather(0, at)[0], first)
        self.last_sign = torch.where(count > 0, self._signs.gather(0, at)[0], sign)

    def changes(self, direction: int) -> Tensor:
        """(M, B) bool: at which points there is another sign than before, or zero."""
        changed = (self._earlier.abs() == 1) & ((self._signs == -self._earlier) | (self._signs == 0))
        return changed if direction == 0 else changed & (self._earlier == -direction)

    def order(self, parts: int) -> Tensor:
        """(M,) int64: numbers of the points by which those of several lines can be compared."""
        number = torch.arange(self._signs.shape[0], device=self._signs.device)
        return number if self.slots > parts else 2 * number + 1

    def roots(self, point: Tensor, sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """When the changes seen at points (n,) of samples (n,) happen; the sizes of their steps; which are jumps."""
        steps = self._steps_of(point // self.slots, sample)
        at = (point, sample)
        a, b, fa, fb, sign = (x[at] for x in (self._left, self._right, self._before, self._after, self._earlier))
        odd = sign_of(fa) != sign
        if host_any(odd):
            a = torch.where(fa.isnan(), b, a)  # after a gap without values, which was followed to its end
            root = (odd & ~fa.isnan()).nonzero()[:, 0]
            if len(root):
                value = self._function(point[root], sample[root])
                left, right = leave_root(value, a[root], b[root], sign[root])
                ends = value(torch.stack([left, right]))
                a, b = a.index_put((root,), left), b.index_put((root,), right)
                fa, fb = fa.index_put((root,), ends[0]), fb.index_put((root,), ends[1])
        tol = steps.resolution(_ROUNDINGS)
        found = find_roots(lambda theta: steps.value(self.e, theta), a, b, fa, fb, sign, tol, self._noise)
        return steps.times(found.at), steps.size, found.jumps

    def _function(self, point: Tensor, sample: Tensor) -> Function:
        """The event function as one of places in the steps of points (n,) of samples (n,)."""
        steps = self._steps_of(point // self.slots, sample)
        return lambda theta: steps.value(self.e, theta)

    def _dips(self) -> Tensor:
        """(M, B) bool: middles of parabolas through three points of a step that may pass through zero and back."""
        dips = torch.zeros_like(self._after, dtype=torch.bool)
        parts = self.slots
        if parts == 1:
            return dips
        n_points, batch = dips.shape
        of_steps = self._after.reshape(n_points // parts, parts, batch)
        first = self._before.reshape(of_steps.shape)[:, :1]
        points = torch.cat([first, of_steps], 1)
        left, middle, right = points[:, :-2], points[:, 1:-1], points[:, 2:]
        bend, slope = left - 2 * middle + right, (right - left) / 2
        same = (left * middle > 0) & (middle * right > 0)
        # At the vertex, within the two parts, remains middle - slope^2 / (2 bend).
        deep = same & (bend * middle > 0) & (slope.abs() < bend.abs())
        deep &= slope * slope > 2 * (1 - _DEEP) * (bend * middle)
        dips.reshape(of_steps.shape)[:, :-1] = deep
        return dips

    def _insert(self, dips: Tensor, enters: Tensor, leaves: Tensor, sign: Tensor) -> None:
        """Looks for points with another sign inside of parts, and doubles the slots for these points."""
        parts, before = self.slots, self._before
        place, value = self._left.clone(), before.clone()
        held = torch.zeros_like(dips)

        def hold(point: Tensor, sample: Tensor, found: Tensor, values: Tensor) -> None:
            place[point, sample], value[point, sample], held[point, sample] = found, values, True

        point, sample = at = dips.nonzero(as_tuple=True)
        if len(point):
            right, sides = self._right[at], self._signs[at]
            found, values = find_dips(self._function(point, sample), self._left[at], right + 1 / parts, sides)
            through = values * sides <= 0
            point = point + (found > right)  # or in the part after
            hold(point[through], sample[through], found[through], values[through])
        for mask, a, b, sides in (
            (enters, self._left, self._right, self._earlier),
            (leaves, self._right, self._left, self._signs),
        ):
            point, sample = at = mask.nonzero(as_tuple=True)
            if len(point):
                tol = self._steps_of(point // parts, sample).resolution(_ROUNDINGS)
                fn = self._function(point, sample)
                hold(point, sample, *other_sign(fn, a[at], b[at], sides[at], tol, self._noise))
        seen = sign_of(value)
        signs = torch.stack([torch.where(held, seen, self._earlier), self._signs], 1).flatten(0, 1)
        signs = torch.cat([sign[None], signs])
        number = torch.arange(signs.shape[0], device=signs.device)[:, None]
        signs = signs.gather(0, torch.where(signs.isnan(), 0, number).cummax(0).values)
        self.slots = 2 * parts
        self._earlier, self._signs = signs[:-1], signs[1:]
        self._right = torch.stack([place, self._right], 1).flatten(0, 1)
        self._left = torch.stack([self._left, place], 1).flatten(0, 1)
        self._after = torch.stack([value, self._after], 1).flatten(0, 1)
        self._before = torch.stack([before, value], 1).flatten(0, 1)
