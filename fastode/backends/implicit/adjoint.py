"""The discrete adjoint of the ``implicit`` backend, exact by the implicit function theorem.

With p = dL/dy_{n+1}, J_i the Jacobian at stage i and g_i the cotangent of its slope k_i,

    g_i = h ( b_i p + sum_e b_i(theta_e) lambda_e + sum_j a_ji J_j^T g_j )

over all stages j, the same one included: one transposed linear solve per stage, or per block of coupled stages, with
the exact Jacobians at the stages. Then dL/du += (df/du)_i^T g_i and dL/dy_n = p + sum_e lambda_e + sum_i J_i^T g_i, as
for explicit methods. Stages are found again from the record of states.

For Rosenbrock methods, with V_i = (I / gamma - h J)^-T r_i and r_i the cotangent of K_i,

    r_i = h ( b_i p + ... ) + sum_{j>i} ( h a_ji J_j^T V_j + C_ji V_j )
    dL/d(y_n, u) += d/d(y_n, u) sum_i V_i . ( f_i + h J K_i + h d_i df/dt ),   K_i fixed,

which takes second derivatives of the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastode.backends.base import Gradients
from fastode.backends.compare import check_repeatable, check_step, same_rows
from fastode.backends.healthy import healthy_index
from fastode.backends.implicit.arithmetic import column, combine
from fastode.backends.implicit.forward import ImplicitRecord, accuracy_of
from fastode.backends.implicit.jacobian import jacobian, pull_rows
from fastode.backends.implicit.linear import factorise, stage_matrix
from fastode.backends.implicit.rosenbrock import rosenbrock_stages
from fastode.backends.implicit.stages import StageSolver
from fastode.field import work_dtype
from fastode.interpolant import basis
from fastode.problem import Plan
from fastode.tableaus.implicit import ImplicitTableau
from fastode.tableaus.rosenbrock import RosenbrockTableau
from fastode.vjp import FieldVjp

_AGAIN_ITERS = 50


class ImplicitAdjoint:
    """The walk through the steps from the last to the first, all samples at the same step number.

    Lanes are samples. Where the field may be called with fewer rows they are sorted by their number of steps, longest
    first, so that those that took a step number j are the first few; otherwise they are the whole batch in its order,
    and who took no step j stands where it was, with a cotangent of zero.
    """

    def __init__(
        self,
        plan: Plan,
        record: ImplicitRecord,
        controls: Sequence[Tensor],
        vjp: FieldVjp,
        grad_ys: Tensor,
        grad_coefs: Tensor | None,
    ) -> None:
        self.plan, self.tableau, self.vjp = plan, plan.tableau, vjp
        self.record, self.steps = record, record.steps
        self.grad_ys, self.grad_coefs = grad_ys, grad_coefs
        self.all_controls = [c.detach() for c in controls]
        count = self.steps.count
        self.moving = record.solved & (count > 0)
        self.longest = int(count[self.moving].max()) if bool(self.moving.any()) else 0
        order = torch.argsort(torch.where(self.moving, count, -1), descending=True, stable=True)
        order = order[: int(self.moving.sum())]
        self.shrinks = self.longest > 0 and self._may_shrink(order)
        self.lanes = order if self.shrinks else healthy_index(self.moving)
        self.count = count[self.lanes]
        own = torch.arange(len(count), device=count.device)
        self.twins = torch.zeros_like(self.lanes, dtype=torch.bool) if self.shrinks else self.lanes != own
        self.controls = [c[self.lanes] for c in self.all_controls]
        self.after = record.final[self.lanes]  # states at the ends of the steps that come next in the walk
        self.totals: list[Tensor | None] = []
        self.rows: list[Tensor] = []
        self.n_rows = -1

    def _may_shrink(self, order: Tensor) -> bool:
        """Whether the field gives some of the samples, in another order, the values of the whole batch."""
        if self.record.separable is not None:
            return self.record.separable
        if len(order) == len(self.moving) and bool((self.steps.count == self.longest).all()):
            return False  # nothing to gain
        everyone = healthy_index(self.moving)
        some = order[: (len(order) + 1) // 2]
        number = self.longest - 1
        y = self.steps.state(everyone, number - number % self.steps.every)
        t = self.steps.t[self.steps.rows(everyone, number)]
        with torch.no_grad():
            rows = [c[everyone] for c in self.all_controls]
            expected = self.plan.field(t, y, rows).clone()
            fewer = [row[some] for row in rows]
            return bool(same_rows(self.plan.field, t[some], y[some], fewer, expected[some]))

    def run(self) -> Gradients:
        """The whole walk."""
        p = torch.zeros(len(self.lanes), self.grad_ys.shape[2], dtype=self.grad_ys.dtype, device=self.grad_ys.device)
        self.totals = [None] * len(self.vjp.wanted(self._leaves(len(self.lanes))))
        every = self.steps.every
        for block in reversed(range(0, self.longest, every)):
            states = self._block(block, min(every, self.longest - block))
            for j in reversed(range(block, block + len(states))):
                n = self._active(j)
                p[:n] = self._step(j, states.pop(), p[:n])
        n_controls = self.vjp.n_controls
        y0 = self._scatter(p)
        assert y0 is not None
        return Gradients(y0, [self._scatter(total) for total in self.totals[:n_controls]], self.totals[n_controls:])

    def _active(self, j: int) -> int:
        return int((self.count > j).sum()) if self.shrinks else len(self.lanes)

    def _scatter(self, rows: Tensor | None) -> Tensor | None:
        """Rows of lanes in the order of the batch; zero for samples that are no lane of their own."""
        if rows is None:
            return None
        if not self.shrinks:
            return torch.where(self.twins.reshape(-1, *[1] * (rows.ndim - 1)), 0.0, rows)
        return rows.new_zeros(self.plan.batch, *rows.shape[1:]).index_copy(0, self.lanes, rows)

    def _leaves(self, n: int) -> list[Tensor]:
        """The controls of the first n lanes as leaves."""
        if n != self.n_rows:
            self.rows, self.n_rows = self.vjp.leaf_rows([c[:n] for c in self.controls]), n
        return self.rows

    def _block(self, start: int, length: int) -> list[Tensor]:
        """States at the start of steps start, start + 1, ...: the first is kept, the others are found again."""
        states = [self.steps.state(self.lanes[: self._active(start)], start)]
        for j in range(start, start + length - 1):
            n = self._active(j + 1)
            held = [c[:n] for c in self.controls]

            def field(t: Tensor, y: Tensor, held: list[Tensor] = held) -> Tensor:
                return self.plan.field(t, y, held).clone(memory_format=torch.contiguous_format)

            y, standing = states[-1][:n], self.count[:n] <= j + 1
            row = self.steps.rows(self.lanes[:n], j)
            t, h = self.steps.t[row], self.steps.h[row]
            with torch.no_grad():
                k1 = field(t, y)
                by_time = isinstance(self.tableau, RosenbrockTableau)
                jac, dfdt = jacobian(field, t, y, by_time)
                if isinstance(self.tableau, RosenbrockTableau):
                    assert dfdt is not None
                    slopes, _, _ = rosenbrock_stages(self.tableau, field, t, h, y, k1, jac, dfdt)
                else:
                    slopes = self._slopes(field, t, h, y, k1, jac)
                y1 = combine(y, h, self.tableau.b.tolist(), slopes)
            states.append(torch.where(standing[:, None], y, y1))
        return states

    def _slopes(
        self, field: object, t: Tensor, h: Tensor, y: Tensor, k1: Tensor, jac: Tensor, live: Tensor | None = None
    ) -> list[Tensor]:
        """The stages of an implicit Runge-Kutta step that was solved before."""
        assert isinstance(self.tableau, ImplicitTableau)
        solver = StageSolver(self.tableau, field, t, h, y, k1, jac)  # type: ignore[arg-type]
        accuracy = accuracy_of(self.plan, y, h, k1)
        everyone = torch.ones_like(t, dtype=torch.bool)
        found = solver.run(accuracy, everyone)
        if not bool(found.solved.all()):  # the forward pass had another Jacobian
            again = solver.run(replace(accuracy, max_iters=_AGAIN_ITERS, renew=True), ~found.solved)
            slopes = zip(found.slopes, again.slopes, strict=True)
            found_slopes = [torch.where(found.solved[:, None], a, b) for a, b in slopes]
            if not bool((found.solved | again.solved).all()):
                raise RuntimeError("a stage that the forward pass solved could not be solved in the backward pass")
            return found_slopes
        return found.slopes

    def _incoming(self, j: int, p: Tensor, row: Tensor, t: Tensor, h: Tensor, n: int) -> tuple[Tensor, list[Tensor]]:
        """Cotangents of the step's end (n, D), and of the dense output's coefficients, degree + 1 times (n, D)."""
        steps, samples = self.steps, self.lanes[:n]
        inner = [torch.zeros_like(p) for _ in range(self.tableau.degree + 1)]
        own = (self.count[:n] > j) & ~self.twins[:n]
        n_outputs = torch.where(own, steps.n_outputs[row], 0)
        owner = torch.repeat_interleave(torch.arange(n, device=p.device), n_outputs)
        if owner.shape[0]:
            ahead = torch.repeat_interleave(n_outputs.cumsum(0) - n_outputs - steps.first_output[row], n_outputs)
            outputs = torch.arange(owner.shape[0], device=p.device) - ahead
            lam = self.grad_ys[outputs, samples[owner]]
            when = self.plan.times[outputs, samples[owner]]
            at_end = when == steps.t_next[row][owner]
            p = p.index_add(0, owner[at_end], lam[at_end])
            inside, lam = owner[~at_end], lam[~at_end]
            if inside.shape[0]:
                theta = (when[~at_end] - t[inside]) / h[inside]
                inner[0].index_add_(0, inside, lam)
                for m, phi in enumerate(basis(theta, self.tableau.degree), start=1):
                    inner[m].index_add_(0, inside, column(phi, lam) * lam)
        if self.grad_coefs is not None:
            coefs = torch.where(own[:, None, None], self.grad_coefs[row], 0.0)
            inner = [total + coefs[:, m] for m, total in enumerate(inner)]
        return p, inner

    def _step(self, j: int, y: Tensor, p: Tensor) -> Tensor:
        """The adjoint of step number j: p (n, D) after to before; gradients are added to the totals."""
        n = y.shape[0]
        row = self.steps.rows(self.lanes[:n], j)
        t, h = self.steps.t[row], self.steps.h[row]
        p, inner = self._incoming(j, p, row, t, h, n)
        if isinstance(self.tableau, RosenbrockTableau):
            pulled = self._rosenbrock(self.tableau, j, t, h, y, p, inner)
        else:
            assert isinstance(self.tableau, ImplicitTableau)
            pulled = self._runge_kutta(self.tableau, j, t, h, y, p, inner)
        for term in [inner[0], *pulled]:
            p = p + term
        return p

    def _check_start(self, j: int, value: Tensor, y: Tensor, h: Tensor, known: list[Tensor]) -> list[int]:
        """As ``FieldVjp.check``; and the value is that of the forward pass."""
        kept = self.vjp.check(value, [y, *known]) if value.requires_grad else []
        if j == 0:
            own = ~self.twins[: y.shape[0]]
            k1 = self.record.k1[self.lanes[: y.shape[0]]]
            check_repeatable(value[own], k1[own], y[own], h[own], self.plan.field)
        return kept

    def _check_end(self, y: Tensor, h: Tensor, k1: Tensor, slopes: list[Tensor], n: int, j: int) -> None:
        """The step ends where that of the forward pass did, as far as its stages are solved."""
        own = (self.count[:n] > j) & ~self.twins[:n]
        end, after = combine(y, h, self.tableau.b.tolist(), slopes), self.after[:n]
        known = [k[own] for k in [k1, *slopes]]
        accuracy = 0.0 if self.plan.controller is None else self.plan.atol + self.plan.rtol * y[own].abs()
        check_step(end[own], after[own], y[own], h[own], known, self.plan.field, accuracy)
        after[own] = y[own]

    def _weights(self, i: int, p: Tensor, inner: list[Tensor]) -> tuple[list[float], list[Tensor]]:
        """Coefficients and terms of b_i p + sum_e b_i(theta_e) lambda_e."""
        return [float(self.tableau.b[i]), *map(float, self.tableau.q[i])], [p, *inner[1:]]

    def _runge_kutta(
        self, tableau: ImplicitTableau, j: int, t: Tensor, h: Tensor, y: Tensor, p: Tensor, inner: list[Tensor]
    ) -> list[Tensor]:
        """The J_i^T g_i of all stages."""
        n, width = y.shape
        rows = self._leaves(n)
        held = [c[:n] for c in self.controls]
        states = [y.detach().requires_grad_()]
        values = [self.vjp(t, states[0], rows)]
        self._check_start(j, values[0], states[0], h, self.vjp.wanted(rows))
        k1 = values[0].detach()
        jac = pull_rows(values[0], [states[0]])[0]
        with torch.no_grad():
            slopes = self._slopes(
                lambda t, y: self.plan.field(t, y, held).clone(memory_format=torch.contiguous_format),
                t,
                h,
                y,
                k1,
                jac,
            )
        self._check_end(y, h, k1, slopes, n, j)
        for i in range(1, tableau.n_stages):
            states.append(combine(y, h, tableau.a[i].tolist(), slopes).requires_grad_())
            values.append(self.vjp(t + float(tableau.c[i]) * h, states[i], rows))

        pulled: dict[int, Tensor] = {}

        def incoming(i: int) -> Tensor:
            coefs, terms = self._weights(i, p, inner)
            coefs = coefs + [float(tableau.a[m, i]) for m in pulled]
            return combine(None, h, coefs, [*terms, *pulled.values()])

        def pull(i: int, g: Tensor) -> Tensor | None:
            grads = self.vjp.pull(values[i], states[i], rows, g)
            self._accumulate(grads[1:], n)
            return grads[0]

        for block in reversed(tableau.blocks):
            stages = list(range(block.start, block.stop))
            right = [incoming(i) for i in stages]
            if block.kind != "explicit":
                a = tableau.a[block.start : block.stop, block.start : block.stop].tolist()
                factors = factorise(stage_matrix(h, a, [pull_rows(values[i], [states[i]])[0] for i in stages]))
                right = list(factors.solve(torch.cat(right, 1), transposed=True).split(width, 1))
            found = [pull(i, g.contiguous()) for i, g in zip(stages, right, strict=True)]
            pulled.update({i: grad.contiguous() for i, grad in zip(stages, found, strict=True) if grad is not None})
        first = pull(0, incoming(0))
        return [*pulled.values()] + ([] if first is None else [first])

    def _rosenbrock(
        self, tableau: RosenbrockTableau, j: int, t: Tensor, h: Tensor, y: Tensor, p: Tensor, inner: list[Tensor]
    ) -> list[Tensor]:
        """J_i^T V_i of all stages but the first, and the gradient of what is evaluated at the start."""
        n, width = y.shape
        rows = self._leaves(n)
        held = [c[:n] for c in self.controls]
        start = y.detach().requires_grad_()
        clock = t.to(y.dtype, copy=True).requires_grad_()
        first = self.vjp(clock, start, rows)
        kept = self._check_start(j, first, start, h, [clock, *self.vjp.wanted(rows)])
        by_rows = width <= tableau.n_stages  # as many pull-backs with a graph as components, or as stages
        with torch.enable_grad():
            jac, dfdt = pull_rows(first, [start, clock], create_graph=by_rows)
        with torch.no_grad():
            slopes, places, factors = rosenbrock_stages(
                tableau,
                lambda t, y: self.plan.field(t, y, held).clone(memory_format=torch.contiguous_format),
                t,
                h,
                y,
                first.detach(),
                jac.detach(),
                dfdt.detach(),
            )
        self._check_end(y, h, first.detach(), slopes, n, j)
        pulled: dict[int, Tensor] = {}
        solved: dict[int, Tensor] = {}
        for i in reversed(range(tableau.n_stages)):
            coefs, terms = self._weights(i, p, inner)
            coefs = coefs + [float(tableau.a[m, i]) for m in pulled]
            right = combine(None, h, coefs, [*terms, *pulled.values()])
            right = combine(right, None, [float(tableau.C[m, i]) for m in solved], list(solved.values()))
            solved[i] = factors.solve(right, transposed=True).contiguous()
            if i:
                place = places[i].detach().requires_grad_()
                value = self.vjp(t + float(tableau.c[i]) * h, place, rows)
                grads = self.vjp.pull(value, place, rows, solved[i])
                self._accumulate(grads[1:], n)
                if grads[0] is not None:
                    pulled[i] = grads[0].contiguous()
        if not first.requires_grad:
            return list(pulled.values())
        size = column(h, y)
        by_time = sum((float(tableau.d[i]) * solved[i] for i in solved), torch.zeros_like(y)) * size
        with torch.enable_grad():
            loss = (first * solved[0]).sum()
            if by_rows:
                outer = sum((solved[i][:, :, None] * slopes[i][:, None, :] for i in solved), torch.zeros_like(jac))
                loss = loss + (jac * (size[:, :, None] * outer.detach())).sum() + (dfdt * by_time).sum()
            else:
                for i in solved:
                    along, later = torch.autograd.grad(
                        first, [start, clock], solved[i], create_graph=True, allow_unused=True, materialize_grads=True
                    )
                    loss = loss + (along * (size * slopes[i])).sum()
                    loss = loss + (later * (float(tableau.d[i]) * size[:, 0])).sum()
            by_start, *found = self.vjp.pull_checked(loss, [start], rows, None, kept)
        self._accumulate(found, n)
        return [*pulled.values()] + ([] if by_start is None else [by_start])

    def _accumulate(self, grads: Sequence[Tensor | None], n: int) -> None:
        """Adds gradients by wanted controls (n rows) and externals, in the order of the walk."""
        for index, grad in enumerate(grads):
            if grad is None:
                continue
            per_lane = index < self.vjp.n_controls
            total = self.totals[index]
            if total is None:
                shape = (len(self.lanes), *grad.shape[1:]) if per_lane else grad.shape
                total = self.totals[index] = grad.new_zeros(shape, dtype=work_dtype(grad.dtype))
            (total[:n] if per_lane else total).add_(grad)
