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

from fastode.events.event import FlatEvents
from fastode.events.roots import find_roots, leave_root
from fastode.hostflags import host_any
from fastode.interpolant import basis
from fastode.problem import Inputs, Plan
from fastode.solution import DenseOutput, Stats
from fastode.status import Status

_FIRST_WINDOW = 16
"""Attempted steps of the first window; each window after it has twice as many as the one before."""
_NUMBERS = 1 << 23
"""Numbers that the polynomials of a window, or the points of one call of event functions, may take."""
_ROOT_ROUNDINGS = 4
"""Width of a bracket at which a root counts as found, in roundings of the time."""

Run = Callable[[Plan, Inputs], tuple[DenseOutput, Tensor, Tensor, Stats]]
"""Solves without gradient, with dense output: that, status (B,), the time reached (B,) and the work."""


@dataclass(frozen=True)
class Found:
    """What the search found for each sample.

    Attributes:
        end: (B,) float64: the event that ends the flow, the end of the span, or the time that a failed sample reached.
        fired: (B, E) bool: which events end the flow there; several if they happen at the same time.
        signs: (B, E) float64: signs of the other functions just before ``end``.
        status: (B,) int64: SUCCESS, or how the sample failed before any such event.
        records: for each event, samples (n,) int64 and times (n,) float64, in order, of occurrences up to ``end`` at
            which the flow goes on.
        attempts: (B,) int64, attempted steps.
        stats: work, beyond ``end`` included.
    """

    end: Tensor
    fired: Tensor
    signs: Tensor
    status: Tensor
    records: list[tuple[Tensor, Tensor]]
    attempts: Tensor
    stats: Stats


