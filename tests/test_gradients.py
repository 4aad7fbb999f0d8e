"""Gradients of the steps taken: finite differences, agreement of all ways to compute them, times, dense output."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastode
from fastode import Checkpoint, IController, solve
from fastode.problem import make_problem
from fastode.reference import integrate, replay
from tests.gradient_tools import BACKENDS, FIELD_BACKENDS, FIELD_MODES, MODES, assert_close, gradients, random

METHODS = sorted(fastode.TABLEAUS)
ADAPTIVE = [name for name in METHODS if fastode.TABLEAUS[name].is_adaptive]
F64 = torch.float64


def driven(weight: Tensor) -> Any:
    """A field that reads t, y, its controls and a shared weight."""

    def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(y @ weight + c * torch.sin(3 * t)) - 0.3 * y * c.square() + 0.1 * t.square()

    return field


def problem(batch: int = 4, width: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """y0, controls, weight."""
    return random(batch, width), random(batch, width, scale=0.7), random(width, width, scale=0.6)


# Finite differences


@pytest.mark.parametrize(
    ("method", "backend"), [(m, "stepped") for m in METHODS] + [(m, "reference") for m in ("euler", "heun3", "dopri5")]
)
def test_gradcheck_of_every_method(method: str, backend: str) -> None:
    y0, controls, weight = problem(2, 2)
    t = torch.tensor([0.0, 0.13, 0.3, 0.75], dtype=F64)  # inside steps, at the end of a step, at the end

    def loss(y0: Tensor, controls: Tensor, weight: Tensor) -> Tensor:
        sol = solve(driven(weight), y0, t, controls=controls, method=method, step_size=0.3, backend=backend)
        return sol.ys

    inputs = tuple(x.requires_grad_() for x in (y0, controls, weight))
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-8, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_entry_by_entry(backend: str) -> None:
    y0, controls, weight = problem(2, 2)
    t = torch.tensor([[1.0, 0.0], [0.7, 0.2], [0.1, 0.2], [0.1, 0.9]], dtype=F64)  # one sample backward, one forward

    def loss(y0: Tensor, controls: Tensor, weight: Tensor) -> Tensor:
        return solve(driven(weight), y0, t, controls=controls, method="bosh3", step_size=0.25, backend=backend).ys

    inputs = tuple(x.requires_grad_() for x in (y0, controls, weight))
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "dopri8"])
def test_adaptive_gradient_is_that_of_the_frozen_steps(method: str) -> None:
    """Against fourth-order finite differences of the same steps, whose size does not react to the perturbation."""
    y0, controls, weight = problem()
    t = torch.tensor([0.0, 0.4, 1.1, 1.5], dtype=F64)
    directions = [torch.randn_like(x) for x in (y0, controls, weight)]

    def plan_of(y: Tensor, c: Tensor, w: Tensor) -> Any:
        return make_problem(driven(w), y, t, c, method, 1e-3, 1e-5, None, None, 1000, False)

    plan, _ = plan_of(y0, controls, weight)
    steps = integrate(plan, lambda t, y: plan.field(t, y, [controls]), y0, plan.field(plan.times[0], y0, [controls]))
    assert steps.n > 3

    def frozen(eps: float) -> Tensor:
        y, c, w = (x + eps * d for x, d in zip((y0, controls, weight), directions, strict=True))
        moved, _ = plan_of(y, c, w)
        ys, _ = replay(moved, lambda t, y: moved.field(t, y, [c]), steps, y, plan.times)
        return ys.sin().sum()

    eps = 1e-4
    difference = (8 * (frozen(eps) - frozen(-eps)) - (frozen(2 * eps) - frozen(-2 * eps))) / (12 * eps)
    for gradient, backend in MODES:

        def loss(y: Tensor, c: Tensor, w: Tensor, gradient: str = gradient, backend: str = backend) -> Tensor:
            options: Any = {"rtol": 1e-3, "atol": 1e-5, "gradient": gradient, "backend": backend}
            return solve(driven(w), y, t, controls=c, method=method, **options).ys.sin().sum()

        grads = gradients(loss, [y0, controls, weight])
        slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True) if g is not None)
        assert abs(float(slope - difference)) < 1e-10 * max(1.0, abs(float(difference)))


def test_adaptive_gradient_tends_to_that_of_the_solution() -> None:
    """Against finite differences of solves at tight tolerance, whose steps do react."""
    y0, controls, weight = problem(3, 2)
    directions = [torch.randn_like(x) for x in (y0, controls, weight)]

    def loss(y: Tensor, c: Tensor, w: Tensor) -> Tensor:
        sol = solve(driven(w), y, [0.0, 0.5, 1.2], controls=c, method="dopri8", rtol=1e-12, atol=1e-12)
        return sol.ys.sin().sum()

    def at(eps: float) -> Tensor:
        return loss(*(x + eps * d for x, d in zip((y0, controls, weight), directions, strict=True)))

    eps = 1e-3
    difference = (8 * (at(eps) - at(-eps)) - (at(2 * eps) - at(-2 * eps))) / (12 * eps)
    grads = gradients(loss, [y0, controls, weight])
    slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True) if g is not None)
    assert abs(float(slope - difference)) < 1e-8


# The discrete adjoint is backpropagation through the same steps


TIMES = {
    "shared": torch.tensor([0.0, 0.35, 0.36, 1.0], dtype=F64),
    "reverse": torch.tensor([1.0, 0.35, 0.3, -0.2], dtype=F64),
    "per sample": torch.tensor([[0.0, 1.0, -1.0, 2.0], [0.5, 0.9, -0.5, 2.0], [0.6, 0.2, 0.5, 2.5]], dtype=F64),
    "repeated": torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0], dtype=F64),
}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {"method": "dopri5", "rtol": 1e-3, "atol": 1e-4},
        {"method": "dopri5", "step_size": 0.3},
        {"method": "rk4"},
        {"method": "heun3", "step_size": 0.3},
        {"method": "tsit5", "rtol": 1e-2, "atol": 1e-3, "controller": fastode.PIDController(0.2, 0.4, 0.1)},
    ],
    ids=["adaptive", "fixed", "output to output", "not FSAL", "PID"],
)
def test_checkpoint_equals_backprop(options: dict[str, Any], backend: str, times: str) -> None:
    y0, controls, weight = problem()

    def run(gradient: str, backend: str) -> list[Tensor | None]:
        def loss(y: Tensor, c: Tensor, w: Tensor, t: Tensor) -> Tensor:
            sol = solve(driven(w), y, t, controls=c, gradient=gradient, backend=backend, **options)
            return (sol.ys.sin() * torch.arange(1.0, 1 + len(t), dtype=F64)[:, None, None]).sum()

        return gradients(loss, [y0, controls, weight, TIMES[times]])

    assert_close(run("checkpoint", backend), run("backprop", "auto"))


@pytest.mark.parametrize("method", METHODS)
def test_checkpoint_equals_backprop_for_every_method(method: str) -> None:
    y0, controls, weight = problem()
    options: Any = {"method": method, "rtol": 1e-3, "atol": 1e-4}
    if method not in ADAPTIVE:
        options["step_size"] = 0.21

    def run(gradient: str, backend: str) -> list[Tensor | None]:
        def loss(y: Tensor, c: Tensor, w: Tensor) -> Tensor:
            sol = solve(driven(w), y, [0.0, 0.1, 0.77, 1.3], controls=c, gradient=gradient, backend=backend, **options)
            return sol.ys.sin().sum()

        return gradients(loss, [y0, controls, weight])

    expected = run("backprop", "auto")
    for backend in (*FIELD_BACKENDS, "auto"):
        assert_close(run("checkpoint", backend), expected, 1e-11)


@pytest.mark.parametrize("rejected", [False, True])
def test_rejected_attempts_leave_no_trace_in_the_gradient(rejected: bool) -> None:
    """A first step that is rejected, once with a stage that is infinite, changes the steps but not their gradient."""
    y0 = random(5, 2, scale=0.05)
    rate = torch.tensor(1.0, dtype=F64)

    def run(gradient: str, backend: str) -> list[Tensor | None]:
        def loss(y: Tensor, rate: Tensor) -> Tensor:
            def field(t: Tensor, y: Tensor) -> Tensor:
                wall = torch.where(y.abs() > 1.3, torch.inf, 0.0) if rejected else 0.0
                return 20 * rate * torch.cos(20 * t) - 0.3 * y * rate + wall

            options: Any = {"controller": IController(first_step=0.5), "gradient": gradient, "backend": backend}
            sol = solve(field, y, [0.0, 0.5, 1.0], **options)
            assert bool((sol.stats.n_rejected > 0).all())
            return sol.ys.sin().sum()

        return gradients(loss, [y0, rate])

    expected = run("backprop", "auto")
    for backend in (*FIELD_BACKENDS, "auto"):
        assert_close(run("checkpoint", backend), expected)


# Output times


@pytest.mark.parametrize(("gradient", "backend"), [*MODES, ("adjoint", "stepped")])
def test_gradient_flows_to_every_one_of_repeated_outputs(gradient: str, backend: str) -> None:
    y0 = random(3, 2)
    t = torch.tensor([0.0, 0.0, 0.4, 0.4, 1.0, 1.0], dtype=F64)
    y = y0.clone().requires_grad_()
    ys = solve(lambda t, y: -y, y, t, gradient=gradient, backend=backend, rtol=1e-7, atol=1e-9).ys
    for e, time in enumerate(t.tolist()):
        (grad,) = torch.autograd.grad(ys[e].sum(), y, retain_graph=True)
        torch.testing.assert_close(grad, torch.full_like(y0, math.exp(-time)), rtol=1e-6, atol=0.0)
    (grad,) = torch.autograd.grad(ys.sum(), y)
    torch.testing.assert_close(grad, torch.full_like(y0, float(torch.exp(-t).sum())), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(("gradient", "backend"), [*MODES, ("adjoint", "stepped")])
@pytest.mark.parametrize("t", [[0.3], [0.3, 0.3, 0.3]])
def test_gradient_of_a_solve_without_steps(gradient: str, backend: str, t: list[float]) -> None:
    y0, _, weight = problem()
    times = torch.tensor(t, dtype=F64)

    def loss(y: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return solve(lambda t, y: torch.tanh(y @ w), y, t, gradient=gradient, backend=backend).ys.square().sum()

    grad_y0, grad_w, grad_t = gradients(loss, [y0, weight, times])
    assert_close(grad_y0, 2 * len(t) * y0)
    assert grad_w is None or float(grad_w.abs().max()) == 0.0
    slope = float((2 * y0 * torch.tanh(y0 @ weight)).sum())
    expected = [-(len(t) - 1) * slope, *[slope] * (len(t) - 1)]
    assert_close(torch.zeros(1, dtype=F64) if grad_t is None else grad_t, torch.tensor(expected, dtype=F64))


@pytest.mark.parametrize("reverse", [False, True])
def test_time_gradient_agrees_with_torchdiffeq(reverse: bool) -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    y0, _, weight = problem()
    t = torch.tensor([0.0, 0.4, 0.9, 1.3], dtype=F64)
    t = t.flip(0) if reverse else t
    factors = random(4, 4, 3)
    tight = {"rtol": 1e-8, "atol": 1e-9}

    def ours(gradient: str, backend: str, y: Tensor, w: Tensor, t: Tensor) -> Tensor:
        field = lambda t, y: torch.tanh(y @ w) * torch.cos(t) + y * 0.1  # noqa: E731
        return (factors * solve(field, y, t, gradient=gradient, backend=backend, **tight).ys).sum()

    def theirs(y: Tensor, w: Tensor, t: Tensor) -> Tensor:
        class Field(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = torch.nn.Parameter(w.detach())

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return torch.tanh(y @ self.w) * torch.cos(t) + y * 0.1

        return (factors * torchdiffeq.odeint_adjoint(Field(), y, t, method="dopri5", **tight)).sum()

    expected = gradients(theirs, [y0, weight, t])
    for gradient, backend in [*MODES, ("adjoint", "stepped")]:
        found = gradients(functools.partial(ours, gradient, backend), [y0, weight, t])
        assert_close([found[0], found[2]], [expected[0], expected[2]], 1e-6)


@pytest.mark.parametrize(("gradient", "backend"), [*MODES, ("adjoint", "stepped"), ("adjoint", "reference")])
def test_time_gradient_is_the_incoming_gradient_times_the_field(gradient: str, backend: str) -> None:
    """Per sample, in both directions, with outputs inside the steps; the start moves against the adjoint there."""
    y0, controls, weight = problem()
    t = torch.tensor([[0.0, 1.0, 0.5, 0.2], [0.31, 0.6, 0.5, 0.9], [0.8, -0.3, 0.5, 0.9]], dtype=F64)
    factors = random(3, 4, 3)
    field = driven(weight)

    def loss(y: Tensor, t: Tensor) -> Tensor:
        options: Any = {"gradient": gradient, "backend": backend, "rtol": 1e-9, "atol": 1e-10}
        return (factors * solve(field, y, t, controls=controls, **options).ys).sum()

    grad_y0, grad_t = gradients(loss, [y0, t])
    ys = solve(field, y0, t, controls=controls, rtol=1e-9, atol=1e-10).ys
    slopes = torch.stack([field(t[e][:, None], ys[e], controls) for e in range(3)])
    assert grad_y0 is not None
    assert grad_t is not None
    assert_close(grad_t[1:], (factors * slopes)[1:].sum(2), 1e-10)
    assert_close(grad_t[0], -((grad_y0 - factors[0]) * slopes[0]).sum(1), 1e-8)


@pytest.mark.parametrize(("gradient", "backend"), MODES)
def test_time_gradient_in_the_dtype_of_t(gradient: str, backend: str) -> None:
    y0, t = random(3, 2), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float32)
    (single,) = gradients(lambda t: solve(lambda t, y: -y * t, y0, t, gradient=gradient, backend=backend).ys.sum(), [t])
    (double,) = gradients(
        lambda t: solve(lambda t, y: -y * t, y0, t, gradient=gradient, backend=backend).ys.sum(), [t.double()]
    )
    assert single is not None
    assert double is not None
    assert single.dtype == torch.float32
    assert_close(single.double(), double, 1e-6)


# Failing samples


def failing(batch: int, value: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y0, controls, weight, and which samples succeed: one is given controls that it cannot be solved with."""
    y0, controls, weight = random(batch, 3).abs() + 1, random(batch, 3, scale=0.5), random(3, 3, scale=0.4)
    controls[2] = value
    return y0, controls, weight, torch.arange(batch) != 2


