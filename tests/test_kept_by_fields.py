"""Tensors that a field computes at a call and keeps for later ones: their gradient reaches what they were made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastode import odeint, odeint_adjoint, solve
from tests.gradient_tools import FIELD_BACKENDS, assert_close, random

F64 = torch.float64
T = torch.tensor([0.0, 0.6, 1.0], dtype=F64)
Run = Callable[[Any, Tensor], Tensor]


def way(**options: Any) -> Run:
    def run(field: Any, y0: Tensor) -> Tensor:
        ys: Tensor = solve(field, y0, T, **options).ys
        return ys

    return run


WAYS: dict[str, Run] = {
    "stepped": way(backend="stepped", rtol=1e-3),
    "reference": way(backend="reference", rtol=1e-3),
    "backprop": way(gradient="backprop", rtol=1e-3),
    "fixed": way(backend="stepped", method="rk4"),
    "rosenbrock": way(method="rodas5p"),
    "implicit": way(method="kvaerno5"),
    "adjoint": way(gradient="adjoint", backend="stepped", rtol=1e-9, atol=1e-11),
}


def end(ys: Tensor) -> Tensor:
    return ys[-1].sin().sum() + ys[1].square().sum()


class Memo(nn.Module):
    """Keeps exp(A) from its first call on; with ``phases`` one for each half of the interval, the second made later."""

    def __init__(self, keep: bool, phases: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.keep, self.phases = nn.Parameter(0.5 * random(3, 3)), keep, phases
        self.kept: dict[int, Tensor] = {}

    def weight(self, phase: int) -> Tensor:
        if phase in self.kept:
            return self.kept[phase]
        weight = torch.matrix_exp((1.0 + phase) * self.a)
        if self.keep:
            self.kept[phase] = weight
        return weight

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight(int(t.max() > 0.5) if self.phases else 0))


@pytest.mark.parametrize("phases", [False, True])
@pytest.mark.parametrize("name", WAYS)
def test_weights_kept_from_a_call(name: str, phases: bool) -> None:
    if phases and name == "adjoint":
        pytest.skip("an equation with a jump, which this solves to its tolerance only")
    if phases and name in FIELD_BACKENDS:
        pytest.skip("the phase is that of the latest sample, and samples are at other times in the backward pass")
    y0 = random(4, 3).requires_grad_()
    memo, plain = Memo(True, phases), Memo(False, phases)
    expected = torch.autograd.grad(end(WAYS[name](plain, y0)), [plain.a, y0])
    for _ in range(2):
        memo.kept.clear()
        ys = WAYS[name](memo, y0)
        assert ys.requires_grad
        assert_close(list(torch.autograd.grad(end(ys), [memo.a, y0])), list(expected), 1e-9)


@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_dropin(solver: Any, method: str) -> None:
    y0 = random(4, 3)
    grads = []
    for field in (Memo(False), Memo(True), Memo(True)):
        ys = solver(field, y0, T, method=method)
        grads.append(torch.autograd.grad(end(ys), field.a)[0])
    assert_close(grads[1], grads[0], 1e-6)
    assert_close(grads[2], grads[0], 1e-6)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_parametrizations_under_cached(backend: str) -> None:
    class Skew(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mT

    linear = parametrize.register_parametrization(nn.Linear(3, 3).double(), "weight", Skew())
    y0, params = random(4, 3), list(linear.parameters())
    run = way(backend=backend)
    expected = torch.autograd.grad(end(run(lambda t, y: torch.tanh(linear(y)), y0)), params)
    with parametrize.cached():
        inside = torch.autograd.grad(end(run(lambda t, y: torch.tanh(linear(y)), y0)), params)
        ys = run(lambda t, y: torch.tanh(linear(y)), y0)
    assert_close(list(inside), list(expected))
    assert_close(list(torch.autograd.grad(end(ys), params)), list(expected))


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_lru_cache_and_closure(backend: str) -> None:
    a = random(3, 3, scale=0.3).requires_grad_()

    @functools.cache
    def cached() -> Tensor:
        return torch.matrix_exp(a)

    y0, run = random(4, 3), way(backend=backend)
    (expected,) = torch.autograd.grad(end(run(lambda t, y: torch.tanh(y @ torch.matrix_exp(a)), y0)), a)
    for _ in range(2):
        cached.cache_clear()
        (got,) = torch.autograd.grad(end(run(lambda t, y: torch.tanh(y @ cached()), y0)), a)
        assert_close(got, expected)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_kept_from_arguments(backend: str) -> None:
    """What a field makes of the first state, or of the controls at its first call, is a function of these."""
    y0, c = random(4, 3).requires_grad_(), random(4, 3).requires_grad_()

    def field(keep: bool) -> Any:
        kept: list[Tensor] = []

        def call(t: Tensor, y: Tensor, controls: Tensor) -> Tensor:
            if not kept:
                kept.append(controls.sin() * 2)
                kept.append(y.cos())
            scale, start = kept if keep else (controls.sin() * 2, y0.cos())
            return torch.tanh(y * scale) * start

        return call

    grads = [
        torch.autograd.grad(end(solve(field(keep), y0, T, controls=c, backend=backend).ys), [y0, c])
        for keep in (False, True)
    ]
    assert_close(list(grads[1]), list(grads[0]))


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_kept_result_may_be_used_outside(backend: str) -> None:
    """A penalty on what the field keeps adds to the gradient of the solve."""
    y0, memo, plain = random(4, 3), Memo(True), Memo(False)
    run = way(backend=backend)
    (solved,) = torch.autograd.grad(end(run(plain, y0)), plain.a)
    (penalty,) = torch.autograd.grad(torch.matrix_exp(plain.a).square().sum(), plain.a)
    ys = run(memo, y0)
    (got,) = torch.autograd.grad(end(ys) + memo.kept[0].square().sum(), memo.a)
    assert_close(got, solved + penalty)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_hooks_see_the_whole_gradient_once(backend: str) -> None:
    """Of the weight and of what is kept of it."""
    y0, memo = random(4, 3), Memo(True)
    seen: list[Tensor] = []
    memo.a.register_hook(seen.append)
    ys = way(backend=backend)(memo, y0)
    kept: list[Tensor] = []
    memo.kept[0].register_hook(kept.append)
    end(ys).backward()
    assert len(seen) == len(kept) == 1
    assert memo.a.grad is not None
    assert torch.equal(seen[0], memo.a.grad)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_nothing_is_kept_alive(backend: str) -> None:
    """Intermediate results of a field's call are gone after it."""
    import weakref

    net, alive = nn.Linear(3, 3).double(), []

    def field(t: Tensor, y: Tensor) -> Tensor:
        hidden = net(y)
        alive.append(weakref.ref(hidden))
        return torch.tanh(hidden)

    way(backend=backend)(field, random(2, 3))
    assert len(alive) > 5
    assert not any(reference() is not None for reference in alive)


