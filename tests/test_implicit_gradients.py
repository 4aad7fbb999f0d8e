"""Gradients through implicit and Rosenbrock methods: exact for the steps taken, by every way there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastode import Checkpoint, Event, IController, Status, solve
from fastode.backends.implicit.replay import find_steps, step_rule
from fastode.problem import make_problem
from fastode.reference import replay
from fastode.tableaus import IMPLICIT_TABLEAUS
from tests.gradient_tools import assert_close, gradients, random
from tests.stiff_problems import robertson

F64 = torch.float64
METHODS = sorted(IMPLICIT_TABLEAUS)
ADAPTIVE = [name for name in METHODS if IMPLICIT_TABLEAUS[name].is_adaptive]


def driven(weight: Tensor) -> Any:
    """A field that reads t, y, its controls and a shared weight."""

    def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(y @ weight + c * torch.sin(3 * t)) - 0.3 * y * c.square() + 0.1 * t.square()

    return field


def problem(batch: int = 3, width: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """y0, controls, weight."""
    return random(batch, width), random(batch, width, scale=0.7), random(width, width, scale=0.6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("every", [1, 2])
def test_gradcheck_of_every_method(method: str, every: int) -> None:
    y0, controls, weight = problem()
    # Inside steps, at the end of a step, at the end; one sample runs backward.
    t = torch.tensor([[0.0, 0.0, 0.1], [0.13, -0.1, 0.2], [0.3, -0.3, 0.4], [0.7, -0.65, 0.8]], dtype=F64)

    def loss(y0: Tensor, controls: Tensor, weight: Tensor) -> Tensor:
        gradient = Checkpoint(every=every)
        return solve(driven(weight), y0, t, controls=controls, method=method, step_size=0.3, gradient=gradient).ys

    inputs = tuple(x.requires_grad_() for x in (y0, controls, weight))
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-8, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("method", METHODS)
def test_backpropagation_gives_the_same_gradients_of_states_times_and_dense_output(method: str) -> None:
    y0, controls, weight = problem(4, 3)
    t = torch.tensor([0.0, 0.25, 0.6, 1.0], dtype=F64)
    query = torch.tensor([0.1, 0.5, 0.95], dtype=F64)
    scales = torch.randn(4, 4, 3, dtype=F64), torch.randn(3, 4, 3, dtype=F64)

    def loss(gradient: Any) -> Any:
        def value(y0: Tensor, t: Tensor, controls: Tensor, weight: Tensor) -> Tensor:
            sol = solve(
                driven(weight), y0, t, controls=controls, method=method, step_size=0.3, dense=True, gradient=gradient
            )
            return (sol.ys * scales[0]).sum() + (sol.interpolate(query) * scales[1]).sum()

        return value

    inputs = (y0, t, controls, weight)
    expected = gradients(loss("backprop"), inputs)
    assert_close(gradients(loss("checkpoint"), inputs), expected)
    assert_close(gradients(loss(Checkpoint(every=3)), inputs), expected)
    assert_close(gradients(loss(Checkpoint(max_bytes=1)), inputs), expected)


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p"])
def test_adaptive_gradient_is_that_of_the_frozen_steps(method: str) -> None:
    """Against finite differences of the same steps, whose size does not react to the perturbation."""
    y0, controls, weight = problem(3, 3)
    t = torch.tensor([0.0, 0.4, 1.1, 1.5], dtype=F64)
    directions = [torch.randn_like(x) for x in (y0, controls, weight)]

    def plan_of(y: Tensor, c: Tensor, w: Tensor) -> Any:
        return make_problem(driven(w), y, t, c, method, 1e-9, 1e-10, None, None, 1000, False)

    plan, _ = plan_of(y0, controls, weight)
    steps = find_steps(plan, y0, [controls], plan.field(plan.times[0], y0, [controls]))
    assert steps.n > 3

    def frozen(size: float) -> Tensor:
        moved = [x + size * d for x, d in zip((y0, controls, weight), directions, strict=True)]
        again, _ = plan_of(*moved)
        with torch.no_grad():
            field = lambda t, y: again.field(t, y, [moved[1]])  # noqa: E731
            return replay(again, field, steps, moved[0], again.times, step_rule(again))[0].sum()

    def loss(y0: Tensor, controls: Tensor, weight: Tensor) -> Tensor:
        return solve(driven(weight), y0, t, controls=controls, method=method, rtol=1e-9, atol=1e-10).ys.sum()

    e = 1e-3
    expected = (8 * (frozen(e) - frozen(-e)) - (frozen(2 * e) - frozen(-2 * e))) / (12 * e)
    found = gradients(loss, (y0, controls, weight))
    total = sum(float((g * d).sum()) for g, d in zip(found, directions, strict=True) if g is not None)
    assert abs(total - float(expected)) < 1e-8 * max(1.0, abs(float(expected)))


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p"])
def test_gradient_of_a_stiff_solve_by_its_rates(method: str) -> None:
    """Robertson's reaction with a rate over three decades: against central differences of tight solves."""
    rates = torch.tensor([[0.04, 3e7, 1e4]], dtype=F64) * torch.tensor([[0.1], [1.0], [10.0]], dtype=F64)
    y0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64).repeat(3, 1)

    def value(log_rates: Tensor) -> Tensor:
        controls = log_rates.exp()
        sol = solve(robertson, y0, [0.0, 40.0], controls=controls, method=method, rtol=1e-8, atol=1e-12)
        return sol.ys[-1, :, 2].sum()

    logs = rates.log()
    found = gradients(value, [logs])[0]
    assert found is not None
    for column in range(3):
        step = torch.zeros(3, dtype=F64)
        step[column] = 1e-3
        expected = (value(logs + step) - value(logs - step)) / 2e-3
        assert abs(float(found[:, column].sum() - expected)) < 1e-4 * float(found.abs().sum())


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p", "radauIIA5"])
def test_second_derivatives(method: str) -> None:
    y0, controls, weight = (x.requires_grad_() for x in problem(2, 2))
    t = torch.tensor([0.0, 0.5], dtype=F64)
    for gradient in ("backprop", "checkpoint"):

        def loss(y0: Tensor, controls: Tensor, weight: Tensor, gradient: Any = gradient) -> Tensor:
            return solve(driven(weight), y0, t, controls=controls, method=method, step_size=0.3, gradient=gradient).ys

        assert torch.autograd.gradgradcheck(
            loss, (y0, controls, weight), eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True
        )


