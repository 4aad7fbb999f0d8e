"""The events within the steps of a window: which happen, when, and which of them ends the flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastode.events.event import FlatEvents
from fastode.events.line import Line, sign_of
from fastode.events.steps import Steps
from fastode.solution import DenseOutput

NUMBERS = 1 << 23
"""Numbers that the polynomials of a window, or the points of one call of event functions, may take."""
_ROUNDINGS = 4
"""Width at which times are the same, in roundings."""


def clock_tolerance(*times: Tensor) -> Tensor:
    """The width at which times of this magnitude are the same: that of the clock, which is float64."""
    largest = torch.stack([t.abs() for t in times]).amax(0)
    return _ROUNDINGS * torch.finfo(torch.float64).eps * largest


def same_time(dtype: torch.dtype, t: Tensor, size: Tensor) -> Tensor:
    """The width at which times within a step of this size are told apart by states of this dtype."""
    return clock_tolerance(t) + _ROUNDINGS * torch.finfo(dtype).eps * size.abs()


@dataclass(frozen=True)
class Start:
    """Event functions (B, E) where a window starts: their values, and the signs that they have just after it."""

    values: Tensor
    signs: Tensor


@dataclass(frozen=True)
class Crossings:
    """Changes of sign of one event, those of a sample in order; each entry (n,).

    Attributes:
        sample: int64.
        t: float64.
        size: float64, size of the step in which it happens.
        jumps: bool, whether the function jumps instead of passing through zero.
    """

    sample: Tensor
    t: Tensor
    size: Tensor
    jumps: Tensor

    def of(self, which: Tensor) -> Crossings:
        """Some of them, by number or mask."""
        return Crossings(self.sample[which], self.t[which], self.size[which], self.jumps[which])

    @classmethod
    def none(cls, device: torch.device) -> Crossings:
        """No crossing."""
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(empty, empty.double(), empty.double(), empty.bool())

    @classmethod
    def joined(cls, parts: Sequence[Crossings], device: torch.device) -> Crossings:
        """Those of several windows, one after another."""
        if not parts:
            return cls.none(device)
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in ("sample", "t", "size", "jumps")))


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
        alive: Tensor,
        direction: Tensor,
        controls: Sequence[Tensor],
        start: Start,
        counts: Tensor,
    ) -> None:
        self.events, self.dense, self.controls = events, dense, controls
        self.direction = direction
        n_rows, batch = dense.start.shape
        device = alive.device
        self.taken = (torch.arange(n_rows, device=device)[:, None] < dense.n_accepted) & alive
        self.count = torch.where(alive, dense.n_accepted, 0)
        self.last = start
        self.ends = torch.full((batch,), torch.inf, dtype=torch.float64, device=device)
        self.size = torch.zeros(batch, dtype=torch.float64, device=device)
        self.fired = torch.zeros(batch, len(events), dtype=torch.bool, device=device)
        self.jumps = self.fired
        self.records = [Crossings.none(device)] * len(events)
        if n_rows:
            self._look(start, counts)

    def _look(self, start: Start, counts: Tensor) -> None:
        parts, noise = self.events.parts, torch.finfo(self.dense.y0.dtype).eps
        taken = self.taken.repeat_interleave(parts, 0)
        lines = [
            Line(e, values, taken, start.values[:, e], start.signs[:, e], parts, self._steps, noise)
            for e, values in enumerate(self._sample())
        ]
        self.last = Start(torch.stack([x.last for x in lines], 1), torch.stack([x.last_sign for x in lines], 1))
        bound = torch.full_like(self.count, 2 * len(taken))
        found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for e, line in enumerate(lines):
            changed = line.changes(self.events.directions[e])
            ends, limit = changed, self.events.events[e].ends_at
            if not self.events.ending[e]:
                ends = changed & (counts[:, e] + changed.cumsum(0) == (limit or 0))
            order = line.order(parts)
            bound = torch.minimum(bound, torch.where(ends, order[:, None], bound).amin(0))
            point, sample = changed.nonzero(as_tuple=True)
            found.append((point, sample, order[point], ends[point, sample]))
        crossings, ending = [], []
        for line, (point, sample, order, ends) in zip(lines, found, strict=True):
            keep = order <= bound[sample]
            crossings.append(Crossings(sample[keep], *line.roots(point[keep], sample[keep])))
            ending.append(ends[keep])
        self._settle(crossings, ending)

    def _steps(self, step: Tensor, sample: Tensor) -> Steps:
        return Steps(self.events, self.dense, step, sample, self.controls)

    def _sample(self) -> list[Tensor]:
        """Each event function (N * parts, B) at the ends of the parts of all steps; NaN where there is no step."""
        parts, events = self.events.parts, self.events
        n_rows, batch = self.dense.start.shape
        step, sample = self.taken.nonzero(as_tuple=True)
        device = step.device
        found = [
            torch.full((n_rows, parts, batch), torch.nan, dtype=torch.float64, device=device) for _ in events.events
        ]
        theta = torch.arange(1, parts + 1, dtype=torch.float64, device=device)[:, None] / parts
        chunk = max(1, NUMBERS // max(1, parts * events.row_size))
        for first in range(0, len(step), chunk):
            n, b = step[first : first + chunk], sample[first : first + chunk]
            steps = self._steps(n, b)
            for target, values in zip(found, steps.values(theta.expand(parts, len(n))), strict=True):
                target[n, :, b] = values.T
        return [x.reshape(n_rows * parts, batch) for x in found]

    def _settle(self, crossings: list[Crossings], ending: list[Tensor]) -> None:
        """The first of the events that end the flow, and whatever else happens at the same time."""
        batch, device = len(self.ends), self.ends.device
        first = torch.full((batch, len(crossings)), torch.inf, dtype=torch.float64, device=device)
        jumps = torch.zeros_like(self.fired)
        for e, (all_of, ends) in enumerate(zip(crossings, ending, strict=True)):
            own = all_of.of(ends)
            first[:, e].scatter_reduce_(0, own.sample, self.direction[own.sample] * own.t, "amin")
            self.size.scatter_reduce_(0, own.sample, own.size.abs(), "amax")
            jumps[own.sample, e] = own.jumps
        earliest = first.amin(1)
        found = earliest.isfinite()
        limit = earliest + same_time(self.dense.y0.dtype, earliest.nan_to_num(0.0, 0.0, 0.0), self.size)
        self.fired = (first <= limit[:, None]) & found[:, None]
        self.jumps = jumps & self.fired
        self.ends = torch.where(found, earliest * self.direction, torch.inf)
        for e, (all_of, ends) in enumerate(zip(crossings, ending, strict=True)):
            if self.events.ending[e] or not len(ends):
                continue
            known = all_of.of(~ends & (self.direction[all_of.sample] * all_of.t <= limit[all_of.sample]))
            late = self.direction[known.sample] * known.t > earliest[known.sample]
            t = torch.where(late, self.ends[known.sample], known.t)
            self.records[e] = Crossings(known.sample, t, known.size, known.jumps)

    def signs_at(self, times: Tensor, wanted: Tensor) -> Tensor:
        """Signs (B, E) of the event functions at times (B,) within the window; 0 where not wanted."""
        dense = self.dense
        signs = torch.zeros(times.shape[0], len(self.events), dtype=torch.float64, device=times.device)
        sample = wanted.nonzero()[:, 0]
        if not len(sample):
            return signs
        passed = self.direction * (times - dense.start) >= 0
        step = ((passed & self.taken).sum(0) - 1).clamp_min(0)[sample]
        theta = (times[sample] - dense.start[step, sample]) / dense.size[step, sample]
        values = self._steps(step, sample).values(theta)
        signs[sample] = sign_of(torch.stack(values, 1))
        return signs

    def last_state(self, y: Tensor) -> Tensor:
        """The states (B, D) at the end of the window; y where there was no step."""
        dense = self.dense
        if not dense.start.shape[0]:
            return y
        last = (self.count - 1).clamp_min(0)
        coefs = dense.coefs[dense.rows.gather(0, last[None])[0]].detach()
        return torch.where((self.count > 0)[:, None], coefs[:, 0] + coefs[:, -1], y)
