"""Times of events: the resolution of the clock whatever the state's dtype, and functions that are not smooth."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastode
from fastode import Event, Status
from tests.gradient_tools import assert_close
from tests.problems import generator, same_bits

G = 9.81
F64 = torch.float64
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "stepped"])


def fall(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[:, 1], torch.full_like(y[:, 1], -G)], 1)


def ground(n: int, floor: float = 0.0, restitution: float = 0.8) -> Event:
    return Event(
        lambda t, y: y[:, 0] - floor,
        direction=-1,
        reset=lambda t, y: torch.stack([y[:, 0], -restitution * y[:, 1]], 1),
        max_count=n,
    )


def bounces(height: Tensor, n: int, restitution: float = 0.8) -> Tensor:
    first = torch.sqrt(2 * height / G)
    return torch.stack([first * (1 + 2 * sum(restitution**k for k in range(1, i + 1))) for i in range(n)], 1)


@pytest.fixture(params=["compiled", "torch"])
def kind_of_arrays(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search by compiled code, and on arrays of torch as on devices other than the CPU."""
    if request.param == "torch":
        monkeypatch.setattr(fastode.events.arrays, "of", lambda x: x.detach())


# -- the clock


@DTYPES
@BACKENDS
@pytest.mark.parametrize("start", [1e6, -1e6, 1.7e9])
@pytest.mark.parametrize("span", [5.0, -5.0])
def test_a_ball_bounces_whenever_it_is_dropped(start: float, span: float, dtype: torch.dtype, backend: str) -> None:
    """Also backward in time, which a fall from rest looks like forward; at 1.7e9 the clock resolves 2.4e-7."""
    heights = torch.tensor([1.0, 0.3, 2.5], dtype=F64)
    y0 = torch.stack([heights, torch.zeros_like(heights)], 1).to(dtype)
    t = torch.tensor([start, start + span], dtype=F64)
    sol = fastode.solve(fall, y0, t, events=ground(4), rtol=1e-6, atol=1e-7, backend=backend)
    assert sol.status.tolist() == [Status.EVENT] * 3
    bound = (1e-5 if dtype is torch.float32 else 1e-9) + 16 * torch.finfo(F64).eps * abs(start)
    found = (sol.events[0].t - start) * math.copysign(1.0, span)
    assert float((found - bounces(heights, 4)).abs().max()) < bound
    assert float(sol.events.y_end[:, 0].abs().max()) < 1e-4


@pytest.mark.parametrize("floor", [0.0, 0.7])
@pytest.mark.parametrize("start", [0.0, 1e6])
def test_a_float32_ball_that_comes_to_rest_is_given_up(start: float, floor: float) -> None:
    y0 = torch.tensor([[1.0 + floor, 0.0]])
    t = torch.tensor([start, start + 30.0], dtype=F64)
    sol = fastode.solve(fall, y0, t, events=ground(10**6, floor, 0.5), on_failure="nan")
    assert sol.status.tolist() == [Status.TOO_MANY_EVENTS]
    assert abs(float(sol.events.t_end) - start - 3 * math.sqrt(2 / G)) < 1e-3


def test_gradients_at_a_large_time() -> None:
    """They are those at time zero, of times and states, through three bounces."""
    heights = torch.tensor([1.0, 2.0], dtype=F64)
    found = []
    for start in (0.0, 1e6):
        h = heights.clone().requires_grad_()
        t = torch.tensor([start, start + 5.0], dtype=F64)
        y0 = torch.stack([h, torch.zeros_like(h)], 1)
        events = fastode.solve(fall, y0, t, events=ground(3)).events
        total = (events[0].t * torch.arange(1.0, 4.0)).sum() + events.y_end[:, 1].square().sum()
        found.append(torch.autograd.grad(total, h)[0])
    assert_close(found[1], found[0], 1e-8)


