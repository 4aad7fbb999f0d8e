"""Events: where each sample ends, what it does on the way, and the derivatives of both."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fastode
from fastode import Event, SolveError, Status
from tests.gradient_tools import BACKENDS, FIELD_MODES, MODES, assert_close, gradients
from tests.problems import assert_as_accurate, generator, largest_error, oscillator, same_bits

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def decay(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    return -k * y


RATES = torch.tensor([[0.5], [1.0], [2.0], [0.1]], dtype=torch.float64)
HALF = Event(lambda t, y: y[:, 0] - 0.5, direction=-1)


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.float64)


# -- the bouncing ball: a polynomial between bounces, so that every method of order 2 is exact up to rounding


def bounce(y0: Tensor, gravity: Tensor, restitution: Tensor, n: int, **options: Any) -> Any:
    def fall(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[:, 1], -gravity.expand(y.shape[0])], 1)

    def reflect(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[:, 0], -restitution * y[:, 1]], 1)

    ground = Event(lambda t, y: y[:, 0], direction=-1, reset=reflect, max_count=n, name="ground")
    t = options.pop("t", torch.linspace(0.0, 30.0, 16, dtype=torch.float64))
    return fastode.solve(fall, y0, t, events=[ground], **options)


def bounce_times(height: Tensor, gravity: Tensor, restitution: Tensor, n: int) -> Tensor:
    falls = torch.sqrt(2 * height / gravity)
    return torch.stack([falls * (1 + 2 * sum(restitution**k for k in range(1, i + 1))) for i in range(n)], 1)


def ball(height: Tensor) -> Tensor:
    return torch.stack([height, torch.zeros_like(height)], 1)


HEIGHTS = torch.tensor([1.0, 2.5, 0.3, 4.0], dtype=torch.float64)
GRAVITY, RESTITUTION = torch.tensor(9.81, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)


@pytest.mark.parametrize(("gradient", "backend"), [*MODES, ("adjoint", "auto")])
def test_a_ball_bounces_at_the_right_times_and_so_do_its_derivatives(gradient: str, backend: str) -> None:
    n = 6
    sol = bounce(ball(HEIGHTS), GRAVITY, RESTITUTION, n, gradient=gradient, backend=backend)
    assert_close(sol.events["ground"].t, bounce_times(HEIGHTS, GRAVITY, RESTITUTION, n))
    assert sol.events[0].count.tolist() == [n] * 4
    assert sol.status.tolist() == [Status.EVENT] * 4
    assert sol.events.ended_by.tolist() == [0] * 4
    speed = -torch.sqrt(2 * HEIGHTS * GRAVITY)[:, None] * RESTITUTION ** torch.arange(n)
    assert_close(sol.events[0].y[..., 1], speed)
    weights = torch.rand(4, n, dtype=torch.float64)

    def loss(h: Tensor, g: Tensor, e: Tensor) -> Tensor:
        events = bounce(ball(h), g, e, n, gradient=gradient, backend=backend).events
        return (weights * events[0].t).sum() + events.y_end[:, 1].square().sum()

    def expected(h: Tensor, g: Tensor, e: Tensor) -> Tensor:
        return (weights * bounce_times(h, g, e, n)).sum() + (2 * h * g * e ** (2 * n - 2)).sum()

    inputs = [HEIGHTS, GRAVITY, RESTITUTION]
    assert_close(gradients(loss, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_between_bounces(backend: str) -> None:
    """Heights between bounces, gradients of outputs with respect to what decided the bounces before them."""
    t = torch.linspace(0.0, 2.5, 9, dtype=torch.float64)

    def exact(h: Tensor, g: Tensor, e: Tensor) -> Tensor:
        at = bounce_times(h, g, e, 30)
        k = (t[:, None, None] >= at).sum(2)  # bounces so far, (T, B)
        speed = torch.sqrt(2 * h * g) * e**k
        since = t[:, None] - torch.where(
            k > 0, at.expand(9, -1, -1).gather(2, (k - 1).clamp_min(0)[..., None])[..., 0], 0.0
        )
        fallen = h - g * t[:, None] ** 2 / 2
        return torch.where(k > 0, speed * since - g * since**2 / 2, fallen)

    def loss(h: Tensor, g: Tensor, e: Tensor) -> Tensor:
        return bounce(ball(h), g, e, 30, t=t, backend=backend).ys[..., 0].square().sum()

    inputs = [HEIGHTS, GRAVITY, torch.tensor(0.9, dtype=torch.float64)]
    sol = bounce(ball(HEIGHTS), *inputs[1:], 30, t=t, backend=backend)
    assert_close(sol.ys[..., 0], exact(*inputs))
    assert sol.status.tolist() == [Status.SUCCESS] * 4
    assert_close(gradients(loss, inputs), gradients(lambda *x: exact(*x).square().sum(), inputs))


def test_a_ball_that_comes_to_rest_is_given_up() -> None:
    """Infinitely many bounces before t = 30: none hangs, and it says why."""
    sol = bounce(ball(HEIGHTS[:1]), GRAVITY, torch.tensor(0.5, dtype=torch.float64), 10**6, on_failure="nan")
    assert sol.status.tolist() == [Status.TOO_MANY_EVENTS]
    rest = torch.sqrt(2 * HEIGHTS[0] / GRAVITY) * 3
    assert_close(sol.events.t_end[0], rest)
    with pytest.raises(SolveError, match="TOO_MANY_EVENTS"):
        bounce(ball(HEIGHTS[:1]), GRAVITY, torch.tensor(0.5, dtype=torch.float64), 10**6)


# -- each sample's own end


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_sample_ends_at_its_own_event(backend: str, dtype: torch.dtype) -> None:
    t = torch.linspace(0.0, 3.0, 7, dtype=dtype)
    y0, k = ones(4, 1).to(dtype), RATES.to(dtype)
    sol = fastode.solve(decay, y0, t, controls=k, events=[HALF], backend=backend)
    exact = math.log(2.0) / RATES[:, 0]
    assert sol.status.tolist() == [Status.EVENT] * 3 + [Status.SUCCESS]
    assert sol.events.ended_by.tolist() == [0, 0, 0, -1]
    # The time is as accurate as the state is there: dt = dy / y'.
    ends = torch.cat([exact[:3], torch.tensor([3.0], dtype=torch.float64)])
    plain = fastode.solve(
        decay, y0, torch.stack([torch.zeros(4, dtype=torch.float64), ends]), controls=k, backend=backend
    )
    error = (plain.ys[1].double() - torch.exp(-RATES * ends[:, None])) / (RATES * torch.exp(-RATES * ends[:, None]))
    assert_as_accurate(sol.events.t_end, ends + error[:, 0], ends)
    truth = torch.where(torch.arange(4)[:, None] < 3, 0.5, torch.exp(-3 * RATES))
    assert_as_accurate(sol.events.y_end, plain.ys[1], truth)
    # Outputs up to the event are those of a solve without events; those after it are NaN.
    reached = t[:, None].double() <= ends
    assert bool((sol.ys[..., 0].isnan() == ~reached).all())
    free = fastode.solve(decay, y0, t, controls=k, backend=backend)
    assert_as_accurate(sol.ys[reached], free.ys[reached], torch.exp(-RATES * t.double()[:, None, None])[reached])
    assert sol.events[0].t.shape == (4, 1)
    assert sol.events[0].count.tolist() == [1, 1, 1, 0]
    assert bool(sol.events[0].t[3].isnan().all())
    assert sol.events[0].t.dtype == dtype


@pytest.mark.parametrize(("gradient", "backend"), MODES)
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_gradients_of_time_and_state_at_an_event(gradient: str, backend: str, method: str) -> None:
    """By y0, controls, start, and parameters of field and event, against closed forms, with tight tolerances."""
    t = torch.linspace(0.0, 1.0, 401 if method == "rk4" else 3, dtype=torch.float64)
    level = torch.tensor(0.4, dtype=torch.float64)
    start = torch.tensor([0.1, 0.0, -0.2, 0.3], dtype=torch.float64)
    y0 = torch.tensor([[1.0, 2.0], [1.5, -1.0], [0.8, 0.3], [2.0, 1.0]], dtype=torch.float64)
    drift = torch.tensor([0.3, -0.2], dtype=torch.float64)

    def loss(y0: Tensor, k: Tensor, start: Tensor, drift: Tensor, level: Tensor) -> Tensor:
        event = Event(lambda t, y: y[:, 0] - level * (1 + t[:, 0]))
        times = start + (4.0 - start.detach()) * t[:, None]
        sol = fastode.solve(
            lambda t, y, k: -k * y + drift * torch.tensor([0.0, 1.0], dtype=torch.float64),
            y0,
            times,
            controls=k,
            events=event,
            gradient=gradient,
            backend=backend,
            method=method,
            **TIGHT,
        )
        assert sol.status.tolist() == [Status.EVENT] * 4
        return (sol.events.t_end * torch.arange(1.0, 5.0)).sum() + sol.events.y_end[:, 1].square().sum()

    def expected(y0: Tensor, k: Tensor, start: Tensor, drift: Tensor, level: Tensor) -> Tensor:
        at = start.detach().clone()
        with torch.no_grad():
            for _ in range(60):
                x = y0[:, 0] * torch.exp(-k[:, 0] * (at - start))
                at = at - (x - level * (1 + at)) / (-k[:, 0] * x - level)
        at = at.detach()
        x = y0[:, 0] * torch.exp(-k[:, 0] * (at - start))
        at = at - (x - level * (1 + at)) / (-k[:, 0] * x - level).detach()  # the implicit function theorem
        rest = drift[1] / k[:, 0]
        y = rest + (y0[:, 1] - rest) * torch.exp(-k[:, 0] * (at - start))
        return (at * torch.arange(1.0, 5.0)).sum() + y.square().sum()

    inputs = [y0, RATES, start, drift, level]
    found, exact = gradients(loss, inputs), gradients(expected, inputs)
    for a, e in zip(found, exact, strict=True):
        assert_close(a, e, 1e-8)  # the tolerance of the solve, not that of gradients


@pytest.mark.parametrize(
    ("gradient", "backend"),
    [("checkpoint", "cpu"), *(pytest.param(*mode, marks=pytest.mark.slow) for mode in FIELD_MODES)],
)
def test_gradients_against_finite_differences(gradient: str, backend: str) -> None:
    """A chain of two kinds of events with resets and recordings, whose results have no closed form."""

    def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return torch.stack(
            [y[:, 1], -c[:, 0] * torch.sin(y[:, 0]) - c[:, 1] * y[:, 1] + 0.3 * torch.cos(2 * t[:, 0])], 1
        )

    def results(y0: Tensor, c: Tensor, wall: Tensor) -> Tensor:
        kick = Event(
            lambda t, y, c: y[:, 0] - wall * c[:, 0], direction=1, reset=lambda t, y: y * y.new_tensor([1.0, -0.7])
        )
        push = Event(
            lambda t, y: y[:, 1] + 1.2,
            reset=lambda t, y: y + torch.cat([0.1 * torch.sin(t), 0.6 + 0.1 * t], 1),
            direction=-1,
        )
        sol = fastode.solve(
            field,
            y0,
            [0.0, 1.3, 2.9, 5.0],
            controls=c,
            gradient=gradient,
            backend=backend,
            method="dopri8",
            **TIGHT,
            events=[kick, push, Event(lambda t, y: y[:, 1], terminal=False)],
        )
        assert int(sol.events[0].count.sum()) >= 3
        assert int(sol.events[1].count.sum()) >= 2
        assert int(sol.events[2].count.min()) >= 1
        parts = [x.flatten() for e in sol.events for x in (e.t, e.y)]
        found = torch.cat([sol.ys.flatten(), *parts, sol.events.y_end.flatten()]).nan_to_num(0.0)
        return (found * torch.cos(torch.arange(len(found)))).sum()

    inputs = (
        torch.tensor([[0.2, 1.5], [-0.4, 1.0], [0.5, 2.0]], dtype=torch.float64).requires_grad_(),
        torch.tensor([[1.0, 0.1], [1.5, 0.05], [2.0, 0.2]], dtype=torch.float64).requires_grad_(),
        torch.tensor(0.6, dtype=torch.float64).requires_grad_(),
    )
    assert torch.autograd.gradcheck(results, inputs, eps=1e-5, rtol=1e-4, atol=1e-6)


def test_second_derivatives_by_backpropagation_and_a_clear_refusal_elsewhere() -> None:
    n = 3
    inputs = [HEIGHTS[:2], GRAVITY, RESTITUTION]

    def second(total: Any, inputs: list[Tensor]) -> list[Any]:
        def loss(*x: Tensor) -> Tensor:
            grads = torch.autograd.grad(total(*x), x, create_graph=True)
            return sum(g.square().sum() for g in grads)  # type: ignore[return-value]

        return gradients(loss, inputs)

    def total(h: Tensor, g: Tensor, e: Tensor, gradient: str = "backprop") -> Tensor:
        events = bounce(ball(h), g, e, n, gradient=gradient).events
        return events[0].t.square().sum() + events.y_end[:, 1].sum()

    def expected(h: Tensor, g: Tensor, e: Tensor) -> Tensor:
        return bounce_times(h, g, e, n).square().sum() - (torch.sqrt(2 * h * g) * e ** (n - 1)).sum()

    assert_close(second(total, inputs), second(expected, inputs))
    with pytest.raises(RuntimeError, match="differentiated only once"):
        second(lambda *x: total(*x, gradient="checkpoint"), inputs)


def test_samples_do_not_depend_on_each_other() -> None:
    t = torch.linspace(0.0, 3.0, 7, dtype=torch.float64)
    options: dict[str, Any] = {"events": [HALF, Event(lambda t, y: y[:, 0] - 0.8, terminal=False)]}
    together = fastode.solve(decay, ones(4, 1), t, controls=RATES, **options)
    for b in range(4):
        alone = fastode.solve(decay, ones(1, 1), t, controls=RATES[b : b + 1], **options)
        assert_close(alone.ys[:, 0].nan_to_num(-1.0), together.ys[:, b].nan_to_num(-1.0))
        assert_close(alone.events.t_end[0], together.events.t_end[b])
        assert int(alone.stats.n_accepted) == int(together.stats.n_accepted[b])


def test_a_field_that_holds_tensors_per_sample_meets_the_whole_batch() -> None:
    t = torch.linspace(0.0, 3.0, 7, dtype=torch.float64)
    events = [HALF, Event(lambda t, y: y[:, 0] - 0.8, terminal=False)]
    inside = fastode.solve(lambda t, y: -RATES * y, ones(4, 1).requires_grad_(), t, events=events, backend="stepped")
    outside = fastode.solve(decay, ones(4, 1), t, controls=RATES, events=events)
    assert_close(inside.events[1].t, outside.events[1].t)
    assert_close(inside.events.t_end, outside.events.t_end)


# -- which events


@pytest.mark.parametrize("span", [1.0, -1.0])
def test_directions_and_recordings(span: float) -> None:
    """Times at which sin(w t) rises, falls, and either; rising is along the solve, also backward."""
    problem = oscillator()
    w = problem.controls["w"][:, 0]
    y0 = {"q": torch.zeros(7, 2, dtype=torch.float64), "rest": (ones(7, 2),)}
    t = torch.linspace(0.0, 10.0 * span, 5, dtype=torch.float64)
    q = lambda t, y, c: y["q"][:, 1]  # noqa: E731
    events = [Event(q, terminal=False, direction=d, name=str(d)) for d in (1, -1, 0)]
    sol = fastode.solve(problem.field, y0, t, controls=problem.controls, events=events, **TIGHT)
    assert sol.status.tolist() == [Status.SUCCESS] * 7
    number = torch.arange(1, 1 + int(10.0 * w.max() / math.pi))[:, None]
    zeros = torch.where(number * math.pi / w < 10.0, number * math.pi / w, 10.0) * span
    at_zeros = fastode.solve(
        problem.field, y0, torch.cat([t[:1, None].expand(1, 7), zeros]), controls=problem.controls, **TIGHT
    )
    error = float(((at_zeros.ys["q"][1:, :, 1]) * (zeros.abs() < 10.0) / w).abs().max())  # dt = dy / y'
    rises = 1 if span > 0 else 0  # at the start the sample is at a root, and leaves it without an event
    for b in range(7):
        at = zeros[zeros[:, b].abs() < 10.0, b]
        for name, expected in (("0", at), ("1", at[rises::2]), ("-1", at[1 - rises :: 2])):
            assert int(sol.events[name].count[b]) == len(expected)
            assert largest_error(sol.events[name].t[b, : len(expected)], expected) <= 2 * error
    free = fastode.solve(problem.field, y0, t, controls=problem.controls, **TIGHT)
    assert same_bits(sol.ys, free.ys)  # to record changes nothing


def test_max_count_without_reset() -> None:
    w = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    event = Event(lambda t, y: y[:, 0], max_count=3)
    field = lambda t, y, w: torch.cat([w * y[:, 1:], -w * y[:, :1]], 1)  # noqa: E731
    y0 = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(2, 2)
    sol = fastode.solve(field, y0, [0.0, 20.0], controls=w, events=event, **TIGHT)
    exact = math.pi * torch.arange(1, 4) / w
    at_zeros = fastode.solve(field, y0, torch.cat([torch.zeros(1, 2), exact.T]), controls=w, **TIGHT)
    error = float((at_zeros.ys[1:, :, 0] / w.T).abs().max())  # dt = dy / y'
    assert largest_error(sol.events[0].t, exact) <= 2 * error
    assert sol.status.tolist() == [Status.EVENT] * 2
    short = fastode.solve(field, y0, [0.0, 5.0], controls=w, events=event, **TIGHT)
    assert short.status.tolist() == [Status.SUCCESS, Status.EVENT]
    assert short.events[0].count.tolist() == [1, 3]


def test_the_first_terminal_event_wins() -> None:
    low, high = Event(lambda t, y: y[:, 0] + 1, name="low"), Event(lambda t, y: y[:, 0] - 1, name="high")
    slopes = torch.tensor([[1.0], [-0.5], [0.05]], dtype=torch.float64)
    sol = fastode.solve(
        lambda t, y, a: a * torch.ones_like(y),
        torch.zeros(3, 1, dtype=torch.float64),
        [0.0, 10.0],
        controls=slopes,
        events=[low, high],
    )
    assert sol.events.ended_by.tolist() == [1, 0, -1]
    assert_close(sol.events.t_end, torch.tensor([1.0, 2.0, 10.0], dtype=torch.float64))
    assert sol.events["low"].count.tolist() == [0, 1, 0]


def test_a_corner_reflects_both_components() -> None:
    """Two events at the same time are both applied, also where the solve puts one of them a little after the other."""

    def reflect(i: int) -> Event:
        flip = torch.tensor([-1.0 if j == i + 2 else 1.0 for j in range(4)], dtype=torch.float64)
        return Event(lambda t, y: 1 - y[:, i], reset=lambda t, y: y * flip, direction=-1)

    def field(t: Tensor, y: Tensor) -> Tensor:  # a solve with error, unlike straight lines
        return torch.cat([y[:, 2:] * (1 + torch.sin(3 * t)), torch.zeros_like(y[:, 2:])], 1)

    starts = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.0, 0.5, 1.0], [0.3, -0.4, 0.7, 1.4]], dtype=torch.float64)
    sol = fastode.solve(field, starts, [0.0, 2.0], events=[reflect(0), reflect(1)], rtol=1e-4, atol=1e-5)
    assert sol.events[0].count.tolist() == [1, 1, 1]
    assert sol.events[1].count.tolist() == [1, 1, 1]
    assert_close(sol.ys[-1, :, 2:], -starts[:, 2:])
    assert bool((sol.ys[-1, :, :2] < 1).all())


# -- resets: fields that switch


@pytest.mark.parametrize(("gradient", "backend"), MODES)
def test_a_thermostat(gradient: str, backend: str) -> None:
    """T' = -k T + heating; the heating is a component of the state that resets switch (a jump ODE)."""
    k = torch.tensor([[0.5], [1.0], [1.7]], dtype=torch.float64)

    def solve(k: Tensor, low: Tensor, high: Tensor, power: Tensor) -> Any:
        def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
            return torch.stack([-k[:, 0] * y[:, 0] + power * y[:, 1], torch.zeros_like(y[:, 0])], 1)

        def switch(to: float) -> Any:
            return lambda t, y: torch.stack([y[:, 0], torch.full_like(y[:, 1], to)], 1)

        events = [
            Event(lambda t, y: y[:, 0] - low, direction=-1, reset=switch(1.0)),
            Event(lambda t, y: y[:, 0] - high, direction=1, reset=switch(0.0), max_count=3),
        ]
        y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2)
        t = torch.linspace(0.0, 30.0, 4, dtype=torch.float64)
        return fastode.solve(field, y0, t, controls=k, events=events, gradient=gradient, backend=backend, **TIGHT)

    def expected(k: Tensor, low: Tensor, high: Tensor, power: Tensor) -> Tensor:
        first = -torch.log(low) / k
        up = torch.log((power / k - low) / (power / k - high)) / k
        down = torch.log(high / low) / k
        return first + up + torch.arange(3) * (up + down)

    inputs = [k, *(torch.tensor(x, dtype=torch.float64) for x in (0.4, 0.7, 3.0))]
    sol = solve(*inputs)
    assert sol.status.tolist() == [Status.EVENT] * 3
    assert_close(sol.events[1].t, expected(*inputs), 1e-8)
    weights = torch.rand(3, 3, dtype=torch.float64)
    found = gradients(lambda *x: (weights * solve(*x).events[1].t).sum(), inputs)
    assert_close(found, gradients(lambda *x: (weights * expected(*x)).sum(), inputs), 1e-7)


