"""The times of one link of all samples' chains: from a start over outputs and recorded events to an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastode.events import arrays as xp
from fastode.events.arrays import Array
from fastode.events.collect import rank
from fastode.events.window import Crossings


@dataclass(frozen=True)
class Span:
    """The times of a link.

    Attributes:
        times: (1 + M + Q + 1, B) with their graph, start and end among them.
        known: the same without graph.
        outputs: row before sorting, sample and number of each output, each (n,) int64.
        order: (M + Q, B) int64, for each row before sorting its place among the sorted ones.
        rows: for each event the rows of its records before sorting.
    """

    times: Tensor
    known: Array
    outputs: tuple[Array, Array, Array]
    order: Array
    rows: list[Array]

    def at_outputs(self, ys: Tensor) -> Tensor:
        """States (n, D) of the outputs among those (1 + M + Q + 1, B, D) of all times."""
        row, sample, _ = self.outputs
        return self._at(ys, row, sample)

    def at_records(self, ys: Tensor, records: Sequence[Crossings]) -> list[Tensor]:
        """States (n, D) of the records of each event."""
        return [self._at(ys, r, x.sample) for r, x in zip(self.rows, records, strict=True)]

    def _at(self, ys: Tensor, row: Array, sample: Array) -> Tensor:
        if not len(row):
            return ys[0, :0]
        return ys[xp.tensor(self.order[row, sample] + 1), xp.tensor(sample)]


def make_span(
    known: Array,
    given: Tensor,
    begin: Tensor,
    end: Array,
    slack: Array,
    mask: Array,
    next_output: Array,
    direction: Array,
    records: Sequence[Crossings],
) -> Span:
    """The times of a link of the samples ``mask``; those of the others are all where they are.

    Args:
        known: (T, B) float64, the output times.
        given: the same with their graph, if there is any.
        begin: (B,) float64, with its graph.
        end: (B,) float64.
        slack: (B,) float64, how far beyond the end an output still counts as being there.
        mask: (B,) bool.
        next_output: (B,) int64, number of the first output that is still to come.
        direction: (B,) float64, 1 or -1.
        records: for each event, what is to be recorded.
    """
    n_times, batch = known.shape
    within = mask & (direction * (known - end) <= slack)
    n_out = (within & (xp.count_up(known, n_times)[:, None] >= next_output)).sum(0)
    most = int(n_out.max()) if n_times > 1 else 0
    row, start = xp.count_up(known, most)[:, None], xp.of(begin)
    valid = row < n_out
    index = xp.smaller(next_output + row, n_times - 1)
    middle, source = xp.spread(end, (most, batch)), index  # source: numbers of the given times among these
    if most:
        outs = xp.where(valid, xp.take(known, index), end)
        late = direction * (outs - end) > 0
        middle = xp.where(late, end, outs)
        early = direction * (middle - start) < 0
        middle = xp.where(early, start, middle)
        source = xp.where(valid & ~late & ~early, index, -1)
    row_at, sample_at = xp.places(valid)
    counts = 0 * n_out
    rows: list[Array] = []
    for x in records:
        rows.append(counts[x.sample] + rank(x.sample) if len(x.sample) else x.sample)
        if len(x.sample):
            counts = counts + xp.count_of(x.sample, batch)
    extra = int(counts.max()) if any(len(x.sample) for x in records) else 0
    order = xp.spread(row, (most, batch))
    if extra:
        recorded = xp.copy(xp.spread(end, (extra, batch)))
        for x, r in zip(records, rows, strict=True):
            recorded[r, x.sample] = x.t
        middle = xp.cat([middle, recorded])
        sort = xp.sort_order(direction * middle)
        middle, order = xp.take(middle, sort), xp.sort_order(sort)
        source = xp.take(xp.cat([source, xp.spread(0 * counts - 1, (extra, batch))]), sort)
        rows = [most + r for r in rows]
    times = xp.cat([start[None], xp.where(mask, xp.cat([middle, end[None]]), start)])
    with_graph = xp.tensor(times)
    if given.requires_grad or begin.requires_grad:
        # The end of the whole solve keeps its graph; the time of an event has its own.
        last = xp.where(end == known[-1], 0 * counts + n_times - 1, -1)
        source = xp.tensor(xp.where(mask, xp.cat([source, last[None]]), -1))
        rest = torch.where(source >= 0, given.gather(0, source.clamp_min(0)), with_graph[1:])
        with_graph = torch.cat([begin[None], rest])
    return Span(with_graph, times, (row_at, sample_at, index[row_at, sample_at]), order, rows)
