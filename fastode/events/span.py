"""The times of one link of all samples' chains: from a start over outputs and recorded events to an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastode.events.collect import rank
from fastode.events.window import Crossings


@dataclass(frozen=True)
class Span:
    """The times of a link.

    Attributes:
        times: (1 + M + Q + 1, B) with their graph, start and end among them.
        outputs: row before sorting, sample and number of each output, each (n,) int64.
        order: (M + Q, B) int64, for each row before sorting its place among the sorted ones.
        rows: for each event the rows of its records before sorting.
    """

    times: Tensor
    outputs: tuple[Tensor, Tensor, Tensor]
    order: Tensor
    rows: list[Tensor]

    def at_outputs(self, ys: Tensor) -> Tensor:
        """States (n, D) of the outputs among those (1 + M + Q + 1, B, D) of all times."""
        row, sample, _ = self.outputs
        return ys[self.order[row, sample] + 1, sample]

    def at_records(self, ys: Tensor, records: Sequence[Crossings]) -> list[Tensor]:
        """States (n, D) of the records of each event."""
        return [ys[self.order[r, x.sample] + 1, x.sample] for r, x in zip(self.rows, records, strict=True)]


def make_span(
    known: Tensor,
    given: Tensor,
    begin: Tensor,
    end: Tensor,
    slack: Tensor,
    mask: Tensor,
    next_output: Tensor,
    direction: Tensor,
    records: Sequence[Crossings],
) -> Span:
    """The times of a link of the samples ``mask``; those of the others are all where they are.

    Args:
        known: (T, B) float64, the output times.
        given: the same with their graph; ``known`` where there is none.
        begin: (B,) float64, with its graph.
        end: (B,) float64, without.
        slack: (B,) float64, how far beyond the end an output still counts as being there.
        mask: (B,) bool.
        next_output: (B,) int64, number of the first output that is still to come.
        direction: (B,) float64, 1 or -1.
        records: for each event, what is to be recorded.
    """
    n_times, batch = known.shape
    device = known.device
    within = mask & (direction * (known - end) <= slack)
    number = torch.arange(n_times, device=device)[:, None]
    n_out = (within & (number >= next_output)).sum(0)
    most = int(n_out.max()) if n_times > 1 else 0
    row = torch.arange(most, device=device)[:, None]
    valid = row < n_out
    index = (next_output + row).clamp_max(n_times - 1)
    start = begin.detach()
    outs = torch.where(valid, given.gather(0, index), end)
    outs = torch.where(direction * (outs.detach() - end) > 0, end, outs)
    outs = torch.where(direction * (outs.detach() - start) < 0, start, outs)
    at = valid.nonzero(as_tuple=True)
    counts = torch.zeros_like(n_out)
    rows: list[Tensor] = []
    for x in records:
        rows.append(counts[x.sample] + rank(x.sample))
        if len(x.sample):
            counts = counts + torch.bincount(x.sample, minlength=batch)
    extra = int(counts.max()) if any(len(x.sample) for x in records) else 0
    middle, order = outs, row.expand(-1, batch)
    if extra:
        recorded = end.expand(extra, -1)
        for x, r in zip(records, rows, strict=True):
            recorded = recorded.index_put((r, x.sample), x.t)
        middle = torch.cat([outs, recorded])
        sort = torch.argsort(direction * middle.detach(), dim=0, stable=True)
        middle = middle.gather(0, sort)
        order = torch.argsort(sort, dim=0)
        rows = [most + r for r in rows]
    # The end of the whole solve keeps its graph; the time of an event has its own.
    last = torch.where(end == known[-1], given[-1], end) if given.requires_grad else end
    times = torch.where(mask, torch.cat([middle, last[None]]), start)
    return Span(torch.cat([begin[None], times]), (at[0], at[1], index[at]), order, rows)