@DTYPES
@pytest.mark.parametrize("start", [0.0, 1e6])
def test_an_event_at_an_output_time(start: float, dtype: torch.dtype) -> None:
    """The output there has the state before the reset, whichever way rounding goes."""
    rates = torch.tensor([[1.0], [0.5], [0.25]], dtype=dtype)
    t = torch.tensor([start, start + 0.5, start + 1.0, start + 1.5], dtype=F64)
    event = Event(lambda t, y, k: y[:, 0] - 0.5 * k[:, 0], reset=lambda t, y: y + 10)
    sol = fastode.solve(
        lambda t, y, k: k * torch.ones_like(y), torch.zeros(3, 1, dtype=dtype), t, controls=rates, events=event
    )
    exact = rates * torch.tensor([0.0, 0.5, 1.0, 1.5], dtype=dtype) + torch.tensor([0.0, 0.0, 10.0, 10.0], dtype=dtype)
    assert_close(sol.ys[..., 0].T, exact, 1e-5 if dtype is torch.float32 else 1e-9)
    assert_close(
        (sol.events[0].t - start)[:, 0], torch.full((3,), 0.5, dtype=F64), 1e-6 if dtype is torch.float32 else 1e-9
    )


@pytest.mark.parametrize("second", [1e-12, 1e9])
def test_units_of_time_do_not_matter(second: float) -> None:
    def crossing(s: float) -> Tensor:
        y0 = torch.tensor([[1.0, 0.2 / s], [0.4, 0.9 / s]], dtype=F64)
        sol = fastode.solve(
            lambda t, y: torch.stack([y[:, 1], -torch.sin(y[:, 0]) / s**2], 1),
            y0,
            [0.0, 10.0 * s],
            events=Event(lambda t, y: y[:, 0] + 0.3),
            atol=torch.tensor([1e-6, 1e-6 / s], dtype=F64),
            controller=fastode.IController(first_step=0.01 * s),
        )
        return sol.events.t_end / s

    assert_close(crossing(second), crossing(1.0), 1e-12)


# -- functions that are not smooth


def rise(t: Tensor, y: Tensor) -> Tensor:
    return torch.ones_like(y)


def cut(y: Tensor, at: float, before: Tensor | float, after: Tensor | float) -> Tensor:
    return torch.where(y < at, before, torch.as_tensor(after, dtype=y.dtype))


