"""Step-size control: the formula, its limits in actual solves, and an independent solver that takes the same steps."""

import dataclasses
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import fastode
from fastode import TABLEAUS, IController, PIController, PIDController, Status
from fastode.controllers import RATIO_FLOOR
from tests.problems import BACKENDS, PROBLEMS, logistic, same_bits, stats_of, steps_of

PID = PIDController(0.5, 0.4, 0.1)
CONTROLLERS = {"I": IController(), "PI": PIController(), "PID": PID, "PI34": PIDController(0.4, 0.3, 0.0, safety=0.95)}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def scalar_factor(c, exponent, ratio, previous, before, accepted):
    """The formulas at the head of fastode/controllers.py, in Python's floats."""
    if not math.isfinite(ratio):
        return c.min_factor
    r0, r1, r2 = (max(r, RATIO_FLOOR) for r in (ratio, previous, before))
    if accepted:
        filtered = r0 ** (-(c.pcoeff + c.icoeff + c.dcoeff) * exponent)
        filtered *= r1 ** ((c.pcoeff + 2 * c.dcoeff) * exponent)
        filtered *= r2 ** (-c.dcoeff * exponent)
        return min(max(c.safety * filtered, c.min_factor), c.max_factor)
    return min(max(c.safety * r0**-exponent, c.min_factor), 1.0)


RATIOS = st.floats(0, math.inf) | st.just(math.nan) | st.floats(0.1, 10)
COEFFICIENTS = st.floats(-1, 1)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    p=COEFFICIENTS,
    i=COEFFICIENTS,
    d=COEFFICIENTS,
    safety=st.floats(0.1, 1),
    low=st.floats(1e-3, 0.99),
    high=st.floats(1.01, 1e3),
    exponent=st.sampled_from([1 / 2, 1 / 3, 1 / 5, 1 / 8]),
    samples=st.lists(st.tuples(RATIOS, st.floats(0, 1), st.floats(0, 1), st.booleans()), min_size=1, max_size=5),
)
def test_the_formula(p, i, d, safety, low, high, exponent, samples):
    controller = PIDController(p, i, d, safety=safety, min_factor=low, max_factor=high)
    ratio, previous, before = (torch.tensor([s[n] for s in samples], dtype=torch.float64) for n in range(3))
    factor = controller.factor(exponent, ratio, previous, before, torch.tensor([s[3] for s in samples]))
    expected = [scalar_factor(controller, exponent, *sample) for sample in samples]
    assert factor.tolist() == pytest.approx(expected, rel=1e-12)
    assert ((factor >= low) & (factor <= high)).all()
    assert (factor[~ratio.isfinite()] == low).all()


def test_the_named_controllers():
    assert IController() == IController(0.0, 1.0, 0.0)
    one = torch.ones(1, dtype=torch.float64)
    accepted = torch.tensor([True])
    textbook = 0.9 * 0.3 ** (-1 / 5)
    ratio = 0.3 * one
    assert float(IController().factor(1 / 5, ratio, 0.01 * one, one, accepted)) == pytest.approx(textbook)
    expected = 0.9 * 0.3 ** (-0.7 / 5) * 0.01 ** (0.4 / 5)
    assert float(PIController().factor(1 / 5, ratio, 0.01 * one, one, accepted)) == pytest.approx(expected)
    shrink = 0.9 * 3.0 ** (-1 / 5)
    for controller in CONTROLLERS.values():  # after a rejection all of them follow the error estimate
        rejected = controller.factor(1 / 5, 3 * one, 0.01 * one, 5 * one, torch.tensor([False]))
        assert float(rejected) == pytest.approx(shrink * controller.safety / 0.9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        IController().safety = 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"safety": 0.0}, r"safety must lie in \(0, 1\], got 0.0"),
        ({"safety": 1.1}, "safety"),
        ({"safety": math.nan}, "safety must be a number"),
        ({"safety": "big"}, "safety must be a number, got 'big'"),
        ({"safety": True}, "safety must be a number"),
        ({"safety": None}, "safety must be a number"),
        ({"safety": torch.tensor(0.9)}, "safety must be a number"),
        ({"min_factor": 0.0}, r"min_factor must lie in \(0, 1\)"),
        ({"min_factor": 1.0}, "min_factor"),
        ({"max_factor": 1.0}, "max_factor must be finite and greater than 1"),
        ({"max_factor": math.inf}, "max_factor"),
        ({"min_step": -1.0}, "min_step must be finite and at least 0"),
        ({"min_step": math.inf}, "min_step"),
        ({"max_step": 0.0}, "max_step must be positive"),
        ({"max_step": -1.0}, "max_step"),
        ({"min_step": 0.2, "max_step": 0.1}, "at least min_step=0.2, got 0.1"),
        ({"first_step": 0.0}, "first_step must be finite and positive"),
        ({"first_step": -1.0}, "first_step"),
        ({"first_step": math.inf}, "first_step"),
        ({"first_step": math.nan}, "first_step must be a number"),
        ({"pcoeff": math.inf}, "coefficients must be finite"),
        ({"icoeff": math.nan}, "icoeff must be a number"),
    ],
    ids=str,
)
def test_values_out_of_range(arguments, message):
    for kind in (IController, PIController):
        with pytest.raises(ValueError, match=message):
            kind(**arguments)


