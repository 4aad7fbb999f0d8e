"""odeint_event and event_fn: times, states and their gradients, in either direction."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import fastode
from tests.dropin.tools import F64, parts

INTERFACES = [
    pytest.param(fastode.odeint, id="odeint"),
    pytest.param(fastode.odeint_adjoint, id="adjoint"),
    pytest.param(partial(fastode.odeint_adjoint, adjoint_options={}), id="adjoint equation"),
]
REVERSE = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])


class Fall(nn.Module):
    """Height and speed of a stone, as a tuple or as one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.tensor(9.8, dtype=F64))

    def forward(self, t: Tensor, y: Any) -> Any:
        if isinstance(y, tuple):
            return y[1], -self.g + 0 * y[0]
        return torch.stack([y[1], -self.g + 0 * y[0]])


def start() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Height, speed, time, and the height at which the event is."""
    return tuple(torch.tensor(x, dtype=F64, requires_grad=True) for x in (10.0, 0.3, 0.2, 0.5))  # type: ignore[return-value]


def exact_event(fall: Fall, h: Tensor, v: Tensor, t0: Tensor, level: Tensor, reverse: bool) -> tuple[Tensor, ...]:
    root = torch.sqrt(v * v + 2 * fall.g * (h - level))
    dt = (v - root if reverse else v + root) / fall.g
    return t0 + dt, level + 0 * dt, v - fall.g * dt


@REVERSE
@pytest.mark.parametrize("kind", ["tuple", "tensor"])
@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("how", [{}, {"method": "rk4", "options": {"step_size": 0.01, "interp": "cubic"}}])
def test_time_and_state_and_gradients(how: dict[str, Any], interface: Any, kind: str, reverse: bool) -> None:
    fall, (h, v, t0, level) = Fall(), start()
    y0 = (h, v) if kind == "tuple" else torch.stack([h, v])
    event_t, solution = fastode.odeint_event(
        fall,
        y0,
        t0,
        event_fn=lambda t, y: y[0] - level,
        reverse_time=reverse,
        odeint_interface=interface,
        atol=1e-10,
        **how,
    )
    found = (event_t, solution[0][-1], solution[1][-1]) if kind == "tuple" else (event_t, *solution[-1])
    exact = exact_event(fall, h, v, t0, level, reverse)
    # A fixed step's cubic through its ends has an error of h^4, the adjoint equation one of its tolerance.
    bound = 1e-6 if how or "adjoint_options" in getattr(interface, "keywords", {}) else 1e-8
    inputs = [h, v, t0, fall.g, level]
    for mine, true in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-7, atol=1e-7)
        got = torch.autograd.grad(mine, inputs, retain_graph=True, allow_unused=True)
        want = torch.autograd.grad(true, inputs, retain_graph=True, allow_unused=True)
        for x, y in zip(got, want, strict=True):
            x, y = torch.zeros(()) if x is None else x, torch.zeros(()) if y is None else y
            torch.testing.assert_close(x.double(), y.double(), rtol=bound, atol=bound)


@REVERSE
def test_second_derivatives(reverse: bool) -> None:
    fall, (h, v, t0, level) = Fall(), start()
    event_t, _ = fastode.odeint_event(fall, (h, v), t0, event_fn=lambda t, y: y[0] - level, reverse_time=reverse)
    inputs = [h, v, fall.g, level]
    found = []
    for time in (event_t, exact_event(fall, h, v, t0, level, reverse)[0]):
        grads = torch.autograd.grad(time, inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square() for g in grads), inputs))
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9)


@REVERSE
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "tsit5"])
def test_values_as_torchdiffeq(method: str, reverse: bool) -> None:
    fall, (h, v, t0, level) = Fall(), start()
    how: dict[str, Any] = {"event_fn": lambda t, y: y[0] - level, "reverse_time": reverse}
    if method != "tsit5":
        how["method"] = method
    mine = fastode.odeint_event(fall, (h, v), t0, **how)
    exact = exact_event(fall, h, v, t0, level, reverse)
    torch.testing.assert_close(mine[0], exact[0], rtol=1e-7, atol=1e-7)
    if method == "dopri5":  # by others torchdiffeq misses the time by a third: its interpolants are not theirs
        theirs = torchdiffeq.odeint_event(fall, (h, v), t0, **how)
        torch.testing.assert_close(mine[0], theirs[0], rtol=1e-7, atol=1e-7)
        for x, y in zip(mine[1], theirs[1], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_first_of_several_events() -> None:
    osc = lambda t, y: torch.stack([y[1], -y[0]])  # noqa: E731
    y0 = torch.tensor([1.0, 0.0], dtype=F64)
    event_t, solution = fastode.odeint_event(
        osc, y0, torch.tensor(0.0, dtype=F64), event_fn=lambda t, y: torch.stack([y[0], y[1] + 0.5, 3.0 - t])
    )
    assert abs(float(event_t) - torch.pi / 6) < 1e-7  # y[1] = -sin t reaches -0.5 before y[0] = cos t reaches 0
    assert solution.shape == (2, 2)
    assert torch.equal(solution[0], y0)


def test_gradient_of_a_neural_field_against_differences() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    field = lambda t, y: net(y) + torch.stack([torch.cos(t) + 1.5, torch.sin(3 * t)])  # noqa: E731

    def event(t: Tensor, y: Tensor) -> Tensor:
        return y[0] ** 2 + 0.3 * y[1] - 2.0 * torch.exp(-0.1 * t)

    def crossing(y0: Tensor) -> tuple[Tensor, Tensor]:
        t0 = torch.tensor(0.0, dtype=F64)
        return fastode.odeint_event(field, y0, t0, event_fn=event, rtol=1e-11, atol=1e-13)

    y0, direction, h = torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([0.6, 0.8], dtype=F64), 1e-4
    leaf = y0.clone().requires_grad_()
    event_t, solution = crossing(leaf)
    total = 2 * event_t + solution[-1, 1]
    (grad,) = torch.autograd.grad(total, leaf)
    ahead, behind = (2 * t + s[-1, 1] for t, s in (crossing(y0 + h * direction), crossing(y0 - h * direction)))
    torch.testing.assert_close((grad * direction).sum(), ((ahead - behind) / (2 * h)).detach(), rtol=1e-6, atol=1e-8)


def test_event_functions_without_slope_have_no_gradient() -> None:
    y0 = torch.tensor([1.0], dtype=F64, requires_grad=True)
    event_t, _ = fastode.odeint_event(
        lambda t, y: -y, y0, torch.tensor(0.0, dtype=F64), event_fn=lambda t, y: torch.sign(y[0] - 0.5)
    )
    assert abs(float(event_t) - float(torch.log(torch.tensor(2.0)))) < 1e-6
    (grad,) = torch.autograd.grad(event_t, y0, allow_unused=True)
    assert grad is None or torch.equal(grad, torch.zeros_like(grad))


def test_event_at_the_start() -> None:
    event_t, solution = fastode.odeint_event(
        lambda t, y: -y, torch.tensor([1.0]), torch.tensor(0.7), event_fn=lambda t, y: y[0] - 1.0
    )
    assert float(event_t) == pytest.approx(0.7)
    assert torch.equal(solution[0], solution[1])


def test_odeint_with_an_event_function() -> None:
    y0, t = torch.tensor([1.0], dtype=F64), torch.tensor([0.0, 1.0])
    event_t, solution = fastode.odeint(lambda t, y: -y, y0, t, event_fn=lambda t, y: y[0] - 0.5)
    assert event_t.dtype == t.dtype
    assert event_t.ndim == 0
    torch.testing.assert_close(solution[-1], torch.tensor([0.5], dtype=F64), rtol=1e-6, atol=0)
    for odeint in (fastode.odeint, torchdiffeq.odeint):
        with pytest.raises(ValueError, match=r"len\(t\) == 2"):
            odeint(lambda t, y: -y, y0, torch.linspace(0, 1, 3), event_fn=lambda t, y: y[0] - 0.5)
        with pytest.raises(AssertionError):
            odeint(lambda t, y: -y, y0, t, event_fn=lambda t, y: y[0] - 0.5, method="rk4")
    how = {"step_control": "per_sample"}
    with pytest.raises(ValueError, match="per_sample"):
        fastode.odeint(lambda t, y: -y, y0, t, event_fn=lambda t, y: y[0] - 0.5, options=how)


def test_events_that_never_come() -> None:
    y0, t = torch.tensor([1.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    event = lambda t, y: y[0] + 1.0  # noqa: E731
    with pytest.raises(AssertionError, match="max_num_steps"):
        fastode.odeint(lambda t, y: -y, y0, t, event_fn=event, method="dopri5", options={"max_num_steps": 30})
    with pytest.raises(fastode.SolveError):
        fastode.odeint(lambda t, y: 0 * y, y0, t, event_fn=event)  # steps grow until the clock overflows
    with pytest.raises(RuntimeError, match="maximum number of iterations"):
        fastode.odeint(lambda t, y: -y, y0, t, event_fn=event, method="euler", options={"step_size": 1e-3})


def test_bouncing_ball() -> None:
    """torchdiffeq's use of events: the state is changed at each, and everything stays differentiable."""
    fall, (h, v, t0, _) = Fall(), start()
    bounce = torch.tensor(0.8, dtype=F64, requires_grad=True)
    t, y = t0, (h, v)
    times = []
    for _ in range(3):
        t, solution = fastode.odeint_event(fall, y, t, event_fn=lambda t, y: y[0], atol=1e-12, rtol=1e-10)
        times.append(t)
        y = (solution[0][-1] + 1e-9, -bounce * solution[1][-1])  # off the ground, or the event would be at once
    g = fall.g
    impact = torch.sqrt(v * v + 2 * g * h)
    first = t0 + (v + impact) / g
    exact = [first, first + 2 * bounce * impact / g, first + 2 * (bounce + bounce**2) * impact / g]
    for mine, true in zip(times, exact, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-7, atol=1e-7)
        got = torch.autograd.grad(mine, [h, v, g, bounce], retain_graph=True, allow_unused=True)
        want = torch.autograd.grad(true, [h, v, g, bounce], retain_graph=True, allow_unused=True)
        for x, y_ in zip(got, want, strict=True):
            assert (x is None) == (y_ is None)
            if x is not None:
                torch.testing.assert_close(x, y_, rtol=1e-6, atol=1e-6)


