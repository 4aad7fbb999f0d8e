"""``solve(..., events=...)``: from event to event.

Every turn of the loop is one link of all samples' chains: the search finds, without gradient, where each sample's flow
ends next; a solve of the same plan from the last event to there, with the output times in between, gives the values and
their graph; the event's time and state get their derivatives from ``crossing``; resets give the start of the next link.
Samples that are done take part with spans of length zero, so that the field always meets the whole batch.

A start at a differentiable time t is a start at a constant time from y - f(t, y) dt. Together with the derivative of
the event's state, + f dt, this is the saltation matrix of the event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastode.backends.base import Forward
from fastode.backends.compare import same_rows
from fastode.controllers import shortest_step
from fastode.events import arrays as xp
from fastode.events.arrays import Array
from fastode.events.collect import add, put, rank, rows
from fastode.events.crossing import leaves_root, locate, locate_any_order, magnitudes, rates
from fastode.events.event import FlatEvents
from fastode.events.ledger import EventsSolved, Ledger
from fastode.events.search import Found, Run, Search
from fastode.events.span import make_span
from fastode.events.window import Crossings, Start, same_time
from fastode.problem import Inputs, Plan
from fastode.status import Status

_STANDSTILL = 32
"""Events in a row without time passing after which a sample is given up."""


class Chain(Ledger):
    """The links of all samples' chains. See the module.

    What has a graph is held as tensors, everything else as arrays of the search.

    Args:
        plan: the solve.
        inputs: its inputs.
        events: the functions.
        run: the solver, with graph.
        search_run: the solver for the search, without.
        any_order: whether the solver's results can be differentiated more than once.
        graph: whether a derivative of the solve may be wanted.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Inputs,
        events: FlatEvents,
        run: Run,
        search_run: Run,
        any_order: bool,
        graph: bool,
    ) -> None:
        super().__init__(plan, inputs, events)
        self.run = run
        self.any_order, self.graph = any_order, graph
        self.held = [c.detach() for c in inputs.controls]
        self._search = Search(plan, events, self.held, search_run)
        self.times, self.last, self.direction = xp.of(plan.times), self._search.last, self._search.direction
        zeros = xp.zeros(self.last, (plan.batch,))
        self.still, self.next_output, self.budget = xp.copy(zeros), zeros + 1, zeros + plan.max_steps
        # Where each sample is.
        self.t, self.y = inputs.times[0], inputs.y0
        self.residual = xp.full(self.last, (plan.batch, len(events)), 0.0)
        self.at_root = self.counts > 0

    def solve(self) -> None:
        """Follows every sample to its end."""
        self._first_values = self.events.check_rows(self.plan.times[0], self.inputs.y0.detach(), self.held)
        active = self.direction != 0
        (idle,) = xp.places(~active)
        if len(idle):
            self.finish(idle, self.t, self.y)
            for number in range(1, self.plan.times.shape[0]):  # all of their outputs are at the start
                self.outputs.add((0 * idle + number, idle), self.y[xp.tensor(idle)])
        # Without the search's own steps where no event changes the flow, and no graph of the results is needed.
        whole = (
            not (self.graph or self.events.differentiable)
            and not any(ending or limit for _, ending, limit in self.events.kinds)
            and (self.plan.dense or self.plan.tableau.is_explicit)  # implicit steps depend on what is read
            and not isinstance(self.last, Tensor)  # on other devices the search does not give the states
        )
        first = True
        while bool(active.any()):
            start = self._start(active, first)
            found = self._search(xp.of(self.t), self.y.detach(), start, self.counts, active, self.budget, whole)
            if found.whole is not None:
                return self._adopt(active, found, *found.whole)
            self.budget = self.budget - found.attempts
            add(self.search_work, found.stats, active)
            failed = active & (found.status != xp.SUCCESS)
            if bool(failed.any()):
                self._fail(failed, found)
                active = active & ~failed
            active = self._link(active, found, first)
            first = whole = False
        return None

    def _adopt(self, active: Array, found: Found, ys: Tensor, result: Forward) -> None:
        """The search was a solve of the plan: its result is this one's."""
        self.by, self.ys = result, ys
        add(self.work, found.stats, active)
        self.status = xp.where(active, found.status, self.status)
        self.reached = xp.where(active & (self.status != xp.SUCCESS), found.end, self.last)
        for e, x in enumerate(found.records):
            self.record(e, x.sample, xp.tensor(x.t), self._states(x))
        if self.plan.dense:
            assert result.dense is not None
            self.links.append(replace(result.dense, y0=ys[0]))

    def _states(self, x: Crossings) -> Tensor:
        """The states (k, D) that the search knows."""
        y = xp.tensor(x.y)
        return y.to(self.y.dtype) if len(x.y) else self.y.detach()[:0]

    # -- the start of a link

    def _start(self, active: Array, first: bool) -> Start:
        """The event functions at the start of a link, and their signs just after it: at a root those of derivatives."""
        events = self.events
        values, signs, roots = [], [], []
        slope = None
        for e in range(len(events)):
            if first:
                g = self._first_values[e]
                at_root = active & (xp.of(g) == 0)
                rate = None
                if bool(at_root.any()):
                    slope = self._slope(self.t, self.y) if slope is None else slope
                    _, rate, _ = rates(events, e, self.t, self.y, self.held, slope)
            else:
                slope = self._slope(self.t, self.y) if slope is None else slope
                g, rate, parts = rates(events, e, self.t, self.y, self.held, slope)
                size = magnitudes(self.t, self.y, *parts)
                residual = xp.tensor(self.residual[:, e])
                at_root = active & xp.of(leaves_root(residual, g, size, self.y.dtype))
            sign = xp.sign_of(xp.of(g))
            if rate is not None:
                sign = xp.where(at_root, xp.of(torch.sign(rate)) * self.direction, sign)
            values.append(xp.of(g))
            signs.append(sign)
            roots.append(at_root)
        self.at_root = xp.stack(roots, 1)
        return Start(xp.stack(values, 1), xp.stack(signs, 1))

    def _slope(self, t: Tensor, y: Tensor) -> Tensor:
        """The field (B, D) at times (B,) and states (B, D), without graph."""
        with torch.no_grad():
            return self.plan.field(t.detach(), y.detach().clone(), self.held).clone()

    # -- one link

    def _solve(
        self, mask: Array, found: Found, records: list[Crossings], first: bool
    ) -> tuple[Tensor, Forward, list[Tensor], Tensor]:
        """One link of samples ``mask``: states at its end, the result, the states of the records, and its times."""
        plan, graph = self.plan, self.inputs.times.requires_grad
        y, begin = self.y, self.t if self.any_order or (first and graph) else self.t.detach()
        given = self.inputs.times if graph else plan.times
        slack = same_time(y.dtype, xp.larger(abs(self.times[0]), abs(found.end)), found.size)
        span = make_span(self.times, given, begin, found.end, slack, mask, self.next_output, self.direction, records)
        if not self.any_order and not first and self.t.requires_grad:
            slope = torch.where(xp.tensor(mask)[:, None], self._slope(self.t, y), 0.0)
            y = y - slope * (self.t - self.t.detach()).to(y.dtype)[:, None]
        again = bool((span.known[1:] == span.known[:1]).any())
        ys, coefs, result = self.run(
            replace(plan, times=xp.tensor(span.known), starts_again=again), Inputs(y, span.times, self.inputs.controls)
        )
        self.by = result
        if result.dense is not None and coefs is not None:
            self.links.append(replace(result.dense, coefs=coefs, y0=ys[0]))
        add(self.work, result.stats, mask)
        _, sample, number = span.outputs
        if len(sample):
            self.outputs.add((number, sample), span.at_outputs(ys))
            self.next_output = self.next_output + xp.count_of(sample, plan.batch)
        return ys[-1], result, span.at_records(ys, records), span.times

    def _fail(self, failed: Array, found: Found) -> None:
        """The last link of samples that fail: to where they got, and without gradient."""
        records = [x.of(failed[x.sample]) for x in found.records]
        with torch.no_grad():
            kept = self.t, self.y
            self.t, self.y = self.t.detach(), self.y.detach()
            _, result, states, _ = self._solve(failed, found, records, True)
            self.t, self.y = kept
            for e, (x, y) in enumerate(zip(records, states, strict=True)):
                self.record(e, x.sample, xp.tensor(x.t), torch.cat([self._states(x), y[len(x.y) :]]))
        self.status = xp.where(failed, found.status, self.status)
        reached = xp.where(xp.of(result.status) == 0, found.end, xp.of(result.reached))
        self.reached = xp.where(failed, reached, self.reached)

    def _link(self, mask: Array, found: Found, first: bool) -> Array:
        """The link of samples ``mask``; returns which of them go on."""
        if not bool(mask.any()):
            return mask
        records = [x if bool(mask.all()) else x.of(mask[x.sample]) for x in found.records]
        y_end, result, states, times = self._solve(mask, found, records, first)
        broken = mask & (xp.of(result.status) != xp.SUCCESS)  # the search takes other steps, and could solve it
        if bool(broken.any()):
            self.status = xp.where(broken, xp.of(result.status), self.status)
            self.reached = xp.where(broken, xp.of(result.reached), self.reached)
            mask = mask & ~broken
        for e, (x, y) in enumerate(zip(records, states, strict=True)):
            if not len(x.sample):
                continue
            k = len(x.y)
            t, state = xp.tensor(x.t[:k]), self._states(x)
            if k < len(x.sample):
                others = x.after(k)
                where = xp.tensor(others.t)
                located, moved, _ = self._locate(e, others.sample, where, y[k:], others.size, others.jumps, None)
                t, state = torch.cat([t, located]), torch.cat([state, moved])
            self.record(e, x.sample, t, state)
        fired = found.fired & mask[:, None]
        through = mask & ~fired.any(1)
        if bool(through.any()):
            self.finish(xp.places(through)[0], times[-1], y_end)
            mask = mask & ~through
        if not bool(mask.any()):
            return mask
        return self._events(mask, fired, found, y_end)

    def _locate(
        self, e: int, at: Array, t: Tensor, y: Tensor, size: Array, jumps: Array, slope: Tensor | None
    ) -> tuple[Tensor, Tensor, Array]:
        """Event e near times (n,) where the search saw it, at states (n, D), where the field is ``slope``, if known."""
        samples = xp.tensor(at)
        controls = self._controls(samples) if self.events.reads(e) else []
        if self.any_order:
            found = locate_any_order(
                self.events,
                e,
                t,
                y,
                size,
                jumps,
                controls,
                lambda t, y: self._field(samples, t, y, self.inputs.controls),
            )
        else:
            if slope is None:
                with torch.no_grad():
                    slope = self._field(samples, t, y.detach(), self.held)
            found = locate(self.events, e, t, y, size, jumps, controls, slope)
        time, state, residual = found
        direction = self.direction[at]
        beyond = direction * xp.larger(direction * (xp.of(time) - self.last[at]), 0.0)
        return time - xp.tensor(beyond) if bool((beyond != 0).any()) else time, state, residual

    def _controls(self, samples: Tensor) -> list[Tensor]:
        return [c[samples] for c in self.inputs.controls]

    def _field(self, samples: Tensor, t: Tensor, y: Tensor, controls: Sequence[Tensor]) -> Tensor:
        """The field (n, D) of samples (n,), which may repeat, at times (n,) and states (n, D)."""
        batch = self.plan.batch
        if len(samples) == batch and torch.equal(samples, torch.arange(batch, device=samples.device)):
            return self.plan.field(t, y.clone(), controls).clone()
        if self._separate:
            return self.plan.field(t, y, [c[samples] for c in controls]).clone()
        turns = xp.tensor(rank(xp.of(samples)))
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

    def _events(self, mask: Array, fired: Array, found: Found, y_end: Tensor) -> Array:
        """Events at the ends of a link of samples ``mask``; returns which of them go on."""
        events = self.events
        (index,) = xp.places(mask)
        whole = None if len(index) == len(mask) else xp.tensor(index)
        here: Any = slice(None) if whole is None else index
        fired, direction, end = fired[here], self.direction[here], found.end[here]
        before, begin, constant = rows(y_end, whole), xp.of(self.t)[here], xp.tensor(end)
        # Steps are no shorter than this, so what happens within one cannot be told apart.
        standstill = abs(end - begin) <= xp.of(shortest_step(constant, before.dtype))
        back = standstill & (fired & self.at_root[here]).any(1)  # it left this root and is back, in no time
        fired = fired & ~back[:, None]
        slope = None if self.any_order else rows(self._slope(xp.tensor(found.end), y_end), whole)
        located: list[tuple[Tensor, Tensor, Array] | None] = [None] * len(events)

        def at_event(e: int) -> tuple[Tensor, Tensor, Array]:
            known = located[e]
            if known is None:
                (at,) = xp.places(fired[:, e])
                some = None if len(at) == len(index) else xp.tensor(at)
                who = index[at]
                field = None if slope is None else rows(slope, some)
                t, y, residual = self._locate(
                    e, who, rows(constant, some), rows(before, some), found.size[who], found.jumps[who, e], field
                )
                left = xp.full(end, end.shape, 0.0)
                left[at] = residual
                known = located[e] = (put(constant, some, t), put(before, some, y), left)
            return known

        # Each sample's link ends at the first of its events in the order of the list.
        t, y = constant, before
        missing = ~back | True
        for e in range(len(events)):
            own = missing & fired[:, e]
            if bool(own.all()):
                t, y, _ = at_event(e)
            elif bool(own.any()):
                t_e, y_e, _ = at_event(e)
                chosen = xp.tensor(own)
                t, y = torch.where(chosen, t_e, t), torch.where(chosen[:, None], y_e, y)
            missing = missing & ~own
        if len(events) > 1:
            more = self._at_the_same_time(index, fired, found.signs[here], t, y)
            located = [None if bool((more[:, e] != fired[:, e]).any()) else x for e, x in enumerate(located)]
            fired = more

        ends_here = 0 * index - 1
        for e in range(len(events)):
            (at,) = xp.places(fired[:, e])
            if not len(at):
                self.residual[here, e] = 0.0
                continue
            t_e, y_e, residual = at_event(e)
            some = None if len(at) == len(index) else xp.tensor(at)
            self.residual[here, e] = xp.where(fired[:, e], residual, 0.0)
            self.record(e, index[at], rows(t_e, some), rows(y_e, some))
            limit = events.events[e].ends_at
            if limit is not None:
                last = fired[:, e] & (self.counts[here, e] >= limit) & (ends_here < 0)
                ends_here = xp.where(last, e, ends_here)
        ended = ends_here >= 0
        self.ended_by[here] = ends_here
        status = xp.where(ended, xp.EVENT, self.status[here])
        still = xp.where(standstill, self.still[here] + 1, 0)
        jammed = ~ended & (back | (still >= _STANDSTILL))
        self.still[here] = still
        self.status[here] = xp.where(jammed, int(Status.TOO_MANY_EVENTS), status)
        now = xp.of(t)
        self.reached[here] = now
        over = ~ended & ~jammed & (direction * (self.last[here] - now) <= 0)
        on = ~(ended | over | jammed)
        (done,) = xp.places(ended | over)
        if len(done):
            some = None if len(done) == len(index) else xp.tensor(done)
            self.finish(index[done], rows(t, some), rows(y, some), True)
        going_on = mask & False
        if not bool(on.any()):
            return going_on
        for e in range(len(events)):
            if events.events[e].reset is None:
                continue
            (at,) = xp.places(fired[:, e] & on)
            if len(at):
                some = None if len(at) == len(index) else xp.tensor(at)
                new = events.after(e, rows(t, some), rows(y, some), self._controls(xp.tensor(index[at])))
                y = put(y, some, new)
        finite = xp.of(torch.isfinite(y.detach()).all(1))
        self.status[here] = xp.where(on & ~finite, int(Status.NON_FINITE), self.status[here])
        (going,) = xp.places(on & finite)
        some = None if len(going) == len(index) else xp.tensor(going)
        where = None if whole is None and some is None else xp.tensor(index[going])
        self.t = put(self.t.detach(), where, rows(t, some))
        self.y = put(self.y.detach(), where, rows(y, some))
        going_on[index[going]] = True
        return going_on

    def _at_the_same_time(self, index: Array, fired: Array, signs: Array, t: Tensor, y: Tensor) -> Array:
        """Adds the events that the search saw just after these, and that the solution has behind it.

        Both differ by the error of the solve; the next link would start beyond such an event and not see it.
        """
        fired = xp.copy(fired)
        for e in range(len(self.events)):
            if not self.events.ending[e]:
                continue
            controls = self._controls(xp.tensor(index)) if self.events.reads(e) else []
            with torch.no_grad():
                now = xp.of(torch.sign(self.events.value(e, t.detach(), y.detach(), controls)))
            wanted = self.events.directions[e]
            flipped = (signs[:, e] != 0) & (now == -signs[:, e])
            fired[:, e] |= flipped if wanted == 0 else flipped & (now == wanted)
        return fired


def solve_events(
    plan: Plan,
    inputs: Inputs,
    events: FlatEvents,
    run: Run,
    search_run: Run,
    any_order: bool,
    graph: bool,
    dtype: torch.dtype,
) -> EventsSolved:
    """Solves with events.

    Args:
        plan: the solve.
        inputs: its inputs.
        events: the functions.
        run: the solver, with graph.
        search_run: the solver for the search, called without gradient.
        any_order: whether the solver's results can be differentiated more than once.
        graph: whether a derivative of the solve may be wanted.
        dtype: of the times in the result.
    """
    chain = Chain(plan, inputs, events, run, search_run, any_order, graph)
    chain.solve()
    return chain.result(dtype)
