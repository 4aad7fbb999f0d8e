"""Gradients of odeint: against torchdiffeq's, against differences, and of higher order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor

import fastode
from tests.dropin.tools import (
    ADAPTIVE,
    F64,
    FIXED,
    KINDS,
    Field,
    field_of,
    gradients,
    loss_of,
    parts,
    relative_difference,
    some,
    state,
    with_grad,
)

ADAMS = ["explicit_adams", "implicit_adams"]
FORWARD, BACKWARD = torch.linspace(0.2, 1.4, 4, dtype=F64), torch.linspace(1.0, -0.2, 3, dtype=F64)
COUNTS = pytest.mark.parametrize("counts", [False, True], ids=["program", "no program"])
TIMES = pytest.mark.parametrize("t", [FORWARD, BACKWARD], ids=["forward", "backward"])


@pytest.mark.parametrize(
    ("method", "kind", "counts", "t"),
    some([*FIXED, *ADAMS], KINDS, [False, True], [FORWARD, BACKWARD]),
)
def test_fixed_steps_as_torchdiffeq(method: str, kind: str, counts: bool, t: Tensor) -> None:
    y0, how = state(kind), {"method": method, "options": {"step_size": 0.15}}
    _, mine = gradients(fastode.odeint, field_of(kind, counts=counts), y0, t, **how)
    _, theirs = gradients(torchdiffeq.odeint, field_of(kind), y0, t, **how)
    if method in ADAMS:  # their weights on an uneven grid, which another end makes of it, are those of an even one
        at = len(parts(y0))
        mine, theirs = mine[:at] + mine[at + 1 :], theirs[:at] + theirs[at + 1 :]
    assert relative_difference(mine, theirs) < 1e-11


@pytest.mark.parametrize("method", ADAMS)
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["forward", "backward"])
def test_adams_by_the_times(method: str, sign: float) -> None:
    """Against differences, with a last step that is shorter than the others and has weights of its own."""
    y0, func = state("rows"), field_of("rows")
    t = sign * torch.tensor([0.2, 0.57, 1.33], dtype=F64)

    def loss(times: Tensor) -> Tensor:
        options = {"step_size": 0.15}
        return fastode.odeint(func, y0, times, method=method, rtol=1e-12, atol=1e-13, options=options).square().sum()

    times = t.clone().requires_grad_()
    (mine,) = torch.autograd.grad(loss(times), times)
    with torch.no_grad():
        steps = 1e-6 * torch.eye(len(t), dtype=F64)
        right = torch.stack([(loss(t + step) - loss(t - step)) / 2e-6 for step in steps])
    torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-6)


@TIMES
@COUNTS
@pytest.mark.parametrize("kind", KINDS)
def test_fixed_steps_without_gradient_by_time_as_torchdiffeq(kind: str, counts: bool, t: Tensor) -> None:
    for options in ({"step_size": 0.17}, {"step_size": 0.17, "interp": "cubic"}, {}):
        found = []
        for odeint in (fastode.odeint, torchdiffeq.odeint):
            func, y0 = field_of(kind, counts=counts), with_grad(state(kind))
            loss = loss_of(odeint(func, y0, t, method="rk4", options=options))
            inputs = [*parts(y0), func.W, func.b]
            found.append(list(torch.autograd.grad(loss, inputs)))
        assert relative_difference(*found) < 1e-12


@pytest.mark.parametrize(
    ("method", "kind", "counts", "t"), some([*ADAPTIVE, "tsit5"], KINDS, [False, True], [FORWARD, BACKWARD])
)
def test_adaptive_methods_as_a_tight_solve(method: str, kind: str, counts: bool, t: Tensor) -> None:
    y0, tol = state(kind), 1e-5 if method in ("fehlberg2", "adaptive_heun", "bosh3") else 1e-7
    _, mine = gradients(fastode.odeint, field_of(kind, counts=counts), y0, t, method=method, rtol=tol, atol=tol)
    _, exact = gradients(fastode.odeint, field_of(kind), y0, t, method="dopri8", rtol=1e-12, atol=1e-12)
    assert relative_difference(mine, exact) < 300 * tol
    if method in ADAPTIVE:
        _, theirs = gradients(torchdiffeq.odeint, field_of(kind), y0, t, method=method, rtol=tol, atol=tol)
        assert relative_difference(mine, exact) <= 5 * relative_difference(theirs, exact) + 20 * tol


@COUNTS
@pytest.mark.parametrize("rows", [True, False], ids=["rows apart", "rows mixed"])
@pytest.mark.parametrize("step_control", ["auto", "batch"])
def test_against_differences(counts: bool, rows: bool, step_control: str) -> None:
    """Fixed step sizes in the background: differences must not see steps change, so first_step = max_step."""
    func, y0 = field_of("rows", counts=counts, rows=rows), state("rows")
    options = {"first_step": 0.1, "max_step": 0.1, "step_control": step_control}

    def loss(y0: Tensor, t: Tensor) -> Tensor:
        return loss_of(fastode.odeint(func, y0, t, rtol=1e-1, atol=1e-1, options=options))

    inputs = (y0.clone().requires_grad_(), FORWARD.clone().requires_grad_())
    grads = torch.autograd.grad(loss(*inputs), inputs)
    direction = torch.randn(y0.shape, dtype=F64)
    h = 1e-5
    with torch.no_grad():
        ahead, behind = loss(y0 + h * direction, FORWARD), loss(y0 - h * direction, FORWARD)
    torch.testing.assert_close((grads[0] * direction).sum(), (ahead - behind) / (2 * h), rtol=1e-7, atol=1e-9)
    assert grads[1].abs().max() > 0


@COUNTS
@pytest.mark.parametrize("kind", ["rows", "tuple", "1-d"])
@pytest.mark.parametrize("how", [{}, {"method": "rk4"}, {"options": {"step_control": "batch"}}])
def test_second_derivatives(kind: str, counts: bool, how: dict[str, Any]) -> None:
    found = []
    for odeint, more in ((fastode.odeint, how), (torchdiffeq.odeint, {"method": how.get("method")})):
        func, y0, t = field_of(kind, counts=counts), with_grad(state(kind)), FORWARD.clone().requires_grad_()
        inputs = [*parts(y0), t, func.W, func.b]
        grads = torch.autograd.grad(loss_of(odeint(func, y0, t, **more)), inputs, create_graph=True)
        penalty = sum((g.square().sum() for g in grads), torch.zeros((), dtype=F64))
        found.append(list(torch.autograd.grad(penalty, inputs)))
    assert relative_difference(*found) < (1e-10 if how.get("method") else 1e-3)


def test_tensors_in_closures_and_results_of_other_networks() -> None:
    a = torch.randn(3, 3, dtype=F64, requires_grad=True)
    b = torch.tanh(a)
    y0 = state("rows").requires_grad_()

    def loss(odeint: Any) -> Tensor:
        return loss_of(odeint(lambda t, y: torch.tanh(y @ b) * t + y @ a, y0, FORWARD, rtol=1e-9, atol=1e-9))

    mine = torch.autograd.grad(loss(fastode.odeint), (a, y0), retain_graph=True)
    theirs = torch.autograd.grad(loss(torchdiffeq.odeint), (a, y0), retain_graph=True)
    assert relative_difference(list(mine), list(theirs)) < 1e-5


def test_backward_twice_and_no_grad() -> None:
    func, y0 = field_of("rows"), state("rows").requires_grad_()
    solution = fastode.odeint(func, y0, FORWARD)
    (once,) = torch.autograd.grad(solution.sum(), y0, retain_graph=True)
    (again,) = torch.autograd.grad(solution.sum(), y0)
    assert torch.equal(once, again)
    with torch.no_grad():
        assert not fastode.odeint(func, y0, FORWARD).requires_grad


def test_random_functions_have_gradients() -> None:
    """Dropout: torchdiffeq's odeint differentiates what was computed, and so does this one."""
    drop = torch.nn.Dropout(0.5)
    y0 = torch.ones(4, 3, dtype=F64, requires_grad=True)
    w = torch.randn(3, 3, dtype=F64, requires_grad=True)
    found = []
    for odeint in (fastode.odeint, torchdiffeq.odeint):
        func = lambda t, y: drop(torch.tanh(y @ w))  # noqa: E731
        odeint(func, y0, FORWARD, method="rk4")  # whatever is done once is done
        torch.manual_seed(0)
        loss = odeint(func, y0, FORWARD, method="rk4").square().sum()
        found.append(list(torch.autograd.grad(loss, (y0, w))))
    assert all(bool(torch.isfinite(g).all()) for g in found[0])


def test_counters_count_the_evaluations_of_torchdiffeq() -> None:
    mine, theirs = Field("rows", counts=True), Field("rows", counts=True)
    fastode.odeint(mine, state("rows"), FORWARD, method="rk4")  # the attempt to record it counts, once
    mine.nfe = 0
    loss_of(fastode.odeint(mine, state("rows"), FORWARD, method="rk4")).backward()
    loss_of(torchdiffeq.odeint(theirs, state("rows"), FORWARD, method="rk4")).backward()
    assert mine.nfe == theirs.nfe