def test_without_gradient() -> None:
    with torch.no_grad():
        event_t, solution = fastode.odeint_event(
            Fall(), start()[:2], torch.tensor(0.0, dtype=F64), event_fn=lambda t, y: y[0]
        )
    assert not event_t.requires_grad
    assert not any(part.requires_grad for part in parts(solution))


# -- the time of the event, as odeint and odeint_adjoint give it


@REVERSE
@pytest.mark.parametrize("kind", ["tuple", "tensor"])
@pytest.mark.parametrize("interface", INTERFACES)
def test_the_time_is_differentiable_and_the_state_as_at_a_fixed_time(interface: Any, kind: str, reverse: bool) -> None:
    fall, (h, v, t0, level) = Fall(), start()
    y0 = (h, v) if kind == "tuple" else torch.stack([h, v])
    t = torch.stack([t0, t0.detach() + (-1.0 if reverse else 1.0)])
    event_t, solution = interface(fall, y0, t, event_fn=lambda t, y: y[0] - level, atol=1e-11, rtol=1e-10)
    true = exact_event(fall, h, v, t0, level, reverse)[0]
    bound = 1e-6 if "adjoint_options" in getattr(interface, "keywords", {}) else 1e-8
    inputs = [h, v, t0, fall.g, level]
    torch.testing.assert_close(event_t, true, rtol=1e-9, atol=1e-9)
    for x, y in zip(
        torch.autograd.grad(event_t, inputs, retain_graph=True), torch.autograd.grad(true, inputs), strict=True
    ):
        torch.testing.assert_close(x, y, rtol=bound, atol=bound)
    height = (solution[0] if kind == "tuple" else solution[:, 0])[-1]
    dt = float(event_t) - t0
    fixed = h + v * dt - fall.g * dt**2 / 2  # as torchdiffeq: what moves the event is left to odeint_event
    got = torch.autograd.grad(height, inputs[:4])
    for x, y in zip(got, torch.autograd.grad(fixed, inputs[:4]), strict=True):
        torch.testing.assert_close(x, y, rtol=bound, atol=bound)