@pytest.mark.parametrize(
    ("value", "batch", "fixed"),
    [(1e150, 4, False), (math.inf, 24, False), (1e150, 24, True), (math.nan, 24, True)],
    ids=["explodes, shrinks", "inf, whole batch", "explodes, whole batch", "nan, whole batch"],
)
@pytest.mark.parametrize(("gradient", "backend"), [*MODES, ("adjoint", "stepped")])
def test_failing_sample_gives_zero_gradient_and_leaves_the_others(
    gradient: str, backend: str, value: float, batch: int, fixed: bool
) -> None:
    y0, controls, weight, good = failing(batch, value)
    options: Any = {"method": "rk4", "step_size": 0.1} if fixed else {"rtol": 1e-4, "atol": 1e-6}
    options |= {"gradient": gradient, "backend": backend, "on_failure": "nan"}

    def loss(y: Tensor, c: Tensor, w: Tensor) -> Tensor:
        def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
            return torch.tanh(y @ w) * c + torch.where(c > 1e100, c * y**20, 0.0)

        sol = solve(field, y, [0.0, 0.37, 0.8], controls=c, **options)
        assert (sol.status == 0).tolist() == (good if len(y) == batch else good[good]).tolist()
        return torch.nan_to_num(sol.ys.sin()).sum()

    grad_y0, grad_c, grad_w = gradients(loss, [y0, controls, weight])
    alone = gradients(loss, [y0[good], controls[good], weight])
    assert grad_y0 is not None
    assert grad_c is not None
    assert torch.equal(grad_y0[2], torch.zeros(3, dtype=F64))
    assert torch.equal(grad_c[2], torch.zeros(3, dtype=F64))
    assert_close([grad_y0[good], grad_c[good], grad_w], alone, 1e-9 if gradient == "adjoint" else 1e-12)


