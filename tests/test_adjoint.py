"""``gradient="adjoint"``: it tends to the discrete gradient as the tolerance goes to zero."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from fastode import IController, SolveError, solve
from tests.gradient_tools import FIELD_BACKENDS, assert_close, gradients, random

F64 = torch.float64
TIMES = {
    "several": torch.tensor([0.0, 0.3, 0.3, 0.8, 1.0], dtype=F64),
    "reverse": torch.tensor([1.0, 0.4, -0.5], dtype=F64),
    "per sample": torch.tensor([[0.0, 1.0, 0.5, 2.0], [0.7, 0.4, 0.5, 2.0], [1.5, 0.1, 0.5, 2.9]], dtype=F64),
}


def grads_of(gradient: str, backend: str, t: Tensor, given: list[Tensor], **options: Any) -> list[Tensor | None]:
    def loss(y: Tensor, c: Tensor, w: Tensor, t: Tensor) -> Tensor:
        def field(t: Tensor, y: Tensor, c: dict[str, Tensor]) -> Tensor:
            return torch.tanh(y @ w + c["a"]) * torch.cos(t) - 0.2 * y * c["b"]

        controls = {"a": c.sin(), "b": c.square()}
        sol = solve(field, y, t, controls=controls, gradient=gradient, backend=backend, **options)
        return (sol.ys * torch.arange(1.0, 1 + len(t), dtype=F64)[:, None, None]).sin().sum()

    return gradients(loss, [*given, t])


def problem() -> list[Tensor]:
    return [random(4, 3), random(4, 3), random(3, 3, scale=0.6)]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_agrees_with_the_discrete_gradient_at_tight_tolerance(times: str, backend: str) -> None:
    given = problem()
    options: Any = {"rtol": 1e-9, "atol": 1e-10, "method": "dopri8"}
    exact = grads_of("checkpoint", backend, TIMES[times], given, **options)
    assert_close(grads_of("adjoint", backend, TIMES[times], given, **options), exact, 1e-6)


def test_error_falls_with_the_tolerance() -> None:
    given = problem()
    exact = grads_of("checkpoint", "auto", TIMES["several"], given, rtol=1e-11, atol=1e-11, method="dopri8")
    errors = []
    for tol in (1e-2, 1e-4, 1e-6, 1e-8):
        found = grads_of("adjoint", "auto", TIMES["several"], given, rtol=tol, atol=tol)
        errors.append(
            [float((a - e).abs().max()) for a, e in zip(found, exact, strict=True) if a is not None and e is not None]
        )
    for kind in zip(*errors, strict=True):
        assert len(kind) == 4
        assert kind[1] < kind[0]
        assert kind[3] < 1e-3 * kind[0] + 1e-9
        assert kind[3] < 1e-5


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_error_on_a_fixed_grid_falls_with_the_order_of_the_method(method: str, order: int) -> None:
    given, t = problem(), torch.tensor([0.0, 1.0], dtype=F64)
    exact = grads_of("checkpoint", "auto", t, given, rtol=1e-11, atol=1e-11, method="dopri8")
    errors = []
    for n in (8, 16):
        found = grads_of("adjoint", "auto", t, given, method=method, step_size=1 / n)
        errors.append(
            sum(float((a - e).norm()) for a, e in zip(found, exact, strict=True) if a is not None and e is not None)
        )
    assert errors[0] / errors[1] > 0.75 * 2**order


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_rejected_attempts_do_not_enter_the_integrals(backend: str) -> None:
    """Stages of a rejected attempt may be infinite; they are no part of the gradients by weights."""
    y0, rate = random(4, 2, scale=0.05), torch.ones((), dtype=F64)

    def run(gradient: str) -> list[Tensor | None]:
        def loss(y: Tensor, rate: Tensor) -> Tensor:
            def field(t: Tensor, y: Tensor) -> Tensor:
                return 20 * rate * torch.cos(20 * t) - 0.3 * y * rate + torch.where(y.abs() > 1.3, torch.inf, 0.0)

            options: Any = {"gradient": gradient, "backend": backend, "rtol": 1e-5, "atol": 1e-6}
            sol = solve(field, y, [0.0, 0.5, 1.0], controller=IController(first_step=0.5), **options)
            assert bool((sol.stats.n_rejected > 0).all())
            return sol.ys.sin().sum()

        return gradients(loss, [y0, rate])

    assert_close(run("adjoint"), run("checkpoint"), 1e-3)


def test_dense_output_is_an_error() -> None:
    with pytest.raises(ValueError, match="dense=True does not go with gradient='adjoint'"):
        solve(lambda t, y: -y, random(2, 2).requires_grad_(), [0.0, 1.0], gradient="adjoint", dense=True)


def test_failure_on_the_way_back_is_an_error() -> None:
    """Forward, stability limits the steps; backward the solution explodes, and accuracy asks for more of them."""
    y0 = torch.ones(1, 1, dtype=F64, requires_grad=True)
    ys = solve(lambda t, y: -80.0 * y, y0, [0.0, 1.0], gradient="adjoint", rtol=1e-3, atol=1e-3, max_steps=35).ys
    with pytest.raises(
        SolveError, match=r"in the backward solve of gradient='adjoint': sample 0 .*MAX_STEPS"
    ) as caught:
        ys[-1].sum().backward()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_tuple_state_and_single_precision() -> None:
    x, v = random(3, 2, dtype=torch.float32), random(3, 2, 2, dtype=torch.float32)

    def run(gradient: str) -> list[Tensor | None]:
        def loss(x: Tensor, v: Tensor) -> Tensor:
            field = lambda t, s: {"x": s["v"].sum(2), "v": -s["v"] * s["x"].square()[..., None]}  # noqa: E731
            ys = solve(field, {"x": x, "v": v}, [0.0, 1.0], gradient=gradient, rtol=1e-5, atol=1e-6).ys
            return ys["x"][-1].sum() + ys["v"][-1].square().sum()

        return gradients(loss, [x, v])

    found, exact = run("adjoint"), run("checkpoint")
    assert all(g is not None and g.dtype == torch.float32 for g in found)
    assert_close(found, exact, 1e-4)


def test_gradient_of_the_start_alone() -> None:
    """No weights and no controls: nothing but the adjoint itself is integrated."""
    y0 = random(3, 2)
    (found,) = gradients(
        lambda y: solve(lambda t, y: -2 * y, y, [0.0, 1.0], gradient="adjoint", rtol=1e-9, atol=1e-9).ys[-1].sum(), [y0]
    )
    assert_close(found, torch.full_like(y0, torch.tensor(-2.0, dtype=F64).exp()), 1e-8)
