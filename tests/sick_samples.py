"""Samples that go wrong in every way there is, beside healthy ones: for tests of ``Status`` in every backend."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastode
from fastode import Status
from tests.problems import same_bits

END = 2.0
FULL = {"max_steps": 500}
"""Down to the least step that the clock allows: some 230 attempts, 421 by dopri8 in float32."""
SHORT = {"controller": fastode.IController(min_step=1e-5), "max_steps": 80}
"""The same ends, sooner."""
N_KINDS = 10
EASY, STIFF, JUMP, STILL, EXPLODE, NAN_AT_START, NAN_LATER, OUT_OF_DOMAIN, TOO_LONG, POLE = range(N_KINDS)
BLOW_UP = {Status.NON_FINITE, Status.STEP_UNDERFLOW}
EXPECTED = {
    EASY: {Status.SUCCESS},
    STIFF: {Status.SUCCESS},
    JUMP: {Status.SUCCESS},
    STILL: {Status.SUCCESS},
    EXPLODE: BLOW_UP,
    NAN_AT_START: {Status.NON_FINITE},
    NAN_LATER: {Status.NON_FINITE},
    OUT_OF_DOMAIN: {Status.NON_FINITE},
    TOO_LONG: {Status.MAX_STEPS},
    POLE: BLOW_UP,
}
"""The statuses that each kind may end with."""
REACHES = {
    EXPLODE: 1.0,
    NAN_AT_START: 0.0,
    NAN_LATER: 0.625,
    OUT_OF_DOMAIN: 2 * (0.5**0.5 - math.log(1 + 0.5**0.5)),
    POLE: 1.5,
}
"""The time at which it is over; a sample may end before it, by little, and never after."""
HEALTHY = [EASY, STIFF, JUMP, STILL]


def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """By c (B, 2): the kind, and a rate of one, which the gradient is taken by. t (B, 1), y (B, 2)."""
    kind, rate = c[:, :1], c[:, 1:]
    value = -rate * y
    value = torch.where(kind == STIFF, -30 * rate * (y - torch.cos(t)) - torch.sin(t), value)
    value = torch.where(kind == JUMP, torch.where(t < 0.7, rate, -3 * rate) + 0 * y, value)
    value = torch.where(kind == EXPLODE, rate * y * y, value)
    value = torch.where((kind == NAN_AT_START) | ((kind == NAN_LATER) & (t > 0.625)), torch.nan, value)
    value = torch.where(kind == OUT_OF_DOMAIN, -rate - torch.sqrt(torch.where(kind == OUT_OF_DOMAIN, y, 1.0)), value)
    value = torch.where(kind == TOO_LONG, rate * torch.cos(1e5 * t) + 0 * y, value)
    return torch.where(kind == POLE, rate / (1.5 - torch.where(kind == POLE, t, 0.0)) + 0 * y, value)


def inputs(kinds: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """States (B, 2), controls (B, 2) and times (4, B) of samples of these kinds."""
    y0 = torch.tensor([[1.0, 0.5]], dtype=dtype).repeat(len(kinds), 1)
    c = torch.tensor([[float(kind), 1.0] for kind in kinds], dtype=dtype)
    ends = torch.tensor([0.0 if kind == STILL else END for kind in kinds], dtype=torch.float64)
    return y0, c, torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=torch.float64)[:, None] * ends


def solve(kinds: list[int], dtype: torch.dtype, **options: Any) -> tuple[fastode.Solution, list[Tensor]]:
    """A solve and the gradients of its finite outputs by states and controls."""
    y0, c, t = inputs(kinds, dtype)
    y0, c = y0.requires_grad_(), c.requires_grad_()
    options = {"on_failure": "nan", **options}
    sol = fastode.solve(field, y0, t, controls=c, **options)
    loss = torch.where(sol.ys.isnan(), 0.0, sol.ys).square().sum()
    grads = torch.autograd.grad(loss, [y0, c], allow_unused=True)
    return sol, [torch.zeros_like(y0) if g is None else g for g in grads]


def check(dtype: torch.dtype, **options: Any) -> fastode.Solution:
    """Statuses, times reached, outputs before and after them, gradients; healthy samples as without the sick ones."""
    kinds = list(range(N_KINDS))
    sol, grads = solve(kinds, dtype, **options)
    for kind in kinds:
        status = Status(int(sol.status[kind]))
        assert status in EXPECTED[kind], (kind, status)
        finite = torch.isfinite(sol.ys[:, kind].detach()).all(1)
        n = int(finite.sum())
        assert bool(finite[:n].all()), kind
        assert bool(sol.ys[n:, kind].isnan().all()), kind
        assert all(bool(torch.isfinite(g[kind]).all()) for g in grads), kind
        if kind in HEALTHY:
            assert n == len(sol.ys), kind
            assert kind == STILL or bool((grads[1][kind, 1:] != 0).all()), kind
            continue
        assert n < len(sol.ys), kind
        assert all(bool((g[kind] == 0).all()) for g in grads), kind
        expected = sum(when * END <= REACHES.get(kind, 0.0) * (1 - 1e-3) for when in (0.0, 0.1, 0.5, 1.0))
        assert kind == TOO_LONG or n in (expected, expected + 1), (kind, n)
    without, without_grads = solve(HEALTHY, dtype, **options)
    assert without.status.tolist() == [0] * len(HEALTHY)
    found = [sol.ys[:, HEALTHY], *(g[HEALTHY] for g in grads)]
    for value, true in zip(found, [without.ys, *without_grads], strict=True):
        assert same_bits(value.detach(), true.detach())
    return sol


def check_error(sol: fastode.Solution, dtype: torch.dtype, **options: Any) -> fastode.SolveError:
    """``SolveError`` of the same solve tells what the statuses of ``sol`` tell, times that are right, and cures."""
    y0, c, t = inputs(list(range(N_KINDS)), dtype)
    with pytest.raises(fastode.SolveError) as caught:
        fastode.solve(field, y0, t, controls=c, **options)
    error = caught.value
    failed = [kind for kind in range(N_KINDS) if kind not in HEALTHY]
    assert error.samples == failed
    assert error.statuses == [Status(int(sol.status[b])) for b in failed]
    for kind, when in zip(failed, error.times, strict=True):
        if kind in REACHES:
            assert REACHES[kind] * (1 - 1e-2) <= when <= REACHES[kind] * (1 + 1e-3), (kind, when)
        assert 0 <= when < END
    for status in set(error.statuses):
        assert f"{status.name}: " in str(error)
    for step, ratio in zip(error.last_steps, error.last_ratios, strict=True):
        assert math.isnan(step) or 0 < step <= END
        assert math.isnan(ratio) or ratio >= 0
    return error