@pytest.mark.parametrize(("gradient", "backend"), [*FIELD_MODES, ("adjoint", "stepped")])
@pytest.mark.parametrize("value", [1.0, math.nan, 2.0], ids=["too many steps", "at the start", "later"])
def test_gradient_when_all_samples_fail_is_zero(gradient: str, backend: str, value: float) -> None:
    y0, controls, weight = random(3, 2), torch.full((3, 1), value, dtype=F64), random(2, 2)

    def loss(y: Tensor, c: Tensor, w: Tensor) -> Tensor:
        def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
            value = torch.tanh(y @ w) * torch.where((c > 1) & (t > 2), torch.inf, c)
            return value + torch.sqrt(c - 2) if c[0] == 2 else value  # finite, with an infinite derivative

        options: Any = {"gradient": gradient, "backend": backend, "on_failure": "nan"}
        sol = solve(field, y, [0.0, 50.0], controls=c, max_steps=2 if value == 1 else 100, **options)
        assert bool((sol.status != fastode.Status.SUCCESS).all())
        return torch.nan_to_num(sol.ys).sum()

    grads = gradients(loss, [y0, controls, weight])
    assert all(g is None or not bool(g.any()) for g in grads)


@pytest.mark.parametrize("batch", [3, 24], ids=["shrinks", "whole batch"])
@pytest.mark.parametrize(("gradient", "backend"), FIELD_MODES)
@pytest.mark.parametrize("dense", [False, True])
def test_sample_that_stands_still_adds_nothing(gradient: str, backend: str, dense: bool, batch: int) -> None:
    """One sample's interval is empty: the gradients of the others, and of shared weights, are as without it."""
    y0, _, weight = problem(batch)
    t = torch.tensor([[0.0], [0.4], [1.0]], dtype=F64).repeat(1, batch)
    t[:, 1] = 0.7
    others = torch.arange(batch) != 1

    def loss(y: Tensor, w: Tensor, t: Tensor) -> Tensor:
        options: Any = {"gradient": gradient, "backend": backend, "dense": dense, "step_size": 0.2}
        sol = solve(lambda t, y: torch.tanh(y @ w), y, t.detach(), **options)
        return (sol.interpolate(t) if dense else sol.ys).square().sum()

    grad_y0, grad_w, grad_t = gradients(loss, [y0, weight, t])
    alone = gradients(loss, [y0[others], weight, t[:, others]])
    assert grad_y0 is not None
    assert_close([grad_y0[others], grad_w], alone[:2])
    assert_close(grad_y0[1], 6 * y0[1])
    assert (grad_t is not None) == dense
    if grad_t is not None:
        assert bool(torch.isfinite(grad_t).all())
        assert_close(grad_t[:, others], alone[2])


