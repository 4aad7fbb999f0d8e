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
from fastode.events.arrays import Array
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
        alive, at, last, left = (xp.of(x) for x in (active, t, plan.times[-1], budget))
        direction, counts = xp.of(self.direction), xp.copy(xp.of(counts))
        end, size, status = at, xp.full(at, at.shape, 0.0), 0 * left
        fired = jumps = counts < 0
        signs = xp.full(at, (batch, n_events), 0.0)
        attempts = accepted = rejected = evals = status
        records: list[list[Crossings]] = [[] for _ in range(n_events)]
        per_step = batch * (width * (plan.tableau.degree + 1) + self.events.parts * n_events)
        largest = max(_FIRST_WINDOW, NUMBERS // max(1, per_step))
        window = _FIRST_WINDOW
        while bool(alive.any()):
            most = max(1, min(window, int(xp.where(alive, left - attempts, 0).max())))
            times = xp.tensor(self._times(at, last, alive))
            attempt = replace(plan, times=times, dense=True, max_steps=most, starts_again=True)
            dense, code, reached, stats = self.run(attempt, Inputs(y, times, self.controls))
            code, reached = xp.of(code), xp.of(reached)
            new, failures, calls = (
                xp.where(alive, xp.of(x), 0) for x in (stats.n_accepted, stats.n_rejected, stats.n_evals)
            )
            accepted, rejected, evals = accepted + new, rejected + failures, evals + calls
            attempts = accepted + rejected
            seen = Window(self.events, dense, alive, direction, self.controls, start, counts)
            at_event = xp.finite(seen.ends)
            end = xp.where(alive, xp.where(at_event, seen.ends, reached), end)
            size = xp.where(at_event, seen.size, size)
            fired, jumps = fired | seen.fired, jumps | seen.jumps
            if n_events > 1:
                signs = xp.where(at_event[:, None], seen.signs_at(seen.ends, at_event), signs)
            for e, found in enumerate(seen.records):
                if len(found.sample):
                    records[e].append(found)
                    xp.count_at(counts[:, e], xp.of(found.sample))
            going_on = alive & ~at_event & (code == Status.MAX_STEPS)
            exhausted = going_on & (attempts >= left)
            failed = alive & ~at_event & (code != Status.SUCCESS) & (code != Status.MAX_STEPS)
            status = xp.where(failed, code, xp.where(exhausted, int(Status.MAX_STEPS), status))
            stuck = bool((going_on & (new == 0)).any())  # more attempts, or it would start the same again
            alive = going_on & ~exhausted
            start = seen.last
            if bool(alive.any()):
                y = torch.where(xp.tensor(alive)[:, None], seen.last_state(y), y)
                at = xp.where(alive, reached, at)
            window = 4 * window if stuck else min(2 * window, largest)
        joined = [Crossings.joined(parts, y.device) for parts in records]
        work = Stats(xp.tensor(accepted), xp.tensor(rejected), xp.tensor(evals))
        end, size, fired, jumps, signs, status, attempts = (
            xp.tensor(x) for x in (end, size, fired, jumps, signs, status, attempts)
        )
        return Found(end, size, fired, jumps, signs, status, joined, attempts, work)

    def _times(self, t: Array, last: Array, alive: Array) -> Array:
        """From where each sample is to the end; steps that end at outputs need all of these."""
        from_output_to_output = self.plan.step_size is not None and host_any(torch.isinf(self.plan.step_size))
        if not (self.plan.step_to_outputs or from_output_to_output):
            return xp.stack([t, xp.where(alive, last, t)])
        times = xp.of(self.plan.times)
        ahead = xp.of(self.direction) * (times - t) > 0
        return xp.cat([t[None], xp.where(alive & ahead, times, t)])
