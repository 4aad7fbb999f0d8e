"""``gradient="backprop"`` with implicit methods: the accepted steps again, differentiable.

The slopes k* of a step are found without gradient. Iterations of Newton's method from there, with the Jacobian held
constant at k*, do not move them but give them their derivatives: a correction multiplies what is wrong, as a power
series in the perturbation, by a factor of first order, so that n corrections are exact to the n-th derivative.

Rosenbrock methods are explicit formulas of the field and its Jacobian, differentiable to any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastode.backends.implicit.arithmetic import column
from fastode.backends.implicit.forward import Solve, accuracy_of
from fastode.backends.implicit.jacobian import jacobian, pull_rows
from fastode.backends.implicit.linear import Factors, factorise, stage_matrix
from fastode.backends.implicit.record import StepRecord
from fastode.backends.implicit.rosenbrock import rosenbrock_matrix
from fastode.backends.implicit.stages import StageSolver
from fastode.checkpoint import Checkpoint
from fastode.problem import Plan
from fastode.reference import Field, StepRule, Steps, rk_step, sum_products
from fastode.tableaus.implicit import ImplicitTableau
from fastode.tableaus.rosenbrock import RosenbrockTableau

DERIVATIVES = 3
"""Number of corrections, and so the highest derivative of a solve that is exact."""


def find_steps(plan: Plan, y0: Tensor, controls: list[Tensor], k1: Tensor) -> Steps:
    """The steps of every sample, as ``fastode.reference.integrate`` gives them for explicit methods."""
    with torch.no_grad():
        # A sparse record: the intervals are needed, and one state per sample.
        solve = Solve(plan, y0.contiguous(), controls, k1.contiguous(), Checkpoint(every=2**40))
        result = solve.run()
    t, t_next, h = intervals(result.record.steps)
    count = result.record.steps.count
    return Steps(t, t_next, h, count, result.reached, result.ys[-1], result.status, result.stats)


def intervals(record: StepRecord) -> tuple[Tensor, Tensor, Tensor]:
    """Start, end and signed size of the steps, each (N, B) float64; the size is 0 where a sample took fewer."""
    n = int(record.count.max()) if len(record.count) else 0
    number = torch.arange(n, device=record.count.device)[:, None]
    if n == 0:
        empty = record.t.new_zeros(0, len(record.count))
        return empty, empty, empty
    last = (record.count - 1).clamp_min(0)
    rows = (record.offset + torch.minimum(number, last)).clamp_max(len(record.t) - 1)
    taken = number < record.count
    # A sample without a step stands at any time: the size of its steps is zero.
    t_next = record.t_next[rows]
    return torch.where(taken, record.t[rows], t_next), t_next, torch.where(taken, record.h[rows], 0.0)


def step_rule(plan: Plan) -> StepRule:
    """How a step of this plan is replayed."""
    return rk_step if plan.tableau.is_explicit else ReplayStep(plan)


class ReplayStep:
    """One differentiable step, in the place of ``fastode.reference.rk_step``."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __call__(
        self, _: object, field: Field, t: Tensor, h: Tensor, y: Tensor, k1: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The new state (n, D), and the slopes; the last one is the field at the new state."""
        tableau = self._plan.tableau
        if isinstance(tableau, RosenbrockTableau):
            return _rosenbrock(tableau, field, t, h, y)
        assert isinstance(tableau, ImplicitTableau)
        return self._runge_kutta(tableau, field, t, h, y, k1)

    def _runge_kutta(
        self, tableau: ImplicitTableau, field: Field, t: Tensor, h: Tensor, y: Tensor, k1: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        size = column(h, y)
        known = self._solved(tableau, field, t, h, y.detach(), k1.detach())
        slopes = [k1]
        for block in tableau.blocks:
            stages = range(block.start, block.stop)
            inner = tableau.a[block.start : block.stop, block.start : block.stop]
            bases = [y + size * sum_products(tableau.a[i, : block.start], slopes) for i in stages]
            times = [t + float(tableau.c[i]) * h for i in stages]
            if block.kind == "explicit":
                state = bases[0]
                slopes.append(field(times[0], state))
                continue
            k = [known[i] for i in stages]
            states = [base + size * sum_products(row, k) for base, row in zip(bases, inner, strict=True)]
            jacs = [jacobian(field, when, state.detach())[0] for when, state in zip(times, states, strict=True)]
            with torch.no_grad():
                factors = factorise(stage_matrix(h, inner.tolist(), jacs))
            for _ in range(DERIVATIVES if torch.is_grad_enabled() else 0):
                k = _correct(field, times, bases, size, inner.tolist(), k, factors)
            states = [base + size * sum_products(row, k) for base, row in zip(bases, inner, strict=True)]
            slopes.extend(k)
            state = states[-1]
        return state, slopes

    def _solved(
        self, tableau: ImplicitTableau, field: Field, t: Tensor, h: Tensor, y: Tensor, k1: Tensor
    ) -> list[Tensor]:
        with torch.no_grad():

            def plain(t: Tensor, y: Tensor) -> Tensor:
                return field(t, y).detach()

            jac, _ = jacobian(field, t, y)
            solver = StageSolver(tableau, plain, t, h, y, k1, jac)
            return solver.run(accuracy_of(self._plan, y, h, k1), torch.ones_like(t, dtype=torch.bool)).slopes


def _correct(
    field: Field,
    times: list[Tensor],
    bases: list[Tensor],
    size: Tensor,
    inner: list[list[float]],
    k: list[Tensor],
    factors: Factors,
) -> list[Tensor]:
    """One correction of the slopes of a block's stages."""
    states = [base + size * sum_products(row, k) for base, row in zip(bases, inner, strict=True)]
    residual = [field(when, state) - slope for when, state, slope in zip(times, states, k, strict=True)]
    change = factors.solve(torch.cat(residual, 1)).split(k[0].shape[1], 1)
    return [slope + delta for slope, delta in zip(k, change, strict=True)]


def _rosenbrock(
    tableau: RosenbrockTableau, field: Field, t: Tensor, h: Tensor, y: Tensor
) -> tuple[Tensor, list[Tensor]]:
    size = column(h, y)
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        start = y if y.requires_grad and graph else y.detach().requires_grad_()
        # As a leaf the time would make every pull-back below walk the graph of all steps before this one: autograd
        # prunes what is further from the value than its sources are, counted from the leaves.
        clock = torch.where(torch.ones_like(t, dtype=torch.bool), t.to(y.dtype), start.sum(1))
        value = field(clock, start)
        jac, dfdt = pull_rows(value, [start, clock], create_graph=graph)
    if not graph:
        value, jac, dfdt = value.detach(), jac.detach(), dfdt.detach()
    factors = factorise(rosenbrock_matrix(tableau, h, jac))
    slopes: list[Tensor] = []
    for i in range(tableau.n_stages):
        if i:
            value = field(t + float(tableau.c[i]) * h, y + size * sum_products(tableau.a[i, :i], slopes))
        right = value
        if i:
            right = right + sum_products(tableau.C[i, :i], slopes)
        if tableau.d[i] != 0.0:
            right = right + float(tableau.d[i]) * size * dfdt
        slopes.append(factors.solve(right))
    y1 = y + size * sum_products(tableau.b, slopes)
    return y1, slopes