@pytest.mark.parametrize(("gradient", "backend"), [*MODES, ("adjoint", "stepped")])
def test_sample_without_steps_may_have_any_field(gradient: str, backend: str) -> None:
    """An empty interval succeeds with whatever the field is; NaN there reaches no gradient of the others."""
    y0, controls, weight = problem()
    controls[2] = torch.nan
    t = torch.tensor([[0.0], [0.4], [1.0]], dtype=F64).repeat(1, 4)
    t[:, 2] = 0.7
    others = torch.arange(4) != 2

    def loss(y: Tensor, c: Tensor, w: Tensor, t: Tensor) -> Tensor:
        sol = solve(driven(w), y, t, controls=c, gradient=gradient, backend=backend, method="rk4", step_size=0.2)
        assert bool((sol.status == fastode.Status.SUCCESS).all())
        return sol.ys.square().sum()

    grad_y0, grad_c, grad_w, grad_t = gradients(loss, [y0, controls, weight, t])
    alone = gradients(loss, [y0[others], controls[others], weight, t[:, others]])
    assert grad_y0 is not None
    assert grad_c is not None
    assert grad_t is not None
    assert_close([grad_y0[others], grad_c[others], grad_w, grad_t[:, others]], alone)
    assert_close(grad_y0[2], 6 * y0[2])
    assert not bool(grad_c[2].any())
    assert not bool(grad_t[:, 2].any())