def run(problem, t, **options):
    return fastode.solve(problem.field, problem.y0, t, controls=problem.controls, dense=True, **options)


@pytest.mark.parametrize("span", [2.0, -0.2])
def test_limits_of_the_steps(span, backend):
    problem = logistic()
    t = [0.0, span]
    for limits in (
        {"max_step": 0.03},
        {"first_step": 0.01},
        {"max_step": 0.03, "first_step": 0.05},
        {"min_step": 0.02},
    ):
        sol = run(problem, t, controller=IController(**limits), backend=backend)
        assert (sol.status == Status.SUCCESS).all()
        for b in range(7):
            sizes = steps_of(sol, b)[1]
            assert (sizes.sign() == math.copysign(1.0, span)).all()
            sizes = sizes.abs()
            assert sizes.sum() == pytest.approx(abs(span))
            assert (sizes <= limits.get("max_step", math.inf) * (1 + 1e-7)).all()  # the last one may be stretched
            assert (sizes[:-1] >= limits.get("min_step", 0.0)).all()
            if "first_step" in limits:
                assert float(sizes[0]) == min(limits["first_step"], limits.get("max_step", 1.0))
            if "max_step" in limits and abs(span) > 1:
                assert len(sizes) >= abs(span) / limits["max_step"] - 1


def test_a_first_step_beyond_the_end_is_cut(backend):
    y0 = torch.ones(1, 1, dtype=torch.float64)
    sol = fastode.solve(
        lambda t, y: -y, y0, [0.0, 1e-3], controller=IController(first_step=5.0), dense=True, backend=backend
    )
    assert steps_of(sol, 0)[1].tolist() == [1e-3]
    tiny = fastode.solve(
        lambda t, y: -y, y0, [1.0, 2.0], controller=IController(first_step=1e-300), dense=True, backend=backend
    )
    assert float(steps_of(tiny, 0)[1][0]) == 16 * 2.0**-52 * 1.0  # the clock must move


def test_factors_of_successive_steps(backend):
    """Growth is limited; the steps of a state at rest grow at exactly the limit."""
    y0 = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    controller = IController(max_factor=1.5, min_factor=0.7, first_step=1e-4)
    sol = fastode.solve(
        lambda t, y: -torch.sin(20 * y) * 5, y0, [0.0, 3.0], controller=controller, dense=True, backend=backend
    )
    for b in range(2):
        sizes = steps_of(sol, b)[1]
        growth = sizes[1:-1] / sizes[:-2]
        assert (growth <= 1.5 * (1 + 1e-12)).all()
        if sol.stats.n_rejected[b] == 0:
            assert (growth >= 0.7 * (1 - 1e-12)).all()
    growth = steps_of(sol, 1)[1]
    torch.testing.assert_close(growth[1:-1], 1.5 * growth[:-2], rtol=1e-12, atol=0)


def test_a_rejected_step_shrinks_by_the_least_factor_where_the_field_is_nan(backend):
    """NaN from t = 0.5 on: the attempts before it are 0.3 of each other, down to the accepted one."""
    controller = IController(min_factor=0.3, first_step=1.0)
    sol = fastode.solve(
        lambda t, y: torch.where(t > 0.5, math.nan, 1.0 + 0 * y),
        torch.zeros(1, 1, dtype=torch.float64),
        [0.0, 2.0],
        controller=controller,
        dense=True,
        backend=backend,
        on_failure="nan",
    )
    assert float(steps_of(sol, 0)[1][0]) == pytest.approx(0.3)
    assert float(sol.dense.reached[0]) == pytest.approx(0.5, abs=1e-12)


