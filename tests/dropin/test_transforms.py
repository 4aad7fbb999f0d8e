"""odeint under torch.func: vmap, grad, jacobians, and forward mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastode
from tests.dropin.tools import F64

T = torch.linspace(0.0, 1.0, 3, dtype=F64)
HOW = pytest.mark.parametrize("how", [{}, {"method": "rk4", "options": {"step_size": 0.2}}], ids=["dopri5", "rk4"])


def func(t: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(y.flip(-1)) * torch.cos(t)


@HOW
@pytest.mark.parametrize("odeint", ["odeint", "odeint_adjoint"])
def test_vmap(how: dict[str, Any], odeint: str) -> None:
    solve = getattr(fastode, odeint)
    more = {"adjoint_params": ()} if odeint == "odeint_adjoint" else {}
    y0 = torch.randn(4, 3, dtype=F64)
    each = torch.stack([solve(func, row, T, **how, **more) for row in y0])
    torch.testing.assert_close(torch.vmap(lambda y: solve(func, y, T, **how, **more))(y0), each, rtol=1e-6, atol=1e-7)


@HOW
def test_jacobians(how: dict[str, Any]) -> None:
    y0 = torch.randn(3, dtype=F64)
    last = lambda y: fastode.odeint(func, y, T, **how)[-1]  # noqa: E731
    expected = torch.autograd.functional.jacobian(last, y0)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(last)(y0), expected, rtol=1e-5, atol=1e-6)
    hessian = torch.func.hessian(lambda y: last(y).sum())(y0)
    torch.testing.assert_close(
        hessian, torch.autograd.functional.hessian(lambda y: last(y).sum(), y0), rtol=1e-4, atol=1e-5
    )


@HOW
def test_per_sample_gradients_by_a_parameter(how: dict[str, Any]) -> None:
    w, y0 = torch.randn(3, 3, dtype=F64), torch.randn(4, 3, dtype=F64)

    def loss(w: Tensor, y: Tensor) -> Tensor:
        return fastode.odeint(lambda t, y: torch.tanh(y @ w), y, T, **how).square().sum()

    grads = torch.vmap(torch.func.grad(loss), (None, 0))(w, y0)
    for row, grad in zip(y0, grads, strict=True):
        leaf = w.clone().requires_grad_()
        torch.testing.assert_close(grad, torch.autograd.grad(loss(leaf, row), leaf)[0], rtol=1e-5, atol=1e-6)


def test_forward_mode() -> None:
    y0, tangent = torch.randn(3, dtype=F64), torch.randn(3, dtype=F64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(y0, tangent)
        out = torch.autograd.forward_ad.unpack_dual(fastode.odeint(func, dual, T)[-1]).tangent
    jacobian = torch.autograd.functional.jacobian(lambda y: fastode.odeint(func, y, T)[-1], y0)
    torch.testing.assert_close(out, jacobian @ tangent, rtol=1e-5, atol=1e-6)
