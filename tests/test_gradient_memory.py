"""What the discrete adjoint remembers, recomputes and lets go; batches whose samples take very unequal steps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastode import Checkpoint, IController, solve
from tests.gradient_tools import BACKENDS, FIELD_BACKENDS, assert_close, gradients, node_of, random

F64 = torch.float64
SPACINGS = [2, 3, 7, 1000]


def unequal(batch: int = 8, fastest: float = 15.0) -> tuple[Tensor, Tensor, Tensor]:
    """y0, controls (frequencies) and a weight such that one sample takes many times the steps of the others."""
    speed = torch.linspace(0.1, 2.0, batch, dtype=F64)[:, None].repeat(1, 2)
    speed[batch // 3] = fastest
    return random(batch, 2), speed, random(2, 2, scale=0.5)


def waves(weight: Tensor) -> Callable[..., Tensor]:
    return lambda t, y, c: torch.sin(c * t) * torch.tanh(y @ weight) + torch.cos(c * t)


def grads_of(gradient: Any, backend: str, inputs: list[Tensor], **options: Any) -> list[Tensor | None]:
    def loss(y: Tensor, c: Tensor, w: Tensor) -> Tensor:
        sol = solve(waves(w), y, [0.0, 0.31, 1.0], controls=c, gradient=gradient, backend=backend, **options)
        return sol.ys.sin().sum()

    return gradients(loss, inputs)


def record_of(ys: Tensor) -> Any:
    """The compiled record of a solve on backend ``stepped``."""
    return node_of(ys).record.steps


# Fewer states


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"method": "heun3", "step_size": 0.07}, {"method": "dopri8"}])
def test_fewer_states_give_the_same_gradient(backend: str, options: dict[str, Any]) -> None:
    inputs = list(unequal())
    expected = grads_of(Checkpoint(), backend, inputs, **options)
    for every in SPACINGS if backend == "stepped" else [3]:
        assert_close(grads_of(Checkpoint(every=every), backend, inputs, **options), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("every", SPACINGS)
def test_recomputed_states_are_the_recorded_ones_to_the_bit(every: int, backend: str) -> None:
    """A field of elementwise operations gives the same bits in any batch; then so does the gradient."""
    y0, c = random(5, 3), random(5, 3).abs() * 4

    def run(gradient: Checkpoint) -> list[Tensor | None]:
        def loss(y: Tensor, c: Tensor) -> Tensor:
            field = lambda t, y, c: torch.sin(c * y + t)  # noqa: E731
            return solve(field, y, [0.0, 0.4, 1.0], controls=c, gradient=gradient, backend=backend).ys.sin().sum()

        return gradients(loss, [y0, c])

    for a, b in zip(run(Checkpoint(every=every)), run(Checkpoint()), strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", [Checkpoint(every=10**8), Checkpoint(2**62, 1), Checkpoint(10**30, 10**40)], ids=str)
def test_absurd_spacings_keep_one_state_of_each_sample(policy: Checkpoint, backend: str) -> None:
    inputs = list(unequal())
    expected = grads_of(Checkpoint(), backend, inputs)
    assert_close(grads_of(policy, backend, inputs, max_steps=10**30), expected)


def test_an_absurd_budget_keeps_all_states() -> None:
    y0, c, weight = unequal()
    field = waves(weight.requires_grad_())
    policy = Checkpoint(max_bytes=10**30)
    sol = solve(field, y0, [0.0, 1.0], controls=c, gradient=policy, backend="stepped")
    assert record_of(sol.ys).every == 1


@pytest.mark.parametrize(
    "arguments", [{"every": 0}, {"every": -1}, {"every": 2.0}, {"every": True}, {"max_bytes": 0}, {"max_bytes": "1"}]
)
def test_a_policy_takes_positive_integers(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
        Checkpoint(**arguments)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_fewer_states_with_dense_output_and_failing_samples(backend: str) -> None:
    y0, c, weight = unequal()
    c[5] = torch.nan
    query = torch.rand(4, 8, dtype=F64)

    def run(gradient: Any) -> list[Tensor | None]:
        def loss(y: Tensor, c: Tensor, w: Tensor) -> Tensor:
            options: Any = {"gradient": gradient, "backend": backend, "dense": True, "on_failure": "nan"}
            sol = solve(waves(w), y, [0.0, 1.0], controls=c, **options)
            return torch.nan_to_num(sol.interpolate(query)).sin().sum()

        return gradients(loss, [y0, c, weight])

    expected = run(Checkpoint())
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in expected)
    for every in (3, 1000):
        assert_close(run(Checkpoint(every=every)), expected)


def test_record_holds_the_accepted_steps_and_not_a_rectangle() -> None:
    """One stiff sample among many: memory follows the sum of the steps, not batch times the most steps."""
    y0, c, weight = unequal(64, 100.0)
    sol = solve(waves(weight.requires_grad_()), y0, [0.0, 1.0], controls=c, backend="stepped")
    counts = sol.stats.n_accepted
    assert int(counts.max()) > 10 * int(counts.median())
    record = record_of(sol.ys)
    assert record.steps == int(counts.sum())
    assert record.state_bytes == int(counts.sum()) * 2 * 8
    assert record.state_bytes < 0.3 * int(counts.max()) * 64 * 2 * 8
    assert record.count().tolist() == counts.tolist()


@pytest.mark.parametrize("every", SPACINGS)
def test_record_keeps_every_so_many_states(every: int) -> None:
    y0, c, weight = unequal()
    sol = solve(
        waves(weight.requires_grad_()), y0, [0.0, 1.0], controls=c, gradient=Checkpoint(every=every), backend="stepped"
    )
    rows = int((-(-sol.stats.n_accepted // every)).sum())
    assert record_of(sol.ys).state_bytes == rows * 2 * 8


@pytest.mark.parametrize("states", [8, 9, 25, 10_000])
@pytest.mark.parametrize("every", [1, 3])
def test_record_stays_within_its_budget(states: int, every: int) -> None:
    inputs = list(unequal())
    y0, c, weight = inputs
    budget = states * 2 * 8
    options: Any = {"gradient": Checkpoint(every=every, max_bytes=budget), "backend": "stepped"}
    sol = solve(waves(weight.clone().requires_grad_()), y0, [0.0, 1.0], controls=c, **options)
    record = record_of(sol.ys)
    assert record.state_bytes <= budget
    most = int(sol.stats.n_accepted.max())
    assert record.every % every == 0
    if states == 8:  # no more than the start of each sample
        assert record.every >= most
    if states == 10_000:
        assert record.every == every
    expected = grads_of(Checkpoint(), "stepped", inputs)
    assert_close(grads_of(options["gradient"], "stepped", inputs), expected)


def test_one_state_of_each_sample_is_kept_whatever_the_budget() -> None:
    inputs = list(unequal())
    y0, c, weight = inputs
    gradient = Checkpoint(max_bytes=1)
    sol = solve(
        waves(weight.clone().requires_grad_()), y0, [0.0, 1.0], controls=c, gradient=gradient, backend="stepped"
    )
    assert record_of(sol.ys).state_bytes == 8 * 2 * 8
    for backend in (*FIELD_BACKENDS, "auto"):
        assert_close(grads_of(gradient, backend, inputs), grads_of("backprop", "auto", inputs))


def test_budget_holds_when_a_sample_takes_its_first_step_late() -> None:
    """One sample is done after 20 steps before the other, after many rejections, takes its first of a few."""
    t = torch.tensor([[0.0, 0.0], [10.0, 0.5]], dtype=F64)
    c = torch.tensor([0.0, 12.0], dtype=F64)[:, None]
    y0 = torch.ones(2, 1, dtype=F64, requires_grad=True)
    controller = IController(first_step=0.5, max_step=0.5, min_factor=0.95)
    options: Any = {"controls": c, "controller": controller, "backend": "stepped", "rtol": 1e-5, "atol": 1e-6}
    field = lambda t, y, c: torch.sin(c * t) - 0.01 * y  # noqa: E731
    stats = solve(field, y0, t, **options).stats
    assert stats.n_steps[0] == stats.n_accepted[0] == 20
    assert stats.n_rejected[1] > 20
    assert stats.n_accepted[1] < 8
    sol = solve(field, y0, t, gradient=Checkpoint(max_bytes=3 * 8), **options)
    assert record_of(sol.ys).state_bytes <= 3 * 8


# Batches


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_very_unequal_numbers_of_steps(backend: str, reverse: bool) -> None:
    y0, c, weight = unequal(16, 25.0)
    t = torch.tensor([0.0, 0.11, 0.5, 1.0], dtype=F64)
    t = t.flip(0) if reverse else t
    sizes = set()

    def run(gradient: str, backend: str) -> list[Tensor | None]:
        def loss(y: Tensor, c: Tensor, w: Tensor) -> Tensor:
            def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
                sizes.add(len(y))
                return waves(w)(t, y, c)

            return solve(field, y, t, controls=c, gradient=gradient, backend=backend).ys.sin().sum()

        grads = gradients(loss, [y0, c, weight])
        sizes.clear() if gradient == "backprop" else None
        return grads

    expected = run("backprop", "auto")
    assert_close(run("checkpoint", backend), expected, 1e-9)  # step sizes differ by rounding
    assert (min(sizes) < 16) == (backend == "stepped")  # the walk backward goes on with those that have steps left


def per_sample_closure(w: Tensor, scale: Tensor) -> Callable[..., Tensor]:
    """Fails on any other number of rows."""
    return lambda t, y, c: torch.tanh(y @ w) * scale * torch.cos(c * t)


def sliced_closure(w: Tensor, scale: Tensor) -> Callable[..., Tensor]:
    """Accepts fewer rows, and gives them the values of others; at the start all rows are zero."""
    return lambda t, y, c: torch.tanh(y @ w) * scale[: len(y)] * torch.sin(c * t)


@pytest.mark.parametrize("make", [per_sample_closure, sliced_closure])
@pytest.mark.parametrize("backend", FIELD_BACKENDS)
@pytest.mark.parametrize("every", [1, 3])
def test_field_that_only_fits_the_whole_batch(make: Any, backend: str, every: int) -> None:
    y0, c, weight = unequal()
    scale = random(8, 1).abs() + 0.5

    def run(gradient: Any, backend: str) -> list[Tensor | None]:
        def loss(y: Tensor, c: Tensor, w: Tensor, s: Tensor) -> Tensor:
            sol = solve(make(w, s), y, [0.0, 0.31, 1.0], controls=c, gradient=gradient, backend=backend)
            return sol.ys.sin().sum()

        return gradients(loss, [y0, c, weight, scale])

    assert_close(run(Checkpoint(every=every), backend), run("backprop", "auto"), 1e-9)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("same_start", [False, True])
def test_field_that_couples_the_samples(backend: str, every: int, same_start: bool) -> None:
    """Fixed steps of unequal size: who has arrived stays where it is and is still seen by the others."""
    y0, c, weight = unequal(6)
    y0 = y0[:1].repeat(6, 1) if same_start else y0
    step = torch.linspace(0.06, 0.3, 6, dtype=F64)

    def run(gradient: Any, backend: str) -> list[Tensor | None]:
        def loss(y: Tensor, c: Tensor, w: Tensor) -> Tensor:
            def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
                return torch.tanh((y - y.mean(0)) @ w + 0.1 * t.sum()) * c.clamp_max(3)

            options: Any = {"method": "bosh3", "step_size": step, "gradient": gradient, "backend": backend}
            sol = solve(field, y, [0.0, 0.31, 1.0], controls=c, **options)
            assert len(set(sol.stats.n_accepted.tolist())) > 3
            return sol.ys.sin().sum()

        return gradients(loss, [y0, c, weight])

    assert_close(run(Checkpoint(every=every), backend), run("backprop", "auto"))


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
@pytest.mark.parametrize("batch", [0, 1])
def test_single_sample_and_empty_batch(backend: str, batch: int) -> None:
    y0, c = random(batch, 2), random(batch, 2)

    def loss(y: Tensor, c: Tensor) -> Tensor:
        return solve(lambda t, y, c: torch.tanh(y) * c, y, [0.0, 1.0], controls=c, backend=backend).ys.sum()

    grad_y0, grad_c = gradients(loss, [y0, c])
    assert grad_y0 is not None
    assert grad_y0.shape == (batch, 2)
    assert (grad_c is not None and bool(grad_c.any())) == (batch == 1)


def test_width_zero() -> None:
    y0, weight = random(3, 0), random(2, 2)
    grads = gradients(lambda y, w: solve(lambda t, y: y * w.sum(), y, [0.0, 1.0]).ys.sum() + 0 * w.sum(), [y0, weight])
    assert grads[0] is not None
    assert grads[0].shape == (3, 0)


# Letting go


@pytest.mark.parametrize(
    ("gradient", "backend"),
    [("checkpoint", "stepped"), ("checkpoint", "reference"), ("backprop", "auto"), ("adjoint", "stepped")],
)
@pytest.mark.parametrize("backward", [False, True])
def test_nothing_outlives_a_solve(gradient: str, backend: str, backward: bool) -> None:
    """Without the help of the garbage collector: no cycle ties the graph, the record and the field together."""

    class Field:
        def __init__(self, weight: Tensor, result: Tensor) -> None:
            self.weight, self.result = weight, result

        def __call__(self, t: Tensor, y: Tensor, c: Tensor) -> Tensor:
            return torch.tanh(y @ self.result) @ self.weight * c

    def run() -> list[weakref.ref[Any]]:
        y0, c, weight = (x.requires_grad_() for x in (random(4, 2), random(4, 2), random(2, 2)))
        field = Field(weight, weight.sin())
        options: Any = {"gradient": gradient, "backend": backend, "dense": gradient != "adjoint"}
        sol = solve(field, y0, [0.0, 1.0], controls=c, **options)
        if backward:
            sol.ys.sum().backward()
        node = node_of(sol.ys)
        held = [y0, c, weight, field, field.result, sol.ys, *([] if node is None else [node])]
        return [weakref.ref(x) for x in held]

    gc.disable()
    try:
        assert [ref() for ref in run() if ref() is not None] == []
    finally:
        gc.enable()


def test_memory_does_not_grow_with_the_number_of_solves() -> None:
    net = torch.nn.Linear(2, 2).double()

    def once() -> int:
        for _ in range(3):
            solve(
                lambda t, y: torch.tanh(net(y)), random(4, 2), [0.0, 1.0], controller=IController()
            ).ys.sum().backward()
        gc.collect()
        return sum(type(x) is Tensor for x in gc.get_objects())

    once()
    before = once()
    assert once() <= before
