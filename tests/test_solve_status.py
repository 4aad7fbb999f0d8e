"""Samples that cannot be solved: their status, what is returned for them, and that the others do not notice."""

import math
import pickle

import pytest
import torch

import fastode
from fastode import IController, SolveError, Status
from tests.problems import BACKENDS, FIELD_BACKENDS, randn, same_bits, stats_of

DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def statuses(sol):
    return [Status(code) for code in sol.status.tolist()]


def check_failures(sol, t, failed):
    """Failed samples: finite up to some output, NaN from there on. Counts of steps and evaluations add up."""
    finite = torch.isfinite(sol.ys.flatten(2)).all(2)
    for b, status in enumerate(statuses(sol)):
        assert (status != Status.SUCCESS) == (b in failed)
        valid = int(finite[:, b].sum())
        assert finite[:valid, b].all()
        assert sol.ys[valid:, b].isnan().all()
        assert (valid < len(t)) == (b in failed)
    assert torch.equal(sol.stats.n_steps, sol.stats.n_accepted + sol.stats.n_rejected)


def blow_up(t, y):
    return y * y


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_explosions(method, dtype, backend):
    """y' = y^2 reaches infinity at 1 / y0."""
    y0 = torch.tensor([[1.0, 0.5], [-1.0, 0.0], [4.0, -4.0], [0.25, 0.1]], dtype=dtype)
    t = torch.linspace(0, 2, 41)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-6
    options = {"method": method, "rtol": tolerance, "atol": tolerance, "backend": backend, "on_failure": "nan"}
    sol = fastode.solve(blow_up, y0, t, **options)
    check_failures(sol, t, failed={0, 2})
    exact = 1 / (1 / y0.double() - t[:, None, None].double())
    for b, end in [(0, 1.0), (2, 0.25)]:
        before = t < 0.9 * end
        torch.testing.assert_close(sol.ys[before, b].double(), exact[before, b], rtol=1e2 * tolerance, atol=0)
        assert sol.ys[t > 1.001 * end, b].isnan().all()
    healthy = fastode.solve(blow_up, y0[[1, 3]], t, **options)
    assert same_bits(healthy.ys, sol.ys[:, [1, 3]])
    assert torch.equal(stats_of(healthy), stats_of(sol)[:, [1, 3]])


def test_explosions_with_fixed_steps(dtype, backend):
    y0 = torch.tensor([[8.0], [-1.0]], dtype=dtype)
    sol = fastode.solve(blow_up, y0, [0.0, 0.1, 4.0], method="rk4", step_size=0.05, backend=backend, on_failure="nan")
    assert statuses(sol) == [Status.NON_FINITE, Status.SUCCESS]
    check_failures(sol, sol.t, failed={0})
    assert sol.stats.n_rejected.tolist() == [1, 0]
    with pytest.raises(SolveError) as caught:
        fastode.solve(blow_up, y0, [0.0, 4.0], method="rk4", step_size=0.05, backend=backend)
    taken = int(sol.stats.n_accepted[0])
    assert caught.value.times == pytest.approx([0.05 * taken])


BROKEN = {
    "state is NaN": lambda y0, c: (y0.index_fill(0, torch.tensor([1]), math.nan), c),
    "state is infinite": lambda y0, c: (y0.index_fill(0, torch.tensor([1]), math.inf), c),
    "controls are NaN": lambda y0, c: (y0, c.index_fill(0, torch.tensor([1]), math.nan)),
    "controls are infinite": lambda y0, c: (y0, c.index_fill(0, torch.tensor([1]), -math.inf)),
}


