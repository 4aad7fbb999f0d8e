"""Finds the events of every sample up to the next one at which its flow ends, without gradient.

The solve proceeds in windows of a number of attempted steps (``max_steps``), and not of time: then the memory of the
steps' polynomials is known beforehand, no step is shortened by the end of a window, and a field that explodes after an
event does so in a window that is not read beyond the event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastode.events import arrays as xp
from fastode.events.event import FlatEvents
from fastode.events.window import NUMBERS, Crossings, Start, Window
from fastode.hostflags import host_any
from fastode.problem import Inputs, Plan
from fastode.solution import DenseOutput, Stats
from fastode.status import Status

_FIRST_WINDOW = 16
"""Attempted steps of the first window; each window after it has twice as many as the one before."""

Run = Callable[[Plan, Inputs], tuple[DenseOutput, Tensor, Tensor, Stats]]
"""Solves without gradient, with dense output: that, status (B,), the time reached (B,) and the work."""


@dataclass(frozen=True)
class Found:
    """What the search found for each sample.

    Attributes:
        end: (B,) float64: the event that ends the flow, the end of the span, or the time that a failed sample reached.
        size: (B,) float64: size of the step in which that event happens, 0 at the end of the span.
        fired: (B, E) bool: which events end the flow there; several if they happen at the same time.
        jumps: (B, E) bool: which of them by a jump of the function.
        signs: (B, E) float64: signs of the other functions just before ``end``.
        status: (B,) int64: SUCCESS, or how the sample failed before any such event.
        records: for each event, its occurrences up to ``end`` at which the flow goes on.
        attempts: (B,) int64, attempted steps.
        stats: work, beyond ``end`` included.
    """

    end: Tensor
    size: Tensor
    fired: Tensor
    jumps: Tensor
    signs: Tensor
    status: Tensor
    records: list[Crossings]
    attempts: Tensor
    stats: Stats


class Search:
    """The search from one start.

    Args:
        plan: the solve; its times are those of the whole span.
        events: the functions.
        controls: leaves (B, ...), without graph.
        run: the solver.
    """

    def __init__(self, plan: Plan, events: FlatEvents, controls: Sequence[Tensor], run: Run) -> None:
        self.plan, self.events, self.controls, self.run = plan, events, list(controls), run
        self.direction = torch.sign(plan.times[-1] - plan.times[0])

    def __call__(self, t: Tensor, y: Tensor, start: Start, counts: Tensor, active: Tensor, budget: Tensor) -> Found:
        """Searches from times (B,) and states (B, D). No gradient.

        Args:
            t: (B,) float64.
            y: (B, D).
            start: the event functions there; signs are 0 where they cannot be told.
            counts: (B, E) int64, occurrences so far.
            active: (B,) bool, the samples to search.
            budget: (B,) int64, attempted steps that are left.
        """
        with torch.no_grad(), xp.quiet():  # the functions may have parameters
            return self._find(t, y, start, counts, active, budget)

    def _find(self, t: Tensor, y: Tensor, start: Start, counts: Tensor, active: Tensor, budget: Tensor) -> Found:
        plan, n_events = self.plan, len(self.events)
        batch, width = y.shape
        last = plan.times[-1]
        alive = active.clone()
        end, size, counts = t.clone(), torch.zeros_like(t), counts.clone()
        fired = jumps = torch.zeros(batch, n_events, dtype=torch.bool, device=y.device)
        signs_at_end = torch.zeros(batch, n_events, dtype=torch.float64, device=y.device)
        status = torch.zeros(batch, dtype=torch.int64, device=y.device)
        attempts, n_accepted, n_rejected, n_evals = (torch.zeros_like(status) for _ in range(4))
        records: list[list[Crossings]] = [[] for _ in range(n_events)]
        per_step = batch * (width * (plan.tableau.degree + 1) + self.events.parts * n_events)
        largest = max(_FIRST_WINDOW, NUMBERS // max(1, per_step))
        window = _FIRST_WINDOW
        while host_any(alive):
            left = int(torch.where(alive, budget - attempts, 0).max())
            times = self._times(t, last, alive)
            attempt = replace(plan, times=times, dense=True, max_steps=max(1, min(window, left)), starts_again=True)
            dense, code, reached, stats = self.run(attempt, Inputs(y, times, self.controls))
            attempts = attempts + torch.where(alive, stats.n_steps, 0)
            n_accepted = n_accepted + torch.where(alive, stats.n_accepted, 0)
            n_rejected = n_rejected + torch.where(alive, stats.n_rejected, 0)
            n_evals = n_evals + torch.where(alive, stats.n_evals, 0)
            seen = Window(self.events, dense, alive, self.direction, self.controls, start, counts)
            ends = seen.ends
            at_event = ends.isfinite()
            at = torch.where(at_event, ends, reached)
            end = torch.where(alive, at, end)
            size = torch.where(at_event, seen.size, size)
            fired, jumps = fired | seen.fired, jumps | seen.jumps
            if n_events > 1:
                signs_at_end = torch.where(at_event[:, None], seen.signs_at(ends, at_event), signs_at_end)
            for e, found in enumerate(seen.records):
                if len(found.sample):
                    records[e].append(found)
                    counts[:, e] += torch.bincount(found.sample, minlength=batch)
            going_on = alive & ~at_event & (code == Status.MAX_STEPS)
            exhausted = going_on & (attempts >= budget)
            failed = alive & ~at_event & (code != Status.SUCCESS) & (code != Status.MAX_STEPS)
            status = torch.where(failed, code, torch.where(exhausted, int(Status.MAX_STEPS), status))
            stuck = host_any(going_on & (dense.n_accepted == 0))  # more attempts, or it would start the same again
            alive = going_on & ~exhausted
            start = seen.last
            y = torch.where(alive[:, None], seen.last_state(y), y)
            t = torch.where(alive, reached, t)
            window = 4 * window if stuck else min(2 * window, largest)
        joined = [Crossings.joined(parts, y.device) for parts in records]
        stats = Stats(n_accepted, n_rejected, n_evals)
        return Found(end, size, fired, jumps, signs_at_end, status, joined, attempts, stats)

    def _times(self, t: Tensor, last: Tensor, alive: Tensor) -> Tensor:
        """From where each sample is to the end; methods that step from output to output need all of these."""
        if self.plan.step_size is None or not host_any(torch.isinf(self.plan.step_size)):
            return torch.stack([t, torch.where(alive, last, t)])
        ahead = self.direction * (self.plan.times - t) > 0
        return torch.cat([t[None], torch.where(alive & ahead, self.plan.times, t)]).contiguous()
