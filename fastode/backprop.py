"""``gradient="backprop"``: automatic differentiation through the reference's accepted steps."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastode.backends.base import Forward
from fastode.backends.healthy import healthy_index
from fastode.backends.implicit.replay import find_steps, step_rule
from fastode.hostflags import differentiation_hidden, host_any
from fastode.problem import Inputs, Plan
from fastode.reference import Steps, integrate, replay
from fastode.solution import DenseOutput
from fastode.status import Status


def backprop_solve(plan: Plan, inputs: Inputs) -> tuple[Tensor, Tensor | None, Forward]:
    """Solves by the reference; ys (T, B, D) and dense coefficients carry a graph of any order.

    In the graph failed samples, and those without a step whose field is not finite, are copies of a healthy one, so
    that nothing infinite enters it.

    Raises:
        RuntimeError: an implicit method under ``torch.func`` transforms or forward-mode differentiation.
    """
    y0, controls, times, size = inputs.y0, inputs.controls, inputs.times, inputs.step_size

    def field(t: Tensor, y: Tensor) -> Tensor:
        return plan.field(t, y, controls).clone()  # the field may return the same buffer every time

    # Without gradient the field sees arguments without gradient: it may itself differentiate by them.
    start, held = y0.detach(), [c.detach() for c in controls]

    def steady(t: Tensor, y: Tensor) -> Tensor:
        return plan.field(t, y, held).clone()

    explicit = plan.tableau.is_explicit
    if not explicit and differentiation_hidden():
        raise RuntimeError(
            f"the implicit method {plan.tableau.name!r} does not run under torch.func transforms or forward-mode "
            "differentiation; use an explicit one"
        )
    with torch.no_grad():
        k1 = steady(plan.times[0], start)
        steps = integrate(plan, steady, start, k1) if explicit else find_steps(plan, start, held, k1)
    solved = steps.status == Status.SUCCESS
    healthy = solved & torch.isfinite(k1).all(1)
    step = step_rule(plan)
    if not host_any(~healthy):
        return _result(steps, *replay(plan, field, steps, y0, times, step, size))
    with torch.no_grad():
        ys, dense = replay(plan, steady, steps, start, plan.times, step)
    ys = torch.where((solved & ~healthy)[:, None], y0, ys)  # these took no step: all their outputs are the start
    if not host_any(healthy):
        return _result(steps, ys, dense)
    index = healthy_index(healthy)
    twin_controls = [c[index] for c in controls]
    graph, graph_dense = replay(
        replace(plan, times=plan.times[:, index], step_size=None if plan.step_size is None else plan.step_size[index]),
        lambda t, y: plan.field(t, y, twin_controls).clone(),
        steps.select(index),
        y0[index],
        times[:, index],
        step,
        None if size is None else size[index],
    )
    ys = torch.where(healthy[:, None], graph, ys)
    if dense is not None and graph_dense is not None:
        rows = healthy.repeat(steps.n)
        dense = replace(dense, coefs=torch.where(rows[:, None, None], graph_dense.coefs, dense.coefs))
    return _result(steps, ys, dense)


def _result(steps: Steps, ys: Tensor, dense: DenseOutput | None) -> tuple[Tensor, Tensor | None, Forward]:
    coefs = None if dense is None else dense.coefs
    return ys, coefs, Forward(ys, dense, steps.outcome, None)
