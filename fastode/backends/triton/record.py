"""The accepted steps of a solve on a GPU, in segments: one for each launch of the forward kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastode.backends.program_record import ProgramRecord

_FIRST_STEPS = 48
"""Steps of each sample that the first segment holds; most solves take fewer."""
_MOST_STEPS = 4096
_USUAL_BYTES = 1 << 28
"""Where that many steps of all samples would take more memory than this, segments are shorter ..."""
_LEAST_STEPS = 8
"""... but not shorter than this."""


@dataclass
class Segment:
    """The steps of one launch.

    Attributes:
        rows: (n,) int64, the samples that it worked on; None for all, in order.
        n: how many these are.
        capacity: most steps of a sample, C.
        every: the state of every ``every``-th step is kept.
        table: (3, C, n) float64: start, end and signed size of each step.
        states: (ceil(C / every), n, D).
        taken: (n,) int64, steps of each sample.
    """

    rows: Tensor | None
    n: int
    capacity: int
    every: int
    table: Tensor
    states: Tensor
    taken: Tensor

    def thin(self) -> None:
        """Keeps half of the states."""
        self.every *= 2
        self.states = self.states[::2].clone()


@dataclass
class SegmentedRecord:
    """All segments, in the order of the launches.

    Attributes:
        segments: the segments.
        max_bytes: budget for the states, None for no limit.
    """

    segments: list[Segment]
    max_bytes: int | None = None

    @property
    def every(self) -> int:
        """The widest spacing of kept states."""
        return max((segment.every for segment in self.segments), default=1)

    def ragged(self, batch: int) -> ProgramRecord:
        """The steps of all samples, those of a sample one after another; for records that kept every state."""
        first = self.segments[0]
        width, device = first.states.shape[2], first.states.device
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        for segment in self.segments:
            if segment.rows is None:
                count += segment.taken
            else:
                count[segment.rows] += segment.taken
        offsets = torch.zeros(batch + 1, dtype=torch.int64, device=device)
        torch.cumsum(count, 0, out=offsets[1:])
        total = int(offsets[-1])
        table = torch.empty(total, 3, dtype=torch.float64, device=device)
        states = torch.empty(total if self.every == 1 else 0, width, dtype=first.states.dtype, device=device)
        place = offsets[:-1].clone()  # of each sample's next step
        for segment in self.segments:
            rows = slice(None) if segment.rows is None else segment.rows
            number = torch.arange(segment.capacity, device=device)[:, None]
            taken = number < segment.taken
            to = (place[rows] + number)[taken]
            table[to] = segment.table.movedim(0, 2)[taken]
            if self.every == 1:
                states[to] = segment.states[taken]
            place[rows] += segment.taken
        return ProgramRecord(offsets, table, offsets, states, 1)

    def state_bytes(self) -> int:
        """Memory of the kept states."""
        return sum(s.states.numel() * s.states.element_size() for s in self.segments)

    def keep_budget(self) -> None:
        """Thins the states until they fit the budget, or each segment has one of each sample."""
        while self.max_bytes is not None and self.state_bytes() > self.max_bytes:
            longest = max(self.segments, key=lambda s: s.states.shape[0])
            if longest.states.shape[0] <= 1:
                return
            for segment in self.segments:
                if segment.states.shape[0] > 1:
                    segment.thin()


def new_segment(
    rows: Tensor | None, n: int, like: Tensor, every: int, max_bytes: int | None, previous: Segment | None, steps: int
) -> Segment:
    """An empty segment.

    Args:
        rows: the samples, None for all.
        n: how many.
        like: (B, D), whose dtype and device states have.
        every: spacing of kept states that was asked for.
        max_bytes: budget for kept states.
        previous: the segment before it; later ones are longer.
        steps: no sample takes more steps than this.
    """
    width = like.shape[1]
    row = max(1, n * (width * like.element_size() + 24 * every) // every)
    wanted = _FIRST_STEPS if previous is None else min(4 * previous.capacity, _MOST_STEPS)
    capacity = max(min(_LEAST_STEPS, wanted), min(wanted, _USUAL_BYTES // row))
    capacity = max(1, min(capacity, steps))
    if previous is not None:
        every = max(every, previous.every)  # it may have been thinned
    every = min(every, capacity)
    if max_bytes is not None:
        while every < capacity and -(-capacity // every) * n * width * like.element_size() > max_bytes:
            every *= 2
    make = like.new_empty
    return Segment(
        rows,
        n,
        capacity,
        every,
        make((3, capacity, n), dtype=torch.float64),
        make((-(-capacity // every), n, width)),
        make((n,), dtype=torch.int64),
    )