@pytest.mark.parametrize("options", [{}, {"method": "rk4"}, {"step_size": 0.3}, {"controller": "given"}], ids=str)
@pytest.mark.parametrize("what", BROKEN)
def test_broken_from_the_start(what, options, dtype, backend):
    good = randn(4, 3).to(dtype), torch.ones(4, 1, dtype=dtype)
    y0, controls = BROKEN[what](*good)
    if "controller" in options:
        options = {"controller": IController(first_step=0.1)}
    solve = lambda y0, c: fastode.solve(  # noqa: E731
        lambda t, y, c: c * (0.5 - y),
        y0,
        [0.0, 0.0, 0.5, 1.0],
        controls=c,
        backend=backend,
        on_failure="nan",
        **options,
    )
    sol, expected = solve(y0, controls), solve(*good)
    assert statuses(sol) == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS, Status.SUCCESS]
    assert sol.stats.n_steps[1] == 0
    assert same_bits(sol.ys[:2, 1], y0[1].expand(2, -1))
    assert sol.ys[2:, 1].isnan().all()
    others = [0, 2, 3]
    assert same_bits(sol.ys[:, others], expected.ys[:, others])
    assert torch.equal(stats_of(sol)[:, others], stats_of(expected)[:, others])
    with pytest.raises(SolveError, match=r"1 of 4 samples failed: sample 1 at t=0: NON_FINITE"):
        fastode.solve(lambda t, y, c: c * y, y0, [0.0, 1.0], controls=controls, backend=backend, **options)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_from_some_time_on(value, dtype, backend):
    """Steps shrink until the last good moment is reached, here an exact one in float32 and float64."""
    moment = torch.tensor([[10.0], [0.625], [-0.25], [10.0]], dtype=dtype)
    ends = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None] * ends

    def field(t, y, moment):
        return torch.where(t.abs() > moment.abs(), value, -y)

    sol = fastode.solve(
        field, torch.ones(4, 1, dtype=dtype), t, controls=moment, backend=backend, on_failure="nan", dense=True
    )
    assert statuses(sol) == [Status.SUCCESS, Status.NON_FINITE, Status.NON_FINITE, Status.SUCCESS]
    exact = torch.exp(-t[..., None])
    for b, last in [(1, 0.625), (2, -0.25)]:
        # the field sees the time rounded to the dtype of the state
        assert float(sol.dense.reached[b]) == pytest.approx(last, rel=2 * torch.finfo(dtype).eps)
        valid = (t[:, b].abs() < abs(last)).sum()
        torch.testing.assert_close(sol.ys[:valid, b].double(), exact[:valid, b], rtol=1e-3, atol=0)
        assert sol.ys[valid + 1 :, b].isnan().all()
        assert sol.stats.n_steps[b] < 400


def test_a_field_that_is_infinite_at_the_end_only(backend):
    """y' = 1 / (1 - t): the end is never reached, and that is found out in a moderate number of steps."""
    y0 = torch.zeros(1, 1, dtype=torch.float64)
    sol = fastode.solve(lambda t, y: 1 / (1 - t) + 0 * y, y0, [0.0, 0.9, 1.0], backend=backend, on_failure="nan")
    assert statuses(sol)[0] in (Status.NON_FINITE, Status.STEP_UNDERFLOW)
    assert float(sol.ys[1]) == pytest.approx(math.log(10), rel=1e-3)
    assert sol.ys[2].isnan().all()
    assert sol.stats.n_steps[0] < 1000


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_max_steps(method, dtype, backend):
    y0 = torch.ones(3, 2, dtype=dtype)
    t = torch.tensor([[0.0, 0.0, 0.0], [8.0, 1.0, 0.0]])
    options = {"method": method, "backend": backend, "on_failure": "nan"}
    if method == "rk4":
        options["step_size"] = 0.25
    field = lambda t, y: torch.stack([y[:, 1], -y[:, 0]], 1)  # noqa: E731
    free = fastode.solve(field, y0, t, **options)
    needed = free.stats.n_steps.tolist()
    assert needed[0] > needed[1] > needed[2] == 0
    just = fastode.solve(field, y0, t, max_steps=needed[0], **options)
    assert same_bits(just.ys, free.ys)
    assert statuses(just) == [Status.SUCCESS] * 3
    short = fastode.solve(field, y0, t, max_steps=needed[0] - 1, **options)
    assert statuses(short) == [Status.MAX_STEPS, Status.SUCCESS, Status.SUCCESS]
    assert short.stats.n_steps[0] == needed[0] - 1
    assert same_bits(short.ys[:, 1:], free.ys[:, 1:])
    assert same_bits(short.ys[0, 0], y0[0])
    assert short.ys[1, 0].isnan().all()
    with pytest.raises(SolveError, match=r"sample 0 at t=.*: MAX_STEPS"):
        fastode.solve(field, y0, t, **{**options, "on_failure": "raise"}, max_steps=1)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_the_error_stays_too_large_at_the_smallest_step(dtype, backend):
    """A jump of the slope cannot be resolved with min_step; sample 0 meets none."""
    controller = IController(min_step=1e-2)
    where = torch.tensor([[9.0], [0.5], [-0.7]], dtype=dtype)
    t = torch.linspace(0, 1, 11)[:, None] * torch.tensor([1.0, 1.0, -1.0])
    sol = fastode.solve(
        lambda t, y, where: torch.where(t.abs() < where.abs(), 1.0, 1e6) + 0 * y,
        torch.zeros(3, 1, dtype=dtype),
        t,
        controls=where,
        controller=controller,
        backend=backend,
        on_failure="nan",
        dense=True,
    )
    assert statuses(sol) == [Status.SUCCESS, Status.STEP_UNDERFLOW, Status.STEP_UNDERFLOW]
    check_failures(sol, t, failed={1, 2})
    for b in (1, 2):
        reached = abs(float(sol.dense.reached[b]))
        assert abs(float(where[b])) - 1.5e-2 < reached <= abs(float(where[b]))
        sizes = sol.dense.size[: int(sol.stats.n_accepted[b]), b].abs()
        assert (sizes >= 1e-2).all()


