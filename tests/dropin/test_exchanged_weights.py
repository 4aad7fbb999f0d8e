"""Weights that a module holds only for the time of a call: functional_call, and parametrizations that are cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fastode
from tests.dropin.tools import F64, relative_difference

T = torch.linspace(0.0, 1.0, 3, dtype=F64)
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
Way = Callable[[nn.Module, Tensor], Tensor]


def exact(func: nn.Module, y0: Tensor) -> Tensor:
    return fastode.odeint_adjoint(func, y0, T, **TIGHT)


def equation(func: nn.Module, y0: Tensor) -> Tensor:
    return fastode.odeint_adjoint(func, y0, T, options={"gradient": "adjoint"}, **TIGHT)


def of_scipy(func: nn.Module, y0: Tensor) -> Tensor:
    how: dict[str, Any] = {"method": "scipy_solver", "adjoint_method": "dopri5", "adjoint_options": {}}
    return fastode.odeint_adjoint(func, y0, T, **how, **TIGHT)


def without_parameters(func: nn.Module, y0: Tensor) -> Tensor:
    return fastode.odeint(func, y0, T, **TIGHT)


def reference(func: nn.Module, y0: Tensor) -> Tensor:
    return torchdiffeq.odeint(func, y0, T, rtol=1e-10, atol=1e-10)


WAYS = pytest.mark.parametrize("way", [exact, equation, of_scipy, without_parameters])
COUNTS = pytest.mark.parametrize("counts", [False, True], ids=["program", "no program"])


class Field(nn.Module):
    def __init__(self, counts: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 2, dtype=F64)
        self.counts, self.calls = counts, 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.counts:
            self.calls += 1
        return torch.tanh(self.linear(y)) * torch.cos(t)


class Solves(nn.Module):
    def __init__(self, func: nn.Module, way: Way) -> None:
        super().__init__()
        self.func, self.way = func, way

    def forward(self, y0: Tensor) -> Tensor:
        return self.way(self.func, y0)


def start() -> Tensor:
    return torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(3))


def adapted(way: Way, counts: bool, kept: bool) -> list[Tensor]:
    """The gradient of a loss at weights that one step of descent leads to, by the weights that it starts from.

    Args:
        way: of solving.
        counts: whether the field has no program.
        kept: whether the new weights are leaves, as where only they are trained; else they depend on the old.
    """
    model = Solves(Field(counts), way)
    weights = dict(model.named_parameters())
    loss = torch.func.functional_call(model, weights, (start(),))[-1].sub(1).square().mean()
    grads = torch.autograd.grad(loss, list(weights.values()))
    faster = {key: w - 0.5 * g for (key, w), g in zip(weights.items(), grads, strict=True)}
    if kept:
        faster = {key: w.detach().requires_grad_() for key, w in faster.items()}
    end = torch.func.functional_call(model, faster, (0.7 * start(),))[-1].square().mean()
    return list(torch.autograd.grad(end, list((faster if kept else weights).values())))


@WAYS
@COUNTS
@pytest.mark.parametrize("kept", [False, True])
def test_functional_call(way: Way, counts: bool, kept: bool) -> None:
    """The module holds its own weights again when the backward pass comes."""
    assert relative_difference(adapted(way, counts, kept), adapted(reference, counts, kept)) < 1e-7


class Bent(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * weight.abs() + weight


def of_cached(way: Way, counts: bool, late: bool) -> list[Tensor]:
    func = Field(counts)
    parametrize.register_parametrization(func.linear, "weight", Bent())
    with parametrize.cached():
        loss = way(func, start())[-1].square().mean()
        if not late:
            return list(torch.autograd.grad(loss, list(func.parameters())))
    return list(torch.autograd.grad(loss, list(func.parameters())))


@WAYS
@COUNTS
@pytest.mark.parametrize("late", [False, True], ids=["inside", "after"])
def test_cached_parametrizations(way: Way, counts: bool, late: bool) -> None:
    """Weights that are computed once, from parameters that want their gradient; the cache is as it was afterwards."""
    assert relative_difference(of_cached(way, counts, late), of_cached(reference, counts, late)) < 1e-7
    assert not parametrize._cache_enabled


class Noisy(Field):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(t, nn.functional.dropout(y, 0.5))


def test_noise_under_functional_call() -> None:
    """The function gives other values when it is called again, and by then it has other parameters."""

    def fixed(func: nn.Module, y0: Tensor) -> Tensor:
        return fastode.odeint_adjoint(func, y0, T, method="rk4")

    model = Solves(Noisy(counts=False), fixed)
    weights = {key: w.detach().requires_grad_() for key, w in model.named_parameters()}
    with pytest.warns(UserWarning, match="gives other values"):
        model(start()).sum().backward()
    loss = torch.func.functional_call(model, weights, (start(),)).sum()
    with pytest.warns(UserWarning, match="gives other values"), pytest.raises(RuntimeError, match="functional_call"):
        loss.backward()