@pytest.mark.parametrize("backend", BACKENDS)
def test_failing_sample_of_a_field_that_holds_something_per_sample(backend: str) -> None:
    y0, controls, weight, good = failing(5, math.nan)
    scale = torch.linspace(0.5, 2.0, 5, dtype=F64)[:, None]

    def run(gradient: str, backend: str) -> list[Tensor | None]:
        def loss(y: Tensor, c: Tensor, w: Tensor, s: Tensor) -> Tensor:
            field = lambda t, y, c: torch.tanh(y @ w + c) * s  # noqa: E731
            options: Any = {"controls": c, "gradient": gradient, "backend": backend, "on_failure": "nan"}
            return torch.nan_to_num(solve(field, y, [0.0, 1.0], **options).ys).sum()

        return gradients(loss, [y0, controls, weight, scale])

    found = run("checkpoint", backend)
    assert_close(found, run("backprop", "auto"))
    assert [bool(x) for x in found[3].flatten() != 0] == good.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_rounding_at_a_fixed_point_is_no_change_of_the_field(backend: str) -> None:
    """Kernels for other batch sizes round otherwise; where nothing is left but rounding that is no other field."""
    y0 = random(3, 2)
    controls = torch.cat([y0, torch.tensor([[0.0], [1.0], [0.0]], dtype=F64)], dim=1)

    def loss(y: Tensor, w: Tensor) -> Tensor:
        def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
            fails = torch.where((c[:, 2:] > 0) & (t > 0.5), torch.inf, 0.0)
            return (c[:, :2] - y) * w + torch.sin(t) + 1e-17 * len(y) + fails

        options: Any = {"controls": controls, "backend": backend, "on_failure": "nan"}
        return torch.nan_to_num(solve(field, y, [0.0, 1.0], **options).ys).sum()

    grads = gradients(loss, [y0, torch.ones(2, dtype=F64)])
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in grads)


