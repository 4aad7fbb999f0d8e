"""What is read between the steps of implicit methods: outputs, ``interpolate`` and times of events, to the tolerance.

y' = -k (y - p(t)) + p'(t) from p(t0) has the solution p, whatever k is. The larger k, the less the difference of two
ends of a step sees of p: without a look at the dense output steps end on the curve, and the rest is anywhere.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastode
from fastode import Event, solve
from fastode.backends.implicit.defect import POINTS, Filter, defects
from fastode.backends.implicit.linear import factorise, stage_matrix
from fastode.backends.implicit.rosenbrock import rosenbrock_matrix, rosenbrock_stages
from fastode.tableaus import IMPLICIT_TABLEAUS, RosenbrockTableau
from tests.problems import same_bits, stats_of

F64 = torch.float64
ADAPTIVE = ["kvaerno3", "kvaerno4", "kvaerno5", "rodas5p"]

CURVES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "wave": (torch.cos, lambda t: -torch.sin(t)),
    "two waves": (lambda t: torch.sin(t) + 0.3 * torch.cos(7 * t), lambda t: torch.cos(t) - 2.1 * torch.sin(7 * t)),
    "pulse": (lambda t: torch.exp(-2 * (t - 1) ** 2), lambda t: -4 * (t - 1) * torch.exp(-2 * (t - 1) ** 2)),
    "growth": (lambda t: torch.exp(t / 3), lambda t: torch.exp(t / 3) / 3),
}


def relaxation(curve: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Two components with rates k and k / 10."""
    p, slope = CURVES[curve]

    def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return -k * (y - p(t)) + slope(t)

    return field


