"""The search for events: compiled and as arrays of torch, within the solve's own steps and in windows of its own."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastode
from fastode import Event, Status
from fastode.backends.cpu.backend import CpuBackend
from fastode.backends.program_record import dense_output
from fastode.events import arrays as xp
from fastode.events.event import FlatEvents
from fastode.events.host_window import HostWindow
from fastode.events.window import NUMBERS, Start, Window
from fastode.problem import make_problem
from tests.problems import generator, largest_error, same_bits

F64 = torch.float64
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "component": lambda t, y: y[:, 0],
    "undefined on both sides": lambda t, y: (y[:, 0].abs() - 0.3).sqrt() - 0.2,
    "ends at its root": lambda t, y: torch.sqrt(y[:, 0]),
    "logarithm": lambda t, y: torch.log(y[:, 0] + 0.5),
    "jump": lambda t, y: torch.where(y[:, 0] > 0.2, 1.0, -1.0).to(y),
    "level": lambda t, y: y[:, 0] - 0.3,
    "stays zero": lambda t, y: torch.relu(y[:, 0] - 0.5),
    "two roots": lambda t, y: y[:, 0] ** 2 - 0.01,
    "time": lambda t, y: torch.sin(7 * t[:, 0]),
    "gap": lambda t, y: torch.where(y[:, 0] > 0.2, math.nan, y[:, 0] - 0.1),
    "controls": lambda t, y, c: y[:, 1] - c[1][:, 0],
}


def swing(t: Tensor, y: Tensor, c: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([y[:, 1:], -(c[0] ** 2) * y[:, :1]], 1)


@DTYPES
@pytest.mark.parametrize(
    "names", [*((name,) for name in FUNCTIONS), ("component", "jump", "controls"), ("gap", "time")]
)
def test_compiled_windows_are_those_of_arrays_to_the_last_bit(names: tuple[str, ...], dtype: torch.dtype) -> None:
    found = 0
    for seed in range(6):
        g = generator(seed)
        batch, sign = 1 + 3 * seed % 7, -1 if seed % 3 == 0 else 1
        y0 = (2 * torch.rand(batch, 2, generator=g) - 1).to(dtype)
        controls = (
            1 + 4 * torch.rand(batch, 1, generator=g).to(dtype),
            torch.rand(batch, 1, generator=g).to(dtype) - 0.5,
        )
        t = torch.stack([torch.zeros(batch), sign * (1 + 5 * torch.rand(batch, generator=g))]).double()
        parts = [1, 2, 4, 7][seed % 4]
        kinds = [{"terminal": False}, {"max_count": 2}, {}, {"terminal": False, "direction": 1}]
        events = [Event(FUNCTIONS[x], parts=parts, **kinds[(seed + i) % 4]) for i, x in enumerate(names)]
        dense = fastode.solve(swing, y0, t, controls=controls, dense=True, rtol=1e-3, backend="cpu").dense
        assert dense is not None
        plan, inputs = make_problem(swing, y0, t, controls, "dopri5", 1e-3, 1e-6, None, None, 100, False)
        flat = FlatEvents(events, plan.field, inputs.controls)
        values = torch.stack([flat.value(e, t[0], y0, inputs.controls) for e in range(len(events))], 1)
        start = Start(xp.of(values), xp.sign_of(xp.of(values)))
        counts = np.zeros((batch, len(events)), np.int64)
        alive = np.arange(batch) != 2
        with xp.quiet(), torch.no_grad():
            one, other = (
                kind(flat, dense, alive, np.full(batch, float(sign)), inputs.controls, start, counts)
                for kind in (Window, HostWindow)
            )
        for name in ("ends", "size", "fired", "jumps"):
            np.testing.assert_array_equal(getattr(other, name), getattr(one, name), name)
        np.testing.assert_array_equal(other.last.values, one.last.values)
        np.testing.assert_array_equal(other.last.signs, one.last.signs)
        if len(events) > 1:
            np.testing.assert_array_equal(other.signs_before(), one.signs_before())
        found += int(np.isfinite(one.ends).sum())
        for x, y in zip(one.records, other.records, strict=True):
            order = np.argsort(x.sample, kind="stable")
            for name in ("sample", "t", "size", "jumps"):
                np.testing.assert_array_equal(getattr(y, name), getattr(x, name)[order], name)
            states = dense(torch.from_numpy(y.t).expand(batch, -1).T)
            expected = states[torch.arange(len(y.t)), torch.from_numpy(y.sample)].double()
            assert len(y.t) == 0 or largest_error(torch.from_numpy(y.y), expected) < 64 * torch.finfo(dtype).eps
            found += len(y.t)
    assert found > 3


def test_a_dip_that_is_found_is_not_followed_further_for_the_sake_of_others() -> None:
    """The first sample's second root is within a part; the others' dips, which are looked for longer, have none."""

    def run(depths: list[float]) -> Tensor:
        controls = torch.tensor(depths, dtype=F64)[:, None]
        event = Event(lambda t, y, c: (y[:, 0] - 0.37) ** 2 - c[:, 0], terminal=False)
        sol = fastode.solve(
            lambda t, y, c: torch.ones_like(y),
            torch.zeros(len(depths), 1, dtype=F64),
            [0.0, 1.0],
            controls=controls,
            events=event,
            controller=fastode.IController(first_step=1.0),
        )
        return sol.events[0].t[0]

    alone, beside = run([1e-3]), run([1e-3, -1e-9, -1e-5])
    assert same_bits(beside, alone)
    assert largest_error(alone, 0.37 + torch.tensor([-1.0, 1.0], dtype=F64) * 1e-3**0.5) < 1e-9


# -- recorded events


CROSSING = Event(lambda t, y: y[:, 0], terminal=False)


def recorded(y0: Tensor, t: Any, w: Tensor, **options: Any) -> Any:
    return fastode.solve(swing, y0, t, controls=(w, w), **options)


@DTYPES
@pytest.mark.parametrize("backend", ["cpu", "stepped", "reference"])
def test_recorded_events_take_one_solve(backend: str, dtype: torch.dtype) -> None:
    """The solve is the one without events, to the last bit; times and states are those that come with a gradient."""
    g = generator(3)
    y0 = torch.tensor([[1e-2, 1.0]], dtype=dtype).repeat(5, 1)
    w = (1 + 3 * torch.rand(5, 1, generator=g)).to(dtype)
    starts = torch.tensor([0.0, 1.0, -2.0, 5.0, 0.5], dtype=F64)
    t = starts + torch.linspace(0, 1, 6, dtype=F64)[:, None] * torch.tensor([9.0, -7.0, 8.0, 0.0, 6.0], dtype=F64)
    free = recorded(y0, t, w, backend=backend, dense=True)
    with torch.set_grad_enabled(backend == "cpu"):  # the others do not know what the field holds
        sol = recorded(y0, t, w, backend=backend, dense=True, events=CROSSING)
    assert same_bits(sol.ys, free.ys)
    assert sol.backend == free.backend
    assert sol.status.tolist() == [0] * 5
    assert sol.stats.n_steps.tolist() == free.stats.n_steps.tolist()
    assert sol.events.search.n_steps.tolist() == [0] * 5
    assert same_bits(sol.events.t_end, t[-1])
    assert same_bits(sol.events.y_end, free.ys[-1])
    times = sol.events[0].t
    assert sol.events[0].count.tolist() == [int(n) for n in (~times.isnan()).sum(1)]
    assert int(sol.events[0].count.min()) == 0  # the empty span
    assert int(sol.events[0].count.max()) == 4
    inside = times.nan_to_num(0.0).T.clamp(t.amin(0), t.amax(0))
    at = sol.interpolate(torch.where(times.T.isnan(), t[0], inside))
    eps = torch.finfo(dtype).eps
    assert float(torch.where(times.T.isnan(), 0.0, at[..., 0]).abs().max()) < 64 * eps
    graph = recorded(y0.clone().requires_grad_(), t, w, backend=backend, events=CROSSING)
    assert sol.events[0].count.tolist() == graph.events[0].count.tolist()
    assert int(graph.events.search.n_steps.max()) > 0
    bound = 1e-4 if dtype is torch.float32 else 1e-5  # the search with windows has steps of its own
    assert largest_error(times.nan_to_num(0.0), graph.events[0].t.detach().nan_to_num(0.0)) < bound
    assert largest_error(sol.events[0].y.nan_to_num(0.0), graph.events[0].y.detach().nan_to_num(0.0)) < 10 * bound


@pytest.mark.parametrize("gradient", ["backprop", "adjoint"])
def test_recorded_events_leave_the_solve_to_its_gradient_mode(gradient: Any) -> None:
    y0, w = torch.tensor([[1e-2, 1.0]]), torch.tensor([[2.0]])
    with torch.no_grad():
        free = recorded(y0, [0.0, 2.0, 4.0], w, gradient=gradient)
        sol = recorded(y0, [0.0, 2.0, 4.0], w, gradient=gradient, events=CROSSING)
    assert same_bits(sol.ys, free.ys)
    assert sol.backend == free.backend
    assert sol.events[0].count.tolist() == [2]


def test_a_longer_solve_beside_does_not_change_recorded_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the memory of one window the values come from a solve of their own, here of the second sample's."""
    monkeypatch.setattr("fastode.events.search.NUMBERS", NUMBERS // (1 << 13))
    y0 = torch.tensor([[1e-2, 1.0], [1e-2, 1.0]], dtype=F64)
    w = torch.tensor([[1.0], [60.0]], dtype=F64)
    alone = recorded(y0[:1], [0.0, 5.0, 10.0], w[:1], events=CROSSING)
    both = recorded(y0, [0.0, 5.0, 10.0], w, events=CROSSING)
    assert alone.events.search.n_steps.tolist() == [0]
    assert int(both.events.search.n_steps.min()) > 0
    assert same_bits(both.ys[:, :1], alone.ys)
    assert both.events[0].count.tolist() == [3, math.floor((600 + math.atan(0.6)) / math.pi)]
    assert same_bits(both.events[0].t[:1, :3], alone.events[0].t)
    assert same_bits(both.events[0].y[:1, :3], alone.events[0].y)
    number = torch.arange(1, int(both.events[0].count[1]) + 1)
    assert largest_error(both.events[0].t[1], (number * math.pi - math.atan(1e-2 * 60)) / 60) < 2e-3


@DTYPES
def test_samples_that_fail_beside_recorded_events(dtype: torch.dtype) -> None:
    """y' = y^2 from 1 ends at t = 1, after y = 2 at t = 1/2; the others do not notice."""
    y0 = torch.tensor([[0.5], [1.0], [0.25]], dtype=dtype)
    event = Event(lambda t, y: y[:, 0] - 2.0 * 0.5, terminal=False)
    for backend in ("cpu", "stepped"):
        sol = fastode.solve(
            lambda t, y: y * y, y0, [0.0, 1.5], events=event, backend=backend, on_failure="nan", max_steps=500
        )
        healthy = fastode.solve(lambda t, y: y * y, y0[::2], [0.0, 1.5], events=event, backend=backend)
        assert sol.status[0] == sol.status[2] == Status.SUCCESS
        assert sol.status[1] not in (Status.SUCCESS, Status.EVENT)
        assert sol.events[0].count.tolist() == [1, 0, 0]
        assert sol.events.y_end[1].isnan().all()
        assert 0.9 < float(sol.events.t_end[1]) < 1.1
        if backend == "cpu":
            assert same_bits(sol.ys[:, ::2], healthy.ys)
            assert same_bits(sol.events[0].t[::2], healthy.events[0].t)


def test_recorded_functions_with_parameters_keep_their_gradients() -> None:
    level = torch.tensor(0.25, dtype=F64, requires_grad=True)
    event = Event(lambda t, y: y[:, 0] - level, terminal=False)
    sol = fastode.solve(lambda t, y: -y, torch.ones(2, 1, dtype=F64), [0.0, 3.0], events=event, rtol=1e-9, atol=1e-12)
    (found,) = torch.autograd.grad(sol.events[0].t.sum(), level)
    assert largest_error(found, torch.tensor(-2 / 0.25, dtype=F64)) < 1e-6


def test_derivatives_of_samples_without_a_span_beside_events() -> None:
    t0 = torch.tensor([0.0, 1.0], dtype=F64)
    t = torch.stack([t0, torch.tensor([2.0, 1.0], dtype=F64)])
    y0 = torch.tensor([[1.0], [2.0]], dtype=F64)
    sol = fastode.solve(lambda t, y: -y, y0, t, dense=True, events=Event(lambda t, y: y[:, 0] - 9.0, terminal=False))
    at = t0.clone().requires_grad_()
    (found,) = torch.autograd.grad(sol.interpolate(at[None]).sum(), at)
    assert largest_error(found, -y0[:, 0]) < 1e-3


# -- polynomials


@DTYPES
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "dopri8"])
def test_compiled_polynomials_are_those_of_single_stages(method: str, dtype: torch.dtype) -> None:
    """Leaves per sample and shared, several samples to a tile and to a chunk, one without a span."""
    g = generator(5)
    y0, k = torch.rand(19, 3, generator=g).to(dtype), torch.rand(19, 3, generator=g).to(dtype)
    weights = torch.rand(3, 3, generator=g).to(dtype)
    t = torch.stack([torch.zeros(19, dtype=F64), torch.linspace(0, 4, 19, dtype=F64)])
    field = lambda t, y, k: torch.tanh(y @ weights) * torch.sin(k * t) - k * y  # noqa: E731
    calls: list[Any] = []
    kept = fastode.backends.cpu.backend._dense_output

    def watched(*args: Any) -> Any:
        calls.append(args)
        return kept(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastode.backends.cpu.backend._dense_output", watched)
        found = fastode.solve(field, y0, t, controls=k, dense=True, method=method, backend="cpu").dense
    ((plan, capture, record, outcome, shared, sample, first),) = calls

    def evaluate(t: Tensor, y: Tensor, leaves: list[Tensor]) -> Tensor:
        return CpuBackend().evaluate(capture, t, y, shared, leaves)

    expected = dense_output(plan, evaluate, record, sample, first, outcome.stats.n_accepted, outcome.reached)
    for name in ("start", "size", "rows", "coefs"):
        assert same_bits(getattr(found, name), getattr(expected, name)), name
