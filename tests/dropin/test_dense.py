"""odeint_dense: the solution as a function of time."""

from __future__ import annotations

import pytest
import torch
import torchdiffeq
from torch import Tensor

import fastode
from tests.dropin.tools import F64, KINDS, field_of, parts, state

ENDS = pytest.mark.parametrize("ends", [(0.2, 2.0), (2.0, 0.2)], ids=["forward", "backward"])


@ENDS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "tsit5", "bosh3"])
def test_agrees_with_odeint(method: str, kind: str, ends: tuple[float, float]) -> None:
    func, y0 = field_of(kind), state(kind)
    times = torch.linspace(*ends, 9, dtype=F64)
    dense = fastode.odeint_dense(func, y0, torch.tensor(ends[0], dtype=F64), ends[1], method=method)
    expected = fastode.odeint(func, y0, times, method="dopri8", rtol=1e-11, atol=1e-12)
    for got, want in zip(parts(dense(times)), parts(expected), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)
    for i, t in enumerate((times[3], float(times[3]))):
        for got, want in zip(parts(dense(t)), parts(expected), strict=True):
            assert got.shape == want.shape[1:], i
            torch.testing.assert_close(got, want[3], rtol=2e-6, atol=2e-6)


def test_agrees_with_torchdiffeq() -> None:
    func, y0, t0, t1 = field_of("rows"), state("rows"), torch.tensor(0.0, dtype=F64), torch.tensor(2.0, dtype=F64)
    mine, theirs = fastode.odeint_dense(func, y0, t0, t1), torchdiffeq.odeint_dense(func, y0, t0, t1)
    for t in torch.linspace(0.01, 1.99, 13, dtype=F64):
        torch.testing.assert_close(mine(t), theirs(t), rtol=1e-6, atol=1e-6)


@ENDS
def test_gradients(ends: tuple[float, float]) -> None:
    a = torch.randn(3, 3, dtype=F64, requires_grad=True)
    y0, t = state("rows").requires_grad_(), torch.tensor([0.3, 1.1], dtype=F64, requires_grad=True)

    def exact(t: Tensor) -> Tensor:
        return torch.stack([y0 @ torch.matrix_exp((s - ends[0]) * a) for s in t])

    dense = fastode.odeint_dense(lambda t, y: y @ a, y0, *ends, rtol=1e-9, atol=1e-9)
    mine = torch.autograd.grad(dense(t).square().sum(), (a, y0, t), create_graph=True)
    want = torch.autograd.grad(exact(t).square().sum(), (a, y0, t), create_graph=True)
    for x, y in zip(mine, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
    again = [torch.autograd.grad(sum(g.sum() for g in grads[:2]), (a, y0)) for grads in (mine, want)]
    for x, y in zip(*again, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@ENDS
def test_outside_of_the_interval(ends: tuple[float, float]) -> None:
    dense = fastode.odeint_dense(lambda t, y: -y, torch.ones(3), *ends)
    for t in (0.1, 2.1, float("nan")):
        with pytest.raises(ValueError, match="inside the interval"):
            dense(t)
    assert dense(ends[0]).shape == (3,)
    assert dense(ends[1]).shape == (3,)


def test_methods_without_step_control() -> None:
    with pytest.raises(ValueError, match="adaptive"):
        fastode.odeint_dense(lambda t, y: -y, torch.ones(3), 0.0, 1.0, method="rk4")