# Dense output


@pytest.mark.parametrize(
    ("method", "reverse"),
    [("dopri5", False), ("dopri5", True), ("tsit5", False), ("bosh3", False), ("dopri8", False), ("rk4", True)],
)
def test_gradient_through_dense_output_is_that_of_outputs(method: str, reverse: bool) -> None:
    y0, controls, weight = problem()
    ends = torch.tensor([0.2, 1.4], dtype=F64)
    query = torch.cat([ends[:1], (0.2 + 1.2 * torch.rand(5, dtype=F64)).sort().values, ends[1:]])
    ends, query = (ends.flip(0), query.flip(0)) if reverse else (ends, query)
    options: Any = {"method": method, "rtol": 1e-3, "atol": 1e-4}
    if method == "rk4":
        options["step_size"] = 0.3
    factors = random(7, 4, 3)

    def outputs(y: Tensor, c: Tensor, w: Tensor) -> Tensor:
        ys = solve(driven(w), y, query, controls=c, gradient="backprop", **options).ys
        return (factors * ys).sum() + ys[-1].sin().sum()

    expected = gradients(outputs, [y0, controls, weight])
    for gradient, backend in FIELD_MODES:

        def dense(y: Tensor, c: Tensor, w: Tensor, gradient: str = gradient, backend: str = backend) -> Tensor:
            sol = solve(driven(w), y, ends, controls=c, dense=True, gradient=gradient, backend=backend, **options)
            return (factors * sol.interpolate(query)).sum() + sol.ys[-1].sin().sum()

        assert_close(gradients(dense, [y0, controls, weight]), expected)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_dense_gradient_of_unequal_and_failing_samples(backend: str) -> None:
    """Very unequal numbers of steps, one sample failing half way: dense coefficients belong to the right steps."""
    y0, weight = random(6, 2).abs(), random(2, 2, scale=0.4)
    speed = torch.tensor([0.1, 20.0, 3.0, 8.0, 150.0, 0.5], dtype=F64)[:, None]
    query = torch.rand(9, 6, dtype=F64)

    def run(gradient: str, backend: str) -> list[Tensor | None]:
        def loss(y: Tensor, c: Tensor, w: Tensor) -> Tensor:
            options: Any = {"gradient": gradient, "backend": backend, "dense": True, "on_failure": "nan"}
            options |= {"rtol": 1e-3, "atol": 1e-4}

            def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
                return torch.sin(c * t) * (y @ w) + torch.where((c > 100) & (t > 0.5), torch.inf, 0.0)

            sol = solve(field, y, [0.0, 1.0], controls=c, **options)
            assert (sol.status != 0).tolist() == [False] * 4 + [True, False]
            return torch.nan_to_num(sol.interpolate(query)).sin().sum() + torch.nan_to_num(sol.ys).sum()

        return gradients(loss, [y0, speed, weight])

    found, expected = run("checkpoint", backend), run("backprop", "auto")
    assert_close(found, expected)
    assert found[0] is not None
    assert not bool(found[0][4].any())


