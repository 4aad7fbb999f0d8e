"""``solve(..., events=...)``: from event to event.

Every turn of the loop is one link of all samples' chains: the search finds, without gradient, where each sample's flow
ends next; a solve of the same plan from the last event to there, with the output times in between, gives the values and
their graph; the event's time and state get their derivatives from ``crossing``; resets give the start of the next link.
Samples that are done take part with spans of length zero, so that the field always meets the whole batch.

A start at a differentiable time t is a start at a constant time from y - f(t, y) dt. Together with the derivative of
the event's state, + f dt, this is the saltation matrix of the event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastode.backends.base import Forward
from fastode.backends.compare import same_rows
from fastode.controllers import shortest_step
from fastode.events import arrays as xp
from fastode.events.collect import Recorded, Scattered, add, joined_dense, put, rank, rows
from fastode.events.crossing import leaves_root, locate, locate_any_order, rates
from fastode.events.event import FlatEvents
from fastode.events.result import Events, Occurrences
from fastode.events.search import Found, Search
from fastode.events.span import make_span
from fastode.events.window import Crossings, Start, same_time
from fastode.problem import Inputs, Plan
from fastode.solution import DenseOutput, Stats
from fastode.status import Status

Run = Callable[[Plan, Inputs], tuple[Tensor, Tensor | None, Forward]]
"""Solves a plan: ys (T, B, D) and the dense coefficients with their graph, and the rest."""

_STANDSTILL = 32
"""Events in a row without time passing after which a sample is given up."""


@dataclass(frozen=True)
class EventsSolved:
    """Result of ``solve_events``: ys (T, B, D), status (B,), time reached (B,), work, polynomials and events."""

    ys: Tensor
    status: Tensor
    reached: Tensor
    stats: Stats
    dense: DenseOutput | None
    events: Events


def _any(mask: Tensor) -> bool:
    return bool(mask.any())


class Chain:
    """The links of all samples' chains. See the module.

    Args:
        plan: the solve.
        inputs: its inputs.
        events: the functions.
        run: the solver, with graph.
        search_run: the solver for the search, without.
        any_order: whether the solver's results can be differentiated more than once.
    """

    def __init__(
        self, plan: Plan, inputs: Inputs, events: FlatEvents, run: Run, search_run: Run, any_order: bool
    ) -> None:
        self.plan, self.inputs, self.events, self.run = plan, inputs, events, run
        self.any_order = any_order
        self.held = [c.detach() for c in inputs.controls]
        self._search = Search(plan, events, self.held, self._without_graph(search_run))
        self.direction = torch.sign(plan.times[-1] - plan.times[0])
        batch, device = plan.batch, inputs.y0.device
        zeros = torch.zeros(batch, dtype=torch.int64, device=device)
        self.counts = zeros[:, None].repeat(1, len(events))
        self.status, self.ended_by, self.still = zeros.clone(), zeros - 1, zeros.clone()
        self.next_output = zeros + 1
        self.work = [zeros.clone() for _ in range(3)]
        self.search_work = [zeros.clone() for _ in range(3)]
        self.budget = zeros + plan.max_steps
        self.outputs = Scattered()
        self.recorded = [Recorded() for _ in events.events]
        self.links: list[DenseOutput] = []
        # Where each sample is, and where it ended.
        self.t, self.y = inputs.times[0], inputs.y0
        self.t_end, self.y_end = Scattered(), Scattered()
        self.reached = plan.times[0].clone()
        self.residual = torch.zeros(batch, len(events), dtype=torch.float64, device=device)
        self.at_root = torch.zeros(batch, len(events), dtype=torch.bool, device=device)

    def _without_graph(self, run: Run) -> Callable[[Plan, Inputs], tuple[DenseOutput, Tensor, Tensor, Stats]]:
        def solve(plan: Plan, inputs: Inputs) -> tuple[DenseOutput, Tensor, Tensor, Stats]:
            with torch.no_grad():
                _, _, result = run(plan, inputs)
            assert result.dense is not None
            return result.dense, result.status, result.reached, result.stats

        return solve

    def solve(self) -> None:
        """Follows every sample to its end."""
        self._first_values = self.events.check_rows(self.plan.times[0], self.inputs.y0.detach(), self.held)
        active = self.direction != 0
        idle = (~active).nonzero()[:, 0]
        self._finish(idle, self.t, self.y)
        for number in range(1, self.plan.times.shape[0]):  # all of their outputs are at the start
            self.outputs.add((torch.full_like(idle, number), idle), self.y[idle])
        first = True
        while _any(active):
            start = self._start(active, first)
            found = self._search(self.t.detach(), self.y.detach(), start, self.counts, active, self.budget)
            self.budget = self.budget - found.attempts
            add(self.search_work, found.stats, active)
            failed = active & (found.status != Status.SUCCESS)
            if _any(failed):
                self._fail(failed, found)
            active = self._link(active & ~failed, found, first)
            first = False

    # -- the start of a link

    def _start(self, active: Tensor, first: bool) -> Start:
        """The event functions at the start of a link, and their signs just after it: at a root those of derivatives."""
        events = self.events
        t, y = self.t.detach(), self.y.detach()
        values, signs, roots = [], [], []
        slope = None
        for e in range(len(events)):
            if first:
                g = self._first_values[e]
                at_root = active & (g == 0)
                if _any(at_root):
                    slope = self._slope(t, y) if slope is None else slope
                    _, rate, _ = rates(events, e, t, y, self.held, slope)
            else:
                slope = self._slope(t, y) if slope is None else slope
                g, rate, size = rates(events, e, t, y, self.held, slope)
                at_root = active & leaves_root(self.residual[:, e], g, size, y.dtype)
            sign = xp.tensor(xp.sign_of(xp.of(g)))
            if _any(at_root):
                sign = torch.where(at_root, torch.sign(rate) * self.direction, sign)
            values.append(g)
            signs.append(sign)
            roots.append(at_root)
        self.at_root = torch.stack(roots, 1)
        return Start(xp.of(torch.stack(values, 1)), xp.of(torch.stack(signs, 1)))

    def _slope(self, t: Tensor, y: Tensor) -> Tensor:
        """The field (B, D) at times (B,) and states (B, D), without graph."""
        with torch.no_grad():
            return self.plan.field(t, y.clone(), self.held).clone()

    # -- one link

    def _solve(
        self, mask: Tensor, found: Found, records: list[Crossings], first: bool
    ) -> tuple[Tensor, Forward, list[Tensor], Tensor]:
        """One link of samples ``mask``: states at its end, the result, the states of the records, and its times."""
        plan, graph = self.plan, self.inputs.times.requires_grad
        y, begin = self.y, self.t if self.any_order or (first and graph) else self.t.detach()
        given = self.inputs.times if graph else plan.times
        slack = same_time(y.dtype, torch.maximum(plan.times[0].abs(), found.end.abs()), found.size)
        span = make_span(plan.times, given, begin, found.end, slack, mask, self.next_output, self.direction, records)
        if not self.any_order and not first and self.t.requires_grad:
            slope = torch.where(mask[:, None], self._slope(self.t.detach(), y.detach()), 0.0)
            y = y - slope * (self.t - self.t.detach()).to(y.dtype)[:, None]
        detached = span.times.detach().contiguous()
        again = _any(detached[1:] == detached[:1])
        ys, coefs, result = self.run(
            replace(plan, times=detached, starts_again=again), Inputs(y, span.times, self.inputs.controls)
        )
        if result.dense is not None and coefs is not None:
            self.links.append(replace(result.dense, coefs=coefs, y0=ys[0]))
        add(self.work, result.stats, mask)
        _, sample, number = span.outputs
        self.outputs.add((number, sample), span.at_outputs(ys))
        self.next_output = self.next_output + torch.bincount(sample, minlength=plan.batch)
        return ys[-1], result, span.at_records(ys, records), span.times

    def _fail(self, failed: Tensor, found: Found) -> None:
        """The last link of samples that fail: to where they got, and without gradient."""
        records = [x.of(failed[x.sample]) for x in found.records]
        with torch.no_grad():
            kept = self.t, self.y
            self.t, self.y = self.t.detach(), self.y.detach()
            _, result, states, _ = self._solve(failed, found, records, True)
            self.t, self.y = kept
            for e, (x, y) in enumerate(zip(records, states, strict=True)):
                self._record(e, x.sample, x.t, y)
        self.status = torch.where(failed, found.status, self.status)
        self.reached = torch.where(failed, torch.where(result.status == 0, found.end, result.reached), self.reached)

    def _link(self, mask: Tensor, found: Found, first: bool) -> Tensor:
        """The link of samples ``mask``; returns which of them go on."""
        if not _any(mask):
            return mask
        records = [x.of(mask[x.sample]) for x in found.records]
        y_end, result, states, times = self._solve(mask, found, records, first)
        broken = mask & (result.status != Status.SUCCESS)  # found solvable by the search, which takes other steps
        if _any(broken):
            self.status = torch.where(broken, result.status, self.status)
            self.reached = torch.where(broken, result.reached, self.reached)
            mask = mask & ~broken
        for e, (x, y) in enumerate(zip(records, states, strict=True)):
            if len(x.sample):
                t, state, _ = self._locate(e, x, y, None)
                self._record(e, x.sample, t, state)
        fired = found.fired & mask[:, None]
        through = mask & ~fired.any(1)
        at_end = through.nonzero()[:, 0]
        self._finish(at_end, times[-1], y_end)
        if not _any(fired):
            return torch.zeros_like(mask)
        return self._events(mask & ~through, fired, found, y_end)

    def _locate(self, e: int, near: Crossings, y: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Event e near where the search saw it, at states (n, D), where the field is ``slope`` (n, D), if known."""
        samples, t = near.sample, near.t
        controls = self._controls(samples) if self.events.reads(e) else []
        if self.any_order:
            found = locate_any_order(
                self.events,
                e,
                t,
                y,
                near.size,
                near.jumps,
                controls,
                lambda t, y: self._field(samples, t, y, self.inputs.controls),
            )
        else:
            if slope is None:
                with torch.no_grad():
                    slope = self._field(samples, t, y.detach(), self.held)
            found = locate(self.events, e, t, y, near.size, near.jumps, controls, slope)
        time, state, residual = found
        beyond = (self.direction[samples] * (time.detach() - self.plan.times[-1][samples])).clamp_min(0.0)
        return time - self.direction[samples] * beyond, state, residual

    def _controls(self, samples: Tensor) -> list[Tensor]:
        return [c[samples] for c in self.inputs.controls]

    def _field(self, samples: Tensor, t: Tensor, y: Tensor, controls: Sequence[Tensor]) -> Tensor:
        """The field (n, D) of samples (n,), which may repeat, at times (n,) and states (n, D)."""
        batch = self.plan.batch
        if torch.equal(samples, torch.arange(batch, device=samples.device)):
            return self.plan.field(t, y.clone(), controls).clone()
        if self._separate:
            return self.plan.field(t, y, [c[samples] for c in controls]).clone()
        turns = rank(samples)
        values = torch.zeros_like(y)
        for k in range(int(turns.max()) + 1):  # all samples at each call, and these among them
            at = (turns == k).nonzero()[:, 0]
            who = samples[at]
            full = self.plan.field(
                self.t.detach().index_put((who,), t[at]), self.y.detach().index_put((who,), y[at]), controls
            )
            values = values.index_put((at,), full[who])
        return values

    @cached_property
    def _separate(self) -> bool:
        """Whether the field gives samples the values by themselves that it gives them among all, up to rounding."""
        t, y = self.plan.times[0], self.inputs.y0.detach()
        with torch.no_grad():
            expected = self.plan.field(t, y.clone(), self.held).clone()
            return bool(same_rows(self.plan.field, t[1:], y[1:].clone(), [c[1:] for c in self.held], expected[1:]))

    def _events(self, mask: Tensor, fired: Tensor, found: Found, y_end: Tensor) -> Tensor:
        """Events at the ends of a link of samples ``mask``; returns which of them go on."""
        events = self.events
        index = mask.nonzero()[:, 0]
        whole = None if len(index) == len(mask) else index
        here: Any = slice(None) if whole is None else index
        fired, direction = fired[here], self.direction[here]
        end, before = found.end[here], rows(y_end, whole)
        # Steps are no shorter than this, so what happens within one cannot be told apart.
        standstill = (end - self.t.detach()[here]).abs() <= shortest_step(end, before.dtype)
        back = standstill & (fired & self.at_root[here]).any(1)  # it left this root and is back, in no time
        fired = fired & ~back[:, None]
        slope = None if self.any_order else rows(self._slope(found.end, y_end.detach()), whole)
        located: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * len(events)

        def at_event(e: int) -> tuple[Tensor, Tensor, Tensor]:
            known = located[e]
            if known is None:
                at = fired[:, e].nonzero()[:, 0]
                some = None if len(at) == len(index) else at
                who = index[at]
                near = Crossings(who, rows(end, some), found.size[who], found.jumps[who, e])
                t, y, residual = self._locate(e, near, rows(before, some), None if slope is None else rows(slope, some))
                blank = torch.zeros_like(end)
                known = located[e] = (put(end, some, t), put(before, some, y), put(blank, some, residual))
            return known

        # Each sample's link ends at the first of its events in the order of the list.
        t, y = end, before
        missing = torch.ones_like(fired[:, 0])
        for e in range(len(events)):
            own = missing & fired[:, e]
            if _any(own):
                t_e, y_e, _ = at_event(e)
                t, y = torch.where(own, t_e, t), torch.where(own[:, None], y_e, y)
                missing = missing & ~own
        if len(events) > 1:
            more = self._at_the_same_time(index, fired, found.signs[here], t, y)
            located = [None if _any(more[:, e] != fired[:, e]) else known for e, known in enumerate(located)]
            fired = more

        ends_here = torch.full_like(index, -1)
        for e in range(len(events)):
            at = fired[:, e].nonzero()[:, 0]
            if not len(at):
                self.residual[here, e] = 0.0
                continue
            t_e, y_e, residual = at_event(e)
            self.residual[here, e] = torch.where(fired[:, e], residual, 0.0)
            self._record(e, index[at], t_e[at], y_e[at])
            limit = events.events[e].ends_at
            if limit is not None:
                last = fired[:, e] & (self.counts[here, e] >= limit) & (ends_here < 0)
                ends_here = torch.where(last, e, ends_here)
        ended = ends_here >= 0
        self.ended_by[here] = ends_here
        self.status[here] = torch.where(ended, int(Status.EVENT), self.status[here])
        self.still[here] = torch.where(standstill, self.still[here] + 1, 0)
        jammed = ~ended & (back | (self.still[here] >= _STANDSTILL))
        self.status[here] = torch.where(jammed, int(Status.TOO_MANY_EVENTS), self.status[here])
        self.reached[here] = t.detach()
        over = ~ended & ~jammed & (direction * (self.plan.times[-1][here] - t.detach()) <= 0)
        done = (ended | over).nonzero()[:, 0]
        self._finish(index[done], t, y, done)
        on = ~(ended | over | jammed)
        if not _any(on):
            return torch.zeros_like(mask)
        for e in range(len(events)):
            if events.events[e].reset is None:
                continue
            at = (fired[:, e] & on).nonzero()[:, 0]
            if len(at):
                some = None if len(at) == len(index) else at
                new = events.after(e, rows(t, some), rows(y, some), self._controls(index[at]))
                y = put(y, some, new)
        finite = torch.isfinite(y.detach()).all(1)
        self.status[here] = torch.where(on & ~finite, int(Status.NON_FINITE), self.status[here])
        on = on & finite
        going = on.nonzero()[:, 0]
        some = None if len(going) == len(index) else going
        where = None if whole is None and some is None else index[going]
        self.t = put(self.t.detach(), where, rows(t, some))
        self.y = put(self.y.detach(), where, rows(y, some))
        result = torch.zeros_like(mask)
        result[index[going]] = True
        return result

    def _at_the_same_time(self, index: Tensor, fired: Tensor, signs: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Adds the events that the search saw just after these, and that the solution has behind it.

        Both differ by the error of the solve; the next link would start beyond such an event and not see it.
        """
        fired = fired.clone()
        for e in range(len(self.events)):
            if not self.events.ending[e]:
                continue
            controls = self._controls(index) if self.events.reads(e) else []
            with torch.no_grad():
                now = torch.sign(self.events.value(e, t.detach(), y.detach(), controls))
            wanted = self.events.directions[e]
            flipped = (signs[:, e] != 0) & (now == -signs[:, e])
            fired[:, e] |= flipped if wanted == 0 else flipped & (now == wanted)
        return fired

    # -- results

    def _record(self, e: int, samples: Tensor, t: Tensor, y: Tensor) -> None:
        """Occurrences of event e, those of a sample in order."""
        numbers = self.counts[samples, e] + rank(samples)
        self.recorded[e].add(samples, numbers, t, y)
        self.counts[:, e] += torch.bincount(samples, minlength=len(self.status))

    def _finish(self, samples: Tensor, t: Tensor, y: Tensor, rows: Tensor | None = None) -> None:
        """Samples (n,) end at rows of t and y; rows None stands for those of the same numbers."""
        if not len(samples):
            return
        rows = samples if rows is None else rows
        self.t_end.add((samples,), t[rows])
        self.y_end.add((samples,), y[rows])
        self.reached[samples] = t.detach()[rows]

    def result(self, dtype: torch.dtype) -> EventsSolved:
        """Everything put together; event times are given in ``dtype``."""
        plan, inputs, spec = self.plan, self.inputs, self.plan.field.state
        batch, width = inputs.y0.shape
        y0 = inputs.y0
        failed = (self.status != Status.SUCCESS) & (self.status != Status.EVENT)
        any_failed = _any(failed)

        def settled(x: Tensor, dim: int = 0) -> Tensor:
            """No gradient from failed samples."""
            if not any_failed or not x.requires_grad:
                return x
            mask = failed.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
            return torch.where(mask, x.detach(), x)

        blank = torch.full((plan.times.shape[0], batch, width), torch.nan, dtype=y0.dtype, device=y0.device)
        ys = settled(torch.cat([y0[None], self.outputs.into(blank)[1:]]), 1)
        occurrences = []
        for e, event in enumerate(self.events.events):
            count = self.counts[:, e]
            most = int(count.max()) if batch else 0
            times = torch.full((batch, most), torch.nan, dtype=torch.float64, device=y0.device)
            states = torch.full((batch, most, width), torch.nan, dtype=y0.dtype, device=y0.device)
            t = settled(self.recorded[e].t.into(times)).to(dtype)
            y = settled(self.recorded[e].y.into(states)).to(spec.dtype)
            occurrences.append(Occurrences(event.name, t, spec.unflatten(y), count))
        t_end = settled(self.t_end.into(self.reached))
        y_end = settled(self.y_end.into(torch.full_like(y0.detach(), torch.nan)))
        if any_failed:
            y_end = torch.where(failed[:, None], torch.nan, y_end)
        events = Events(
            tuple(occurrences),
            t_end.to(dtype),
            spec.unflatten(y_end.to(spec.dtype)),
            self.ended_by,
            Stats(*self.search_work),
        )
        dense = joined_dense(plan, self.links, self.reached, y0) if plan.dense else None
        return EventsSolved(ys, self.status, self.reached, Stats(*self.work), dense, events)


def solve_events(
    plan: Plan, inputs: Inputs, events: FlatEvents, run: Run, search_run: Run, any_order: bool, dtype: Any
) -> EventsSolved:
    """Solves with events.

    Args:
        plan: the solve.
        inputs: its inputs.
        events: the functions.
        run: the solver, with graph.
        search_run: the solver for the search, called without gradient.
        any_order: whether the solver's results can be differentiated more than once.
        dtype: of the times in the result.
    """
    chain = Chain(plan, inputs, events, run, search_run, any_order)
    chain.solve()
    return chain.result(dtype)