@pytest.mark.parametrize("options", [{"backend": "stepped"}, {"backend": "reference"}, {"method": "kvaerno5"}, {}])
@pytest.mark.parametrize("gradient", ["checkpoint", "backprop"])
def test_weights_of_functional_call(options: Any, gradient: Any) -> None:
    """The backward pass comes when the module has its own weights again; the gradients are those of the others."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
            self.register_buffer("scale", torch.ones(3, dtype=F64))

        def forward(self, y0: Tensor) -> Tensor:
            ys: Tensor = solve(lambda t, y: self.net(y) * self.scale, y0, T, gradient=gradient, **options).ys
            return ys

    if gradient == "backprop" and "backend" in options:
        options = {}
    model, exact, y0 = Model(), Model(), random(3, 3)
    weights = {name: (1.5 * w.detach()).requires_grad_() for name, w in model.named_parameters()}
    buffers = {"scale": torch.full((3,), 0.7, dtype=F64)}
    ys = torch.func.functional_call(model, {**weights, **buffers}, (y0,))
    got = torch.autograd.grad(end(ys), list(weights.values()))
    exact.load_state_dict({**weights, **buffers})
    assert_close(list(got), list(torch.autograd.grad(end(exact(y0)), list(exact.parameters()))), 1e-9)
    assert model.net[0].weight.data_ptr() != weights["net.0.weight"].data_ptr()