@pytest.mark.parametrize(("gradient", "backend"), MODES)
def test_gradient_by_the_time_of_interpolation_is_the_slope(gradient: str, backend: str) -> None:
    y0, _, weight = problem()
    sol = solve(
        lambda t, y: torch.tanh(y @ weight),
        y0.requires_grad_(),
        [0.0, 1.0],
        dense=True,
        rtol=1e-9,
        atol=1e-10,
        gradient=gradient,
    )
    t = torch.tensor([0.2, 0.55], dtype=F64, requires_grad=True)
    y = sol.interpolate(t)
    (grad,) = torch.autograd.grad(y.sum(), t)
    assert_close(grad, torch.tanh(y.detach() @ weight).sum((1, 2)), 1e-4)


# Precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_of_low_precision_gradients(dtype: torch.dtype) -> None:
    """Against the same solve in float64: no worse than backpropagation through the same operations."""
    y0, weight = random(16, 4).to(dtype), random(4, 4, scale=0.4).to(dtype)

    def run(dtype: torch.dtype, gradient: str, backend: str) -> list[Tensor]:
        def loss(y: Tensor, w: Tensor) -> Tensor:
            options: Any = {"method": "rk4", "step_size": 0.1, "gradient": gradient, "backend": backend}
            return solve(lambda t, y: torch.tanh(y @ w) - y * 0.1, y, [0.0, 1.0], **options).ys[-1].double().sum()

        return [g.double() for g in gradients(loss, [y0.to(dtype), weight.to(dtype)]) if g is not None]

    exact = run(F64, "backprop", "auto")
    plain = run(dtype, "backprop", "auto")
    for backend in (*FIELD_BACKENDS, "auto"):
        for a, b, e in zip(run(dtype, "checkpoint", backend), plain, exact, strict=True):
            floor = torch.finfo(dtype).eps * float(e.abs().max())
            assert float((a - e).abs().max()) <= 1.5 * float((b - e).abs().max()) + floor


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_gradients_of_half_precision_weights_do_not_stand_still(backend: str) -> None:
    """400 terms of one sign: summed in bfloat16 they come to 1, where the terms are less than half a rounding."""
    dtype = torch.bfloat16
    y0 = torch.zeros(1, 1, dtype=dtype)

    def loss(bias: Tensor) -> Tensor:
        field = lambda t, y: torch.zeros_like(y) + bias  # noqa: E731
        return solve(field, y0, [0.0, 1.9], method="euler", step_size=1.9 / 400, backend=backend).ys[-1].float().mean()

    (grad,) = gradients(loss, [torch.zeros(1, dtype=dtype)])
    assert grad is not None
    assert grad.dtype == dtype
    assert abs(float(grad) - 1.9) < 0.02


