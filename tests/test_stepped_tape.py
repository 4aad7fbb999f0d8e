"""Backend ``stepped`` keeps the graph of small solves with fixed steps; gradients are as without."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastode import Checkpoint, Status, solve
from fastode.backends import stepped_tape
from tests.gradient_tools import assert_close, gradients, node_of, random

F32, F64 = torch.float32, torch.float64
AGAIN = Checkpoint(max_bytes=1)
"""Too small a budget for a graph."""
T = [0.0, 0.31, 0.7, 1.0]
WAYS: dict[str, dict[str, Any]] = {
    "from output to output": {"method": "rk4_classic"},
    "one stage": {"method": "euler"},
    "outputs inside steps": {"method": "euler", "step_size": 0.07},
    "cubic": {"method": "rk4_classic", "step_size": 0.07},
    "quartic": {"method": "dopri5", "step_size": 0.4},
    "to outputs": {"method": "bosh3", "step_size": 0.13, "step_to_outputs": True},
}


def waves(weight: Tensor) -> Callable[..., Tensor]:
    return lambda t, y, c: torch.sin(c * t) * torch.tanh(y @ weight) + torch.cos(c * t)


def start(dtype: torch.dtype = F64, batch: int = 5) -> list[Tensor]:
    """y0, controls and a weight."""
    return [random(batch, 2, dtype=dtype), random(batch, 2, dtype=dtype), random(2, 2, scale=0.5, dtype=dtype)]


def tape_of(ys: Tensor) -> Any:
    return node_of(ys).record.tape


def loss_of(kept: Any, used: bool, t: Any = T, **options: Any) -> Callable[..., Tensor]:
    """A loss of outputs and, with ``dense``, of values between them; ``used`` is whether the graph has to be kept."""

    def loss(y: Tensor, c: Tensor, w: Tensor) -> Tensor:
        sol = solve(waves(w), y, t, controls=c, gradient=kept, backend="stepped", **options)
        assert (tape_of(sol.ys) is not None) == used
        total = sol.ys.sin().sum()
        return total + sol.interpolate(0.45).cos().sum() if options.get("dense") else total

    return loss


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_gradients(way: str, dense: bool) -> None:
    options = {"dense": dense, **WAYS[way]}
    inputs = start()
    expected = gradients(loss_of(AGAIN, False, **options), inputs)
    assert_close(gradients(loss_of("checkpoint", True, **options), inputs), expected)


def test_backwards_in_time_from_a_repeated_start_to_a_repeated_end() -> None:
    t = [1.0, 1.0, 0.4, 0.4, 0.0, 0.0]
    for options in ({}, {"step_size": 0.3}):
        inputs = start()
        expected = gradients(loss_of(AGAIN, False, t, method="rk4_classic", **options), inputs)
        assert_close(gradients(loss_of("checkpoint", True, t, method="rk4_classic", **options), inputs), expected)


def test_float32_is_as_accurate_as_stages_computed_again() -> None:
    inputs = start(F64, 50)
    exact = gradients(loss_of(AGAIN, False, method="rk4", step_size=0.05), inputs)
    single = [x.float() for x in inputs]
    kept = gradients(loss_of("checkpoint", True, method="rk4", step_size=0.05), single)
    again = gradients(loss_of(AGAIN, False, method="rk4", step_size=0.05), single)
    for a, b, e in zip(kept, again, exact, strict=True):
        assert a is not None
        assert b is not None
        assert e is not None
        assert float((a - e).abs().max()) <= 3 * float((b - e).abs().max()) + 1e-7 * float(e.abs().max())


def test_the_field_is_not_called_again_and_the_bits_do_not_depend_on_the_gradient() -> None:
    y0, c, w = start()
    calls = 0

    def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return waves(w)(t, y, c)

    def run(y: Tensor) -> Tensor:
        return solve(field, y, T, controls=c, method="rk4_classic", backend="stepped").ys

    ys = run(y0.clone().requires_grad_())
    before = calls
    ys.sum().backward()
    assert calls == before
    assert torch.equal(ys, run(y0))


def test_the_same_bits_every_time_and_for_gradients_one_by_one() -> None:
    y0, c, w = start()
    y0.requires_grad_()
    w.requires_grad_()
    ys = solve(waves(w), y0, T, controls=c, method="rk4_classic", backend="stepped").ys
    seeds = torch.stack([torch.ones_like(ys), random(*ys.shape)])
    first, second = (torch.autograd.grad(ys, [y0, w], seed, retain_graph=True) for seed in seeds)
    again = torch.autograd.grad(ys, [y0, w], seeds[0], retain_graph=True)
    both = torch.autograd.grad(ys, [y0, w], seeds, is_grads_batched=True)
    for one, same, other, pair in zip(first, again, second, both, strict=True):
        assert torch.equal(one, same)
        assert torch.equal(torch.stack([one, other]), pair)


def test_second_derivatives() -> None:
    w = random(2, 2, scale=0.5)

    def end(y: Tensor) -> Tensor:
        return solve(lambda t, y: torch.tanh(y @ w), y, T, method="rk4_classic", backend="stepped").ys[-1]

    assert torch.autograd.gradgradcheck(end, random(2, 2).requires_grad_())


@pytest.mark.parametrize("sick", ["fails", "stands", "takes other steps", "is given other steps"])
def test_samples_that_differ_are_computed_again(sick: str) -> None:
    y0, w = random(4, 2), random(2, 2)
    t = torch.linspace(0, 1, 5, dtype=F64)[:, None].repeat(1, 4)
    step_size: Any = 0.25
    if sick == "stands":
        t[:, 1] = 0.0
    elif sick == "takes other steps":
        t[:, 1] *= 2
    elif sick == "is given other steps":
        step_size = torch.tensor([0.25, 0.1, 0.25, 0.25])

    def field(t: Tensor, y: Tensor) -> Tensor:
        value = torch.tanh(y @ w)
        return torch.where((y[:, :1] == y0[1, :1]) & (sick in ("fails", "stands")), torch.nan, value)

    leaf = y0.clone().requires_grad_()
    sol = solve(field, leaf, t, method="euler", step_size=step_size, backend="stepped", on_failure="nan")
    assert (sol.status[1] == Status.NON_FINITE) == (sick == "fails")
    assert tape_of(sol.ys) is None
    (grad,) = torch.autograd.grad(torch.nan_to_num(sol.ys).sum(), leaf)
    assert bool(torch.isfinite(grad).all())


def test_a_tensor_in_place_of_another_and_half_precision_are_computed_again() -> None:
    y0, w = random(3, 2), random(2, 2).requires_grad_()
    seen = []
    w.register_hook(seen.append)
    ys = solve(lambda t, y: torch.tanh(y @ w), y0, T, method="euler", backend="stepped").ys
    ys.sum().backward()
    assert len(seen) == 1  # a hook sees the whole gradient, once

    v = random(2, 2, dtype=F32).half().requires_grad_()
    ends = []
    for kept in ("checkpoint", AGAIN):
        ys = solve(lambda t, y: torch.tanh(y @ v), y0.half(), T, method="euler", backend="stepped", gradient=kept).ys
        ends += torch.autograd.grad(ys.sum(), v)
    assert torch.equal(*ends)


def test_what_the_field_asks_about_gradients_has_one_answer() -> None:
    """With fixed and with adaptive steps; in the loop of a user the states of a solve with gradient require one."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(y * (1.0 if y.requires_grad else 0.5))

    for options in ({"method": "rk4_classic"}, {"method": "dopri5"}, {"method": "rk4_classic", "gradient": AGAIN}):
        y0 = random(3, 2).requires_grad_()
        ys = solve(field, y0, T, backend="stepped", **options).ys
        expected = solve(lambda t, y: torch.sin(y), y0, T, backend="stepped", **options).ys
        assert torch.equal(ys, expected)
        assert_close(torch.autograd.grad(ys.sum(), y0), torch.autograd.grad(expected.sum(), y0))