UNEVEN: dict[str, tuple[Callable[[Tensor], Tensor], list[float]]] = {
    "log": (lambda y: torch.log(2.0 - y) + 3.0, [2 - math.exp(-3.0)]),
    "log just before": (lambda y: torch.log(2.0 - y) + 20.0, [2 - math.exp(-20.0)]),
    "power": (lambda y: (2.0 - y) ** 1.5 - 0.01, [2 - 0.01 ** (2 / 3)]),
    "root at the end of definition": (lambda y: torch.sqrt(2.0 - y), [2.0]),
    "power without root": (lambda y: torch.sqrt(2.0 - y) + 1e-3, []),
    "undefined at first": (lambda y: torch.sqrt(y - 1.3) - 0.5, [1.55]),
    "undefined at first, root soon after": (lambda y: torch.sqrt(y - 1.3) - 1e-3, [1.3 + 1e-6]),
    "undefined some way beyond": (lambda y: cut(y, 1.5, 1 - y / 1.2, math.nan), [1.2]),
    "a gap with the same sign": (lambda y: torch.where((y - 1.6).abs() < 0.2, math.nan, 2 - y), [2.0]),
    "a gap with the root": (lambda y: torch.where((y - 1.8).abs() < 0.3, math.nan, 2 - y), [2.1]),
    "undefined at one point": (lambda y: (y - 1.5) / (y - 1.5).abs(), [1.5]),
    "minus infinity": (lambda y: cut(y, 1.7, 1.0, -math.inf), [1.7]),
    "infinity at first": (lambda y: cut(y, 1.7, math.inf, -1.0), [1.7]),
    "jump": (lambda y: cut(y, 1.3, 1.0, -1e-3), [1.3]),
    "jump against the slope": (lambda y: cut(y, 1.3, y, -1.0), [1.3]),
    "jump with a slope that leads astray": (lambda y: cut(y, 1.3, 2.3 - y, -0.5), [1.3]),
    "pole": (lambda y: 1 / (1.4 - y), [1.4]),
    "steps": (lambda y: 3.5 - torch.floor(10 * (y - 1.0)), [1.4]),
    "stays zero": (lambda y: torch.relu(1.37 - y), [1.37]),
    "zero at first": (lambda y: torch.relu(y - 1.37), []),
    "always zero": (lambda y: 0 * y, []),
    "flat root": (lambda y: (1.6 - y) ** 3, [1.6]),
    "two roots": (lambda y: (y - 1.52) ** 2 - 1e-4, [1.51, 1.53]),
    "narrow dip": (lambda y: 1 - 1.1 / (1 + ((y - 1.6) / 0.1) ** 2), [1.6 - 0.1 * 0.1**0.5, 1.6 + 0.1 * 0.1**0.5]),
}
LOOSE = {"flat root": 1e-4}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("name", UNEVEN)
@pytest.mark.usefixtures("kind_of_arrays")
def test_functions_that_are_not_smooth(name: str, terminal: bool, backward: bool) -> None:
    """The time is that at which the sign changes, and it is recorded once."""
    fn, roots = UNEVEN[name]
    y0 = torch.ones(2, 1, dtype=F64)
    start = torch.tensor([1.0, 3.0], dtype=F64)
    sign = -1.0 if backward else 1.0
    t = torch.stack([start, start + sign * 1.5])
    field = (lambda t, y: -torch.ones_like(y)) if backward else rise
    event = Event(lambda t, y: fn(y)[:, 0], terminal=terminal)
    # Points at which the function is zero by chance are of no help: steps of size 0.35.
    sol = fastode.solve(field, y0, t, events=event, controller=fastode.IController(first_step=0.3, max_step=0.35))
    expected = roots[:1] if terminal else roots
    bound = LOOSE.get(name, 1e-12)
    assert sol.events[0].count.tolist() == [len(expected)] * 2
    for b in range(2):
        found = 1.0 + sign * (sol.events[0].t[b] - start[b])
        if expected:
            assert_close(found, torch.tensor(expected, dtype=F64), bound)
    if terminal and roots:
        assert sol.status.tolist() == [Status.EVENT] * 2


def test_a_jump_has_no_derivative_and_a_root_beside_undefined_values_has_one() -> None:
    def grad(fn: Any, gradient: str) -> Tensor:
        y0 = torch.ones(1, 1, dtype=F64, requires_grad=True)
        sol = fastode.solve(rise, y0, [0.0, 1.5], events=Event(lambda t, y: fn(y)[:, 0]), gradient=gradient)
        (found,) = torch.autograd.grad(sol.events.t_end.sum() + 0 * y0.sum(), y0)
        return found

    for gradient in ("checkpoint", "backprop"):
        for name in ("log", "power", "minus infinity", "jump with a slope that leads astray"):
            slope = -1.0 if name in ("log", "power") else 0.0
            assert_close(grad(UNEVEN[name][0], gradient), torch.full((1, 1), slope, dtype=F64), 1e-9)


@pytest.mark.usefixtures("kind_of_arrays")
def test_a_jump_resets_once() -> None:
    """A switch by floor, which has no slope: the state is set back at every whole number, and nowhere else."""
    event = Event(lambda t, y: 0.5 - torch.floor(y[:, 0]), reset=lambda t, y: y - 1.0)
    sol = fastode.solve(rise, torch.full((2, 1), 0.25, dtype=F64), [0.0, 3.0], events=event)
    assert_close(sol.events[0].t, torch.tensor([[0.75, 1.75, 2.75]] * 2, dtype=F64))
    assert_close(sol.ys[-1], torch.full((2, 1), 0.25, dtype=F64))


