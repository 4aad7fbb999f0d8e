"""The discrete adjoint of the ``stepped`` backend: stages computed again from the record and pulled back one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastode.backends.base import Gradients
from fastode.backends.compare import check_repeatable, check_step, same_rows
from fastode.backends.healthy import healthy_index
from fastode.backends.stepped_device import DeviceRecord, DeviceWalk
from fastode.backends.stepped_host import HostWalk
from fastode.backends.stepped_tape import Tape
from fastode.field import work_dtype
from fastode.problem import Plan
from fastode.vjp import FieldVjp

_RAGGED_BELOW = 0.9
"""The backward batch shrinks with the samples when they take less than this part of the longest one's steps."""


@dataclass(frozen=True)
class SteppedRecord:
    """What the backward pass needs.

    Attributes:
        steps: the record of steps: compiled, or a ``DeviceRecord``.
        k1: (B, D), the field at the start.
        final: (B, D), the state at the end.
        solved: (B,) bool.
        separable: False if the field was seen to give a sample another value in another batch.
        tape: the graph of the whole solve, where it is kept.
    """

    steps: Any
    k1: Tensor
    final: Tensor
    solved: Tensor
    separable: bool
    tape: Tape | None = None

    def table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Accepted steps of each sample (B,) int64; start, end and signed size of each, (N, B) float64, padded."""
        if isinstance(self.steps, DeviceRecord):
            return self.steps.padded()
        t, t_next, h, _ = (torch.from_numpy(column) for column in self.steps.table())
        return torch.from_numpy(self.steps.count()), t, t_next, h

    def walk(
        self, plan: Plan, lanes: Tensor, grad_ys: Tensor | None, grad_coefs: Tensor | None
    ) -> HostWalk | DeviceWalk:
        """Reads it back to front; lanes (n,) int64 are samples."""
        kind = DeviceWalk if isinstance(self.steps, DeviceRecord) else HostWalk
        return kind(self.steps, plan, lanes, grad_ys, grad_coefs)


class SteppedAdjoint:
    """The walk through the steps from the last to the first, all samples at the same step number.

    Lanes are samples. Where the numbers of steps differ much they are sorted, longest first, so that the samples that
    took a step number j are the first few; otherwise, or when the field cannot be called with fewer or other rows, the
    lanes are the whole batch in its order, and who took no step j stands still with h = 0.
    """

    def __init__(
        self,
        plan: Plan,
        record: SteppedRecord,
        controls: Sequence[Tensor],
        vjp: FieldVjp,
        grad_ys: Tensor,
        grad_coefs: Tensor | None,
    ) -> None:
        self.plan, self.steps, self.vjp = plan, record.steps, vjp
        self.k1, self.device, self.dtype = record.k1, record.k1.device, grad_ys.dtype
        self.width = grad_ys.shape[2]
        # What decides on the way of the walk is looked at on the host, once.
        count = torch.from_numpy(record.steps.count())
        moving = record.solved.cpu() & (count > 0)
        self.longest = int(count[moving].max()) if bool(moving.any()) else 0
        self.shrinks = False
        total = int(count[moving].sum())
        lanes = healthy_index(moving)
        # Copies of healthy samples in the place of others: they must not bring the gradients of their originals again.
        twins = lanes != torch.arange(len(lanes), device="cpu")
        if record.separable and total < _RAGGED_BELOW * self.longest * plan.batch:
            order = self._shrinking_order(plan, record, controls, count, moving, lanes)
            self.shrinks = order is not None
            lanes = lanes if order is None else order
        self.twins = None if self.shrinks or not bool(twins.any()) else twins.to(self.device)
        self.count, self.lanes = count[lanes], lanes.to(self.device)
        self.final = record.final[self.lanes]
        self.after = self.final.clone()  # states at the ends of the steps that come next in the walk
        self.walker = record.walk(plan, lanes, grad_ys, grad_coefs)
        self.controls = [c.detach()[self.lanes] for c in controls]
        self.rows: list[Tensor] = []
        self.rows_for = -1

    def _shrinking_order(
        self,
        plan: Plan,
        record: SteppedRecord,
        controls: Sequence[Tensor],
        count: Tensor,
        moving: Tensor,
        everyone: Tensor,
    ) -> Tensor | None:
        """The lanes sorted, if the field gives half of them, in the new order, the values of the whole batch."""
        order = torch.argsort(torch.where(moving, count, -1), descending=True, stable=True)
        order = order[: int(moving.sum())]
        some = order[: (len(order) + 1) // 2].to(self.device)
        probe = record.walk(plan, everyone, None, None)
        # In the states that are kept last: at the start a field may be zero, or all samples the same.
        y = probe.states(self.longest, plan.batch)
        t, _ = probe.steps(self.longest, plan.batch)
        with torch.no_grad():
            rows = [c.detach()[everyone.to(self.device)] for c in controls]
            expected = plan.field(t, y, rows)
            if not same_rows(plan.field, t[some], y[some], [row[some] for row in rows], expected[some]):
                return None
        return order

    def active(self, j: int) -> int:
        """Number of lanes that are evaluated at step number j."""
        return int((self.count > j).sum()) if self.shrinks else len(self.lanes)

    def use_rows(self, n: int) -> list[Tensor]:
        """The controls of the first n lanes as leaves."""
        if n != self.rows_for:
            self.rows, self.rows_for = self.vjp.leaf_rows([c[:n] for c in self.controls]), n
        return self.rows

    def run(self) -> Gradients:
        """The whole walk."""
        n_lanes = len(self.lanes)
        p = torch.zeros(n_lanes, self.width, dtype=self.dtype, device=self.device)
        wanted = self.vjp.wanted(self.use_rows(n_lanes))
        totals: list[Tensor | None] = [None] * len(wanted)
        every = self.steps.every
        for block in reversed(range(0, self.longest, every)):
            states = self.block(block, min(every, self.longest - block))
            for j in reversed(range(block, block + len(states))):
                self.step(j, states.pop(), p, totals)
        n_controls = self.vjp.n_controls
        controls = [self.scatter(total) for total in totals[:n_controls]]
        y0 = self.scatter(p)
        assert y0 is not None
        return Gradients(y0, controls, totals[n_controls:])

    def scatter(self, lanes: Tensor | None) -> Tensor | None:
        """Rows of lanes back in the order of the batch; zero for samples that are no lane of their own."""
        if lanes is None:
            return None
        if self.twins is not None:
            return torch.where(self.twins.reshape(-1, *[1] * (lanes.ndim - 1)), 0.0, lanes)
        if not self.shrinks:
            return lanes
        return lanes.new_zeros(self.plan.batch, *lanes.shape[1:]).index_copy(0, self.lanes, lanes)

    def block(self, start: int, length: int) -> list[Tensor]:
        """States at the start of steps start, start + 1, ...: the first from the record, the others computed again."""
        n = self.active(start)
        y = self.walker.states(start, n)
        standing = self.count[:n] <= start
        if bool(standing.any()):  # they are where the forward pass had them, should the field look at other samples
            y = torch.where(standing[:, None].to(self.device), self.final[:n], y)
        states = [y]
        with torch.no_grad():
            for j in range(start, start + length - 1):
                n = self.active(j + 1)
                y = states[-1][:n]
                rows = [c[:n] for c in self.controls]
                t, h = self.walker.steps(j, n)
                stages: list[Tensor] = []
                state = y
                for i in range(self.plan.tableau.n_stages):
                    if i:
                        state = self.walker.combine(y, h, self.plan.tableau.a[i, :i].tolist(), stages)
                    if i + 1 < self.plan.tableau.n_stages:  # the last stage's state is the new one
                        stages.append(self.plan.field(t + float(self.plan.tableau.c[i]) * h, state, rows).contiguous())
                states.append(state)
        return states

    def step(self, j: int, y: Tensor, p: Tensor, totals: list[Tensor | None]) -> None:
        """The adjoint of step number j: p (lanes, D) before and after in place, gradients added to totals."""
        tableau, n = self.plan.tableau, y.shape[0]
        s = tableau.n_stages
        t, h = self.walker.steps(j, n)
        p_n = p[:n]
        inner = self.walker.outputs(j, p_n)
        if self.twins is not None:
            p_n.masked_fill_(self.twins[:, None], 0.0)
            if inner is not None:
                inner.masked_fill_(self.twins[:, None], 0.0)
        used = s if inner is not None or tableau.b[s - 1] != 0.0 else s - 1

        rows = self.use_rows(n)
        states: list[Tensor] = []
        values: list[Tensor] = []
        for i in range(used):
            state = y if i == 0 else self.walker.combine(y, h, tableau.a[i, :i].tolist(), values)
            states.append(state.detach().requires_grad_())
            values.append(self.vjp(t + float(tableau.c[i]) * h, states[-1], rows))

        own = slice(None) if self.twins is None else ~self.twins  # the field may hold something per sample
        end = self.walker.combine(y, h, tableau.a[s - 1, : s - 1].tolist(), values[: s - 1])
        check_step(end[own], self.after[:n][own], y[own], h[own], [k[own] for k in values], self.plan.field)
        self.after[:n] = y
        if j == 0:
            check_repeatable(values[0][own], self.k1[self.lanes[:n]][own], y[own], h[own], self.plan.field)

        pulled: list[Tensor] = []
        pulled_from: list[int] = []
        for i in reversed(range(used)):
            coefs, terms = [float(tableau.b[i])], [p_n]
            if inner is not None:
                coefs += [float(q) for q in tableau.q[i]]
                terms += list(inner[1:].unbind())
            coefs += [float(tableau.a[m, i]) for m in pulled_from]
            terms += pulled
            if not any(coefs):
                continue
            g = self.walker.combine(None, h, coefs, terms)
            grads = self.vjp.pull(values[i], states[i], rows, g)
            if grads[0] is not None:
                pulled.append(grads[0].contiguous())
                pulled_from.append(i)
            self.accumulate(totals, grads[1:], n)
        sums = pulled + ([inner[0]] if inner is not None else [])
        if sums:
            p_n.copy_(self.walker.combine(p_n, None, [1.0] * len(sums), sums))

    def accumulate(self, totals: list[Tensor | None], grads: list[Tensor | None], n: int) -> None:
        """Adds gradients by wanted controls (n rows) and externals, in the order of the walk."""
        for index, grad in enumerate(grads):
            if grad is None:
                continue
            total = totals[index]
            if total is None:
                lead = (len(self.lanes),) if index < self.vjp.n_controls else grad.shape[:1]
                shape = lead + grad.shape[1:] if grad.ndim else ()
                total = totals[index] = grad.new_zeros(shape, dtype=work_dtype(grad.dtype))
            if index < self.vjp.n_controls:
                total = total[:n]
            total.add_(grad)
