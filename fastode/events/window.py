"""The events within the steps of a window: which happen, when, and which of them ends the flow.

For tensors on the CPU ``HostWindow`` finds the same, to the last bit, by compiled code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastode.events import arrays as xp
from fastode.events.arrays import Array
from fastode.events.event import FlatEvents
from fastode.events.line import Line
from fastode.events.steps import Polynomials
from fastode.solution import DenseOutput

NUMBERS = 1 << 23
"""Numbers that the polynomials of a window, or the points of one call of event functions, may take."""
_ROUNDINGS = 4
"""Width at which times are the same, in roundings."""


def clock_tolerance(t: Array) -> Array:
    """The width at which times of this magnitude are the same: that of the clock, which is float64."""
    return _ROUNDINGS * torch.finfo(torch.float64).eps * abs(t)


def same_time(dtype: torch.dtype, t: Array, size: Array) -> Array:
    """The width at which times within a step of this size are told apart by states of this dtype."""
    return clock_tolerance(t) + _ROUNDINGS * torch.finfo(dtype).eps * abs(size)


@dataclass(frozen=True)
class Start:
    """Event functions (B, E) where a window starts: their values, and the signs that they have just after it."""

    values: Array
    signs: Array


@dataclass(frozen=True)
class Crossings:
    """Changes of sign of one event, those of a sample in order; each entry (n,).

    Attributes:
        sample: int64.
        t: float64.
        size: float64, size of the step in which it happens.
        jumps: bool, whether the function jumps instead of passing through zero.
        y: (k, D), the states at the first k of them, in float64; those for which the search has the solve's own steps.
    """

    sample: Array
    t: Array
    size: Array
    jumps: Array
    y: Array

    def of(self, mask: Array) -> Crossings:
        """Some of them."""
        known = self.y[mask[: len(self.y)]]
        return Crossings(self.sample[mask], self.t[mask], self.size[mask], self.jumps[mask], known)

    def after(self, k: int) -> Crossings:
        """All but the first k."""
        return Crossings(self.sample[k:], self.t[k:], self.size[k:], self.jumps[k:], self.y[k:])

    def without_states(self) -> Crossings:
        """The same, of which no state is known."""
        return replace(self, y=self.y[:0])

    @classmethod
    def none(cls, like: Array) -> Crossings:
        """No crossing."""
        empty = xp.zeros(like, (0,))
        return cls(empty, xp.full(like, (0,), 0.0), xp.full(like, (0,), 0.0), empty > 0, xp.full(like, (0, 0), 0.0))

    @classmethod
    def joined(cls, parts: Sequence[Crossings], like: Array) -> Crossings:
        """Those of several windows, one after another."""
        if len(parts) < 2:
            return parts[0] if parts else cls.none(like)
        sample, t, size, jumps = (xp.cat([getattr(p, x) for p in parts]) for x in ("sample", "t", "size", "jumps"))
        return cls(sample, t, size, jumps, parts[0].y)


class Window:
    """The events within the steps of one window.

    Attributes:
        ends: (B,) float64, the first event that ends the flow; infinite where there is none.
        size: (B,) float64, size of the step that holds it; 0 where there is none.
        fired: (B, E) bool, which events happen there.
        jumps: (B, E) bool, which of them by a jump.
        records: for each event, occurrences up to the end at which the flow goes on.
        last: the event functions at the end of the window.

    Args:
        events: the functions.
        dense: the steps.
        alive: (B,) bool, the samples that count.
        direction: (B,) float64, 1 or -1.
        controls: leaves (B, ...), without graph.
        start: the event functions at the start.
        counts: (B, E) int64, occurrences so far.
    """

    def __init__(
        self,
        events: FlatEvents,
        dense: DenseOutput,
        alive: Array,
        direction: Array,
        controls: Sequence[Tensor],
        start: Start,
        counts: Array,
    ) -> None:
        self.events, self.dense = events, dense
        self._polynomials = Polynomials(events, dense, controls)
        self._direction = direction
        n_rows, batch = dense.start.shape
        self._count = xp.where(alive, xp.of(dense.n_accepted), 0)
        self._taken = xp.count_up(self._count, n_rows)[:, None] < self._count
        self.last = start
        self.ends, self.size = xp.full(direction, (batch,), math.inf), xp.full(direction, (batch,), 0.0)
        self.fired = self.jumps = counts < 0
        self.records = [Crossings.none(direction)] * len(events)
        if n_rows:
            self._look(start, counts)

    def _look(self, start: Start, counts: Array) -> None:
        parts, noise = self.events.parts, torch.finfo(self.dense.y0.dtype).eps
        taken = xp.repeat(self._taken, parts)
        lines = [
            Line(e, values, taken, start.values[:, e], start.signs[:, e], parts, self._polynomials.of, noise)
            for e, values in enumerate(self._sample())
        ]
        self.last = Start(xp.stack([x.last for x in lines], 1), xp.stack([x.last_sign for x in lines], 1))
        bound = 0 * self._count + 2 * len(taken)
        found: list[tuple[Array, ...]] = []
        for e, line in enumerate(lines):
            changed = line.changes(self.events.directions[e])
            ends, limit = changed, self.events.events[e].ends_at
            if not self.events.ending[e]:
                ends = changed & (counts[:, e] + changed.cumsum(0) == (limit or 0))
            point, sample = xp.places(changed)
            order, ends = line.order(parts)[point], ends[point, sample]
            xp.put_smallest(bound, sample[ends], order[ends])
            found.append((point, sample, order, ends))
        crossings = []
        for line, (point, sample, order, ends) in zip(lines, found, strict=True):
            keep = order <= bound[sample]
            point, sample = point[keep], sample[keep]
            crossings.append((sample, ends[keep], *line.roots(point, sample)) if len(point) else None)
        if any(x is not None for x in crossings):
            self._settle(crossings)

    def _sample(self) -> list[Array]:
        """Each event function (N * parts, B) at the ends of the parts of all steps; NaN where there is no step."""
        parts, events = self.events.parts, self.events
        n_rows, batch = self._taken.shape
        step, sample = xp.places(self._taken)
        found = [xp.full(step, (n_rows, parts, batch), math.nan) for _ in events.events]
        theta = ((xp.count_up_real(step, parts) + 1) / parts)[:, None]
        chunk = max(1, NUMBERS // max(1, parts * events.row_size))
        for first in range(0, len(step), chunk):
            n, b = step[first : first + chunk], sample[first : first + chunk]
            for target, values in zip(found, self._polynomials.of(n, b).values(theta), strict=True):
                target[n, :, b] = values.T
        return [x.reshape(n_rows * parts, batch) for x in found]

    def _settle(self, crossings: list[tuple[Array, ...] | None]) -> None:
        """The first of the events that end the flow, and whatever else happens at the same time."""
        direction = self._direction
        first = [xp.full(direction, direction.shape, math.inf) for _ in crossings]
        size = xp.full(direction, direction.shape, 0.0)
        jumps = [size != size for _ in crossings]
        for e, found in enumerate(crossings):
            if found is not None:
                sample, ends, t, sizes, jump = found
                own = sample[ends]
                xp.put_smallest(first[e], own, direction[own] * t[ends])
                size[own] = abs(sizes[ends])
                jumps[e][own] = jump[ends]
        earliest = first[0]
        for other in first[1:]:
            earliest = xp.smaller(earliest, other)
        ending = xp.finite(earliest)
        limit = earliest + same_time(self.dense.y0.dtype, xp.where(ending, earliest, 0.0), size)
        fired = xp.stack([(x <= limit) & ending for x in first], 1)
        ends_at = xp.where(ending, earliest * direction, math.inf)
        self.size, self.fired, self.ends = size, fired, ends_at
        self.jumps = xp.stack(jumps, 1) & fired
        for e, found in enumerate(crossings):
            if found is not None and not self.events.ending[e]:
                sample, ends, t, sizes, jump = found
                known = ~ends & (direction[sample] * t <= limit[sample])
                sample, t = sample[known], t[known]
                t = xp.where(direction[sample] * t > earliest[sample], ends_at[sample], t)
                unknown = xp.full(direction, (0, 0), 0.0)
                self.records[e] = Crossings(sample, t, sizes[known], jump[known], unknown)

    def signs_before(self) -> Array:
        """Signs (B, E) of the event functions just before the ends; 0 where there is none."""
        dense, times = self.dense, self.ends
        (sample,) = xp.places(xp.finite(times))
        signs = xp.full(self._direction, (len(times), len(self.events)), 0.0)
        if len(sample):
            start, size = xp.of(dense.start), xp.of(dense.size)
            passed = (self._direction * (times - start) >= 0) & self._taken
            step = xp.larger(passed.sum(0) - 1, 0)[sample]
            theta = (times[sample] - start[step, sample]) / size[step, sample]
            signs[sample] = xp.sign_of(xp.stack(self._polynomials.of(step, sample).values(theta), 1))
        return signs

    def last_state(self, y: Tensor) -> Tensor:
        """The states (B, D) at the end of the window; y where there was no step."""
        return last_state(self.dense, xp.tensor(self._count), y)


def last_state(dense: DenseOutput, count: Tensor, y: Tensor) -> Tensor:
    """The states (B, D) after so many steps (B,) of each sample; y where there is none."""
    if not dense.start.shape[0]:
        return y
    last = (count - 1).clamp_min(0)
    coefs = dense.coefs[dense.rows.gather(0, last[None])[0]].detach()
    return torch.where((count > 0)[:, None], coefs[:, 0] + coefs[:, -1], y)
