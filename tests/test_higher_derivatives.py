"""Derivatives of gradient="checkpoint" beyond the first, against those of backpropagation and against differences."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastode
from tests.gradient_tools import BACKENDS, FIELD_BACKENDS, assert_close, random

F64 = torch.float64
Loss = Callable[..., Tensor]


def derivatives(loss: Tensor, inputs: Sequence[Tensor], order: int) -> list[list[Tensor]]:
    """Gradients, gradients of the sum of their squares, and so on."""
    found = []
    for _ in range(order):
        grads = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
        found.append([torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)])
        loss = sum((g.square().sum() for g in found[-1]), torch.zeros((), dtype=F64))
    return found


def assert_same(make: Callable[..., tuple[Tensor, list[Tensor]]], backend: str, order: int = 3) -> None:
    """The derivatives of make(gradient=..., backend=...) are those of backpropagation."""
    exact = derivatives(*make(gradient="backprop", backend="reference"), order)
    found = derivatives(*make(gradient="checkpoint", backend=backend), order)
    for actual, expected in zip(found, exact, strict=True):
        assert any(bool(g.abs().max() > 1e-8) for g in expected)
        assert_close(actual, expected)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("times", ["common", "per sample", "backward"])
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4"])
def test_third_derivatives_by_everything(backend: str, times: str, method: str) -> None:
    net = network()

    def make(**how: Any) -> tuple[Tensor, list[Tensor]]:
        y0, c = random(4, 3).requires_grad_(), random(4, 3).requires_grad_()
        t = torch.tensor([0.0, 0.3, 1.0], dtype=F64)
        t = t.flip(0) if times == "backward" else t[:, None] * torch.ones(4, dtype=F64) if "per" in times else t
        t = t.clone().requires_grad_()
        field = lambda t, y, c: net(y) * torch.cos(t + c)  # noqa: E731
        torch.manual_seed(0)
        sol = fastode.solve(field, y0, t, controls=c, method=method, rtol=1e-4, atol=1e-4, **how)
        return sol.ys.pow(3).sum(), [y0, c, t, *net.parameters()]

    def seeded(**how: Any) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(1)
        return make(**how)

    assert_same(seeded, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_are_computed_from_others(backend: str) -> None:
    def make(**how: Any) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(1)
        a, y0 = random(3, 3).requires_grad_(), random(4, 3).requires_grad_()
        skew, square = a - a.T, a @ a  # two tensors of the field that depend on a third, of which it holds one, too
        field = lambda t, y: torch.tanh(y @ skew) + 0.1 * y @ square + torch.sin(y @ a)  # noqa: E731
        return fastode.solve(field, y0, [0.0, 1.0], rtol=1e-4, atol=1e-4, **how).ys.pow(3).sum(), [a, y0]

    assert_same(make, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_initial_state_that_is_computed(backend: str) -> None:
    net = network()

    def make(**how: Any) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(1)
        x = random(4, 3).requires_grad_()
        y0 = torch.tanh(net(x))  # by the network that is the field, too
        ys = fastode.solve(lambda t, y: net(y), y0, [0.0, 1.0], rtol=1e-4, atol=1e-4, **how).ys
        return ys.pow(3).sum() + (y0 * ys[-1]).sum(), [x, *net.parameters()]

    assert_same(make, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_failed_samples_have_zero_derivatives_of_any_order(backend: str) -> None:
    def make(**how: Any) -> tuple[Tensor, list[Tensor]]:
        y0 = torch.tensor([[0.1], [2.0], [0.2]], dtype=F64).requires_grad_()  # the second explodes at t = 0.5
        a = torch.ones(3, 1, dtype=F64).requires_grad_()
        sol = fastode.solve(
            lambda t, y, c: c * y * y, y0, [0.0, 1.0], controls=a, rtol=1e-4, atol=1e-4, on_failure="nan", **how
        )
        assert sol.status.tolist()[::2] == [0, 0]
        assert sol.status[1] != 0
        return sol.ys[-1, ::2].pow(3).sum(), [y0, a]

    assert_same(make, backend)
    found = derivatives(*make(gradient="checkpoint", backend=backend), 2)
    assert all(bool((g[1] == 0).all()) for grads in found for g in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_with_different_numbers_of_steps(backend: str) -> None:
    def make(**how: Any) -> tuple[Tensor, list[Tensor]]:
        y0 = torch.ones(5, 2, dtype=F64).requires_grad_()
        k = torch.tensor([0.0, 1.0, 3.0, 10.0, 40.0], dtype=F64)[:, None].clone().requires_grad_()
        t = torch.tensor([[0.0] * 5, [0.0, 0.5, 1.0, 1.0, 1.0]], dtype=F64)  # the first takes no step at all
        sol = fastode.solve(lambda t, y, k: torch.sin(k * t) - k * y**2, y0, t, controls=k, rtol=1e-3, atol=1e-3, **how)
        counts = sol.stats.n_accepted.tolist()
        assert counts[0] == 0
        assert counts[4] > counts[1]
        return sol.ys.pow(2).sum(), [y0, k]

    assert_same(make, backend, order=2)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
@pytest.mark.parametrize("keep", [fastode.Checkpoint(every=3), fastode.Checkpoint(max_bytes=200)])
def test_records_that_keep_fewer_states(backend: str, keep: fastode.Checkpoint) -> None:
    net = network()

    def make(gradient: Any, backend: str) -> tuple[Tensor, list[Tensor]]:
        y0 = torch.ones(2, 3, dtype=F64).requires_grad_()
        gradient = keep if gradient == "checkpoint" else gradient
        ys = fastode.solve(lambda t, y: net(y), y0, [0.0, 2.0], rtol=1e-6, gradient=gradient, backend=backend).ys
        return ys.pow(3).sum(), [y0, *net.parameters()]

    assert_same(make, backend, order=2)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_dense_output(backend: str) -> None:
    net = network()

    def make(**how: Any) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(1)
        y0, t = random(4, 3).requires_grad_(), torch.tensor([0.1, 0.77], dtype=F64).requires_grad_()
        k = torch.tensor([1.0, 2.0, 8.0, 30.0], dtype=F64)[:, None]  # so that records are ragged
        sol = fastode.solve(
            lambda t, y, k: k * net(y), y0, [0.0, 1.0], controls=k, rtol=1e-3, atol=1e-3, dense=True, **how
        )
        return sol.interpolate(t).pow(3).sum() + sol.ys.square().sum(), [y0, t, *net.parameters()]

    assert_same(make, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hessian_against_differences_of_gradients(backend: str) -> None:
    a = random(3, 3)

    def gradient(x: Tensor) -> Tensor:
        ys = fastode.solve(lambda t, y: torch.tanh(y @ a), x, [0.0, 1.0], step_size=0.1, backend=backend).ys
        return torch.autograd.grad(ys[-1].pow(3).sum(), x, create_graph=True)[0]

    x, v = random(2, 3).requires_grad_(), random(2, 3)
    (product,) = torch.autograd.grad(gradient(x), x, v)
    h = 1e-5
    ahead, behind = (gradient((x + s * h * v).detach().requires_grad_()).detach() for s in (1, -1))
    torch.testing.assert_close(product, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)


def test_a_graph_that_is_not_used_costs_no_evaluations() -> None:
    calls = 0

    def field(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.tanh(y)

    y0 = random(2, 3).requires_grad_()
    counts = []
    for create_graph in (False, True):
        ys = fastode.solve(field, y0, [0.0, 1.0], backend="stepped").ys
        calls = 0
        torch.autograd.grad(ys.sum(), y0, create_graph=create_graph)
        counts.append(calls)
    assert counts[0] == counts[1] > 0


class _Hidden(torch.autograd.Function):
    """y * w by a Function, whose arguments no torch function mode sees."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(y, w)
        return y * w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        y, w = ctx.saved_tensors
        return grad * w, (grad * y).sum(0)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_second_derivatives_that_would_be_lost_are_an_error(backend: str) -> None:
    y0, w = random(3, 2).requires_grad_(), random(2).requires_grad_()
    end = fastode.solve(lambda t, y: torch.tanh(_Hidden.apply(y, w)), y0, [0.0, 1.0], backend=backend).ys[-1]
    grads = torch.autograd.grad(end.square().sum(), [y0, w], create_graph=True)
    with pytest.raises(RuntimeError, match=r"inside of an autograd\.Function"):
        torch.autograd.grad(sum(g.square().sum() for g in grads), [y0, w])


@pytest.mark.parametrize(("method", "backend"), [*(("dopri5", name) for name in BACKENDS), ("rodas5p", "implicit")])
def test_second_derivatives_where_the_state_needs_none(method: str, backend: str) -> None:
    """A penalty on the gradient by the weights, with a start that is data."""
    net, y0 = network(), random(4, 3)
    weights = list(net.parameters())

    def make(gradient: Any, backend: str) -> tuple[Tensor, list[Tensor]]:
        where = backend if gradient == "checkpoint" else "auto"
        ys = fastode.solve(lambda t, y: net(y), y0, [0.0, 0.5], method=method, gradient=gradient, backend=where).ys
        return ys[-1].square().sum(), weights

    assert_same(make, backend, order=2)
