"""Solutions against closed forms, torchdiffeq and scipy; orders of convergence; fixed steps; output times."""

import importlib
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import fastode
from fastode import TABLEAUS, Tableau
from fastode.tree import leaves, tree_map
from tests.problems import (
    BACKENDS,
    FIELD_BACKENDS,
    PROBLEMS,
    assert_as_accurate,
    batch_of,
    largest,
    largest_error,
    linear,
    logistic,
    per_sample,
    randn,
    same_bits,
    stats_of,
    steps_of,
)

ADAPTIVE = [name for name in TABLEAUS if TABLEAUS[name].is_adaptive]
HALVES = [torch.float16, torch.bfloat16]


def run(problem, t, **options):
    return fastode.solve(problem.field, problem.y0, t, controls=problem.controls, **options)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


CASES = [(method, b) for b in BACKENDS for method in (ADAPTIVE if b == "stepped" else ["dopri5", "dopri8"])]


@pytest.mark.parametrize(("method", "backend"), CASES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_closed_forms(name, method, backend):
    problem = PROBLEMS[name]()
    t = torch.linspace(0, problem.span, 6, dtype=torch.float64)
    tolerance = {2: 1e-3, 3: 1e-5, 5: 1e-9, 8: 1e-10}[TABLEAUS[method].order]
    sol = run(problem, t, method=method, rtol=tolerance, atol=tolerance, backend=backend)
    exact = problem.exact(per_sample(t, batch_of(problem)))
    # Local errors of up to one tolerance each add up; none of these problems grows them by more than its own growth.
    # Fehlberg's pair of order 2 measures the error of its first-order weights, 1/512 of that of Euler's method.
    n_steps = int(sol.stats.n_accepted.max()) * (512 if method == "fehlberg2" else 1)
    assert largest_error(sol.ys, exact) <= n_steps * tolerance * (1 + largest(exact))
    assert largest_error(tree_map(lambda leaf: leaf[0], sol.ys), problem.y0) == 0
    assert (sol.status == fastode.Status.SUCCESS).all()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (17,), (65,), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("batch", [1, 7, 33])
def test_batches_and_states_of_any_shape(batch, shape, backend):
    problem = logistic(batch, shape)
    t = torch.linspace(0, 3, 3, dtype=torch.float64)
    sol = run(problem, t, rtol=1e-7, atol=1e-9, backend=backend)
    assert sol.ys.shape == (3, batch, *shape)
    assert largest_error(sol.ys, problem.exact(per_sample(t, batch))) < 1e-6


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_lower_precision_is_as_accurate_as_the_reference(name, dtype):
    problem = PROBLEMS[name]().to(dtype)
    exact_inputs = problem.to(torch.float64)  # the rounded inputs, in float64: what an exact solve would return
    t = torch.linspace(0, 1, 5)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    backends = BACKENDS if dtype == torch.float32 else FIELD_BACKENDS
    results = {b: run(problem, t, rtol=tolerance, atol=tolerance, backend=b) for b in backends}
    truth = run(exact_inputs, t, rtol=1e-11, atol=1e-12)
    for backend in backends:
        assert {leaf.dtype for leaf in leaves(results[backend].ys)} == {dtype}
        assert_as_accurate(results[backend].ys, results["reference"].ys, truth.ys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many_short_fixed_steps_lose_no_more_than_the_reference_to_rounding(dtype):
    problem = linear(5, 17).to(dtype)
    truth = run(problem.to(torch.float64), [0.0, 1.0], rtol=1e-13, atol=1e-14, method="dopri8").ys
    results = {b: run(problem, [0.0, 1.0], method="rk4", step_size=1 / 200, backend=b).ys for b in BACKENDS}
    for backend in BACKENDS:
        assert_as_accurate(results[backend], results["reference"], truth)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4", *ADAPTIVE])
def test_against_torchdiffeq(method):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    if method not in importlib.import_module("torchdiffeq._impl.odeint").SOLVERS:
        pytest.skip(f"this torchdiffeq has no {method}")
    problem = PROBLEMS["forced"]()
    t = torch.linspace(0, 2, 5, dtype=torch.float64)
    adaptive = method in ADAPTIVE
    low = adaptive and TABLEAUS[method].order < 4
    tolerance = 1e-5 if low else 1e-10
    ours = {"rtol": tolerance, "atol": tolerance} if adaptive else {"step_size": 1 / 64}
    theirs = dict(ours) if adaptive else {"options": dict(ours)}
    sol = run(problem, t, method=method, **ours)
    expected = torchdiffeq.odeint(
        lambda t, y: problem.field(t, y, problem.controls), problem.y0, t, method=method, **theirs
    )
    # Fixed steps: the same numbers but for rounding. Adaptive: both within what their tolerances allow.
    assert largest_error(sol.ys, expected) <= (3e3 * tolerance if adaptive else 1e-12)


def kepler(t, y):
    position, velocity = y[..., :2], y[..., 2:]
    radius = (position**2).sum(-1, keepdim=True) ** 1.5
    return torch.cat([velocity, -position / radius], dim=-1)


def kepler_start(e):
    e = torch.as_tensor(e, dtype=torch.float64)
    zero = torch.zeros_like(e)
    return torch.stack([1 - e, zero, zero, torch.sqrt((1 + e) / (1 - e))], dim=-1)


@pytest.mark.parametrize(("method", "peer"), [("dopri8", "DOP853"), ("dopri5", "RK45"), ("tsit5", "RK45")])
@pytest.mark.parametrize("tolerance", [1e-10, 1e-12])
def test_work_and_precision_against_scipy(method, peer, tolerance):
    """One period of three Kepler orbits: the end is the start."""
    integrate = pytest.importorskip("scipy.integrate")
    start = kepler_start([0.1, 0.4, 0.7])
    period = 2 * math.pi
    sol = fastode.solve(kepler, start, [0.0, period], method=method, rtol=tolerance, atol=tolerance)

    def scipy_solve(b, name):
        field = lambda t, y: kepler(t, torch.as_tensor(y)).numpy()  # noqa: E731
        result = integrate.solve_ivp(field, (0, period), start[b].numpy(), method=name, rtol=tolerance, atol=tolerance)
        return result.nfev, np.abs(result.y[:, -1] - start[b].numpy()).max()

    for b in range(3):
        work, error = scipy_solve(b, peer)
        ours = float((sol.ys[-1, b] - start[b]).abs().max())
        _, best = (work, error) if peer == "DOP853" else scipy_solve(b, "DOP853")
        assert ours <= 10 * max(error, best), f"error {ours:.2e}, scipy's {peer} {error:.2e}, DOP853 {best:.2e}"
        assert int(sol.stats.n_evals[b]) <= 1.5 * work


def quadratic(t, y):
    return -2 * t * y * y


START = 0.2


def quadratic_exact(y0, t):
    """Solution of ``quadratic`` from START."""
    return 1 / (1 / y0 + t**2 - START**2)


@pytest.mark.parametrize("method", TABLEAUS)
def test_order_of_convergence_at_the_end_and_inside_steps(method, backend):
    tableau = TABLEAUS[method]
    y0 = torch.tensor([[1.0, 2.0], [3.0, -0.5]], dtype=torch.float64)
    t = torch.tensor([START, 0.3471, 0.6133, 0.9017, START + 1.0], dtype=torch.float64)
    exact = quadratic_exact(y0, t[:, None, None])
    first = 8 if tableau.order > 3 else 32
    counts = [first, 2 * first, 4 * first]
    inner, end = [], []
    for count in counts:
        ys = fastode.solve(quadratic, y0, t, method=method, step_size=1 / count, backend=backend).ys
        inner.append(largest_error(ys[1:-1], exact[1:-1]))
        end.append(largest_error(ys[-1], exact[-1]))
    assert min(inner + end) > 1e-13  # otherwise this measures rounding
    assert math.log2(end[1] / end[2]) > tableau.order - 0.3
    # Inside steps the distance to the grid varies from one step size to the next: look over two halvings.
    assert math.log2(inner[0] / inner[2]) / 2 > min(tableau.order, tableau.dense_order + 1) - 0.6


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_same_steps_as_the_reference(name, method):
    problem = PROBLEMS[name]()
    batch = batch_of(problem)
    ends = torch.linspace(0.5, 1.0, batch, dtype=torch.float64) * problem.span
    ends[1], ends[2] = -ends[1] / 4, 0.0
    t = torch.linspace(0, 1, 4, dtype=torch.float64)[:, None] * ends
    tol = 1e-3 if TABLEAUS[method].order == 2 else 1e-5
    stepped, reference = (
        run(problem, t, method=method, rtol=tol, atol=tol, dense=True, backend=b) for b in FIELD_BACKENDS
    )
    assert torch.equal(stats_of(stepped), stats_of(reference))
    # Where the estimated error is small (dopri8's first steps) it is rounding to some part, and so are the next sizes.
    for b in range(batch):
        for ours, theirs in zip(steps_of(stepped, b), steps_of(reference, b), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3 if method == "dopri8" else 1e-6, atol=1e-9)
    assert largest_error(stepped.ys, reference.ys) <= (1e-3 if method == "dopri8" else 1e-5) * tol


@pytest.mark.parametrize("name", ["linear", "forced"])
def test_the_same_steps_as_the_reference_in_float32(name):
    problem = PROBLEMS[name]().to(torch.float32)
    t = torch.tensor([0.0, 1.0])
    stepped, reference = (run(problem, t, rtol=1e-3, atol=1e-3, dense=True, backend=b) for b in FIELD_BACKENDS)
    assert torch.equal(stats_of(stepped), stats_of(reference))
    for b in range(batch_of(problem)):
        torch.testing.assert_close(steps_of(stepped, b)[1], steps_of(reference, b)[1], rtol=1e-2, atol=0)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(data=st.data())
def test_any_rotation_any_tolerance_any_times(data):
    """Skew-symmetric systems keep distances: the error is at most the sum of the local errors."""
    batch, dim = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    method = data.draw(st.sampled_from(["bosh3", "dopri5", "tsit5", "dopri8"]))
    tolerance = 10 ** data.draw(st.floats(-4 if method == "bosh3" else -9, -2))
    a = randn(batch, dim, dim, seed=data.draw(st.integers(0, 1000))) * data.draw(st.floats(0, 2))
    a = a - a.transpose(1, 2)
    y0 = randn(batch, dim, seed=1)
    gaps = data.draw(st.lists(st.floats(0, 0.5), min_size=0, max_size=5))
    t0, direction = data.draw(st.floats(-5, 5)), data.draw(st.sampled_from([1.0, -1.0]))
    t = t0 + direction * torch.tensor([0.0, *gaps], dtype=torch.float64).cumsum(0)

    def field(t, y, a):
        return (a @ y[..., None])[..., 0]

    exact = (torch.matrix_exp((t - t[0])[:, None, None, None] * a) @ y0[..., None])[..., 0]
    stepped, reference, cpu = (
        fastode.solve(field, y0, t, controls=a, method=method, rtol=tolerance, atol=tolerance, backend=b)
        for b in BACKENDS
    )
    n_steps = 1 + int(stepped.stats.n_accepted.max())
    inside = 10  # values inside a step come from a polynomial that the error estimate knows nothing of
    bound = inside * n_steps * tolerance * (1 + largest(y0)) * dim**0.5 + 1e-12 * n_steps
    assert largest_error(stepped.ys, exact) <= bound
    for other in (stepped, cpu):
        assert torch.equal(stats_of(other), stats_of(reference))
        assert largest_error(other.ys, reference.ys) <= 1e-4 * tolerance + 1e-12


@pytest.mark.parametrize("step_size", [None, 0.17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_output_times_never_change_the_steps(step_size, dtype, backend):
    problem = logistic().to(dtype)
    few = run(problem, [0.0, 3.0], step_size=step_size, dense=True, backend=backend)
    times = torch.cat([torch.zeros(2), torch.linspace(0, 3, 301), torch.linspace(2.99999, 3, 50)]).sort().values
    many = run(problem, times, step_size=step_size, dense=True, backend=backend)
    assert same_bits(few.ys[-1], many.ys[-1])
    assert torch.equal(stats_of(few), stats_of(many))
    assert torch.equal(few.dense.size, many.dense.size)
    # Values of neighbouring output times, many of them in one step, differ by what the field allows.
    change = (many.ys[1:] - many.ys[:-1]).abs()
    assert (change <= 8.0 * (times[1:] - times[:-1])[:, None, None] + 1e-6).all()


def test_times_of_each_sample_in_either_direction(backend):
    problem = logistic(7)
    ends = torch.tensor([3.0, -0.2, 0.0, 1e-9, 1.0, -0.1, 0.5], dtype=torch.float64)
    t = torch.tensor([0.0, 0.1, 0.1, 0.7, 1.0, 1.0], dtype=torch.float64)[:, None] * ends
    sol = run(problem, t, rtol=1e-8, atol=1e-9, backend=backend)
    assert largest_error(sol.ys, problem.exact(t)) < 1e-7
    assert same_bits(sol.ys[1], sol.ys[2])
    assert same_bits(sol.ys[4], sol.ys[5])
    assert same_bits(sol.ys[:, 2], problem.y0[2].expand(6, -1))
    assert sol.stats.n_steps[2] == 0
    assert torch.equal(sol.t, t)


@pytest.mark.parametrize("span", [(0.5, 1.5), (1.5, 0.5)], ids=str)
def test_a_nonautonomous_field_sees_the_right_time(span, backend):
    problem = PROBLEMS["forced"]()
    t = torch.linspace(*span, 4, dtype=torch.float64)
    exact = problem.exact(per_sample(t, 7))
    sol = fastode.solve(
        problem.field, exact[0], t, controls=problem.controls, rtol=1e-10, atol=1e-10, backend=backend, method="dopri8"
    )
    growth = 1.0 if span[1] > span[0] else math.exp(30.0)  # backward in time errors grow with the fastest rate
    slow = problem.controls[:, 0] < 10
    assert largest_error(sol.ys[:, slow], exact[:, slow]) <= 1e-8 * (1.0 if growth == 1.0 else math.exp(10.0))
    assert largest_error(sol.ys, exact) <= 1e-8 * growth


@pytest.mark.parametrize(
    "times",
    [[0.0], [2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.5, 0.5, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]],
    ids=str,
)
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_single_and_repeated_times(times, method, backend):
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    sol = fastode.solve(lambda t, y: -y, y0, times, method=method, rtol=1e-8, atol=1e-8, dense=True, backend=backend)
    t = torch.tensor(times, dtype=torch.float64)
    exact = y0 * torch.exp(-(t - t[0]))[:, None, None]
    assert largest_error(sol.ys, exact) < (1e-7 if method == "dopri5" else 0.03)
    assert torch.equal(sol.t, t)
    for first, second in zip(range(len(t)), range(1, len(t)), strict=False):
        if times[first] == times[second]:
            assert same_bits(sol.ys[first], sol.ys[second])
    assert torch.equal(sol.interpolate(times[0]), y0)
    if times[0] == times[-1]:
        assert (sol.stats.n_steps == 0).all()
    elif method == "rk4":
        assert (sol.stats.n_steps == len(set(times)) - 1).all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16, torch.float32, torch.float64], ids=str)
def test_times_of_any_real_dtype(dtype, backend):
    y0 = torch.ones(2, 1, dtype=torch.float64)
    expected = fastode.solve(lambda t, y: t * y, y0, [0, 1, 3], backend=backend)
    sol = fastode.solve(lambda t, y: t * y, y0, torch.tensor([0, 1, 3], dtype=dtype), backend=backend)
    assert same_bits(sol.ys, expected.ys)
    assert sol.t.dtype == dtype
    columns = torch.tensor([[0, 0], [1, 1], [3, 3]], dtype=dtype)
    assert same_bits(fastode.solve(lambda t, y: t * y, y0, columns, backend=backend).ys, expected.ys)


def sizes(sol, b=0):
    return steps_of(sol, b)[1].tolist()


@pytest.mark.parametrize(
    ("step_size", "end", "expected"),
    [
        (0.3, 1.0, [0.3, 0.3, 0.3, 0.1]),
        (0.1, 1.0, [0.1] * 10),
        (1 / 3, 1.0, [1 / 3] * 3),
        (5.0, 1.0, [1.0]),
        (1.0, 1.0, [1.0]),
        (0.4, -1.0, [-0.4, -0.4, -0.2]),
        (0.7, 0.0, []),
        (0.1, 20.0, [0.1] * 200),
    ],
)
@pytest.mark.parametrize("method", ["euler", "dopri5"])
def test_fixed_steps(step_size, end, expected, method, backend):
    y0 = torch.ones(1, 1, dtype=torch.float64)
    sol = fastode.solve(
        lambda t, y: -0.01 * y, y0, [0.0, end], method=method, step_size=step_size, dense=True, backend=backend
    )
    assert sizes(sol) == pytest.approx(expected, rel=1e-8)
    assert sol.stats.n_steps.tolist() == sol.stats.n_accepted.tolist() == [len(expected)]
    stages = 1 if method == "euler" else 6
    assert sol.stats.n_evals.tolist() == [1 + stages * len(expected)]
    if method == "euler":
        value = 1.0
        for h in expected:
            value += h * -0.01 * value
        assert float(sol.ys[-1]) == pytest.approx(value, rel=1e-12)


def test_fixed_steps_of_each_sample(backend):
    y0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    h = torch.tensor([0.5, 0.25, 0.4])
    sol = fastode.solve(lambda t, y: -y * y, y0, [0.0, 1.0], method="rk4", step_size=h, dense=True, backend=backend)
    assert sol.stats.n_accepted.tolist() == [2, 4, 3]
    assert sizes(sol, 2) == pytest.approx([0.4, 0.4, 0.2], rel=1e-6)
    for b in range(3):
        alone = fastode.solve(
            lambda t, y: -y * y, y0[b : b + 1], [0.0, 1.0], method="rk4", step_size=float(h[b]), backend=backend
        )
        assert same_bits(alone.ys[:, 0], sol.ys[:, b])


def test_methods_without_error_estimate_step_from_output_to_output(backend):
    t = torch.tensor([[0.0, 0.0], [0.2, -1.0], [0.2, -1.0], [1.0, -1.5]], dtype=torch.float64)
    y0 = torch.ones(2, 1, dtype=torch.float64)
    sol = fastode.solve(lambda t, y: y, y0, t, method="euler", dense=True, backend=backend)
    assert sizes(sol, 0) == pytest.approx([0.2, 0.8])
    assert sizes(sol, 1) == pytest.approx([-1.0, -0.5])
    expected = torch.tensor([[1.0, 1.0], [1.2, 0.0], [1.2, 0.0], [1.2 * 1.8, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(sol.ys[..., 0], expected)


@pytest.mark.parametrize("substeps", [31, 32, 40])
def test_a_method_of_many_stages(substeps):
    """Several Euler steps as one method: ``stepped`` runs up to 32 stages and says so above that."""
    weights = [1 / substeps] * substeps
    tableau = Tableau(
        "steps", [i / substeps for i in range(substeps)], [weights[:i] for i in range(substeps)], weights, 1
    )
    y0 = randn(3, 2)
    field = lambda t, y: -y * torch.exp(t)  # noqa: E731
    expected = fastode.solve(field, y0, [0.0, 1.0], method="euler", step_size=1 / (2 * substeps)).ys
    sol = fastode.solve(field, y0, [0.0, 1.0], method=tableau, step_size=0.5)
    torch.testing.assert_close(sol.ys, expected, rtol=1e-12, atol=0)
    if substeps > 31:
        with pytest.raises(RuntimeError, match="32 stages"):
            fastode.solve(field, y0, [0.0, 1.0], method=tableau, backend="stepped")


def test_the_solution_is_the_same_without_gradient(backend):
    problem = logistic(5)
    expected = run(problem, [0.0, 1.0], backend=backend).ys
    with torch.no_grad():
        assert same_bits(run(problem, [0.0, 1.0], backend=backend).ys, expected)
    with torch.inference_mode():
        assert same_bits(run(problem, [0.0, 1.0], backend=backend).ys, expected)
    recording = fastode.solve(problem.field, problem.y0.clone().requires_grad_(), [0.0, 1.0], controls=problem.controls)
    assert same_bits(recording.ys.detach(), run(problem, [0.0, 1.0]).ys)


@pytest.mark.parametrize("compiled", ["stepped", "cpu"])
def test_memory_that_was_not_cleared_is_not_read(monkeypatch, compiled):
    """Buffers of the solve start as NaN here, and nothing changes."""
    problem = PROBLEMS["oscillator"]()
    t = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None] * torch.linspace(0, 2, 7, dtype=torch.float64)
    expected = run(problem, t, dense=True, backend=compiled)
    poisoned = []

    def poison(make):
        def made(*args, **kwargs):
            out = make(*args, **kwargs)
            poisoned.append(out.numel())
            return out.fill_(math.nan) if out.is_floating_point() else out

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    sol = run(problem, t, dense=True, backend=compiled)
    assert sum(poisoned) > 0
    assert same_bits(sol.ys, expected.ys)
    assert same_bits(sol.dense.coefs, expected.dense.coefs)
    assert torch.equal(stats_of(sol), stats_of(expected))


def test_long_times_in_float32_do_not_stall_the_clock(backend):
    """Time stays in float64: steps far below the float32 spacing of the time (here 0.0078) move the clock."""
    start = 1e5
    y0 = torch.ones(1, 1)
    sol = fastode.solve(lambda t, y: -y, y0, [start, start + 0.2], method="euler", step_size=1e-3, backend=backend)
    assert sol.stats.n_accepted.tolist() == [200]
    assert float(sol.ys[-1]) == pytest.approx(0.999**200, rel=1e-4)
