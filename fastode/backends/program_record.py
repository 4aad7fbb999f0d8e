"""The accepted steps of a solve by a program, and the polynomials between their ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastode.backends.implicit.arithmetic import combine
from fastode.problem import Plan
from fastode.solution import DenseOutput

_CHUNK = 8192  # steps whose stages are held at a time


@dataclass
class ProgramRecord:
    """What the backward pass needs: the accepted steps of all samples, those of a sample one after another.

    Attributes:
        offsets: (B + 1,) int64, place of each sample's first step in ``table``.
        table: (N, 3) float64: start, end and signed size of each step.
        state_offsets: (B + 1,) int64, place of each sample's first state.
        states: (M, D), the state at the start of every ``every``-th step.
        every: spacing of the kept states.
    """

    offsets: Tensor
    table: Tensor
    state_offsets: Tensor
    states: Tensor
    every: int


def dense_output(
    plan: Plan,
    field: Callable[[Tensor, Tensor, list[Tensor]], Tensor],
    record: ProgramRecord,
    sample: Sequence[Tensor],
    y0: Tensor,
    n_accepted: Tensor,
    reached: Tensor,
) -> DenseOutput:
    """The polynomial of every accepted step, from stages computed again for many steps at a time.

    Args:
        plan: the solve.
        field: dy/dt (n, D) at times (n,) float64 and states (n, D) for per-sample leaves (n, *shape).
        record: with the states of all steps.
        sample: per-sample leaves (B, *shape).
        y0: (B, D).
        n_accepted: (B,) int64.
        reached: (B,) float64.
    """
    batch, width = y0.shape
    device = y0.device
    start, end, size = record.table.unbind(1)
    tableau, total = plan.tableau, record.table.shape[0]
    owner = torch.repeat_interleave(torch.arange(batch, device=device), n_accepted, output_size=total)
    coefs = torch.empty(total, tableau.degree + 1, width, dtype=y0.dtype, device=device)
    for first in range(0, total, _CHUNK):
        part = slice(first, min(first + _CHUNK, total))
        leaves = [leaf[owner[part]] for leaf in sample]
        t, h, y = start[part].contiguous(), size[part].contiguous(), record.states[part].contiguous()
        stages = [field(t, y, leaves)]
        for i in range(1, tableau.n_stages):
            stages.append(field(t + float(tableau.c[i]) * h, combine(y, h, tableau.a[i, :i].tolist(), stages), leaves))
        coefs[part, 0] = y
        for m in range(tableau.degree):
            coefs[part, m + 1] = combine(None, h, tableau.q[:, m].tolist(), stages)
    longest = int(n_accepted.max()) if batch else 0
    number = torch.arange(longest, device=device)[:, None]
    taken = number < n_accepted
    rows = record.offsets[:-1] + torch.minimum(number, (n_accepted - 1).clamp_min(0))
    rows = rows.clamp_max(max(total - 1, 0))
    if total == 0:
        empty = torch.zeros(0, batch, dtype=torch.float64, device=device)
        return DenseOutput(empty, empty, rows[:0], coefs, n_accepted, plan.times[0], reached, y0)
    starts = torch.where(taken, start[rows], torch.where(n_accepted > 0, end[rows], reached))
    return DenseOutput(starts, torch.where(taken, size[rows], 0.0), rows, coefs, n_accepted, plan.times[0], reached, y0)
