"""Solutions may be changed in place, also the parts of a tree: each has memory of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastode
from tests.gradient_tools import BACKENDS, assert_close, random

F64 = torch.float64
T = torch.tensor([0.0, 0.5, 1.0], dtype=F64)


def of_tuple(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return -y[0], torch.sin(y[1])


def start() -> tuple[Tensor, Tensor]:
    return random(4, 2), random(4, 1, 3)


SOLVES: dict[str, Any] = {
    **{name: lambda y0, name=name: fastode.solve(of_tuple, y0, T, backend=name).ys for name in BACKENDS},
    "backprop": lambda y0: fastode.solve(of_tuple, y0, T, gradient="backprop").ys,
    "implicit": lambda y0: fastode.solve(of_tuple, y0, T, method="kvaerno5").ys,
    "interpolate": lambda y0: fastode.solve(of_tuple, y0, T, dense=True, backend="stepped").interpolate(T),
    "odeint": lambda y0: fastode.odeint(of_tuple, y0, T),
    "odeint per step": lambda y0: fastode.odeint(of_tuple, y0, T, options={"step_t": torch.tensor([0.3])}),
    "events": lambda y0: fastode.solve(of_tuple, y0, T, events=fastode.Event(lambda t, y: t - 0.7)).ys,
}


@pytest.mark.parametrize("name", SOLVES)
def test_parts_of_a_tuple(name: str) -> None:
    """The gradient of the changed numbers, that is twice the one of the first part, none of what was overwritten."""
    leaves = tuple(x.requires_grad_() for x in start())
    a, b = SOLVES[name](leaves)
    (expected_a,) = torch.autograd.grad((2 * a[:2]).sum(), leaves[0], retain_graph=True)
    (expected_b,) = torch.autograd.grad(b[1].sum(), leaves[1], retain_graph=True)
    kept = b.detach().clone()
    a *= 2.0
    assert torch.equal(b.nan_to_num(9.0), kept.nan_to_num(9.0))  # after the end of a sample there is nothing
    b[0] = 0.0
    b[2] = 0.0
    grads = torch.autograd.grad(a[:2].sum() + b[:].sum(), leaves)
    assert_close(list(grads), [expected_a, expected_b])


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_tensor_and_dense_output(backend: str) -> None:
    y0 = random(3, 2)
    sol = fastode.solve(lambda t, y: torch.sin(y), y0, [0.0, 0.0], dense=True, backend=backend)
    sol.ys.fill_(7.0)
    assert torch.equal(sol.interpolate(0.0), y0)