def scalar_solve(field, y, end, method, controller, rtol, atol):
    """The accepted step sizes and the count of rejected steps of one sample, from the documented formulas."""
    tableau = TABLEAUS[method]
    exponent = 1 / (min(tableau.order, tableau.embedded_order) + 1)
    rms = lambda x: math.sqrt(float(np.mean(x * x)))  # noqa: E731
    t, k1 = 0.0, field(0.0, y)
    if controller.first_step is None:
        scale = atol + rtol * np.abs(y)
        d0, d1 = rms(y / scale), rms(k1 / scale)
        h0 = min(1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1, end)
        d2 = rms((field(h0, y + h0 * k1) - k1) / scale) / h0
        h1 = max(1e-6, 1e-3 * h0) if max(d1, d2) <= 1e-15 else (0.01 / max(d1, d2)) ** exponent
        h = min(100 * h0, h1)
    else:
        h = controller.first_step
    h = min(max(h, controller.min_step), controller.max_step)
    sizes, rejected, ratios = [], 0, [1.0, 1.0]
    while t < end:
        last = t + h * (1 + 1e-8) >= end
        h = end - t if last else h
        k = [k1]
        for i in range(1, tableau.n_stages):
            state = y + h * sum(tableau.a[i, j] * k[j] for j in range(i))
            k.append(field(t + tableau.c[i] * h, state))
        tolerance = atol + rtol * np.maximum(np.abs(y), np.abs(state))
        ratio = rms(h * sum(e * slope for e, slope in zip(tableau.e, k, strict=True)) / tolerance)
        factor = scalar_factor(controller, exponent, ratio, ratios[-1], ratios[-2], ratio <= 1)
        if ratio <= 1:
            sizes.append(h)
            ratios.append(ratio)
            t, y, k1 = (end if last else t + h), state, k[-1]
        else:
            rejected += 1
        h = min(max(h * factor, controller.min_step), controller.max_step)
    return sizes, rejected


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
@pytest.mark.parametrize("limits", [{}, {"first_step": 0.7, "max_step": 0.4, "max_factor": 1.7}], ids=str)
def test_an_independent_solver_takes_the_same_steps(name, method, limits, backend):
    """Van der Pol's oscillator, whose steps vary by orders of magnitude and are often rejected."""
    controller = dataclasses.replace(CONTROLLERS[name], **limits)
    mu = [2.0, 8.0]
    starts = [[2.0, 0.0], [0.5, 1.0]]
    end = 5.0

    def field(t, y, mu):
        return torch.stack([y[:, 1], mu * ((1 - y[:, 0] ** 2) * y[:, 1]) - y[:, 0]], 1)

    sol = fastode.solve(
        field,
        torch.tensor(starts, dtype=torch.float64),
        [0.0, end],
        controls=torch.tensor(mu, dtype=torch.float64),
        method=method,
        controller=controller,
        rtol=1e-4,
        atol=1e-5,
        dense=True,
        backend=backend,
    )
    for b in range(2):

        def alone(t, y, m=mu[b]):
            return np.array([y[1], m * ((1 - y[0] ** 2) * y[1]) - y[0]])

        sizes, rejected = scalar_solve(alone, np.array(starts[b]), end, method, controller, 1e-4, 1e-5)
        assert len(sizes) > 10
        assert (len(sizes), rejected) == (int(sol.stats.n_accepted[b]), int(sol.stats.n_rejected[b]))
        assert steps_of(sol, b)[1].tolist() == pytest.approx(sizes, rel=1e-5)
    assert sol.stats.n_rejected.sum() > 0 or name == "PI"


@pytest.mark.parametrize("name", ["PI", "PID"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_all_backends_use_them_identically(problem, name):
    problem = PROBLEMS[problem]()
    options = {"controller": CONTROLLERS[name], "rtol": 1e-4, "atol": 1e-4}
    first, *others = (run(problem, [0.0, 1.0], **options, backend=b) for b in BACKENDS)
    for other in others:
        assert torch.equal(stats_of(first), stats_of(other))
        torch.testing.assert_close(first.dense.size, other.dense.size, rtol=1e-6, atol=1e-9)


def test_pi_control_is_smoother_where_stability_limits_the_step():
    """Hairer and Wanner, Solving Ordinary Differential Equations II, section IV.2: fewer rejections."""
    y0 = torch.ones(1, 1, dtype=torch.float64)
    field = lambda t, y: -200 * (y - torch.cos(t))  # noqa: E731
    plain, smooth = (
        fastode.solve(field, y0, [0.0, 5.0], controller=c, rtol=1e-4, atol=1e-4)
        for c in (IController(), PIController())
    )
    assert smooth.stats.n_rejected < plain.stats.n_rejected / 2
    exact = (200**2 * math.cos(5) + 200 * math.sin(5)) / (1 + 200**2)
    assert float(smooth.ys[-1]) == pytest.approx(exact, abs=1e-3)


def test_the_default_is_integral_control(backend):
    problem = logistic(3)
    default, given = (run(problem, [0.0, 1.0], controller=c, backend=backend) for c in (None, IController()))
    assert same_bits(default.ys, given.ys)
