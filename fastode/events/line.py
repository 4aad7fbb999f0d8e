"""One event function along the steps of a window, at the ends of equal parts of each step and where else it is needed.

Between two points with the same sign a parabola through three points tells whether the function may pass through zero
and back; next to a point where it is NaN there may be a root before that or after it. In these parts it is looked for a
point in between. NaN itself has no sign: the last one that was seen counts.
"""

from __future__ import annotations

from collections.abc import Callable

from fastode.events import arrays as xp
from fastode.events.arrays import Array
from fastode.events.roots import Function, find_dips, find_roots, leave_root, other_sign
from fastode.events.steps import Steps

_ROUNDINGS = 4
"""Width of a bracket at which a root counts as found, in roundings of the clock."""
_DEEP = 0.5
"""A parabola that leaves less than this part of the value in its middle is followed to its vertex."""

StepsOf = Callable[[Array, Array], Steps]
"""The polynomials of steps (n,) of samples (n,)."""


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
        values: Array,
        taken: Array,
        first: Array,
        sign: Array,
        parts: int,
        steps_of: StepsOf,
        noise: float,
    ) -> None:
        self.e, self.slots, self._steps_of, self._noise = e, parts, steps_of, noise
        number = xp.count_up_real(values, values.shape[0]) % parts
        self._left = xp.spread((number / parts)[:, None], values.shape)
        self._right = xp.spread(((number + 1) / parts)[:, None], values.shape)
        self._before, self._after = xp.cat([first[None], values])[:-1], values
        self._signs = xp.sign_of(values)
        self._earlier = xp.cat([sign[None], self._signs])[:-1]
        undefined = xp.isnan(values) & taken
        dips = self._dips()
        enters = undefined & (abs(self._earlier) == 1)
        leaves = xp.isnan(self._before) & (abs(self._signs) == 1)
        if bool((dips | undefined | leaves).any()):
            self._insert(dips, enters, leaves, sign)
        count = taken.sum(0) * (self.slots // parts)
        at = xp.larger(count - 1, 0)[None]
        self.last = xp.where(count > 0, xp.take(self._after, at)[0], first)
        self.last_sign = xp.where(count > 0, xp.take(self._signs, at)[0], sign)

    def changes(self, direction: int) -> Array:
        """(M, B) bool: at which points there is another sign than before, or zero."""
        changed = (abs(self._earlier) == 1) & ((self._signs == -self._earlier) | (self._signs == 0))
        return changed if direction == 0 else changed & (self._earlier == -direction)

    def order(self, parts: int) -> Array:
        """(M,) int64: numbers of the points by which those of several lines can be compared."""
        number = xp.count_up(self._signs, self._signs.shape[0])
        return number if self.slots > parts else 2 * number + 1

    def roots(self, point: Array, sample: Array) -> tuple[Array, Array, Array]:
        """When the changes seen at points (n,) of samples (n,) happen; the sizes of their steps; which are jumps."""
        steps = self._steps_of(point // self.slots, sample)
        at = (point, sample)
        a, b, fa, fb, sign = (x[at] for x in (self._left, self._right, self._before, self._after, self._earlier))
        odd = xp.sign_of(fa) != sign
        if bool(odd.any()):
            a = xp.where(xp.isnan(fa), b, a)  # after a gap without values, which was followed to its end
            (root,) = xp.places(odd & ~xp.isnan(fa))
            if len(root):
                value = self._function(point[root], sample[root])
                left, right = leave_root(value, a[root], b[root], sign[root])
                a, b, fa, fb = (xp.copy(x) for x in (a, b, fa, fb))
                a[root], b[root] = left, right
                fa[root], fb[root] = value(xp.stack([left, right]))
        tol = steps.resolution(_ROUNDINGS)
        found = find_roots(lambda theta: steps.value(self.e, theta), a, b, fa, fb, sign, tol, self._noise)
        return steps.times(found.at), steps.size, found.jumps

    def _function(self, point: Array, sample: Array) -> Function:
        """The event function as one of places in the steps of points (n,) of samples (n,)."""
        steps = self._steps_of(point // self.slots, sample)
        return lambda theta: steps.value(self.e, theta)

    def _dips(self) -> Array:
        """(M, B) bool: middles of parabolas through three points of a step that may pass through zero and back."""
        parts, shape = self.slots, self._after.shape
        if parts == 1:
            return xp.isnan(self._after) & False
        of_steps = self._after.reshape(shape[0] // parts, parts, shape[1])
        first = self._before.reshape(of_steps.shape)[:, :1]
        points = xp.cat([first, of_steps], 1)
        left, middle, right = points[:, :-2], points[:, 1:-1], points[:, 2:]
        bend, slope = left - 2 * middle + right, (right - left) / 2
        # At the vertex, within the two parts, remains middle - slope^2 / (2 bend).
        deep = (left * middle > 0) & (middle * right > 0) & (bend * middle > 0) & (abs(slope) < abs(bend))
        deep = deep & (slope * slope > 2 * (1 - _DEEP) * (bend * middle))
        return xp.cat([deep, deep[:, :1] & False], 1).reshape(shape)

    def _insert(self, dips: Array, enters: Array, leaves: Array, sign: Array) -> None:
        """Looks for points with another sign inside of parts, and doubles the slots for these points."""
        parts, before = self.slots, self._before
        place, value, held = xp.copy(self._left), xp.copy(before), dips & False

        def hold(point: Array, sample: Array, found: Array, values: Array) -> None:
            place[point, sample], value[point, sample], held[point, sample] = found, values, True

        point, sample = at = xp.places(dips)
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
            point, sample = at = xp.places(mask)
            if len(point):
                tol = self._steps_of(point // parts, sample).resolution(_ROUNDINGS)
                fn = self._function(point, sample)
                hold(point, sample, *other_sign(fn, a[at], b[at], sides[at], tol, self._noise))
        seen = xp.sign_of(value)
        signs = _woven(xp.where(held, seen, self._earlier), self._signs)
        signs = xp.cat([sign[None], signs])
        number = xp.count_up(signs, signs.shape[0])[:, None]
        signs = xp.take(signs, xp.running_max(xp.where(xp.isnan(signs), 0, number)))
        self.slots = 2 * parts
        self._earlier, self._signs = signs[:-1], signs[1:]
        self._left, self._right = _woven(self._left, place), _woven(place, self._right)
        self._before, self._after = _woven(before, value), _woven(value, self._after)


def _woven(x: Array, y: Array) -> Array:
    """Rows of x and y in turn."""
    return xp.stack([x, y], 1).reshape(2 * x.shape[0], x.shape[1])