def reaches(value: Tensor, leaf: Tensor) -> bool:
    """Whether the graph of a value leads to a leaf."""
    todo, seen = [value.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) is leaf:
            return True
        todo += [before for before, _ in node.next_functions]
    return False


def test_pull_backs_of_a_replayed_rosenbrock_step_end_at_its_start() -> None:
    """A source without history would make autograd walk all earlier steps: time quadratic in their number."""
    y0, controls, weight = (x.requires_grad_() for x in problem(2, 2))
    from_the_start = []

    def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
        if t.requires_grad and reaches(y, y0):  # a pull-back of the replay, not of the search for steps
            from_the_start.append(reaches(t, y0))
        return driven(weight)(t, y, c)

    solve(field, y0, [0.0, 1.0], controls=controls, method="rodas5p", gradient="backprop")
    assert len(from_the_start) > 1
    assert all(from_the_start)


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p"])
def test_gradient_of_a_sample_does_not_depend_on_its_batch(method: str) -> None:
    """Stiffness over several decades: samples leave forward, and join backward, at different steps."""
    y0 = random(9, 2)
    rate = torch.logspace(0, 5, 9, dtype=F64)[:, None]

    def field(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return -rate * (y - torch.tanh(y.flip(1) * t))

    def loss(y0: Tensor, rate: Tensor) -> Tensor:
        return solve(field, y0, [0.0, 0.5, 2.0], controls=rate, method=method).ys.square().sum()

    together = gradients(loss, (y0, rate))
    for i in (0, 4, 8):
        alone = gradients(loss, (y0[i : i + 1], rate[i : i + 1]))
        assert_close([g if g is None else g[i : i + 1] for g in together], alone, 1e-12)


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p", "gl4"])
@pytest.mark.parametrize("gradient", ["checkpoint", "backprop"])
def test_failed_samples_have_zero_gradients_and_spoil_no_other(method: str, gradient: Any) -> None:
    weight = torch.eye(2, dtype=F64)

    def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return (k * y * y - y) @ weight

    y0 = torch.ones(3, 2, dtype=F64)
    k = torch.tensor([[0.1], [float("nan")], [0.5]], dtype=F64)
    step = {} if IMPLICIT_TABLEAUS[method].is_adaptive else {"step_size": 0.1}

    def loss(y0: Tensor, k: Tensor, weight_: Tensor) -> Tensor:
        nonlocal weight
        weight = weight_
        sol = solve(field, y0, [0.0, 1.0], controls=k, method=method, on_failure="nan", gradient=gradient, **step)
        if len(y0) == 3:
            assert sol.status[1] == Status.NON_FINITE
        return sol.ys.nansum()

    found = gradients(loss, (y0, k, weight.detach()))
    good = gradients(loss, (y0[[0, 2]], k[[0, 2]], weight.detach()))
    assert found[0] is not None
    assert found[0][1].tolist() == [0.0, 0.0]
    assert_close([found[0][[0, 2]], found[1][[0, 2]], found[2]], good)  # type: ignore[index]


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p", "radauIIA3"])
def test_a_field_that_holds_tensors_per_sample(method: str) -> None:
    """Called with the whole batch in every pass; gradients of the closed-over tensor as of controls."""
    y0, controls, weight = problem(5, 2)
    rate = torch.logspace(0, 3, 5, dtype=F64)[:, None]
    step = {} if IMPLICIT_TABLEAUS[method].is_adaptive else {"step_size": 0.3}

    def closed(y0: Tensor, controls: Tensor) -> Tensor:
        field = lambda t, y: -rate * y + torch.tanh(y @ weight + controls)  # noqa: E731
        return solve(field, y0, [0.0, 1.0], method=method, **step).ys.square().sum()

    def given(y0: Tensor, controls: Tensor) -> Tensor:
        field = lambda t, y, c: -c[0] * y + torch.tanh(y @ weight + c[1])  # noqa: E731
        return solve(field, y0, [0.0, 1.0], controls=(rate, controls), method=method, **step).ys.square().sum()

    assert_close(gradients(closed, (y0, controls)), gradients(given, (y0, controls)), 1e-10)


@pytest.mark.parametrize("width", [3, 12])
def test_rosenbrock_gradient_for_narrow_and_wide_states(width: int) -> None:
    """Second derivatives by rows of the Jacobian, or by stages."""
    y0, controls, weight = (x.requires_grad_() for x in problem(2, width))
    t = torch.tensor([0.0, 0.5], dtype=F64)

    def loss(y0: Tensor, controls: Tensor, weight: Tensor) -> Tensor:
        return solve(driven(weight), y0, t, controls=controls, method="rodas5p", step_size=0.3).ys

    assert torch.autograd.gradcheck(loss, (y0, controls, weight), eps=1e-6, atol=1e-8, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p"])
def test_event_times_and_their_gradients(method: str) -> None:
    """Free fall from y0: the ground is reached at sqrt(2 y0 / g)."""
    y0 = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=F64)
    ground = Event(lambda t, y: y[:, 0], terminal=True, direction=-1)

    def when(y0: Tensor) -> Tensor:
        field = lambda t, y: torch.stack([y[:, 1], torch.full_like(y[:, 0], -9.81)], 1)  # noqa: E731
        return solve(field, y0, [0.0, 5.0], method=method, events=[ground]).events[0].t.sum()

    exact = (2 * y0[:, 0] / 9.81).sqrt()
    assert abs(float(when(y0) - exact.sum())) < 1e-9
    found = gradients(when, [y0])[0]
    assert found is not None
    assert_close(found[:, 0], 0.5 * exact / y0[:, 0], 1e-9)


def test_modes_that_do_not_go_say_so() -> None:
    y0 = torch.ones(2, 3, dtype=F64, requires_grad=True)
    with pytest.raises(ValueError, match="gradient='adjoint' needs an explicit method"):
        solve(lambda t, y: -y, y0, [0.0, 1.0], method="kvaerno5", gradient="adjoint")

    def value(y: Tensor) -> Tensor:
        return solve(lambda t, y: -y, y, [0.0, 1.0], method="kvaerno5", gradient="backprop").ys.sum()

    with pytest.raises(RuntimeError, match=r"does not run under torch\.func"):
        torch.func.grad(value)(y0.detach())


def test_fields_that_change_between_the_passes_are_noticed() -> None:
    scale = [1.0]
    y0 = torch.ones(2, 3, dtype=F64, requires_grad=True)
    ys = solve(lambda t, y: -scale[0] * y, y0, [0.0, 1.0], method="kvaerno5").ys
    scale[0] = 2.0
    with pytest.raises(RuntimeError, match="another value in the backward pass"):
        ys.sum().backward()


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p"])
def test_a_gradient_that_does_not_depend_on_the_state_or_on_time(method: str) -> None:
    """y' = c: the Jacobian is zero, and nothing of it is in any graph."""
    y0, c = random(3, 2), random(3, 2)

    def loss(y0: Tensor, c: Tensor) -> Tensor:
        first = IController(first_step=0.3)
        return solve(lambda t, y, c: c * 1.0, y0, [0.0, 2.0], controls=c, method=method, controller=first).ys[-1].sum()

    found = gradients(loss, (y0, c))
    assert_close(found, [torch.ones_like(y0), 2 * torch.ones_like(c)], 1e-13)