def test_zero_tolerances(dtype, backend):
    """No step is that good: both at zero for a component are refused."""
    for rtol, atol in ((0.0, 0.0), (torch.tensor([0.0, 1e-3]), torch.tensor([0.0, 1e-3]))):
        with pytest.raises(ValueError, match="rtol and atol must not both be 0"):
            fastode.solve(
                lambda t, y: -y, torch.ones(3, 2, dtype=dtype), [0.0, 1.0], rtol=rtol, atol=atol, backend=backend
            )


@pytest.mark.parametrize("rate", [1e10, -1e10, 1e36, -1e36, 1e300, -1e300, 1e-300])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_extreme_magnitudes_end(rate, size):
    """Whatever the outcome, it comes, and it is the same for all backends."""
    for dtype in DTYPES:
        c = torch.tensor([[rate]], dtype=dtype)
        y0 = torch.tensor([[size, 1.0]], dtype=dtype)
        results = [
            fastode.solve(lambda t, y, c: c * y, y0, [0.0, 1.0], controls=c, backend=b, on_failure="nan", max_steps=60)
            for b in BACKENDS
        ]
        for other in results[1:]:
            assert statuses(results[0]) == statuses(other)
            assert torch.equal(stats_of(results[0]), stats_of(other))


def test_a_state_that_stops_moving_in_float32_ends_with_max_steps(backend):
    """NaN behind a line that float32 cannot get closer to: time still passes, in ever new attempts."""
    sol = fastode.solve(
        lambda t, y: torch.where(y > 1.2, math.nan, 1.0),
        torch.tensor([[0.5]]),
        [0.0, 0.5, 1.0],
        backend=backend,
        on_failure="nan",
        max_steps=300,
    )
    assert statuses(sol)[0] in (Status.MAX_STEPS, Status.NON_FINITE)
    assert float(sol.ys[1]) == pytest.approx(1.0)
    assert sol.ys[2].isnan().all()


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "rk4", "dopri8"])
@pytest.mark.parametrize("first", [None, 0.01])
def test_counts_of_evaluations(method, first, backend):
    """One at the start, one to choose the first step, then one for each stage but the first of each attempt."""
    y0 = torch.tensor([[1.0], [5.0], [math.nan], [100.0]], dtype=torch.float64)  # the last one explodes with rk4
    t = torch.tensor([[0.0] * 4, [1.0, 1.0, 1.0, 0.5]])
    options = {"step_size": first or 0.1} if method == "rk4" else {"controller": IController(first_step=first)}
    sol = fastode.solve(lambda t, y: -y * y, y0, t, method=method, backend=backend, on_failure="nan", **options)
    stages = fastode.TABLEAUS[method].n_stages - 1
    extra = 1 + (method != "rk4" and first is None)
    assert torch.equal(sol.stats.n_evals, extra + stages * sol.stats.n_steps)
    assert sol.stats.n_steps[2] == 0
    assert {n.dtype for n in (sol.stats.n_accepted, sol.stats.n_rejected, sol.stats.n_evals)} == {torch.int64}
    assert sol.status.dtype == torch.int64


def test_a_sample_without_an_interval_succeeds_whatever_its_field(backend):
    y0 = torch.tensor([[1.0], [2.0]])
    sol = fastode.solve(lambda t, y: y * math.nan, y0, [3.0, 3.0], backend=backend)
    assert statuses(sol) == [Status.SUCCESS] * 2
    assert same_bits(sol.ys, y0.expand(2, -1, -1))