def time_tolerance(dtype: torch.dtype, *times: Tensor) -> Tensor:
    """The width at which times of this magnitude are the same."""
    largest = torch.stack([t.abs() for t in times]).amax(0)
    return _ROOT_ROUNDINGS * torch.finfo(dtype).eps * largest


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

    def __call__(self, t: Tensor, y: Tensor, signs: Tensor, counts: Tensor, active: Tensor, budget: Tensor) -> Found:
        """Searches from times (B,) and states (B, D). No gradient.

        Args:
            t: (B,) float64.
            y: (B, D).
            signs: (B, E) float64, signs of the event functions just after the start, 0 where they cannot be told.
            counts: (B, E) int64, occurrences so far.
            active: (B,) bool, the samples to search.
            budget: (B,) int64, attempted steps that are left.
        """
        with torch.no_grad():  # the functions may have parameters
            return self._find(t, y, signs, counts, active, budget)

    def _find(self, t: Tensor, y: Tensor, signs: Tensor, counts: Tensor, active: Tensor, budget: Tensor) -> Found:
        plan, n_events = self.plan, len(self.events)
        batch, width = y.shape
        last = plan.times[-1]
        alive = active.clone()
        end, counts, signs = t.clone(), counts.clone(), signs.clone()
        fired = torch.zeros(batch, n_events, dtype=torch.bool, device=y.device)
        signs_at_end = torch.zeros(batch, n_events, dtype=torch.float64, device=y.device)
        status = torch.zeros(batch, dtype=torch.int64, device=y.device)
        attempts, n_accepted, n_rejected, n_evals = (torch.zeros_like(status) for _ in range(4))
        records: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(n_events)]
        largest = max(_FIRST_WINDOW, _NUMBERS // max(1, batch * width * (plan.tableau.degree + 1)))
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
            window_of = _Window(self, dense, alive, signs, counts)
            ends = window_of.ends
            at_event = ends.isfinite()
            at = torch.where(at_event, ends, reached)
            end = torch.where(alive, at, end)
            fired = fired | window_of.fired
            if n_events > 1:
                signs_at_end = torch.where(at_event[:, None], window_of.signs_at(ends, at_event), signs_at_end)
            for e, (samples, at_times) in enumerate(window_of.records):
                if samples.numel():
                    records[e].append((samples, at_times))
                    counts[:, e] += torch.bincount(samples, minlength=batch)
            going_on = alive & ~at_event & (code == Status.MAX_STEPS)
            exhausted = going_on & (attempts >= budget)
            failed = alive & ~at_event & (code != Status.SUCCESS) & (code != Status.MAX_STEPS)
            status = torch.where(failed, code, torch.where(exhausted, int(Status.MAX_STEPS), status))
            stuck = host_any(going_on & (dense.n_accepted == 0))  # more attempts, or it would start the same again
            alive = going_on & ~exhausted
            signs = window_of.last_signs
            y = torch.where(alive[:, None], window_of.last_state(y), y)
            t = torch.where(alive, reached, t)
            window = 4 * window if stuck else min(2 * window, largest)
        joined = [_join(parts, y.device) for parts in records]
        stats = Stats(n_accepted, n_rejected, n_evals)
        return Found(end, fired, signs_at_end, status, joined, attempts, stats)

    def _times(self, t: Tensor, last: Tensor, alive: Tensor) -> Tensor:
        """From where each sample is to the end; methods that step from output to output need all of these."""
        if self.plan.step_size is None or not host_any(torch.isinf(self.plan.step_size)):
            return torch.stack([t, torch.where(alive, last, t)])
        ahead = self.direction * (self.plan.times - t) > 0
        return torch.cat([t[None], torch.where(alive & ahead, self.plan.times, t)]).contiguous()


def _join(parts: list[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    if not parts:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return none, none.double()
    samples, times = (torch.cat(column) for column in zip(*parts, strict=True))
    return samples, times


class _Window:
    """The events within the steps of one window.

    Attributes:
        ends: (B,) float64, the first event that ends the flow; infinite where there is none.
        fired: (B, E) bool, which events happen there.
        records: see ``Found``.
        last_signs: (B, E), signs at the end of the window.
    """

    def __init__(self, search: Search, dense: DenseOutput, alive: Tensor, signs: Tensor, counts: Tensor) -> None:
        self.search, self.events, self.dense = search, search.events, dense
        self.parts = search.events.parts
        self.direction = search.direction
        self.alive = alive
        n_rows, batch = dense.start.shape
        device = alive.device
        self.taken = (torch.arange(n_rows, device=device)[:, None] < dense.n_accepted) & alive
        self.count = torch.where(alive, dense.n_accepted, 0)
        self.last_signs = signs.clone()
        self.ends = torch.full((batch,), torch.inf, dtype=torch.float64, device=device)
        self.fired = torch.zeros(batch, len(self.events), dtype=torch.bool, device=device)
        none = torch.zeros(0, dtype=torch.int64, device=device)
        self.records = [(none, none.double())] * len(self.events)
        if n_rows:
            self._look(signs, counts)

    def _look(self, signs: Tensor, counts: Tensor) -> None:
        """Looks for changes of sign, given the signs and counts (B, E) at the start."""
        n_rows, batch = self.dense.start.shape
        device = self.alive.device
        sampled = self._sample()
        points: list[tuple[Tensor, Tensor]] = []  # of each event: which points it is at after changing sign
        ending: list[Tensor] = []  # of each of these: whether the flow ends there
        before: list[Tensor] = []
        bound = torch.full((batch,), n_rows * self.parts, dtype=torch.int64, device=device)
        for e, now in enumerate(sampled):
            earlier = torch.cat([signs[None, :, e], now])[:-1]
            changed = (earlier.abs() == 1) & ((now == -earlier) | (now == 0))
            if self.events.directions[e] != 0:
                changed &= earlier == -self.events.directions[e]
            point, sample = changed.nonzero(as_tuple=True)
            ends_at = self.events.events[e].ends_at
            number = counts[:, e] + changed.cumsum(0)
            ends = torch.ones_like(changed) if self.events.ending[e] else number == (ends_at or 0)
            first = torch.where(changed & ends, torch.arange(len(now), device=device)[:, None], bound).amin(0)
            bound = torch.minimum(bound, first)
            points.append((point, sample))
            ending.append(ends[point, sample])
            before.append(earlier[point, sample])
            final = now.gather(0, (self.count * self.parts - 1).clamp_min(0)[None])[0]
            self.last_signs[:, e] = torch.where(self.count > 0, final, signs[:, e])
        keep = [point <= bound[sample] for point, sample in points]
        points = [(p[k], s[k]) for (p, s), k in zip(points, keep, strict=True)]
        ending = [x[k] for x, k in zip(ending, keep, strict=True)]
        before = [x[k] for x, k in zip(before, keep, strict=True)]
        if any(len(p) for p, _ in points):
            self._locate(points, ending, before)

    def _sample(self) -> list[Tensor]:
        """Signs (N * parts, B) of each event function at the ends of the parts of all steps; NaN where none is."""
        dense, parts, events = self.dense, self.parts, self.events
        n_rows, batch = dense.start.shape
        device = self.alive.device
        step, sample = self.taken.nonzero(as_tuple=True)
        signs = [
            torch.full((n_rows, batch, parts), torch.nan, dtype=torch.float64, device=device) for _ in events.events
        ]
        theta = torch.arange(1, parts + 1, dtype=torch.float64, device=device) / parts
        chunk = max(1, _NUMBERS // max(1, parts * events.row_size))
        for first in range(0, len(step), chunk):
            n, b = step[first : first + chunk], sample[first : first + chunk]
            coefs = dense.coefs[dense.rows[n, b]].detach()
            weights = basis(theta, coefs.shape[1] - 1).to(coefs.dtype)
            states = coefs[:, :1] + torch.einsum("ks,rkd->rsd", weights, coefs[:, 1:])
            times = dense.start[n, b][:, None] + dense.size[n, b][:, None] * theta
            rows = b.repeat_interleave(parts)
            controls = [c[rows] for c in self.search.controls] if events.fn_reads else []
            for e in range(len(events)):
                value = events.value(e, times.reshape(-1), states.reshape(len(rows), -1), controls)
                signs[e][n, b] = torch.sign(value).reshape(-1, parts)
        return [s.permute(0, 2, 1).reshape(n_rows * parts, batch) for s in signs]

    def _at(self, e: int, step: Tensor, sample: Tensor) -> Callable[[Tensor], Tensor]:
        """Event e as a function of the place (n,) or (m, n) in steps (n,) of samples (n,)."""
        dense = self.dense
        coefs = dense.coefs[dense.rows[step, sample]].detach()
        start, size = dense.start[step, sample], dense.size[step, sample]
        controls = [c[sample] for c in self.search.controls] if self.events.fn_reads else []

        def value(theta: Tensor) -> Tensor:
            lead = theta.shape[:-1]
            weights = basis(theta, coefs.shape[1] - 1).to(coefs.dtype)
            states = coefs[:, 0] + torch.einsum("k...n,nkd->...nd", weights, coefs[:, 1:])
            times = (start + size * theta).reshape(-1)
            many = theta.numel() // max(1, theta.shape[-1])
            own = controls if not lead else [c.repeat(many, *[1] * (c.ndim - 1)) for c in controls]
            return self.events.value(e, times, states.reshape(times.shape[0], -1), own).reshape(theta.shape)

        return value

    def _locate(self, points: list[tuple[Tensor, Tensor]], ending: list[Tensor], before: list[Tensor]) -> None:
        dense, parts = self.dense, self.parts
        times: list[Tensor] = []
        for e, ((point, sample), sign) in enumerate(zip(points, before, strict=True)):
            if not len(point):
                times.append(point.double())
                continue
            step = point // parts
            a = (point % parts).double() / parts
            b = (point % parts + 1).double() / parts
            start, size = dense.start[step, sample], dense.size[step, sample]
            value = self._at(e, step, sample)
            fa, fb = value(a), value(b)
            odd = torch.sign(fa) != sign
            if host_any(odd):
                at = odd.nonzero()[:, 0]
                near = self._at(e, step[at], sample[at])
                left, right = leave_root(near, a[at], b[at], sign[at])
                a, b = a.index_put((at,), left), b.index_put((at,), right)
                fa, fb = value(a), value(b)
            tol = time_tolerance(dense.y0.dtype, start, start + size) / size.abs()
            theta = find_roots(value, a, b, fa, fb, tol)
            times.append(start + size * theta)
        # The first of the events that end the flow, and whatever else happens at the same time.
        batch = self.alive.shape[0]
        first = torch.full((batch, len(points)), torch.inf, dtype=torch.float64, device=self.alive.device)
        for e, ((_, sample), ends) in enumerate(zip(points, ending, strict=True)):
            along = self.direction[sample[ends]] * times[e][ends]
            first[:, e].scatter_reduce_(0, sample[ends], along, "amin")
        earliest = first.amin(1)
        found = earliest.isfinite()
        limit = earliest + time_tolerance(dense.y0.dtype, earliest.nan_to_num(0.0, 0.0, 0.0))
        self.fired = (first <= limit[:, None]) & found[:, None]
        self.ends = torch.where(found, earliest * self.direction, torch.inf)
        for e, ((_, sample), ends) in enumerate(zip(points, ending, strict=True)):
            known = ~ends & (self.direction[sample] * times[e] <= limit[sample])
            samples, at = sample[known], times[e][known]
            at = torch.where(self.direction[samples] * at > earliest[samples], self.ends[samples], at)
            self.records[e] = samples, at

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
        for e in range(len(self.events)):
            signs[sample, e] = torch.sign(self._at(e, step, sample)(theta))
        return signs

    def last_state(self, y: Tensor) -> Tensor:
        """The states (B, D) at the end of the window; y where there was no step."""
        dense = self.dense
        if not dense.start.shape[0]:
            return y
        last = (self.count - 1).clamp_min(0)
        coefs = dense.coefs[dense.rows.gather(0, last[None])[0]].detach()
        return torch.where((self.count > 0)[:, None], coefs[:, 0] + coefs[:, -1], y)
