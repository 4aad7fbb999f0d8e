"""``Solution.interpolate``: agreement with outputs, continuity, order, and what it refuses."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import fastode
from fastode import TABLEAUS, Status
from tests.problems import (
    BACKENDS,
    PROBLEMS,
    batch_of,
    largest,
    largest_error,
    logistic,
    oscillator,
    randn,
    same_bits,
    steps_of,
)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def run(problem, t, **options):
    return fastode.solve(problem.field, problem.y0, t, controls=problem.controls, dense=True, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_agrees_with_the_outputs_at_the_output_times(name, dtype, backend):
    if backend == "cpu" and dtype.itemsize == 2:
        pytest.skip("programs compute in float32 and float64")
    problem = PROBLEMS[name]().to(dtype)
    t = torch.linspace(0, 1, 12, dtype=torch.float64)
    tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 1e-2
    sol = run(problem, t, rtol=tolerance, atol=tolerance, backend=backend)
    inside = sol.interpolate(t)
    eps = torch.finfo(dtype).eps
    assert largest_error(inside, sol.ys) <= 8 * eps * largest(sol.ys)
    assert {leaf.dtype for leaf in torch.utils._pytree.tree_leaves(inside)} == {dtype}


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "bosh3"])
def test_agrees_with_the_outputs_of_a_solve_at_other_times(method, backend):
    """Reversed, of different lengths per sample, with samples that take no step: at (M, B), (M,) and single times."""
    problem = logistic(6)
    ends = torch.tensor([1.0, -0.1, 0.0, 3.0, -0.05, 1e-7], dtype=torch.float64)
    t = torch.linspace(0, 1, 3, dtype=torch.float64)[:, None] * ends
    sol = run(problem, t, method=method, backend=backend, rtol=1e-7, atol=1e-8)
    query = torch.linspace(0, 1, 23, dtype=torch.float64)[:, None] * ends
    expected = run(problem, query, method=method, backend=backend, rtol=1e-7, atol=1e-8).ys
    assert largest_error(sol.interpolate(query), expected) < 1e-14 * 100
    backwards = sol.interpolate(query.flip(0))
    assert same_bits(backwards, sol.interpolate(query).flip(0))
    assert same_bits(sol.interpolate(query[:0]), expected[:0])
    assert same_bits(sol.interpolate(0.0), problem.y0)
    assert same_bits(sol.interpolate([0.0, 0.0])[1], problem.y0)
    assert same_bits(sol.interpolate(torch.tensor(0)), problem.y0)


def test_all_forms_of_times(backend):
    problem = oscillator(3)
    sol = run(problem, [0.0, 1.0], backend=backend)
    at = sol.interpolate(0.25)
    assert at["q"].shape == at["rest"][0].shape == (3, 2)
    for many in ([0.25, 0.5], torch.tensor([0.25, 0.5]), torch.tensor([[0.25] * 3, [0.5] * 3])):
        value = sol.interpolate(many)
        assert value["q"].shape == value["rest"][0].shape == (2, 3, 2)
        assert same_bits(value["q"][0], at["q"])
        assert same_bits(value["rest"][0][0], at["rest"][0])


@pytest.mark.parametrize("method", TABLEAUS)
def test_order(method, backend):
    """Largest error anywhere in the interval against the step size: min(order, dense_order + 1)."""
    tableau = TABLEAUS[method]
    y0 = torch.tensor([[1.0], [0.5]], dtype=torch.float64)
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    exact = y0 * torch.exp(torch.sin(times))[:, None, None]
    counts = [4, 8, 16] if tableau.order > 3 else [16, 32, 64]
    errors = []
    for count in counts:
        sol = fastode.solve(
            lambda t, y: y * torch.cos(t), y0, [0, 1], method=method, step_size=1 / count, dense=True, backend=backend
        )
        errors.append(largest_error(sol.interpolate(times), exact))
    assert errors[-1] > 1e-14
    assert math.log2(errors[0] / errors[2]) / 2 > min(tableau.order, tableau.dense_order + 1) - 0.35


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "bosh3", "adaptive_heun"])
def test_continuous_where_steps_meet(method, backend):
    """And with a continuous slope: every interpolant here has the field's values at both ends of a step."""
    problem = logistic(3)
    sol = run(problem, [0.0, 3.0], method=method, rtol=1e-3, backend=backend)
    for b in range(3):
        start, _ = steps_of(sol, b)
        joints = start[1:]
        assert len(joints) >= 1
        h = 1e-6
        query = torch.stack([joints - h, joints, joints + h]).flatten()
        values = sol.interpolate(query)[:, b].reshape(3, len(joints), -1)
        controls = [c[b] for c in problem.controls]
        slope = problem.field(None, values[1], controls)
        torch.testing.assert_close(values[1] - values[0], h * slope, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(values[2] - values[1], h * slope, rtol=1e-3, atol=1e-9)
        exactly_at = torch.nextafter(joints, torch.tensor(-math.inf, dtype=torch.float64))
        torch.testing.assert_close(sol.interpolate(exactly_at)[:, b], values[1], rtol=0, atol=1e-13)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(
    times=st.lists(st.floats(0, 1), max_size=6),
    reverse=st.booleans(),
    name=st.sampled_from(sorted(PROBLEMS)),
    method=st.sampled_from(["bosh3", "dopri5", "tsit5", "dopri8"]),
    backend=st.sampled_from(BACKENDS),
)
def test_any_times_against_closed_forms(times, reverse, name, method, backend):
    problem = PROBLEMS[name]()
    span = -0.1 if reverse else problem.span  # these grow, or explode, backward in time
    ends = span * torch.linspace(0, 1, batch_of(problem), dtype=torch.float64)
    query = torch.tensor(times, dtype=torch.float64)[:, None] * ends
    tolerance = 1e-4 if method == "bosh3" else 1e-6
    sol = run(problem, torch.stack([0 * ends, ends]), method=method, rtol=tolerance, atol=tolerance, backend=backend)
    exact = problem.exact(query)
    assert largest_error(sol.interpolate(query), exact) <= 100 * tolerance * (1 + largest(exact))


def test_failed_samples_are_nan_after_their_failure(backend):
    y0 = torch.tensor([[1.0], [-1.0], [math.nan], [2.0]], dtype=torch.float64)
    sol = fastode.solve(lambda t, y: y * y, y0, [0.0, 4.0], dense=True, backend=backend, on_failure="nan")
    assert [int(code == Status.SUCCESS) for code in sol.status] == [0, 1, 0, 0]
    times = torch.linspace(0, 4, 81, dtype=torch.float64)
    values = sol.interpolate(times)
    exact = 1 / (1 / y0 - times[:, None, None])
    torch.testing.assert_close(values[:, 1], exact[:, 1], rtol=1e-3, atol=0)
    for b, end in [(0, 1.0), (3, 0.5)]:
        torch.testing.assert_close(values[times < 0.9 * end, b], exact[times < 0.9 * end, b], rtol=1e-2, atol=0)
        assert values[times > 1.01 * end, b].isnan().all()
    assert values[:, 2].isnan().all()


def test_a_sample_that_fails_at_once_keeps_its_start(backend):
    y0 = torch.tensor([[1.0], [2.0]])
    sol = fastode.solve(
        lambda t, y, c: c * y, y0, [0.0, 1.0], controls=torch.tensor([[math.nan], [0.0]]), dense=True,
        backend=backend, on_failure="nan",
    )  # fmt: skip
    assert same_bits(sol.interpolate(0.0), y0)
    assert sol.interpolate(0.5)[0].isnan().all()
    assert same_bits(sol.interpolate(0.5)[1], y0[1])


@pytest.mark.parametrize("t", [[0.0, 1.0], [1.0, 0.0], [0.0]], ids=str)
def test_times_outside_the_interval(t, backend):
    sol = fastode.solve(lambda t, y: -y, torch.ones(2, 1), t, dense=True, backend=backend)
    for bad in (-1e-9, max(t) + 1e-9, math.nan, math.inf, [0.0, 5.0], torch.tensor([[0.0, 5.0]])):
        with pytest.raises(ValueError, match=r"t must lie inside the interval of the solve, \[0, "):
            sol.interpolate(bad)
    assert same_bits(sol.interpolate([0.0, max(t)]), torch.stack([sol.interpolate(0.0), sol.interpolate(max(t))]))


def test_every_sample_has_its_own_interval(backend):
    t = torch.tensor([[0.0, 1.0], [1.0, 3.0]])
    sol = fastode.solve(lambda t, y: -y, torch.ones(2, 1), t, dense=True, backend=backend)
    assert sol.interpolate(1.0).shape == (2, 1)
    for bad in (0.5, 2.0, torch.tensor([[0.5, 0.5]])):
        with pytest.raises(ValueError, match="inside the interval"):
            sol.interpolate(bad)


def test_wrong_calls(backend):
    sol = fastode.solve(lambda t, y: -y, torch.ones(2, 1), [0.0, 1.0], backend=backend)
    with pytest.raises(RuntimeError, match=r"interpolate needs solve\(\.\.\., dense=True\)"):
        sol.interpolate(0.5)
    assert sol.dense is None
    sol = fastode.solve(lambda t, y: -y, torch.ones(2, 1), [0.0, 1.0], backend=backend, dense=True)
    with pytest.raises(ValueError, match=r"\(M, B\) with B=2, got \(1, 3\)"):
        sol.interpolate(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"got \(1, 2, 1\)"):
        sol.interpolate(torch.zeros(1, 2, 1))


def test_dense_does_not_change_the_solve(backend):
    problem = logistic()
    t = torch.linspace(0, 3, 7)
    with_dense = run(problem, t, backend=backend)
    without = fastode.solve(problem.field, problem.y0, t, controls=problem.controls, backend=backend)
    assert same_bits(with_dense.ys, without.ys)


def test_steps_cover_the_interval_without_gaps(backend):
    """What ``DenseOutput`` says of its arrays."""
    problem = logistic(5)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None] * torch.tensor([1.0, -0.1, 0.0, 3.0, 2.0]).double()
    sol = run(problem, t, backend=backend)
    dense = sol.dense
    assert dense.start.shape == dense.size.shape == dense.rows.shape == (int(sol.stats.n_accepted.max()), 5)
    assert torch.equal(dense.reached, t[1])
    for b in range(5):
        n = int(sol.stats.n_accepted[b])
        start, size = steps_of(sol, b)
        ends = torch.cat([start[1:], t[1:, b]])[:n]
        torch.testing.assert_close(start + size, ends, rtol=1e-14, atol=1e-15)
        assert (dense.size[n:, b] == 0).all()
        assert len(set(dense.rows[:n, b].tolist())) == n
        if n:
            assert same_bits(dense.coefs[dense.rows[0, b], 0], problem.y0[b])
    taken = torch.cat([dense.rows[: int(sol.stats.n_accepted[b]), b] for b in range(5)])
    assert len(taken.unique()) == len(taken)


@pytest.mark.parametrize("shape", [(4,), (4, 2, 3)], ids=str)
def test_states_of_any_rank(shape, backend):
    y0 = randn(*shape)
    sol = fastode.solve(lambda t, y: -y, y0, [0.0, 1.0], dense=True, backend=backend, rtol=1e-8, atol=1e-9)
    assert sol.interpolate(0.5).shape == shape
    torch.testing.assert_close(sol.interpolate([0.5, 1.0])[0], y0 * math.exp(-0.5), rtol=1e-6, atol=0)