def test_parameters_of_modules_in_events_and_resets() -> None:
    class Level(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return y[:, 0] - self.level

    class Jump(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.target = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, t: Tensor, y: Tensor, k: Tensor) -> Tensor:
            return self.target * k

    level, jump = Level(), Jump()
    k = RATES[:3]
    sol = fastode.solve(
        decay, ones(3, 1), [0.0, 50.0], controls=k, events=Event(level, reset=jump, max_count=3), **TIGHT
    )
    exact = [-torch.log(level.level) / k[:, 0]]
    for _ in range(2):
        exact.append(exact[-1] + torch.log(jump.target * k[:, 0] / level.level) / k[:, 0])
    assert int((sol.events[0].count == 3).sum()) == 3
    assert_close(sol.events[0].t, torch.stack(exact, 1), 1e-8)
    parameters = [level.level, jump.target]
    found = torch.autograd.grad(sol.events[0].t.sum(), parameters)
    assert_close(list(found), list(torch.autograd.grad(sum(x.sum() for x in exact), parameters)), 1e-8)


# -- failures


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_field_that_explodes_after_the_event_does_no_harm(backend: str) -> None:
    y0 = torch.tensor([[1.0], [0.5], [2.0]], dtype=torch.float64)
    event = Event(lambda t, y: y[:, 0] - 10.0)
    sol = fastode.solve(lambda t, y: y * y, y0, [0.0, 5.0], events=event, backend=backend, **TIGHT)
    assert sol.status.tolist() == [Status.EVENT] * 3
    assert_close(sol.events.t_end, 1 / y0[:, 0] - 0.1, 1e-8)


@pytest.mark.parametrize(("gradient", "backend"), MODES)
def test_a_sample_that_fails_before_any_event(gradient: str, backend: str) -> None:
    y0 = torch.tensor([[1.0], [1.0], [1.0]], dtype=torch.float64)
    levels = torch.tensor([[10.0], [-1.0], [5.0]], dtype=torch.float64)
    event = Event(lambda t, y, c: y[:, 0] - c[:, 0])

    def solve(y0: Tensor, on_failure: str) -> Any:
        return fastode.solve(
            lambda t, y, c: y * y,
            y0,
            [0.0, 0.5, 5.0],
            controls=levels,
            events=event,
            on_failure=on_failure,
            gradient=gradient,
            backend=backend,
            dense=gradient == "backprop",
            max_steps=400,  # y * y has a pole, to which steps may go on for long
            **TIGHT,
        )

    with pytest.raises(SolveError) as failure:
        solve(y0, "raise")
    assert failure.value.samples == [1]
    sol = solve(y0, "nan")
    assert sol.status[[0, 2]].tolist() == [Status.EVENT] * 2
    assert int(sol.status[1]) not in (Status.SUCCESS, Status.EVENT)
    assert_close(sol.events.t_end[[0, 2]], torch.tensor([0.9, 0.8], dtype=torch.float64), 1e-8)
    assert_close(sol.ys[1, :, 0], 2 * ones(3), 1e-8)
    assert bool(sol.ys[2].isnan().all())
    assert bool(sol.events.y_end[1].isnan())

    def loss(y0: Tensor) -> Tensor:
        sol = solve(y0, "nan")
        return sol.events.t_end.sum() + sol.ys[1].sum()

    (grad,) = gradients(loss, [y0])
    assert grad is not None
    assert float(grad[1]) == 0.0
    assert_close(grad[[0, 2], 0], torch.tensor([3.0, 3.0], dtype=torch.float64), 1e-7)  # dt/dy0 = -1, dy(0.5)/dy0 = 4


def test_the_limit_on_steps_counts_the_search() -> None:
    sol = fastode.solve(
        lambda t, y: torch.cos(40 * t) * torch.ones_like(y),
        ones(1, 1),
        [0.0, 100.0],
        events=Event(lambda t, y: y[:, 0] + 9),
        max_steps=50,
        on_failure="nan",
    )
    assert sol.status.tolist() == [Status.MAX_STEPS]
    assert float(sol.events.t_end) < 100.0


# -- edges


def test_without_an_event_nothing_changes() -> None:
    t = torch.linspace(0.0, 3.0, 7, dtype=torch.float64)
    never = Event(lambda t, y: y[:, 0] + 5.0)
    for backend in BACKENDS:
        sol = fastode.solve(decay, ones(4, 1), t, controls=RATES, events=never, backend=backend, dense=True)
        free = fastode.solve(decay, ones(4, 1), t, controls=RATES, backend=backend, dense=True)
        assert same_bits(sol.ys, free.ys)
        assert same_bits(sol.interpolate(0.7), free.interpolate(0.7))
        assert sol.status.tolist() == [Status.SUCCESS] * 4
        assert same_bits(sol.stats.n_accepted, free.stats.n_accepted)
        assert sol.events[0].t.shape == (4, 0)
        assert same_bits(sol.events.y_end, free.ys[-1])


def test_events_at_outputs_at_the_end_and_at_the_start() -> None:
    line = lambda t, y: torch.ones_like(y)  # noqa: E731
    y0 = torch.zeros(1, 1, dtype=torch.float64)
    at = lambda level: Event(lambda t, y: y[:, 0] - level)  # noqa: E731
    sol = fastode.solve(line, y0, [0.0, 0.1, 0.3, 0.7, 1.0], events=at(0.3))
    assert_close(sol.ys[2, 0, 0], torch.tensor(0.3, dtype=torch.float64))  # the state at the event
    assert sol.ys.isnan()[:, 0, 0].tolist() == [False, False, False, True, True]
    by_time = fastode.solve(line, y0, [0.0, 1 / 3, 1.0], events=Event(lambda t, y: t[:, 0] - 1 / 3))
    assert sol.status.tolist() == by_time.status.tolist() == [Status.EVENT]
    assert by_time.ys.isnan()[:, 0, 0].tolist() == [False, False, True]
    end = fastode.solve(line, y0, [0.0, 1.0], events=Event(lambda t, y: t - 1.0))
    assert end.status.tolist() == [Status.EVENT]
    assert float(end.events.t_end) == 1.0
    start = fastode.solve(line, y0, [0.0, 1.0], events=at(0.0))  # leaves the root: no event
    assert start.status.tolist() == [Status.SUCCESS]
    back = fastode.solve(lambda t, y: torch.cos(2 * t), y0, [0.0, 3.0], events=at(0.0), **TIGHT)
    assert_close(back.events.t_end, torch.tensor([math.pi / 2], dtype=torch.float64), 1e-8)
    with_reset = fastode.solve(line, y0, [0.0, 0.5, 1.0], events=Event(lambda t, y: t - 0.5, reset=lambda t, y: y + 10))
    assert_close(with_reset.ys[:, 0, 0], torch.tensor([0.0, 0.5, 11.0], dtype=torch.float64))


def test_no_time_to_solve() -> None:
    for t in ([0.5], [0.5, 0.5]):
        sol = fastode.solve(decay, ones(4, 1), t, controls=RATES, events=HALF)
        assert sol.status.tolist() == [Status.SUCCESS] * 4
        assert same_bits(sol.ys, ones(len(t), 4, 1))
        assert same_bits(sol.events.y_end, ones(4, 1))


def test_a_start_near_the_last_event() -> None:
    """A bounce that is over within a tiny part of the first step is found."""
    gravity = torch.tensor(9.81, dtype=torch.float64)
    y0 = torch.tensor([[0.0, 1e-7], [0.0, 1e-3], [1.0, 0.0]], dtype=torch.float64)
    sol = bounce(y0, gravity, RESTITUTION, 1, t=[0.0, 3.0], controller=fastode.IController(first_step=1.0))
    assert_close(sol.events.t_end, torch.stack([2e-7 / gravity, 2e-3 / gravity, torch.sqrt(2 / gravity)]), 1e-13)


def test_two_crossings_within_one_step_are_found() -> None:
    """Between points with the same sign a parabola shows the dip; not where there is no point in between."""
    y0 = torch.zeros(3, 1, dtype=torch.float64)
    centre = torch.tensor([[0.52], [0.11], [0.97]], dtype=torch.float64)
    for half in (0.02, 1e-3):
        fn = lambda t, y, c: (y - c)[:, 0] ** 2 - half**2  # noqa: B023, E731
        for parts in (1, 2, 4, 9):
            event = Event(fn, terminal=False, parts=parts)
            sol = fastode.solve(
                lambda t, y, c: torch.ones_like(y), y0, [0.0, 1.0], controls=centre, events=event, method="rk4"
            )
            assert sol.events[0].count.tolist() == [0 if parts == 1 else 2] * 3
            if parts > 1:
                assert_close(sol.events[0].t, torch.cat([centre - half, centre + half], 1), 1e-12)


def test_more_parts_find_a_narrow_pulse() -> None:
    """A pulse of width 0.02 in a step of size 1, of which no interpolation tells: found by points near enough."""
    y0 = torch.zeros(1, 1, dtype=torch.float64)
    pulse = lambda t, y: torch.where((y - 0.613).abs() < 0.01, 1.0, -1.0)[:, 0]  # noqa: E731
    solve = lambda **options: fastode.solve(  # noqa: E731
        lambda t, y: torch.ones_like(y), y0, [0.0, 1.0], **options
    )
    missed = solve(events=Event(pulse, terminal=False), method="rk4")
    assert missed.events[0].count.tolist() == [0]
    for found in (
        solve(events=Event(pulse, terminal=False, parts=100), method="rk4"),
        solve(events=Event(pulse, terminal=False), controller=fastode.IController(max_step=0.04)),
    ):
        assert_close(found.events[0].t, torch.tensor([[0.603, 0.623]], dtype=torch.float64))


def test_a_solution_that_only_touches_has_no_derivative_there() -> None:
    y0 = torch.zeros(1, 1, dtype=torch.float64).requires_grad_()
    sol = fastode.solve(
        lambda t, y: 2 * (1 - t), y0, [0.0, 2.0], events=Event(lambda t, y: y[:, 0] - 1.0), method="rk4", step_size=0.5
    )
    assert sol.status.tolist() == [Status.EVENT]
    (grad,) = torch.autograd.grad(sol.events.t_end.sum(), y0)
    assert_close(sol.events.t_end, ones(1))
    assert float(grad) == 0.0


def test_dense_output_up_to_the_event() -> None:
    sol = bounce(ball(HEIGHTS), GRAVITY, RESTITUTION, 2, dense=True)
    t = sol.events[0].t
    inside = torch.stack([t[:, 0] * 0.5, t.mean(1)])
    value = sol.interpolate(inside)
    assert_close(value[0, :, 0], HEIGHTS - GRAVITY * inside[0] ** 2 / 2)
    since = inside[1] - t[:, 0]
    assert_close(value[1, :, 0], RESTITUTION * torch.sqrt(2 * HEIGHTS * GRAVITY) * since - GRAVITY * since**2 / 2)
    assert bool(sol.interpolate(29.0).isnan().all())

    def loss(h: Tensor) -> Tensor:
        return bounce(ball(h), GRAVITY, RESTITUTION, 2, dense=True).interpolate(inside.detach())[1, :, 0].sum()

    def expected(h: Tensor) -> Tensor:
        since = inside[1] - torch.sqrt(2 * h / GRAVITY)
        return (RESTITUTION * torch.sqrt(2 * h * GRAVITY) * since - GRAVITY * since**2 / 2).sum()

    assert_close(gradients(loss, [HEIGHTS]), gradients(expected, [HEIGHTS]))


def test_under_no_grad_and_inference_mode() -> None:
    expected = fastode.solve(decay, ones(4, 1), [0.0, 3.0], controls=RATES, events=HALF)
    with torch.no_grad():
        sol = fastode.solve(decay, ones(4, 1).requires_grad_(), [0.0, 3.0], controls=RATES, events=HALF)
    assert not sol.events.t_end.requires_grad
    with torch.inference_mode():
        inside = fastode.solve(decay, ones(4, 1), [0.0, 3.0], controls=RATES * 1, events=HALF)
    assert same_bits(sol.events.t_end, expected.events.t_end)
    assert same_bits(inside.events.t_end.clone(), expected.events.t_end)


def test_under_compile_the_solve_is_a_break_of_the_graph() -> None:
    @torch.compile(backend="eager")
    def end(k: Tensor) -> Tensor:
        sol = fastode.solve(decay, ones(4, 1), [0.0, 3.0], controls=2 * k, events=HALF)
        return sol.events.t_end * 2

    k = RATES.clone().requires_grad_()
    value = end(k)
    expected = 2 * fastode.solve(decay, ones(4, 1), [0.0, 3.0], controls=2 * k, events=HALF).events.t_end
    assert same_bits(value.detach(), expected.detach())
    assert_close(torch.autograd.grad(value.sum(), k)[0], torch.autograd.grad(expected.sum(), k)[0])


@pytest.mark.parametrize("gradient", ["checkpoint", "backprop"])
def test_transforms_are_refused(gradient: str) -> None:
    def end(y: Tensor) -> Tensor:
        return fastode.solve(lambda t, y: -y, y, [0.0, 3.0], events=HALF, gradient=gradient).events.t_end.sum()

    with pytest.raises(RuntimeError, match="events"):
        torch.func.grad(end)(ones(2, 1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Event(3), TypeError, "fn must be a callable"),
        (lambda: Event(nn.Module), TypeError, "fn must be a callable"),
        (lambda: Event(len, reset=0.8), TypeError, "reset must be a callable"),
        (lambda: Event(len, direction=2), ValueError, "direction"),
        (lambda: Event(len, direction=True), ValueError, "direction"),
        (lambda: Event(len, terminal=3), TypeError, "max_count"),
        (lambda: Event(len, max_count=0), ValueError, "max_count must be at least 1"),
        (lambda: Event(len, max_count=1.5), TypeError, "max_count must be an integer"),
        (lambda: Event(len, parts=0), ValueError, "parts must be at least 1"),
        (lambda: Event(len, parts=None), TypeError, "parts must be an integer"),
        (lambda: Event(len, name=3), TypeError, "name"),
        (lambda: Event(len, terminal=True, reset=len), ValueError, "never be applied"),
    ],
)
def test_wrong_events(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("events", "error", "message"),
    [
        ([], ValueError, "at least one"),
        ([lambda t, y: y], TypeError, "must be an Event"),
        (lambda t, y: y[:, 0], TypeError, "must be an Event"),
        ([Event(len, name="a"), Event(len, name="a")], ValueError, "must differ"),
        (Event(lambda t, y: y), ValueError, "one number per sample"),
        (Event(lambda t, y: y.sum()), ValueError, "one number per sample"),
        (Event(lambda t, y: y[:, 0] > 0), TypeError, "floating tensor"),
        (Event(lambda t, y: 1.0), TypeError, "floating tensor"),
        (Event(lambda t, y: y[:, 0] - y.mean(), name="mean"), ValueError, "event 'mean' does not give each sample"),
        (Event(lambda t, y: y[:, 0] - RATES[:, 0]), ValueError, "must come in through controls"),
        (Event(lambda t, y: t - 0.1, reset=lambda t, y: y[:, 0]), ValueError, "reset of event 0 must have shape"),
        (Event(lambda t, y: t - 0.1, reset=lambda t, y: y.float()), TypeError, "state's dtype"),
        (Event(lambda t, y: t - 0.1, reset=lambda t, y: (y, y)), TypeError, "must consist of tensors"),
    ],
)
def test_wrong_arguments(events: Any, error: type[Exception], message: str) -> None:
    y0 = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.5, 0.1], [2.0, 0.7]], dtype=torch.float64)
    with pytest.raises(error, match=message):
        fastode.solve(lambda t, y: -y, y0, [0.0, 1.0], events=events)