@pytest.mark.parametrize(("gradient", "backend"), [*FIELD_MODES, ("adjoint", "stepped")])
def test_autocast_backward_sees_what_forward_saw(gradient: str, backend: str) -> None:
    net, head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
    y0 = torch.randn(6, 4, requires_grad=True)
    kinds = set()

    def field(t: Tensor, y: Tensor) -> Tensor:
        value = net(y)
        kinds.add(value.dtype)
        return torch.tanh(value)

    def run(gradient: str, backend: str, enabled: bool) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            kept = Checkpoint(max_bytes=1) if gradient == "checkpoint" else gradient  # stages are evaluated again
            ys = solve(field, y0, [0.0, 1.0], method="rk4", step_size=0.25, gradient=kept, backend=backend).ys
            loss = head(ys[-1]).sum()
        kinds.clear()
        return list(torch.autograd.grad(loss.float(), [y0, net.weight, net.bias, head.weight]))  # outside of autocast

    mixed, full = run("backprop", "auto", True), run("backprop", "auto", False)
    found = run(gradient, backend, True)
    if gradient != "backprop":
        assert kinds == {torch.bfloat16}
    for a, m, f in zip(found, mixed, full, strict=True):
        assert a.dtype == torch.float32
        scale = float(f.abs().max())
        assert float((a - m).abs().max()) <= 1e-2 * scale
        assert float((a - f).abs().max()) <= 3e-2 * scale


# Repeatability


@pytest.mark.parametrize("gradient", ["checkpoint", Checkpoint(every=3)], ids=["1", "3"])
def test_gradients_repeat_to_the_bit_on_any_number_of_threads(gradient: Any) -> None:
    y0, controls = random(700, 130), random(700, 1).abs()  # above the size from which threads are used
    weight = random(130)

    def loss(y: Tensor, c: Tensor, w: Tensor) -> Tensor:
        field = lambda t, y, c: torch.tanh(y * w) * c  # noqa: E731
        return solve(field, y, [0.0, 0.21, 1.0], controls=c, rtol=1e-2, atol=1e-3, gradient=gradient).ys.sin().sum()

    torch.set_num_threads(1)  # the field's own sums over the batch
    results = []
    for threads in (1, 2, 3, 1):
        fastode.set_num_threads(threads)
        results.append(gradients(loss, [y0, controls, weight]))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)


def test_gradients_do_not_depend_on_the_rest_of_the_batch() -> None:
    y0, controls = random(9, 2), random(9, 2).abs() * 10

    def loss(y: Tensor, c: Tensor) -> Tensor:
        return solve(lambda t, y, c: torch.sin(c * y), y, [0.0, 0.3, 1.0], controls=c).ys.square().sum()

    together = gradients(loss, [y0, controls])
    for i in (0, 4, 8):
        alone = gradients(loss, [y0[i : i + 1], controls[i : i + 1]])
        for a, b in zip(together, alone, strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a[i : i + 1], b)  # the field is elementwise: the same bits


def test_steps_are_constants_of_the_gradient() -> None:
    """The gradient by y0 of a fixed grid and of an adaptive solve with the same steps is the same."""
    y0, _, weight = problem(1)
    field = lambda t, y: torch.tanh(y @ weight)  # noqa: E731
    plan, _ = make_problem(field, y0, [0.0, 1.0], None, "bosh3", 1e-3, 1e-4, None, None, 1000, False)
    steps = integrate(plan, lambda t, y: plan.field(t, y, []), y0, plan.field(plan.times[0], y0, []))
    grid = torch.cat([steps.t[:, 0], steps.t_next[-1:, 0]])
    (adaptive,) = gradients(
        lambda y: solve(field, y, [0.0, 1.0], method="bosh3", rtol=1e-3, atol=1e-4).ys[-1].sum(), [y0]
    )
    fixed_method = replace_embedded("bosh3")
    (fixed,) = gradients(lambda y: solve(field, y, grid, method=fixed_method).ys[-1].sum(), [y0])
    assert_close(adaptive, fixed)


def replace_embedded(name: str) -> fastode.Tableau:
    """The same method without error estimate, so that it steps from output to output."""
    tableau = fastode.TABLEAUS[name]
    s = tableau.n_stages
    return fastode.Tableau(
        f"{name} without estimate", tableau.c[:s], [tableau.a[i, :i] for i in range(s)], tableau.b, tableau.order
    )