def test_the_error_names_samples_times_and_reasons(backend):
    y0 = torch.tensor([[1.0], [math.nan], [-1.0], [4.0]], dtype=torch.float64)
    with pytest.raises(SolveError) as caught:
        fastode.solve(blow_up, y0, [0.0, 2.0], backend=backend)
    error = caught.value
    assert isinstance(error, RuntimeError)
    assert error.samples == [0, 1, 3]
    assert error.times == pytest.approx([1.0, 0.0, 0.25], rel=1e-4)
    assert error.statuses[1] == Status.NON_FINITE
    assert all(isinstance(status, Status) and status != Status.SUCCESS for status in error.statuses)
    text = str(error)
    assert text.startswith("3 of 4 samples failed: sample 0 at t=1")
    assert "sample 1 at t=0: NON_FINITE; sample 3 at t=0.25" in text
    assert "on_failure='nan'" in text
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.samples, copy.times, copy.statuses) == (text, error.samples, error.times, error.statuses)


def test_the_error_names_at_most_eight_samples(backend):
    y0 = torch.full((20, 1), math.nan)
    with pytest.raises(SolveError, match=r"20 of 20 .* sample 7 at t=0: NON_FINITE and 12 more\.") as caught:
        fastode.solve(blow_up, y0, [0.0, 1.0], backend=backend)
    assert caught.value.samples == list(range(20))


class FieldError(Exception):
    pass


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
@pytest.mark.parametrize("fails_at", [0, 1, 5, 30])
def test_an_exception_in_the_field_comes_through(fails_at, backend):
    """At the start, in the step that chooses the first step size, and later."""
    calls = []

    def field(t, y):
        calls.append(len(y))
        if len(calls) > fails_at:
            raise FieldError("no")
        return -50 * y

    with pytest.raises(FieldError, match="no"):
        fastode.solve(field, torch.ones(8, 1), [0.0, 10.0], backend=backend)
    assert len(calls) == fails_at + 1


def test_on_failure_nan_without_failures_changes_nothing(backend):
    y0 = randn(3, 2)
    results = [
        fastode.solve(lambda t, y: -y, y0, [0.0, 1.0], backend=backend, on_failure=mode) for mode in ("raise", "nan")
    ]
    assert same_bits(results[0].ys, results[1].ys)
    assert torch.equal(stats_of(results[0]), stats_of(results[1]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_error_says_how_it_ended_and_what_to_try(backend):
    y0 = torch.tensor([[1.0], [-1.0], [math.nan]], dtype=torch.float64)
    with pytest.raises(SolveError) as caught:
        fastode.solve(blow_up, y0, [0.0, 2.0], backend=backend)
    error = caught.value
    assert error.samples == [0, 2]
    assert error.times == pytest.approx([1.0, 0.0], abs=1e-4)
    assert error.statuses == [Status.STEP_UNDERFLOW, Status.NON_FINITE]
    assert 0 < error.last_steps[0] < 1e-9
    assert error.last_ratios[0] > 1
    assert math.isnan(error.last_steps[1])  # it took none
    assert "STEP_UNDERFLOW (last step " in str(error)
    assert " times its tolerance); sample 2 at t=0: NON_FINITE. " in str(error)
    assert "STEP_UNDERFLOW: the solution may be infinite" in str(error)
    copied = pickle.loads(pickle.dumps(error))
    assert str(copied) == str(error)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_attempt_of_a_sample_that_ran_out_of_steps(backend):
    """Backwards in time steps are negative; fixed ones have no error ratio."""
    options = {"backend": backend, "max_steps": 7, "on_failure": "raise"}
    with pytest.raises(SolveError) as adaptive:
        fastode.solve(lambda t, y: -y, randn(2, 3), [0.0, -1e3], **options)
    assert all(step < 0 for step in adaptive.value.last_steps)
    assert all(ratio >= 0 for ratio in adaptive.value.last_ratios)
    with pytest.raises(SolveError, match=r"MAX_STEPS \(last step 0.25\)") as fixed:
        fastode.solve(lambda t, y: -y, randn(2, 3), [0.0, 10.0], method="rk4", step_size=0.25, **options)
    assert fixed.value.last_steps == [0.25, 0.25]
    assert "max_steps" in str(fixed.value)