def rates(seed: int, n: int = 4) -> Tensor:
    """(n, 2) from 1 to 1e10."""
    exponent = 10 * torch.rand(n, 1, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return 10.0**exponent * torch.tensor([1.0, 0.1], dtype=F64)


def error(found: Tensor, right: Tensor, rtol: float, atol: float) -> float:
    """In tolerances of the largest value: that of a step is that of its larger end, and curves cross zero."""
    return float((found - right).abs().max() / (atol + rtol * right.abs().max()))


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("curve", sorted(CURVES))
@pytest.mark.parametrize("back", [False, True])
def test_outputs_and_interpolation_of_random_relaxations(method: str, curve: str, back: bool) -> None:
    """Within a few tolerances for any rate, as the ends of steps are."""
    p, _ = CURVES[curve]
    rtol, atol = (1e-3, 1e-5) if method == "kvaerno3" else (1e-5, 1e-7)
    k = rates(len(curve) + 10 * back)
    field = relaxation(curve)
    t = torch.tensor([0.0, 0.3, 0.31, 1.1, 1.7, 2.9, 4.0], dtype=F64)
    if back:
        k, t = -k, t.flip(0)
    y0 = p(t[:1]).expand(len(k), 2).clone()
    options: dict[str, Any] = {"controls": k, "method": method, "rtol": rtol, "atol": atol}
    right = p(t)[:, None, None]
    # Where the relaxation is slow errors add up, as many as there are steps within 1 / k.
    assert error(solve(field, y0, t, **options).ys, right, rtol, atol) < 8
    dense = solve(field, y0, t[[0, -1]], dense=True, **options)
    times = torch.linspace(float(t[0]), float(t[-1]), 57, dtype=F64)
    assert error(dense.interpolate(times), p(times)[:, None, None], rtol, atol) < 8


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p"])
def test_times_of_events(method: str) -> None:
    k = torch.tensor([[30.0, 3.0], [1e6, 1e5], [1e9, 1e8]], dtype=F64)
    y0 = torch.ones(3, 2, dtype=F64)
    crossing = Event(lambda t, y, k: y[:, 0] - 0.25, terminal=False)
    sol = solve(relaxation("wave"), y0, [0.0, 6.0], controls=k, method=method, rtol=1e-5, atol=1e-7, events=crossing)
    first = torch.acos(torch.tensor(0.25, dtype=F64))
    right = torch.stack([first, 2 * torch.pi - first])
    assert sol.events is not None
    assert sol.events[0].count.tolist() == [2, 2, 2]
    assert float((sol.events[0].t - right).abs().max()) < 1e-4
    assert float((sol.events[0].y[..., 0] - 0.25).abs().max()) < 1e-4


@pytest.mark.parametrize("method", ["kvaerno4", "rodas5p"])
def test_gradients_of_outputs_between_steps(method: str) -> None:
    """The gradient is that of the steps taken, which the defect chose, and nearly that of the solution."""
    k = torch.tensor([[50.0, 5.0], [1e5, 1e4]], dtype=F64)
    shift = torch.tensor([[0.3], [0.6]], dtype=F64, requires_grad=True)

    def field(t: Tensor, y: Tensor, controls: Any) -> Tensor:
        k, shift = controls
        return -k * (y - torch.cos(t + shift)) - torch.sin(t + shift)

    y0 = torch.cos(shift).expand(2, 2)
    t = torch.tensor([0.0, 0.7, 1.9, 2.0, 3.0], dtype=F64)
    ys = solve(field, y0, t, controls=(k, shift), method=method, rtol=1e-5, atol=1e-7).ys
    (grad,) = torch.autograd.grad(ys.sum(), shift)
    right = -2 * torch.sin(t[:, None, None] + shift.detach()).sum(0)
    assert float((grad - right).abs().max()) < 1e-3


@pytest.mark.parametrize("method", ADAPTIVE)
def test_steps_that_nothing_is_read_in_cost_nothing(method: str) -> None:
    """Outputs where steps end anyway, by their size, change neither the steps nor the number of evaluations."""
    k = rates(3)
    y0 = torch.ones(len(k), 2, dtype=F64)
    options: dict[str, Any] = {"controls": k, "method": method, "rtol": 1e-3, "atol": 1e-5}
    plain = solve(relaxation("wave"), y0, [0.0, 5.0], **options)
    repeated = solve(relaxation("wave"), y0, [0.0, 0.0, 5.0, 5.0], **options)
    assert torch.equal(stats_of(plain), stats_of(repeated))
    assert same_bits(plain.ys[-1], repeated.ys[-1])
    dense = solve(relaxation("wave"), y0, [0.0, 5.0], dense=True, **options)
    assert bool((dense.stats.n_accepted > plain.stats.n_accepted).any())


def test_a_step_that_would_be_wrong_between_its_ends_goes_to_the_next_output_instead() -> None:
    """Few outputs cost at most a rejected and an accepted step each, however stiff the problem and tight the rtol."""
    k = torch.full((1, 2), 1e9, dtype=F64)
    y0 = torch.ones(1, 2, dtype=F64)
    options: dict[str, Any] = {"controls": k, "method": "kvaerno5", "rtol": 1e-9, "atol": 1e-11}
    t = torch.tensor([0.0, 11.0, 27.0, 51.0, 100.0], dtype=F64)
    ends = solve(relaxation("wave"), y0, t[[0, -1]], **options)
    some = solve(relaxation("wave"), y0, t, **options)
    assert float((some.ys - torch.cos(t)[:, None, None]).abs().max()) < 1e-8
    assert int(some.stats.n_steps) <= int(ends.stats.n_steps) + 3 * len(t)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_defect_is_the_error_where_the_problem_is_stiff_and_falls_with_the_step(method: str) -> None:
    tableau = IMPLICIT_TABLEAUS[method]
    k = torch.full((4, 1), 1e9, dtype=F64)
    t = torch.tensor([0.1, 0.4, 0.9, 1.7], dtype=F64)
    y = torch.cos(t)[:, None]

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -k * (y - torch.cos(t)[:, None]) - torch.sin(t)[:, None]

    jac = -k[:, :, None]
    sizes = []
    for size in (0.4, 0.2):
        h = torch.full((4,), size, dtype=F64)
        if isinstance(tableau, RosenbrockTableau):
            dfdt = -k * torch.sin(t)[:, None] - torch.cos(t)[:, None]
            slopes, _, _ = rosenbrock_stages(tableau, field, t, h, y, field(t, y), jac, dfdt)
            filter = Filter(factorise(rosenbrock_matrix(tableau, h, jac)), 1.0)
        else:
            slopes = [field(t, y)]
            for i in range(1, tableau.n_stages):  # exact stages of a linear problem
                gamma = float(tableau.a[i, i])
                base = y + h[:, None] * sum(float(tableau.a[i, j]) * slopes[j] for j in range(i))
                at = t + float(tableau.c[i]) * h
                state = (base + gamma * h[:, None] * (k * torch.cos(at)[:, None] - torch.sin(at)[:, None])) / (
                    1 + gamma * h[:, None] * k
                )
                slopes.append((state - base) / (gamma * h[:, None]))
            gamma = float(tableau.a[-1, -1])
            filter = Filter(factorise(stage_matrix(h, [[gamma]], [jac])), gamma)
        found = defects(tableau, field, t, h, y, slopes, filter)
        for theta, estimate in zip(POINTS, found, strict=True):
            weights = tableau.p @ (theta ** torch.arange(1, tableau.p.shape[1] + 1, dtype=F64).numpy())
            value = y + h[:, None] * sum(float(w) * slope for w, slope in zip(weights, slopes, strict=True))
            wrong = value - torch.cos(t + theta * h)[:, None]
            assert float((estimate + wrong).abs().max()) < 1e-3 * float(wrong.abs().max())  # the sign: a correction
        sizes.append(max(float(estimate.abs().max()) for estimate in found))
    assert sizes[1] < sizes[0] / 2**2.5


# Tolerances of zero


def chain(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    """A -> B -> C, one after the other."""
    first, second = k[:, 0] * y[:, 0], k[:, 1] * y[:, 1]
    return torch.stack([-first, first - second, second], 1)


@pytest.mark.parametrize("method", ["dopri5", *ADAPTIVE])
@pytest.mark.parametrize("atol", [0.0, 1e-300])
def test_species_that_are_absent_at_first_have_no_absolute_tolerance(method: str, atol: float) -> None:
    k = torch.tensor([[1.0, 3.0], [0.5, 0.2]], dtype=F64)
    y0 = torch.tensor([[1.0, 0.0, 0.0], [1e-20, 0.0, 0.0]], dtype=F64)
    sol = solve(chain, y0, [0.0, 1.0], controls=k, method=method, rtol=1e-5, atol=atol)
    a, b = k[:, :1], k[:, 1:]
    first = torch.exp(-a)
    second = a / (b - a) * (torch.exp(-a) - torch.exp(-b))
    right = y0[:, :1] * torch.cat([first, second, 1 - first - second], 1)
    assert float((sol.ys[-1] / right - 1).abs().max()) < 3e-5


@pytest.mark.parametrize("method", ["dopri5", *ADAPTIVE])
def test_states_that_are_zero_altogether_or_too_small_for_a_relative_tolerance(method: str) -> None:
    def field(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return rate * torch.cos(t) - (1 - rate) * y

    y0 = torch.tensor([[0.0], [0.0], [1e-310]], dtype=F64)
    rate = torch.tensor([[1.0], [0.0], [0.0]], dtype=F64)
    sol = solve(field, y0, [0.0, 1.0], controls=rate, method=method, rtol=1e-4, atol=0.0)
    right = torch.stack([torch.sin(torch.tensor(1.0, dtype=F64)), torch.zeros((), dtype=F64)])
    assert float((sol.ys[-1, :2, 0] - right).abs().max()) < 2e-4
    assert float(sol.ys[-1, 2, 0]) == pytest.approx(1e-310 * 0.36787944, rel=0.1)


@pytest.mark.parametrize("method", ["dopri5", "kvaerno5", "rodas5p"])
def test_tolerances_of_single_components_may_be_zero_but_not_both(method: str) -> None:
    y0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)
    k = torch.tensor([[1.0, 3.0]], dtype=F64)
    some = torch.tensor([1e-6, 0.0, 0.0], dtype=F64)
    none = torch.tensor([0.0, 1e-6, 1e-6], dtype=F64)
    sol = solve(chain, y0, [0.0, 1.0], controls=k, method=method, rtol=none, atol=some)
    assert sol.status.tolist() == [0]
    only = solve(chain, y0, [0.0, 1.0], controls=k, method=method, rtol=0.0, atol=1e-6)
    assert float((only.ys[-1] - sol.ys[-1]).abs().max()) < 1e-5
    for rtol, atol in [(0.0, 0.0), (0, 0), (some, some), (0.0, some)]:
        with pytest.raises(ValueError, match="must not both be 0"):
            solve(chain, y0, [0.0, 1.0], controls=k, method=method, rtol=rtol, atol=atol)
    fixed = solve(chain, y0, [0.0, 1.0], controls=k, method=method, rtol=0.0, atol=0.0, step_size=0.1)
    assert fixed.status.tolist() == [0]  # fixed steps have no use for tolerances


@pytest.mark.parametrize("method", ["implicit_euler", "trapezoid", "gl4", "radauIIA5", "sdirk2"])
def test_equations_of_fixed_steps_from_zero_without_an_absolute_tolerance(method: str) -> None:
    sol = solve(
        lambda t, y: t * torch.ones_like(y) - 0.1 * y**2,
        torch.zeros(2, 3, dtype=F64),
        torch.linspace(0, 1, 11, dtype=F64),
        method=method,
        rtol=0.0,
        atol=0.0,
    )
    assert sol.status.tolist() == [0, 0]
    assert float((sol.ys[-1] - 0.4951).abs().max()) < 0.06


def test_the_default_method_is_explicit_and_has_no_such_control() -> None:
    """The dense output of explicit methods is as good as their steps: they are as long as stability lets them."""
    k = torch.tensor([[1.0, 0.1], [100.0, 10.0]], dtype=F64)
    y0 = torch.ones(2, 2, dtype=F64)
    times = torch.linspace(0, 3, 301, dtype=F64)
    for method in ("dopri5", "tsit5", "bosh3"):
        ends = fastode.solve(relaxation("wave"), y0, [0.0, 3.0], controls=k, method=method, rtol=1e-5, atol=1e-5)
        sol = fastode.solve(relaxation("wave"), y0, times, controls=k, method=method, rtol=1e-5, atol=1e-5)
        assert torch.equal(stats_of(ends), stats_of(sol))
        assert error(sol.ys, torch.cos(times)[:, None, None], 1e-5, 1e-5) < 100
