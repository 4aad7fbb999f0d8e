"""``gradient="adjoint"``: the continuous adjoint, solved backward in time, for comparison.

With a(t) = dL/dy(t), a' = -J^T a is solved together with y' = f backward from each output time to the one before,
where the gradient of that output is added to a. The gradients by controls and weights, integrals of a^T df/du, are
summed with the weights b_i of the method over the accepted steps; they take no part in step control. Constant memory.
Pontryagin et al. 1962; Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations" (2018),
appendix B.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastode.autograd import boundary_gradients, once_only, start_of
from fastode.backends.base import Backend, Forward
from fastode.backends.healthy import healthy_index
from fastode.backends.reference import add
from fastode.externals import Externals
from fastode.problem import Inputs, Plan
from fastode.reference import integrate, sum_products
from fastode.status import SolveError, Status
from fastode.vjp import FieldVjp


class _AdjointSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: Backend, plan: Plan, k1: Tensor, n_controls: int, y0: Tensor, times: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Forward]:
        controls = [c.detach() for c in tensors[:n_controls]]
        result = backend.forward(plan, y0.detach().contiguous(), controls, k1, None)
        ctx.plan, ctx.n_controls = plan, n_controls
        ctx.solved = result.status == Status.SUCCESS
        ctx.save_for_backward(k1, result.ys, *tensors[:n_controls])
        ctx.externals = Externals(tensors[n_controls:], plan.field.field)
        ctx.sources = (y0, times, *tensors)
        return result.ys, result

    @staticmethod
    @once_only("adjoint")
    def backward(ctx: Any, grad_ys: Tensor, _: None) -> tuple[Any, ...]:
        k1, ys, *controls = ctx.saved_tensors
        plan: Plan = ctx.plan
        externals = ctx.externals.unchanged()
        needed = ctx.needs_input_grad[6:]
        wanted_externals = [t for t, flag in zip(externals, needed[ctx.n_controls :], strict=True) if flag]
        vjp = FieldVjp(plan.field, needed[: ctx.n_controls], wanted_externals)
        lam = torch.where(ctx.solved[:, None], grad_ys, 0.0)
        times_ys = ys if ctx.needs_input_grad[5] else None
        with ctx.externals.in_place():
            a, totals = _solve_backward(plan, controls, vjp, ys, lam, ctx.solved)
            grad_y0, grad_times = boundary_gradients(
                plan, lambda t, y: plan.field(t, y, controls), k1, times_ys, lam, a, ctx.solved
            )
        vjp.require_found()
        sums = iter(totals)
        return None, None, None, None, grad_y0, grad_times, *[next(sums) if flag else None for flag in needed]


def _solve_backward(
    plan: Plan, controls: list[Tensor], vjp: FieldVjp, ys: Tensor, lam: Tensor, solved: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """The adjoint (B, D) at the start, from outputs after it, and the gradients by ``vjp.wanted``."""
    moving = solved & (plan.times[-1] != plan.times[0])
    index = healthy_index(moving)
    rows = vjp.leaf_rows([c[index] for c in controls])
    totals: list[Tensor | None] = [None] * len(vjp.wanted(rows))
    a = torch.zeros_like(lam[0])
    if not bool(moving.any()):
        return a, totals
    tableau, width = plan.tableau, ys.shape[2]

    def augmented(t: Tensor, z: Tensor) -> Tensor:
        y = z[:, :width].detach().requires_grad_()
        value = vjp(t, y, rows)
        grad = vjp.pull_state(value, y, rows, z[:, width:])
        return torch.cat([value.detach(), torch.zeros_like(y) if grad is None else -grad], dim=1)

    def add_quadrature(t: Tensor, h: Tensor, z: Tensor, stages: list[Tensor]) -> None:
        nonlocal totals
        size = h.to(z.dtype)[:, None]
        for i in range(tableau.n_stages):
            if tableau.b[i] != 0.0 and totals:
                state = z + size * sum_products(tableau.a[i, :i], stages[:i]) if i else z
                state = torch.where(size != 0, state, z)  # stages of a rejected attempt may be infinite
                y = state[:, :width].detach().requires_grad_()
                value = vjp(t + float(tableau.c[i]) * h, y, rows)
                # h is negative: the integral from the start to the end runs against the steps
                grads = vjp.pull(value, y, rows, -float(tableau.b[i]) * size * state[:, width:])
                totals = [add(total, grad) for total, grad in zip(totals, grads[1:], strict=True)]

    wide = replace(plan, rtol=plan.rtol.repeat(2), atol=plan.atol.repeat(2), dense=False)
    for e in reversed(range(1, plan.times.shape[0])):
        at_start = plan.times[e] == plan.times[0]
        a = a + torch.where(at_start[:, None], 0.0, lam[e])  # outputs at the start are no matter of the solve
        span = plan.times[:, index][[e, e - 1]]
        span = torch.where(moving, span, span[:1])  # the copies in the place of the others take no steps
        z = torch.cat([ys[e][index], a], dim=1)
        steps = integrate(replace(wide, times=span), augmented, z, augmented(span[0], z), add_quadrature)
        if bool((steps.status != Status.SUCCESS).any()):
            raise SolveError(steps.status, steps.reached, *steps.last, backward=True)
        a = steps.final[:, width:]
    return a, totals


def adjoint_solve(backend: Backend, plan: Plan, inputs: Inputs) -> tuple[Tensor, None, Forward]:
    """Solves with the continuous adjoint: ys (T, B, D) with their graph, and the rest.

    Raises:
        ValueError: dense output, which this mode cannot differentiate, or an implicit method.
    """
    if not plan.tableau.is_explicit:
        raise ValueError(
            f"gradient='adjoint' needs an explicit method, {plan.tableau.name!r} is implicit; use gradient='checkpoint'"
        )
    if plan.dense:
        raise ValueError("dense=True does not go with gradient='adjoint'; use gradient='checkpoint'")
    k1, externals = start_of(plan, inputs)
    if externals is None:
        with torch.no_grad():
            result = backend.forward(plan, inputs.y0.detach().contiguous(), inputs.controls, k1, None)
        return result.ys, None, result
    ys, result = _AdjointSolve.apply(
        backend, plan, k1, len(inputs.controls), inputs.y0, inputs.times, *inputs.controls, *externals
    )
    return ys, None, result
