"""Derivatives of fixed steps by output times and step size: those of the numbers that come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastode
from fastode import solve
from tests.gradient_tools import FIELD_MODES, MODES, random

F64 = torch.float64
A = torch.tensor([[-0.3, 1.0, 0.2], [-1.0, -0.1, 0.4], [0.3, 0.2, -0.5]], dtype=F64)
COMMON = torch.tensor([0.1, 0.4, 0.4, 1.05, 1.3], dtype=F64)
PER_SAMPLE = torch.tensor([[0.0, 1.0], [0.3, 0.6], [1.1, -0.2]], dtype=F64)  # the second sample goes backward


def field(t: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(y @ A) + torch.cos(3 * t) * y[:, :1]


def loss_of(ys: Tensor) -> Tensor:
    weights = torch.linspace(1.0, 2.0, ys.numel(), dtype=F64).reshape(ys.shape)
    return (ys.sin() * weights).sum()


def differences(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences."""
    found = torch.zeros_like(x)
    for i in range(x.numel()):
        shift = torch.zeros_like(x)
        shift.view(-1)[i] = step
        found.view(-1)[i] = (function(x + shift) - function(x - shift)) / (2 * step)
    return found


def check(function: Callable[[Tensor], Tensor], x: Tensor, rtol: float = 1e-7) -> None:
    leaf = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(function(leaf), leaf)
    with torch.no_grad():
        right = differences(function, x)
    torch.testing.assert_close(got, right, rtol=0.0, atol=rtol * max(1.0, float(right.abs().max())))


@pytest.mark.parametrize(("gradient", "backend"), MODES)
@pytest.mark.parametrize("method", ["euler", "heun3", "rk4"])
@pytest.mark.parametrize("times", [COMMON[[0, 1, 3, 4]], PER_SAMPLE], ids=["common", "per sample"])
def test_from_output_to_output(method: str, times: Tensor, gradient: str, backend: str) -> None:
    y0 = random(2, 3)
    check(
        lambda t: loss_of(solve(field, y0, t, method=method, gradient=gradient, backend=backend).ys),  # type: ignore[arg-type]
        times,
    )


@pytest.mark.parametrize(("gradient", "backend"), MODES)
@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5"])
@pytest.mark.parametrize("times", [COMMON[[0, 1, 3, 4]], PER_SAMPLE], ids=["common", "per sample"])
def test_with_a_step_size(method: str, times: Tensor, gradient: str, backend: str) -> None:
    """Outputs lie inside of steps, and the last step is what is left."""
    y0 = random(2, 3)
    options: Any = {"method": method, "gradient": gradient, "backend": backend}
    check(lambda t: loss_of(solve(field, y0, t, step_size=0.23, **options).ys), times)
    check(lambda h: loss_of(solve(field, y0, times, step_size=h, **options).ys), torch.tensor(0.23, dtype=F64))
    sizes = torch.tensor([0.23, 0.31], dtype=F64)
    check(lambda h: loss_of(solve(field, y0, times, step_size=h, **options).ys), sizes)


@pytest.mark.parametrize(("gradient", "backend"), MODES)
def test_outputs_at_ends_of_steps(gradient: str, backend: str) -> None:
    """Where a step happens to end at an output that is not the last one, the interpolant's slopes from both sides
    agree with the field, up to what the method's own error leaves."""
    y0, times = random(2, 3), torch.tensor([0.0, 0.5, 1.1], dtype=F64)
    options: Any = {"method": "dopri5", "step_size": 0.125, "gradient": gradient, "backend": backend}
    check(lambda t: loss_of(solve(field, y0, t, **options).ys), times, rtol=1e-5)


