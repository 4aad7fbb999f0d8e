"""The reflection tests of N-CODE: what controls make possible that a field of the state alone cannot do.

Chalvidal, Ricci, VanRullen, Serre, "Neural optimal feedback control with local learning rules", arXiv 2006.09545.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastode
from fastode import solve
from fastode.fields import MLPField
from tests.gradient_tools import BACKENDS, MODES, assert_close, gradients, random

F64 = torch.float64
ALL_MODES = [*MODES, ("adjoint", "stepped")]


@pytest.mark.parametrize("method", sorted(fastode.TABLEAUS))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("end", [1.7, -0.6])
def test_open_loop_reflects_with_every_method(method: str, backend: str, end: float) -> None:
    """x' = theta with theta = -2 x0 / T: x(T) = -x0, and on the way there x is linear in t."""
    x0 = random(5, 3)
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=F64) * end
    xs = solve(lambda t, x, theta: theta, x0, t, controls=-2 * x0 / end, method=method, backend=backend).ys
    assert_close(xs, (1 - 2 * t / end)[:, None, None] * x0, 1e-14)


@pytest.mark.parametrize("method", ["euler", "dopri5", "dopri8"])
@pytest.mark.parametrize(("gradient", "backend"), ALL_MODES)
def test_open_loop_gradients(method: str, gradient: str, backend: str) -> None:
    """dx(T)/dx0 is +1 along the state, -2 along the controls, so -1 in all; dx(T)/dtheta is T."""
    x0, end, factors = random(5, 3), 1.7, random(5, 3)
    options: Any = {"method": method, "gradient": gradient, "backend": backend}

    def through_both(x0: Tensor) -> Tensor:
        theta = -2 * x0 / end
        return (factors * solve(lambda t, x, theta: theta, x0, [0.0, end], controls=theta, **options).ys[-1]).sum()

    def apart(x0: Tensor, theta: Tensor) -> Tensor:
        return (factors * solve(lambda t, x, theta: theta, x0, [0.0, end], controls=theta, **options).ys[-1]).sum()

    assert_close(gradients(through_both, [x0]), [-factors], 1e-13)
    assert_close(gradients(apart, [x0, -2 * x0 / end]), [factors, end * factors], 1e-13)


@pytest.mark.parametrize(("gradient", "backend"), ALL_MODES)
def test_open_loop_learns_the_reflection(gradient: str, backend: str) -> None:
    """theta = gamma x0, gamma learned by gradient descent from 0: it tends to -2 / T."""
    x0, end = random(16, 1), 2.0
    gamma = torch.zeros((), dtype=F64, requires_grad=True)
    for _ in range(12):
        options: Any = {"controls": gamma * x0, "gradient": gradient, "backend": backend, "method": "rk4"}
        x = solve(lambda t, x, theta: theta, x0, [0.0, end], **options).ys[-1]
        (slope,) = torch.autograd.grad((x + x0).square().sum() / x0.square().sum(), gamma)
        with torch.no_grad():
            gamma -= 0.1 * slope
    assert abs(float(gamma.detach()) + 2 / end) < 1e-6


@pytest.mark.parametrize(("method", "tol"), [("dopri5", 1e-6), ("tsit5", 1e-6), ("dopri8", 1e-8), ("bosh3", 1e-4)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_closed_loop_reflects(method: str, tol: float, backend: str) -> None:
    """x' = theta, theta' = -x, theta(0) = 0: the pair turns by half a circle in T = pi."""
    x0 = random(5, 2)
    state = (x0, torch.zeros_like(x0))
    x, theta = solve(
        lambda t, s: (s[1], -s[0]),
        state,
        [0.0, math.pi / 2, math.pi],
        method=method,
        rtol=tol,
        atol=tol,
        backend=backend,
    ).ys
    assert_close(torch.stack([x[1], theta[1]]), torch.stack([torch.zeros_like(x0), -x0]), 20 * tol)
    assert_close(torch.stack([x[2], theta[2]]), torch.stack([-x0, torch.zeros_like(x0)]), 20 * tol)


@pytest.mark.parametrize(("gradient", "backend"), ALL_MODES)
def test_closed_loop_gradients(gradient: str, backend: str) -> None:
    """The flow is a rotation, and so is its derivative: by -1 at pi, by a quarter turn at pi / 2."""
    x0, theta0, a, b = (random(5, 2) for _ in range(4))

    def loss(x0: Tensor, theta0: Tensor, t: Tensor) -> Tensor:
        options: Any = {"gradient": gradient, "backend": backend, "rtol": 1e-8, "atol": 1e-8}
        x, _ = solve(lambda t, s: (s[1], -s[0]), (x0, theta0), t, **options).ys
        return (a * x[1] + b * x[2]).sum()

    t = torch.tensor([0.0, math.pi / 2, math.pi], dtype=F64)
    grad_x, grad_theta, grad_t = gradients(loss, [x0, theta0, t])
    assert_close(grad_x, -b, 1e-6)
    assert_close(grad_theta, a, 1e-6)
    slopes = [(a * -x0).sum(), (b * -theta0).sum()]  # x' at pi/2 and pi
    assert_close(grad_t, torch.stack([-(slopes[0] + slopes[1]), *slopes]), 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_field_of_the_state_alone_cannot_reflect_a_line(backend: str) -> None:
    """Trajectories of x' = f(x, t) on a line keep their order at all times, and dx(T)/dx0 stays positive."""
    net = MLPField(1, [16], activation="tanh", time=True).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2.0)
    x0 = torch.linspace(-2, 2, 41, dtype=F64)[:, None].requires_grad_()
    sol = solve(net, x0, torch.linspace(0, 2, 9), rtol=1e-6, atol=1e-7, backend=backend)
    gaps = sol.ys[:, 1:, 0] - sol.ys[:, :-1, 0]
    assert bool((gaps > 0).all())
    (slope,) = torch.autograd.grad(sol.ys[-1].sum(), x0)  # each sample's own: the field does not mix them
    assert bool((slope > 0).all())
    assert float((sol.ys[-1] + x0).detach().abs().max()) > 1.0  # far from a reflection


@pytest.mark.parametrize("backend", BACKENDS)
def test_controls_let_trajectories_cross(backend: str) -> None:
    x0 = torch.linspace(-1, 1, 11, dtype=F64)[:, None]
    xs = solve(lambda t, x, theta: theta, x0, [0.0, 1.0], controls=-2 * x0, backend=backend).ys
    assert bool((xs[0, 1:] > xs[0, :-1]).all())
    assert bool((xs[-1, 1:] < xs[-1, :-1]).all())
