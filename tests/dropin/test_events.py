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