def test_leaves_that_the_field_makes_and_unknown_ones() -> None:
    y0 = random(3, 2).requires_grad_()
    ys = solve(
        lambda t, y: torch.sin(y) * t.detach().clone().requires_grad_(), y0, T, method="euler", backend="stepped"
    ).ys
    ys.sum().backward()
    assert y0.grad is not None
    hidden = [torch.ones((), dtype=F64)]

    def field(t: Tensor, y: Tensor) -> Tensor:
        if float(t[0]) > 0.5:
            hidden[0] = torch.ones((), dtype=F64, requires_grad=True)
        return y * hidden[0]

    ys = solve(field, y0, T, method="euler", backend="stepped").ys
    hidden.append(hidden[0])
    with pytest.raises(RuntimeError, match=r"could not be found|another value"):
        ys.sum().backward()


def test_changes_in_place_after_the_solve() -> None:
    """Of y0 and t they do not matter; of what the field reads they are an error that says so."""
    y0, t, shift = random(3, 2), torch.tensor(T, dtype=F64), torch.ones(2, dtype=F64)
    leaf = y0.clone().requires_grad_()
    source = leaf * 1.0
    ys = solve(lambda t, y: t * y * shift, source, t, method="rk4_classic", backend="stepped").ys
    source.detach().zero_()
    t.zero_()
    (grad,) = torch.autograd.grad(ys.sum(), leaf, retain_graph=True)
    fresh = y0.clone().requires_grad_()
    expected = solve(lambda t, y: t * y * shift, fresh, T, method="rk4_classic", backend="stepped").ys
    assert_close(grad, torch.autograd.grad(expected.sum(), fresh)[0])
    shift.mul_(3)
    with pytest.raises(RuntimeError, match="another value in the backward pass"):
        torch.autograd.grad(ys.sum(), leaf)