def test_second_derivatives_of_the_time() -> None:
    fall, (h, v, t0, level) = Fall(), start()
    inputs = [h, v, t0, fall.g, level]
    weights = torch.arange(1.0, 6.0, dtype=F64)

    def second(time: Tensor) -> tuple[Tensor, ...]:
        first = torch.stack(torch.autograd.grad(time, inputs, create_graph=True))
        return torch.autograd.grad((first * weights).sum(), inputs, materialize_grads=True)

    want = second(exact_event(fall, h, v, t0, level, False)[0])
    for interface in (fastode.odeint, fastode.odeint_adjoint):
        t = torch.stack([t0, t0.detach() + 1.0])
        event_t, _ = interface(fall, (h, v), t, event_fn=lambda t, y: y[0] - level)
        for x, y in zip(second(event_t), want, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-7)


def test_a_parameter_of_the_event_alone() -> None:
    """Nothing else requires a gradient; and where nothing at all does, there is no graph."""
    level = torch.tensor(0.5, dtype=F64, requires_grad=True)
    y0, t = torch.tensor([1.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    for interface in (fastode.odeint, partial(fastode.odeint_adjoint, adjoint_params=())):
        event_t, _ = interface(lambda t, y: -y, y0, t, event_fn=lambda t, y: y[0] - level)
        (grad,) = torch.autograd.grad(event_t, level)
        torch.testing.assert_close(grad, torch.tensor(-2.0, dtype=F64), rtol=1e-7, atol=0)
        event_t, _ = interface(lambda t, y: -y, y0, t, event_fn=lambda t, y: y[0] - 0.5)
        assert not event_t.requires_grad


# -- resolution


@pytest.mark.parametrize(("method", "step"), [("dopri5", "first_step"), ("rk4", "step_size")])
@pytest.mark.parametrize("length", [1.0, 1e-9, 1e7])
@pytest.mark.parametrize("second", [1.0, 1e6, 1e-12])
def test_units_do_not_matter(second: float, length: float, method: str, step: str) -> None:
    """A pendulum in other units: all numbers scale; atol, in units of length, is no error in time."""

    def crossing(s: float, m: float) -> tuple[float, float]:
        field = lambda t, y: torch.stack([y[1], -torch.sin(y[0] / m) * m / s**2])  # noqa: E731
        y0 = torch.tensor([1.0 * m, 0.2 * m / s], dtype=F64)
        event_t, solution = fastode.odeint_event(
            field,
            y0,
            torch.tensor(0.0, dtype=F64),
            event_fn=lambda t, y: y[0] + 0.3 * m,
            atol=torch.tensor([1e-4 * m, 1e-4 * m / s], dtype=F64),
            rtol=1e-5,
            method=method,
            options={step: 0.05 * s},
        )
        return float(event_t) / s, float(solution[-1, 0]) / m

    (t, y), (t_ref, _) = crossing(second, length), crossing(1.0, 1.0)
    assert abs(t / t_ref - 1) < 1e-12
    assert abs(y + 0.3) < 1e-12


@pytest.mark.parametrize("how", [{}, {"method": "midpoint", "options": {"step_size": 0.1, "interp": "cubic"}}])
@pytest.mark.parametrize("t0", [0.0, 1e6, 1.7e9])
def test_the_clock_is_float64_for_a_float32_state(t0: float, how: dict[str, Any]) -> None:
    """A float32 stone falls for 0.4515 s whenever it is dropped."""
    fall = lambda t, y: torch.stack([y[1], torch.full_like(y[1], -9.81)])  # noqa: E731
    event_t, solution = fastode.odeint_event(
        fall, torch.tensor([1.0, 0.0]), torch.tensor(t0, dtype=F64), event_fn=lambda t, y: y[0], rtol=1e-6, **how
    )
    assert abs(float(event_t) - t0 - (2 / 9.81) ** 0.5) < 2e-6
    assert abs(float(solution[-1, 0])) < 1e-5


def test_a_start_at_which_one_unit_more_is_the_same_time() -> None:
    event_t, _ = fastode.odeint_event(
        lambda t, y: torch.ones_like(y) * 1e-9,
        torch.tensor([0.0]),
        torch.tensor(2.0**26),
        event_fn=lambda t, y: y[0] - 0.1,
    )
    assert float(event_t) == pytest.approx(2.0**26 + 1e8, rel=1e-6)


@pytest.mark.parametrize("how", [{}, {"method": "rk4", "options": {"step_size": 0.1}}], ids=["dopri5", "rk4"])
def test_events_at_the_start_and_undefined_ones(how: dict[str, Any]) -> None:
    y0, t = torch.tensor([1.0], dtype=F64), torch.tensor([0.5, 1.0], dtype=F64)
    event_t, solution = fastode.odeint(lambda t, y: -y, y0, t, event_fn=lambda t, y: y[0] - 1.0, **how)
    assert float(event_t) == 0.5
    assert torch.equal(solution[0], solution[1])
    with pytest.raises(ValueError, match=r"NaN at the start, t = 0\.5"):
        fastode.odeint(lambda t, y: -y, y0, t, event_fn=lambda t, y: torch.sqrt(y[0] - 2.0), **how)


@pytest.mark.parametrize("how", [{}, {"method": "rk4", "options": {"step_size": 0.7}}], ids=["dopri5", "rk4"])
@pytest.mark.parametrize("name", ["log", "power", "jump"])
def test_a_function_that_is_undefined_beyond_its_root(name: str, how: dict[str, Any]) -> None:
    event_fn, root = {
        "log": (lambda t, y: torch.log(2.0 - y[0]) + 3.0, 1 - torch.exp(torch.tensor(-3.0, dtype=F64))),
        "power": (lambda t, y: (2.0 - y[0]) ** 1.5 - 0.01, 1 - 0.01 ** (2 / 3)),
        "jump": (lambda t, y: torch.where(y[0] < 1.3, 1.0, -1e30), 0.3),
    }[name]
    y0 = torch.tensor([1.0], dtype=F64)
    event_t, _ = fastode.odeint_event(
        lambda t, y: torch.ones_like(y), y0, torch.tensor(0.0, dtype=F64), event_fn=event_fn, **how
    )
    assert abs(float(event_t) - float(root)) < 1e-12
