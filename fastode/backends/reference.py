"""Backend ``reference``: the specification in torch, on any device, with the simplest possible discrete adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastode.backends.base import Forward, Gradients
from fastode.backends.compare import check_repeatable, check_step
from fastode.backends.healthy import healthy_index
from fastode.checkpoint import Checkpoint
from fastode.field import work_dtype
from fastode.problem import Plan
from fastode.reference import Field, Steps, evaluate, integrate, polynomial, replay, rk_step
from fastode.status import Status
from fastode.vjp import FieldVjp


@dataclass(frozen=True)
class ReferenceRecord:
    """The steps, the states (B, D) at the start of every ``every``-th of them, and the field at the start."""

    steps: Steps
    states: list[Tensor]
    every: int
    k1: Tensor


class ReferenceBackend:
    """Pure torch; the oracle of every test."""

    name = "reference"

    def unavailable(self) -> str | None:
        """Runs wherever torch runs."""
        return None

    def unsupported(self, plan: Plan) -> str | None:
        """Runs every plan."""
        return None

    def forward(
        self, plan: Plan, y0: Tensor, controls: Sequence[Tensor], k1: Tensor, policy: Checkpoint | None
    ) -> Forward:
        """See ``Backend.forward``."""

        def field(t: Tensor, y: Tensor) -> Tensor:
            return plan.field(t, y, controls).clone()  # the field may return the same buffer every time

        with torch.no_grad():
            steps = integrate(plan, field, y0, k1)
            ys, dense = replay(plan, field, steps, y0, plan.times)
            record = None
            if policy is not None:
                every = _spacing(policy, steps.n, y0)
                states = [state for _, state in _walk(plan, field, steps, y0.clone(), 0, steps.n)[::every]]
                record = ReferenceRecord(steps, states, every, k1)
        return Forward(ys, dense, steps.outcome, record)

    def backward(
        self,
        plan: Plan,
        record: ReferenceRecord,
        controls: Sequence[Tensor],
        vjp: FieldVjp,
        grad_ys: Tensor,
        grad_coefs: Tensor | None,
    ) -> Gradients:
        """See ``Backend.backward``: automatic differentiation of one step at a time."""
        steps = record.steps
        solved = steps.status == Status.SUCCESS
        moving = solved & (steps.count > 0)
        index = healthy_index(moving)
        rows = vjp.leaf_rows([c[index] for c in controls])
        totals: list[Tensor | None] = [None] * len(vjp.wanted(rows))
        p = torch.zeros_like(grad_ys[0])
        if grad_coefs is not None and steps.n:
            grad_coefs = grad_coefs.reshape(steps.n, plan.batch, *grad_coefs.shape[1:]).movedim(2, 1)
        direction = torch.sign(plan.times[-1] - plan.times[0])
        after = steps.final

        def field(t: Tensor, y: Tensor) -> Tensor:
            return vjp(t, y, rows)

        for block in reversed(range(0, steps.n if bool(moving.any()) else 0, record.every)):
            length = min(record.every, steps.n - block)
            for j, state in reversed(_walk(plan, field, steps, record.states[block // record.every], block, length)):
                active = steps.active(j) & moving
                t, t_next, h = steps.t[j][index], steps.t_next[j], torch.where(active, steps.h[j], 0.0)
                inside = active & (direction * (plan.times - t) > 0) & (direction * (t_next - plan.times) >= 0)
                with torch.enable_grad():
                    y = state[index].detach().requires_grad_()
                    k1 = field(t, y)
                    if j == 0:
                        check_repeatable(k1[moving], record.k1[moving], y[moving], h[moving], plan.field)
                    y1, stages = rk_step(plan.tableau, field, t, h, y, k1)
                    slopes = [k[active] for k in stages]
                    check_step(y1[active], after[active], y[active], h[active], slopes, plan.field)
                    after = torch.where(active[:, None], y.detach(), after)
                    coefs = polynomial(plan.tableau, h, y, stages)
                    loss = (y1 * p).sum()
                    for e in inside.any(1).nonzero().flatten().tolist():
                        at_end = plan.times[e] == t_next
                        theta = torch.where(inside[e] & ~at_end, (plan.times[e] - t) / h, 0.0)
                        value = torch.where(at_end[:, None], y1, evaluate(coefs, theta))
                        loss = loss + (torch.where(inside[e][:, None], grad_ys[e], 0.0) * value).sum()
                    if grad_coefs is not None:
                        loss = loss + (torch.where(active[:, None], grad_coefs[j], 0.0) * coefs).sum()
                grads = vjp.pull(loss, y, rows, None)
                p = torch.zeros_like(p) if grads[0] is None else grads[0]
                totals = [add(total, grad) for total, grad in zip(totals, grads[1:], strict=True)]
        return Gradients(p, totals[: vjp.n_controls], totals[vjp.n_controls :])


def add(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    """The sum of two gradients where None is zero, in the work dtype: in half precision long sums stand still."""
    if term is None:
        return total
    term = term.to(work_dtype(term.dtype))
    return term if total is None else total + term


def _spacing(policy: Checkpoint, n_steps: int, y0: Tensor) -> int:
    """``policy.every``, doubled until the states fit the budget."""
    every = policy.every
    if policy.max_bytes is not None:
        size = y0.numel() * y0.element_size()
        while every < n_steps and -(-n_steps // every) * size > policy.max_bytes:
            every *= 2
    return every


def _walk(plan: Plan, field: Field, steps: Steps, state: Tensor, start: int, length: int) -> list[tuple[int, Tensor]]:
    """(j, state before step j) for ``length`` steps from number ``start`` on, from the state there. No gradient."""
    states = [(start, state)]
    with torch.no_grad():
        for j in range(start, start + length - 1):
            state, _ = rk_step(plan.tableau, field, steps.t[j], steps.h[j], state, field(steps.t[j], state))
            states.append((j + 1, state))
    return states
