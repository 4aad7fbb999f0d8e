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

from fastode.backends.base import Forward
from fastode.events import arrays as xp
from fastode.events.arrays import Array
from fastode.events.event import FlatEvents
from fastode.events.host_window import HostWindow
from fastode.events.window import NUMBERS, Crossings, Start, Window
from fastode.hostflags import host_any
from fastode.problem import Inputs, Plan
from fastode.solution import Stats

_FIRST_WINDOW = 16
"""Attempted steps of the first window; each window after it has twice as many as the one before."""

Run = Callable[[Plan, Inputs], tuple[Tensor, Tensor | None, Forward]]
"""Solves a plan: ys (T, B, D), the dense coefficients and the rest."""


@dataclass(frozen=True)
class Found:
    """What the search found for each sample, as arrays of the search.

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
        whole: ys (T, B, D) and the rest of a solve from the start to the end of the span, if the search was just that.
    """

    end: Array
    size: Array
    fired: Array
    jumps: Array
    signs: Array
    status: Array
    records: list[Crossings]
    attempts: Array
    stats: Stats
    whole: tuple[Tensor, Forward] | None


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
        self.last = xp.of(plan.times[-1])
        self.direction = xp.sign_of(self.last - xp.of(plan.times[0]))

    def __call__(
        self, t: Array, y: Tensor, start: Start, counts: Array, active: Array, budget: Array, whole: bool
    ) -> Found:
        """Searches from times (B,) and states (B, D). No gradient.

        Args:
            t: (B,) float64.
            y: (B, D).
            start: the event functions there; signs are 0 where they cannot be told.
            counts: (B, E) int64, occurrences so far.
            active: (B,) bool, the samples to search.
            budget: (B,) int64, attempted steps that are left.
            whole: whether to begin with a solve of the plan itself, in a window that is as large as may be: no event
                ends the flow, and this is the start.
        """
        with torch.no_grad():  # the functions may have parameters
            return self._find(t, y, start, counts, active, budget, whole)

    def _find(
        self, t: Array, y: Tensor, start: Start, counts: Array, active: Array, budget: Array, whole: bool
    ) -> Found:
        plan, n_events, last, direction = self.plan, len(self.events), self.last, self.direction
        batch, width = y.shape
        alive, at, left, counts = active, t, budget, xp.copy(counts)
        end, size, status = at, xp.full(at, at.shape, 0.0), 0 * left
        fired = jumps = counts < 0
        signs = xp.full(at, (batch, n_events), 0.0)
        attempts = accepted = rejected = evals = status
        records: list[list[Crossings]] = [[] for _ in range(n_events)]
        per_step = batch * (width * (plan.tableau.degree + 1) + self.events.parts * n_events)
        largest = max(_FIRST_WINDOW, NUMBERS // max(1, per_step))
        window = largest if whole else _FIRST_WINDOW
        look = Window if isinstance(at, Tensor) else HostWindow
        solved = None
        while bool(alive.any()):
            most = max(1, min(window, int(xp.where(alive, left - attempts, 0).max())))
            once, whole = whole, False
            if once:
                attempt = replace(plan, dense=True, max_steps=most)
            else:
                times = xp.tensor(self._times(at, last, alive))
                attempt = replace(plan, times=times, dense=True, max_steps=most, starts_again=True)
            ys, _, result = self.run(attempt, Inputs(y, attempt.times, self.controls))
            dense, stats = result.dense, result.stats
            assert dense is not None
            code, reached = xp.of(result.status), xp.of(result.reached)
            new, failures, calls = (
                xp.where(alive, xp.of(x), 0) for x in (stats.n_accepted, stats.n_rejected, stats.n_evals)
            )
            accepted, rejected, evals = accepted + new, rejected + failures, evals + calls
            attempts = accepted + rejected
            seen = look(self.events, dense, alive, direction, self.controls, start, counts)
            at_event = xp.finite(seen.ends)
            end = xp.where(alive, xp.where(at_event, seen.ends, reached), end)
            size = xp.where(at_event, seen.size, size)
            fired, jumps = fired | seen.fired, jumps | seen.jumps
            if n_events > 1:
                signs = xp.where(at_event[:, None], seen.signs_before(), signs)
            for e, found in enumerate(seen.records):
                if len(found.sample):
                    records[e].append(found if once else found.without_states())
                    xp.count_at(counts[:, e], found.sample)
            going_on = alive & ~at_event & (code == xp.MAX_STEPS)
            exhausted = going_on & (attempts >= left)
            failed = alive & ~at_event & (code != xp.SUCCESS) & (code != xp.MAX_STEPS)
            status = xp.where(failed, code, xp.where(exhausted, xp.MAX_STEPS, status))
            stuck = bool((going_on & (new == 0)).any())  # more attempts, or it would start the same again
            alive = going_on & ~exhausted
            if not bool(alive.any()):
                solved = (ys, result) if once else None
                break
            start = seen.last
            y = torch.where(xp.tensor(alive)[:, None], seen.last_state(y), y)
            at = xp.where(alive, reached, at)
            window = 4 * window if stuck else min(2 * window, largest)
        joined = [Crossings.joined(parts, direction) for parts in records]
        work = Stats(*map(xp.tensor, (accepted, rejected, evals)))
        return Found(end, size, fired, jumps, signs, status, joined, attempts, work, solved)

    def _times(self, t: Array, last: Array, alive: Array) -> Array:
        """From where each sample is to the end; steps that end at outputs need all of these."""
        from_output_to_output = self.plan.step_size is not None and host_any(torch.isinf(self.plan.step_size))
        if not (self.plan.step_to_outputs or from_output_to_output):
            return xp.stack([t, xp.where(alive, last, t)])
        times = xp.of(self.plan.times)
        ahead = self.direction * (times - t) > 0
        return xp.cat([t[None], xp.where(alive & ahead, times, t)])