def test_small_budgets_long_solves_and_checkpointed_regions_keep_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    y0 = random(3, 2).requires_grad_()

    def kept(n: int = 5, gradient: Any = "checkpoint") -> bool:
        times = torch.linspace(0, 1, n)
        ys = solve(lambda t, y: torch.sin(y), y0, times, method="euler", backend="stepped", gradient=gradient).ys
        return tape_of(ys) is not None

    assert kept()
    assert not kept(gradient=Checkpoint(every=2))
    assert not kept(gradient=Checkpoint(max_bytes=1000))
    with torch.autograd.graph.save_on_cpu():
        assert not kept()
    monkeypatch.setattr(stepped_tape, "_BUDGET", 30 * stepped_tape._PER_EVALUATION)
    assert kept(20)
    assert not kept(40)


def test_wide_fields_are_weighed() -> None:
    y0, wide = random(100, 2, dtype=F32).requires_grad_(), random(2, 50_000, dtype=F32)
    ys = solve(lambda t, y: torch.tanh(y @ wide) @ wide.T * 1e-6, y0, T, method="euler", backend="stepped").ys
    assert tape_of(ys) is not None
    assert tape_of(ys)._states[0].shape == y0.shape
    held = stepped_tape._held_by(tape_of(ys)._values[0][0])
    assert 100 * 50_000 * 4 <= held <= 3 * 100 * 50_000 * 4


def test_the_graph_goes_with_the_result_without_a_collection() -> None:
    net = torch.nn.Linear(2, 2)
    gc.disable()
    try:
        ys = solve(lambda t, y: torch.tanh(net(y)), random(3, 2, dtype=F32), T, method="euler", backend="stepped").ys
        tape = weakref.ref(tape_of(ys))
        ys.sum().backward()
        del ys
        assert tape() is None
    finally:
        gc.enable()