@pytest.mark.usefixtures("kind_of_arrays")
def test_samples_have_the_same_bits_in_any_company() -> None:
    """Among them samples whose functions are undefined, dip twice, or never change their sign."""
    levels = torch.linspace(0.05, 1.6, 37, dtype=F64)[:, None]

    def fn(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return (torch.log(1.5 - c * y[:, :1]) * (y[:, 1:] - 0.2))[:, 0]

    def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return torch.stack([c[:, 0] * y[:, 1], -y[:, 0] + 0.1 * c[:, 0]], 1)

    y0 = torch.tensor([[0.1, 1.0]], dtype=F64).expand(37, 2)
    events = [Event(fn, terminal=False), Event(lambda t, y, c: y[:, 0] - 1.2 * c[:, 0], max_count=2)]

    def solve(which: slice) -> Any:
        return fastode.solve(field, y0[which], [0.0, 6.0, 9.0], controls=levels[which], events=events, on_failure="nan")

    together = solve(slice(None))
    assert int(together.events[0].count.sum()) > 40
    for which in (slice(0, 1), slice(5, 21), slice(20, 37)):
        alone = solve(which)
        for mine, all_of in zip(alone.events, together.events, strict=True):
            n = mine.t.shape[1]
            assert torch.equal(mine.count, all_of.count[which])
            assert same_bits(mine.t.nan_to_num(-1.0), all_of.t[which, :n].nan_to_num(-1.0))
            assert same_bits(mine.y.nan_to_num(-1.0), all_of.y[which, :n].nan_to_num(-1.0))
        assert same_bits(alone.events.t_end, together.events.t_end[which])


@pytest.mark.parametrize("trial", range(6))
def test_random_functions_of_a_driven_pendulum(trial: int) -> None:
    """All zeros of two functions, against those of scipy's solution at tight tolerances on a fine grid; also late."""
    integrate, optimize = pytest.importorskip("scipy.integrate"), pytest.importorskip("scipy.optimize")
    random = generator(trial)
    a, b, c, d = (0.3 + 1.7 * torch.rand(4, dtype=F64, generator=random)).tolist()
    dtype, start = (torch.float32 if trial % 3 == 0 else F64), (7.7e5 if trial % 2 else 0.0)
    y0 = torch.cat([torch.rand(2, 2, dtype=F64, generator=random) * 2 - 1, torch.zeros(2, 1, dtype=F64)], 1)
    k = torch.tensor([[0.6], [1.4]], dtype=F64)

    def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:  # the last component is the time since the start
        force = c * torch.cos(b * y[:, 2]) - a * torch.sin(y[:, 0]) - 0.05 * y[:, 1]
        return torch.stack([y[:, 1] * k[:, 0], force, torch.ones_like(force)], 1)

    def first(t: Any, y: Tensor) -> Tensor:
        return y[:, 0] * torch.cos(d * y[:, 2]) - 0.3

    def second(t: Any, y: Tensor) -> Tensor:
        return torch.exp(-y[:, 1]) - 1.2 + 0.3 * torch.sin(3 * y[:, 0])

    accuracy = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    span = torch.tensor([start, start + 12.0], dtype=F64)
    events = [Event(fn, terminal=False) for fn in (first, second)]
    sol = fastode.solve(field, y0.to(dtype), span, controls=k.to(dtype), events=events, **accuracy)
    grid = torch.linspace(0.0, 12.0, 6001, dtype=F64).numpy()
    for s in range(2):

        def slope(t: float, y: Any, s: int = s) -> Any:
            return field(torch.zeros(1), torch.from_numpy(y)[None], k[s : s + 1])[0].numpy()

        exact = integrate.solve_ivp(slope, (0.0, 12.0), y0[s].numpy(), rtol=1e-11, atol=1e-12, dense_output=True).sol
        for e, fn in enumerate((first, second)):
            value = lambda t, fn=fn: fn(None, torch.from_numpy(exact(t)).reshape(3, -1).T).numpy()  # noqa: B023, E731
            signs = value(grid) > 0
            roots = [
                optimize.brentq(lambda t: float(value(t)[0]), grid[i], grid[i + 1], xtol=1e-12)  # noqa: B023
                for i in (signs[1:] != signs[:-1]).nonzero()[0]
            ]
            found = sol.events[e].t[s, : int(sol.events[e].count[s])] - start
            assert len(found) == len(roots) > 0
            assert_close(found, torch.tensor(roots, dtype=F64), 2e-2 if dtype is torch.float32 else 1e-6)
