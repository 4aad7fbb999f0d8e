"""What became of each sample so far, and the result that it makes in the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastode.backends.base import Forward
from fastode.events import arrays as xp
from fastode.events.arrays import Array
from fastode.events.collect import Recorded, Scattered, joined_dense, rank
from fastode.events.event import FlatEvents
from fastode.events.result import Events, Occurrences
from fastode.problem import Inputs, Plan
from fastode.solution import DenseOutput, Stats


@dataclass(frozen=True)
class EventsSolved:
    """Result of ``solve_events``: ys (T, B, D), status (B,), time reached (B,), work, polynomials and events.

    Attributes:
        failed: whether any sample failed.
        by: the last solve, None if there was none.
    """

    ys: Tensor
    status: Tensor
    failed: bool
    reached: Tensor
    stats: Stats
    dense: DenseOutput | None
    events: Events
    by: Forward | None


class Ledger:
    """What became of each sample so far.

    Attributes:
        status, ended_by: (B,) int64, as in the result.
        counts: (B, E) int64, occurrences.
        reached: (B,) float64.
        work, search_work: of the solves and of the search, three of (B,) int64 each.
        ys: all outputs, where one solve gave them; otherwise those in ``outputs``.
        recorded: the occurrences of each event.
        links: the polynomials of the solves.
        by: the last solve.
    """

    def __init__(self, plan: Plan, inputs: Inputs, events: FlatEvents) -> None:
        self.plan, self.inputs, self.events = plan, inputs, events
        like = xp.of(plan.times)
        zeros = xp.zeros(like, (plan.batch,))
        self.counts = xp.zeros(like, (plan.batch, len(events)))
        self.status, self.ended_by = xp.copy(zeros), zeros - 1
        self.reached = xp.copy(like[0])
        self.work: list[Array] = [zeros] * 3
        self.search_work: list[Array] = [zeros] * 3
        self.outputs = Scattered()
        self.ys: Tensor | None = None
        self.recorded = [Recorded() for _ in events.events]
        self.t_end, self.y_end = Scattered(), Scattered()
        self.links: list[DenseOutput] = []
        self.by: Forward | None = None

    def record(self, e: int, samples: Array, t: Tensor, y: Tensor) -> None:
        """Occurrences of event e, those of a sample in order."""
        if len(samples):
            self.recorded[e].add(samples, self.counts[samples, e] + rank(samples), t, y)
            self.counts[:, e] += xp.count_of(samples, len(self.status))

    def finish(self, samples: Array, t: Tensor, y: Tensor, of_them: bool = False) -> None:
        """Samples (n,) end at these rows of t and y, or, if these are ``of_them``, at all of these."""
        at = xp.tensor(samples)
        t, y = (t, y) if of_them else (t[at], y[at])
        self.t_end.add((samples,), t)
        self.y_end.add((samples,), y)
        self.reached[samples] = xp.of(t)

    def result(self, dtype: torch.dtype) -> EventsSolved:
        """Everything put together; event times are given in ``dtype``."""
        plan, y0, spec = self.plan, self.inputs.y0, self.plan.field.state
        batch, width = y0.shape
        status, reached, counts = (xp.tensor(x) for x in (self.status, self.reached, self.counts))
        failures = (self.status != xp.SUCCESS) & (self.status != xp.EVENT)
        failed, any_failed = xp.tensor(failures), bool(failures.any())

        def settled(x: Tensor, dim: int = 0) -> Tensor:
            """No gradient from failed samples."""
            if not any_failed or not x.requires_grad:
                return x
            mask = failed.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
            return torch.where(mask, x.detach(), x)

        ys = self.ys
        if ys is None:
            blank = torch.full((plan.times.shape[0], batch, width), torch.nan, dtype=y0.dtype, device=y0.device)
            ys = settled(torch.cat([y0[None], self.outputs.into(blank)[1:]]), 1)
        occurrences = []
        for e, event in enumerate(self.events.events):
            count = counts[:, e]
            most = int(self.counts[:, e].max()) if batch else 0
            times = torch.full((batch, most), torch.nan, dtype=torch.float64, device=y0.device)
            states = torch.full((batch, most, width), torch.nan, dtype=y0.dtype, device=y0.device)
            t = settled(self.recorded[e].t.into(times)).to(dtype)
            y = settled(self.recorded[e].y.into(states)).to(spec.dtype)
            occurrences.append(Occurrences(event.name, t, spec.unflatten(y), count))
        if self.ys is None:
            t_end = settled(self.t_end.into(reached.clone()))
            y_end = settled(self.y_end.into(torch.full_like(y0.detach(), torch.nan)))
        else:
            t_end, y_end = reached.clone(), self.ys[-1].clone()
        if any_failed:
            y_end = torch.where(failed[:, None], torch.nan, y_end)
        events = Events(
            tuple(occurrences),
            t_end.to(dtype),
            spec.unflatten(y_end.to(spec.dtype)),
            xp.tensor(self.ended_by),
            Stats(*map(xp.tensor, self.search_work)),
        )
        dense = None
        if plan.dense:
            dense = self.links[0] if self.ys is not None else joined_dense(plan, self.links, reached, y0)
        return EventsSolved(ys, status, any_failed, reached, Stats(*map(xp.tensor, self.work)), dense, events, self.by)