def test_a_reset_to_infinity_fails_the_sample_alone() -> None:
    event = Event(lambda t, y: y[:, 0] - 0.5, reset=lambda t, y, k: y / (k - 1.0))
    sol = fastode.solve(decay, ones(4, 1), [0.0, 3.0], controls=RATES, events=event, on_failure="nan")
    assert sol.status.tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS, Status.SUCCESS]


@given(
    w=st.lists(st.floats(0.2, 8.0), min_size=1, max_size=5),
    phase=st.floats(-3.0, 3.0),
    level=st.floats(-0.9, 0.9),
    direction=st.sampled_from([-1, 0, 1]),
    span=st.sampled_from([6.0, -6.0]),
    per_sample=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_random_oscillators(
    w: list[float], phase: float, level: float, direction: int, span: float, per_sample: bool, dtype: torch.dtype
) -> None:
    """x = sin(w t + phase) crosses a level at known times; a sample ends at the first, or goes through all of them."""
    rates = torch.tensor(w, dtype=torch.float64)
    batch = len(w)
    y0 = torch.tensor([[math.sin(phase), math.cos(phase)]], dtype=torch.float64).expand(batch, 2).to(dtype)
    starts = (
        torch.linspace(-1.0, 1.0, batch, dtype=torch.float64) if per_sample else torch.zeros(batch, dtype=torch.float64)
    )
    t = torch.stack([starts, starts + span])
    field = lambda t, y, w: torch.stack([w * y[:, 1], -w * y[:, 0]], 1)  # noqa: E731
    fn = lambda t, y: y[:, 0] - level  # noqa: E731
    tolerances = {"rtol": 1e-5, "atol": 1e-7} if dtype is torch.float32 else TIGHT
    far = abs(math.sin(phase) - level) > 1e-3  # a start at a root up to rounding is neither
    controls = rates.to(dtype)
    events = [Event(fn, terminal=False, direction=direction)]
    sol = fastode.solve(field, y0, t, controls=controls, events=events, **tolerances)
    first = fastode.solve(field, y0, t, controls=controls, events=Event(fn, direction=direction), **tolerances)
    bound = (2e-3 if dtype is torch.float32 else 1e-7) / math.sqrt(1 - level**2)
    if not far:
        return
    for b in range(batch):
        sign = math.copysign(1.0, span)
        turns = range(-20, 21)
        up = [(math.asin(level) + 2 * math.pi * n - phase) / w[b] for n in turns]
        down = [(math.pi - math.asin(level) + 2 * math.pi * n - phase) / w[b] for n in turns]
        wanted = up + down if direction == 0 else up if direction * sign > 0 else down
        inside = sorted((x for x in wanted if 0 < x * sign < abs(span)), key=abs)
        if any(abs(x * sign - abs(span)) < bound for x in wanted):
            continue  # at the end, which side it falls on is a matter of rounding
        found = sol.events[0].t[b, : int(sol.events[0].count[b])].double() - starts[b]
        expected = torch.tensor(inside, dtype=torch.float64)
        assert len(found) == len(expected)
        assert largest_error(found, expected) <= bound
        assert int(first.events.ended_by[b]) == (0 if inside else -1)
        if inside:
            assert abs(float(first.events.t_end[b]) - float(starts[b]) - inside[0]) <= bound


@pytest.mark.parametrize("limit", [None, 10**6])
def test_many_samples_many_windows(limit: int | None) -> None:
    """Enough steps for several windows of the search, which there are where an event may end, and events in each."""
    w = 1.0 + 9.0 * torch.rand(50, 1, dtype=torch.float64, generator=generator(4))
    field = lambda t, y, w: torch.cat([w * y[:, 1:], -w * y[:, :1]], 1)  # noqa: E731
    y0 = torch.tensor([[1e-3, 1.0]], dtype=torch.float64).expand(50, 2)
    event = Event(lambda t, y: y[:, 0], terminal=False, max_count=limit)
    sol = fastode.solve(field, y0, [0.0, 20.0], controls=w, events=event, **TIGHT)
    phase = math.atan(1e-3)
    expected = torch.floor((20.0 * w[:, 0] + phase) / math.pi).long()
    assert sol.events[0].count.tolist() == expected.tolist()
    number = torch.arange(1, int(expected.max()) + 1)
    times = torch.where(number <= expected[:, None], (number * math.pi - phase) / w, torch.nan)
    assert_close(sol.events[0].t.nan_to_num(-1.0), times.nan_to_num(-1.0), 1e-7)
    assert int((sol.stats if limit is None else sol.events.search).n_steps.max()) > 200