@pytest.mark.parametrize(("gradient", "backend"), MODES)
def test_weights_and_state_beside_times(gradient: str, backend: str) -> None:
    """What is differentiated together is what is differentiated alone."""
    net, y0, c = nn.Linear(3, 3).double(), random(2, 3).requires_grad_(), random(2, 3).requires_grad_()
    times = COMMON[[0, 1, 3]].clone().requires_grad_()
    h = torch.tensor(0.2, dtype=F64, requires_grad=True)

    def run(*wanted: Tensor) -> list[Tensor]:
        ys = solve(
            lambda t, y, c: torch.tanh(net(y)) * c + t,
            y0,
            times,
            controls=c,
            method="rk4",
            step_size=h if any(x is h for x in wanted) else h.detach(),
            gradient=gradient,  # type: ignore[arg-type]
            backend=backend,
        ).ys
        return list(torch.autograd.grad(loss_of(ys), wanted, retain_graph=True))

    together = run(y0, c, net.weight, times, h)
    for got, x in zip(together, (y0, c, net.weight, times, h), strict=True):
        torch.testing.assert_close(got, run(x)[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", ["implicit_midpoint", "kvaerno5", "rodas5p"])
@pytest.mark.parametrize("gradient", ["checkpoint", "backprop"])
def test_implicit_methods(method: str, gradient: Any) -> None:
    y0, times = random(2, 3), COMMON[[0, 1, 3]]
    options: Any = {"method": method, "gradient": gradient, "step_size": 0.23}
    check(lambda t: loss_of(solve(field, y0, t, **options).ys), times, rtol=1e-6)


@pytest.mark.parametrize("gradient", ["checkpoint", "backprop"])
def test_second_derivatives(gradient: Any) -> None:
    """Steps of Euler's method along y' = y have the sizes t1 - t0 and t2 - t1."""
    times = torch.tensor([0.0, 0.3, 0.8], dtype=F64, requires_grad=True)
    y0 = torch.ones(1, 1, dtype=F64)
    end = solve(lambda t, y: y, y0, times, method="euler", gradient=gradient).ys[-1].sum()
    (first,) = torch.autograd.grad(end, times, create_graph=True)
    (second,) = torch.autograd.grad(first[1], times)
    t0, t1, t2 = times.detach().unbind()
    torch.testing.assert_close(first[1], (1 + t2 - t1) - (1 + t1 - t0))
    torch.testing.assert_close(second, torch.tensor([1.0, -2.0, 1.0], dtype=F64))


def test_repeated_outputs() -> None:
    """Of repeated times the first counts, and the others move along the solution."""
    times = COMMON.clone().requires_grad_()
    y0 = random(2, 3)
    ys = solve(field, y0, times, method="euler").ys
    (got,) = torch.autograd.grad(ys[2].sum(), times)
    slope = field(COMMON[2].expand(2, 1), ys[2].detach()).sum()
    torch.testing.assert_close(got[2], slope)
    assert torch.equal(got[3:], torch.zeros(2, dtype=F64))


@pytest.mark.parametrize("backend", ["stepped", "reference", "cpu"])
def test_failed_samples_have_no_gradient(backend: str) -> None:
    y0 = torch.tensor([[0.5, 0.2], [1e200, 1.0]], dtype=F64)
    times = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]], dtype=F64, requires_grad=True)
    sol = solve(lambda t, y: y**3, y0, times, method="euler", backend=backend, on_failure="nan")
    assert sol.status.tolist() != [0, 0]
    assert sol.status[0] == 0
    (got,) = torch.autograd.grad(sol.ys[:, 0].sum(), times)
    alone = times.detach()[:, :1].clone().requires_grad_()
    (want,) = torch.autograd.grad(solve(lambda t, y: y**3, y0[:1], alone, method="euler").ys.sum(), alone)
    torch.testing.assert_close(got[:, :1], want)
    assert torch.equal(got[:, 1], torch.zeros(3, dtype=F64))


@pytest.mark.parametrize(("gradient", "backend"), FIELD_MODES)
@pytest.mark.parametrize("step_size", [0.3, None])
def test_dense_output_of_fixed_steps(step_size: float | None, gradient: str, backend: str) -> None:
    options: Any = {"method": "heun3", "dense": True, "gradient": gradient, "backend": backend}

    def at(t: Tensor) -> Tensor:
        sol = solve(field, Y0, t, step_size=step_size, **options)
        return sol.interpolate(torch.tensor([0.65, 0.35])).sin().sum()

    check(at, COMMON[[0, 1, 3]])


Y0 = torch.tensor([[1.0, 0.5, -0.2], [0.3, -0.2, 0.8]], dtype=F64)


def test_what_has_no_derivative_says_so() -> None:
    t, h = COMMON[[0, 3]].clone().requires_grad_(), torch.tensor(0.2, dtype=F64, requires_grad=True)
    with pytest.raises(ValueError, match="no derivative by step_size"):
        solve(field, Y0, [0.0, 1.0], step_size=h, gradient="adjoint")
    with pytest.raises(ValueError, match="no derivative by step_size"):
        solve(field, Y0, [0.0, 1.0], step_size=h, events=fastode.Event(lambda t, y: y[:, 0]))
    with pytest.raises(ValueError, match="rtol must not require grad"):
        solve(field, Y0, [0.0, 1.0], rtol=torch.tensor(1e-3, requires_grad=True))
    with torch.no_grad():
        solve(field, Y0, t, method="euler", dense=True, rtol=torch.tensor(1e-3, requires_grad=True))
        solve(field, Y0, [0.0, 1.0], step_size=h, gradient="adjoint")
