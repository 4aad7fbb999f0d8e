"""Solves by implicit and Rosenbrock methods: order, stiff problems, independence of samples, failures."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastode
from fastode import IController, Status, solve
from fastode.backends.implicit.arithmetic import combine, rms
from fastode.backends.implicit.jacobian import jacobian
from fastode.backends.implicit.rosenbrock import rosenbrock_stages
from fastode.backends.implicit.stages import Accuracy, StageSolver
from fastode.tableaus import IMPLICIT_TABLEAUS, ImplicitTableau, RosenbrockTableau
from fastode.tree import tree_map
from tests.problems import PROBLEMS, largest_error, per_sample, randn, same_bits, stats_of
from tests.stiff_problems import STIFF, by_scipy, robertson, van_der_pol

F64 = torch.float64
METHODS = sorted(IMPLICIT_TABLEAUS)
ADAPTIVE = [name for name in METHODS if IMPLICIT_TABLEAUS[name].is_adaptive]


# Order


def exact(t: Tensor) -> Tensor:
    return torch.stack([torch.sin(2 * t) + 0.5, torch.cos(t) * torch.exp(-0.3 * t)], -1)


def coupling(y: Tensor) -> Tensor:
    return torch.stack([y[:, 0] * y[:, 1] - 0.5 * y[:, 0] ** 2, torch.sin(2 * y[:, 0]) - y[:, 1] ** 2], 1)


def wavy(t: Tensor, y: Tensor) -> Tensor:
    """A nonlinear, nonautonomous field whose solution from ``exact(t0)`` is ``exact``."""
    s = t[:, 0]
    slope = torch.stack([2 * torch.cos(2 * s), -torch.exp(-0.3 * s) * (torch.sin(s) + 0.3 * torch.cos(s))], 1)
    return slope + coupling(y) - coupling(exact(s))


N_STEPS = {1: (100, 200), 2: (60, 120), 3: (40, 80), 4: (30, 60), 5: (20, 40), 6: (12, 24)}
THETA = torch.tensor([0.15, 0.35, 0.5, 0.65, 0.85], dtype=F64)


@pytest.mark.parametrize("name", METHODS)
def test_measured_order_of_steps_and_of_dense_output(name: str) -> None:
    tableau = IMPLICIT_TABLEAUS[name]
    y0 = exact(torch.zeros(1, dtype=F64))
    at_steps, between = [], []
    for n in N_STEPS[tableau.order]:
        h = 2.0 / n
        t = torch.tensor([0.0, 2.0], dtype=F64)
        sol = solve(wavy, y0, t, method=name, step_size=h, dense=True)
        assert sol.stats.n_accepted.tolist() == [n]
        nodes = h * torch.arange(n + 1, dtype=F64).clamp_max(2.0 / h)
        inner = (h * (torch.arange(n, dtype=F64)[:, None] + THETA)).flatten()
        at_steps.append(float((sol.interpolate(nodes.clamp_max(2.0))[:, 0] - exact(nodes)).abs().max()))
        between.append(float((sol.interpolate(inner)[:, 0] - exact(inner)).abs().max()))
    measured = np.log2(at_steps[0] / at_steps[1])
    assert at_steps[1] > 1e-12  # rounding plays no part
    assert tableau.order - 0.3 < measured < tableau.order + 0.8
    dense_order = min(tableau.order, tableau.dense_order + 1)
    assert dense_order - 0.3 < np.log2(between[0] / between[1]) < dense_order + 0.9


@pytest.mark.parametrize("name", ADAPTIVE)
def test_error_estimate_has_its_order(name: str) -> None:
    """The difference of the two results of a step, from many starts, against the step size."""
    tableau = IMPLICIT_TABLEAUS[name]
    assert tableau.e is not None
    t = torch.linspace(0.0, 3.0, 24, dtype=F64)
    y = exact(t)
    flat = lambda t, y: wavy(t[:, None], y)  # noqa: E731
    jac, dfdt = jacobian(flat, t, y, by_time=True)
    assert dfdt is not None
    everyone = torch.ones(24, dtype=torch.bool)
    estimates = []
    for size in (0.05, 0.025):
        h = torch.full((24,), size, dtype=F64)
        if isinstance(tableau, RosenbrockTableau):
            slopes, _, _ = rosenbrock_stages(tableau, flat, t, h, y, flat(t, y), jac, dfdt)
        else:
            assert isinstance(tableau, ImplicitTableau)
            accuracy = Accuracy(torch.zeros(1, 1, dtype=F64), 0.0, 1.0, False, 1e-15, 1e-13, 50, renew=True)
            found = StageSolver(tableau, flat, t, h, y, flat(t, y), jac).run(accuracy, everyone)
            assert bool(found.solved.all())
            slopes = found.slopes
        estimates.append(float(rms(combine(None, h, tableau.e.tolist(), slopes)).square().mean().sqrt()))
    assert abs(np.log2(estimates[0] / estimates[1]) - 1 / tableau.error_exponent) < 0.4


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("problem", sorted(PROBLEMS))
def test_controls_trees_and_per_sample_times_in_both_directions(name: str, problem: str) -> None:
    given = PROBLEMS[problem]()
    span = 0.2 * torch.linspace(0.5, 1.0, 7, dtype=F64)
    t = torch.linspace(0, 1, 4, dtype=F64)[:, None] * span
    tableau = IMPLICIT_TABLEAUS[name]
    step: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6} if tableau.is_adaptive else {"step_size": 0.004}
    there = solve(given.field, given.y0, t, controls=given.controls, method=name, **step)
    # The explicit method of its order with the same steps or tolerance, where nothing is stiff, is as good up to 30.
    other = {1: "euler", 2: "midpoint", 3: "bosh3", 4: "rk4", 5: "dopri5", 6: "dopri5"}[tableau.order]
    other = "bosh3" if tableau.is_adaptive else other
    baseline = solve(given.field, given.y0, t, controls=given.controls, method=other, **step)
    truth = given.exact(per_sample(t, 7))
    end, right, other_end = (tree_map(lambda y: y[-1], ys) for ys in (there.ys, truth, baseline.ys))
    assert largest_error(end, right) < 30 * largest_error(other_end, right) + 1e-12
    # Between steps the polynomials count, which have order 4 at most.
    between = baseline
    if tableau.order > 4 and not tableau.is_adaptive:
        between = solve(given.field, given.y0, t, controls=given.controls, method="rk4", **step)
    assert largest_error(there.ys, truth) < 30 * largest_error(between.ys, truth) + 1e-12

    def mirrored(t: Tensor, y: Any, controls: Any) -> Any:
        return tree_map(torch.neg, given.field(-t, y, controls))

    back = solve(mirrored, given.y0, -t, controls=given.controls, method=name, **step)
    assert largest_error(back.ys, there.ys) < 1e-12
    assert torch.equal(stats_of(back), stats_of(there))


# Stiff problems


@pytest.mark.slow
@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("name", sorted(STIFF))
def test_stiff_problems_about_as_accurate_as_scipy_with_the_same_tolerance(name: str, method: str) -> None:
    problem = STIFF[name]
    rtol = {"kvaerno3": 1e-3, "kvaerno4": 1e-4}.get(method, 1e-5)
    y0, rates, t = problem.batch(2)
    sol = solve(problem.field, y0, t, controls=rates, method=method, rtol=rtol, atol=problem.atol * rtol)
    assert same_bits(sol.ys[:, 0], sol.ys[:, 1])
    # scipy's BDF is the least accurate of its stiff solvers; outputs between steps are what costs kvaerno5 its factor.
    baseline = problem.error(torch.tensor(by_scipy(name, "BDF", rtol)), rtol)
    assert problem.error(sol.ys[1:, 0], rtol) < 30 * max(1.0, baseline)
    assert int(sol.stats.n_steps.max()) < 3000  # an explicit method would need millions


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p"])
@pytest.mark.parametrize("name", ["hires", "oregonator", "robertson"])
def test_the_error_falls_with_the_tolerance(name: str, method: str) -> None:
    problem = STIFF[name]
    y0, rates, t = problem.batch(1)
    errors = []
    for rtol in (1e-4, 1e-8):
        sol = solve(problem.field, y0, t, controls=rates, method=method, rtol=rtol, atol=problem.atol * rtol)
        errors.append(problem.error(sol.ys[1:, 0], rtol) * rtol)
    assert errors[1] < errors[0] / 300


@pytest.mark.parametrize("method", ADAPTIVE)
def test_float32(method: str) -> None:
    problem = STIFF["robertson"]
    y0, rates, t = problem.batch(3, torch.float32)
    sol = solve(problem.field, y0, t, controls=rates, method=method, rtol=1e-4, atol=1e-8)
    truth = torch.tensor(problem.truth)
    assert sol.ys.dtype == torch.float32
    assert float(((sol.ys[1:, 0] - truth).abs() / (truth.abs() + 1e-3)).max()) < 1e-2
    assert float((sol.ys.sum(2) - 1).abs().max()) < 1e-4  # mass is conserved


def test_a_stiff_decay_needs_few_steps_and_dense_output_stays_bounded() -> None:
    """y' = -1e8 (y - cos t) from off the slow manifold: the transient is passed over, also between steps."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -1e8 * (y - torch.cos(t))

    for method in ADAPTIVE:
        first = IController(first_step=0.1)
        sol = solve(
            field,
            torch.full((1, 1), 2.0, dtype=F64),
            [0.0, 1.0],
            method=method,
            dense=True,
            atol=10.0,
            rtol=0.0,
            controller=first,
        )
        assert sol.stats.n_steps.item() < 10
        assert float(sol.interpolate(torch.linspace(0, 1, 50)).abs().max()) < 4


# Samples by themselves


def mixed(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Robertson's reaction with rates over several orders of magnitude, and different initial states."""
    factor = torch.logspace(-3, 2, batch, dtype=F64)[:, None]
    rates = torch.tensor([[0.04, 3e7, 1e4]], dtype=F64) * factor
    y0 = torch.zeros(batch, 3, dtype=F64)
    y0[:, 0] = torch.linspace(0.5, 1.5, batch, dtype=F64)
    t = torch.tensor([0.0, 1.0, 50.0], dtype=F64)[:, None] * torch.linspace(0.2, 2.0, batch, dtype=F64)
    return y0, rates, t


@pytest.mark.parametrize("method", ["kvaerno3", "kvaerno5", "rodas5p"])
@pytest.mark.parametrize("batch", [1, 7, 33])
def test_a_sample_has_the_same_bits_in_any_batch(method: str, batch: int) -> None:
    """LAPACK factorises one matrix at a time, and the field is elementwise: nothing depends on the batch."""
    y0, rates, t = mixed(batch)
    together = solve(robertson, y0, t, controls=rates, method=method)
    for i in {0, batch // 3, batch - 1}:
        alone = solve(robertson, y0[i : i + 1], t[:, i : i + 1], controls=rates[i : i + 1], method=method)
        assert same_bits(alone.ys[:, 0], together.ys[:, i])
        assert torch.equal(stats_of(alone)[:, 0], stats_of(together)[:, i])


@pytest.mark.parametrize("method", ["radauIIA5", "gl4", "sdirk2", "trapezoid"])
def test_fixed_steps_have_the_same_bits_in_any_batch(method: str) -> None:
    y0, rates, t = mixed(5)
    h = torch.linspace(0.01, 0.05, 5, dtype=F64)
    fixed: dict[str, Any] = {"method": method, "on_failure": "nan"}  # a step that is too long fails alone, too
    together = solve(robertson, y0, t[:2], controls=rates, step_size=h, **fixed)
    assert int((together.status == Status.SUCCESS).sum()) >= 3
    for i in range(5):
        one = slice(i, i + 1)
        alone = solve(robertson, y0[one], t[:2, one], controls=rates[one], step_size=float(h[i]), **fixed)
        assert alone.status.tolist() == together.status[one].tolist()
        assert same_bits(alone.ys[:, 0], together.ys[:, i])


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p"])
def test_samples_that_are_done_are_dropped_from_the_work(method: str) -> None:
    seen: list[int] = []

    def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        seen.append(y.shape[0])
        return robertson(t, y, k)

    y0, rates, t = mixed(12)
    sol = solve(field, y0, t, controls=rates, method=method)
    assert min(seen) < 4
    assert bool((sol.status == Status.SUCCESS).all())


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p", "radauIIA3"])
def test_a_field_that_holds_a_tensor_per_sample_sees_the_whole_batch(method: str) -> None:
    y0, rates, t = mixed(6)
    t = t[:2]
    step = {} if IMPLICIT_TABLEAUS[method].is_adaptive else {"step_size": 0.05}

    def closed(t: Tensor, y: Tensor) -> Tensor:
        return robertson(t, y, rates)

    held = solve(closed, y0, t, method=method, **step)
    given = solve(robertson, y0, t, controls=rates, method=method, **step)
    assert same_bits(held.ys, given.ys)


@pytest.mark.parametrize("method", METHODS)
def test_nan_and_explosion_in_one_sample_leave_the_others_alone(method: str) -> None:
    def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return k * y * y - y  # explodes where k y > 1

    y0 = torch.ones(4, 2, dtype=F64)
    k = torch.tensor([[0.1], [9.0], [float("nan")], [0.5]], dtype=F64)
    step = {} if IMPLICIT_TABLEAUS[method].is_adaptive else {"step_size": 0.05}
    sol = solve(field, y0, [0.0, 0.5, 1.0], controls=k, method=method, on_failure="nan", max_steps=300, **step)
    assert sol.status[[0, 3]].tolist() == [0, 0]
    assert sol.status[2] == Status.NON_FINITE
    good = solve(field, y0[[0, 3]], [0.0, 0.5, 1.0], controls=k[[0, 3]], method=method, **step)
    assert same_bits(sol.ys[:, [0, 3]], good.ys)
    assert bool(sol.ys[1:, 2].isnan().all())
    if IMPLICIT_TABLEAUS[method].is_adaptive:
        assert sol.status[1] in (Status.NON_FINITE, Status.STEP_UNDERFLOW, Status.MAX_STEPS, Status.NO_CONVERGENCE)
        assert bool(sol.ys[-1, 1].isnan().all())


def test_a_singular_matrix_is_no_exception() -> None:
    """Implicit Euler with h lambda = 1: I - h J is exactly singular."""
    y0 = torch.ones(2, 2, dtype=F64)
    k = torch.tensor([[2.0], [-1.0]], dtype=F64)
    sol = solve(
        lambda t, y, k: k * y, y0, [0.0, 1.0], controls=k, method="implicit_euler", step_size=0.5, on_failure="nan"
    )
    assert sol.status.tolist() == [int(Status.NON_FINITE), 0]
    assert float((sol.ys[-1, 1] - 1 / 1.5**2).abs().max()) < 1e-15
    adaptive = solve(
        lambda t, y, k: k * y,
        y0,
        [0.0, 1.0],
        controls=k,
        method="kvaerno5",
        controller=IController(first_step=0.5 / 0.26 / 2),
    )
    assert adaptive.status.tolist() == [0, 0]


@pytest.mark.parametrize("method", [name for name in METHODS if IMPLICIT_TABLEAUS[name].is_adaptive])
@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_jacobian_that_is_not_finite_ends_its_sample_at_once(method: str, bad: str) -> None:
    """The field of sample 0 is finite at its start, its derivative is not; no smaller step has another one."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        root = torch.sqrt(y.abs())
        return torch.where(y > 0, root, 0.0 * y) - y if bad == "nan" else 1 - root

    y0 = torch.tensor([[0.0], [0.5], [1.0]], dtype=F64)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    sol = solve(field, y0, t, method=method, on_failure="nan")
    assert sol.status.tolist() == [int(Status.NON_FINITE), 0, 0]
    assert int(sol.stats.n_steps[0]) == 1
    assert bool(sol.ys[1:, 0].isnan().all())
    assert same_bits(sol.ys[:, 1:], solve(field, y0[1:], t, method=method).ys)


def test_equations_without_a_solution_are_reported() -> None:
    """y1 = y0 + h (1 + y1^2) has no real solution for h > 1/2 at y0 = 0."""
    with pytest.raises(fastode.SolveError, match="NO_CONVERGENCE"):
        solve(lambda t, y: 1 + y * y, torch.zeros(1, 1, dtype=F64), [0.0, 2.0], method="implicit_euler", step_size=1.0)


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p", "gl6"])
def test_max_steps_empty_batches_and_standing_samples(method: str) -> None:
    y0, rates, _ = mixed(3)
    step = {} if IMPLICIT_TABLEAUS[method].is_adaptive else {"step_size": 0.01}
    few = solve(robertson, y0, [0.0, 1e3], controls=rates, method=method, max_steps=5, on_failure="nan", **step)
    assert few.status.tolist() == [int(Status.MAX_STEPS)] * 3
    assert few.stats.n_steps.tolist() == [5, 5, 5]
    none = solve(robertson, y0[:0], [0.0, 1.0], controls=rates[:0], method=method, **step)
    assert none.ys.shape == (2, 0, 3)
    t = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.1]], dtype=F64)
    standing = solve(robertson, y0, t, controls=rates, method=method, dense=True, **step)
    assert torch.equal(standing.ys[:, :2], y0[:2].expand(2, 2, 3))
    assert standing.stats.n_accepted[:2].tolist() == [0, 0]
    assert torch.equal(standing.interpolate(t[:1]), y0[None])


def test_states_without_components() -> None:
    for method in ("kvaerno5", "rodas5p"):
        sol = solve(lambda t, y: y, torch.zeros(3, 0, dtype=F64), [0.0, 1.0], method=method)
        assert sol.ys.shape == (2, 3, 0)


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p"])
def test_wide_states(method: str) -> None:
    """A stiff linear system of 40 components: Jacobians by vmap, and where that fails one row at a time."""
    d = 40
    spread = torch.diag(torch.logspace(0, 4, d, dtype=F64))
    basis = torch.linalg.qr(randn(d, d, seed=1)).Q
    matrix = -basis @ spread @ basis.T
    y0 = randn(5, d, seed=2)

    class Stubborn(torch.autograd.Function):
        """A product that vmap does not know."""

        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            return y @ matrix.T

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return torch.from_numpy(grad.numpy() @ matrix.numpy())

    found = [
        solve(field, y0, [0.0, 0.3], method=method, rtol=1e-6, atol=1e-8).ys[-1]
        for field in (lambda t, y: y @ matrix.T, lambda t, y: Stubborn.apply(y))
    ]
    truth = y0 @ torch.matrix_exp(0.3 * matrix).T
    for ys in found:
        assert float((ys - truth).abs().max()) < 1e-5


def test_jacobians_are_kept_where_the_iteration_converges_fast() -> None:
    """Of a linear field one Jacobian would be enough; of Van der Pol's oscillator it is not."""
    counted: dict[str, int] = {}

    def count(name: str, field: Any) -> Any:
        counted[name] = 0

        def wrapped(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
            counted[name] += int(y.requires_grad)
            return field(t, y, k)

        return wrapped

    y0 = torch.tensor([[2.0, 0.0]], dtype=F64)
    mu = torch.full((1, 1), 100.0, dtype=F64)
    linear = count("linear", lambda t, y, k: -k * y)
    steps = solve(linear, y0, [0.0, 1.0], controls=mu, method="kvaerno5").stats.n_steps.item()
    assert counted["linear"] == 1 < steps
    solve(count("vdp", van_der_pol), y0, [0.0, 100.0], controls=mu, method="kvaerno5")
    assert counted["vdp"] > 10


# What does not go


def test_explicit_backends_decline_and_the_implicit_one_declines_explicit_methods() -> None:
    y0 = torch.ones(2, 3, dtype=F64)
    for backend in ("reference", "stepped", "cpu"):
        with pytest.raises(RuntimeError, match="implicit"):
            solve(lambda t, y: -y, y0, [0.0, 1.0], method="kvaerno5", backend=backend)
    with pytest.raises(RuntimeError, match="explicit method"):
        solve(lambda t, y: -y, y0, [0.0, 1.0], method="dopri5", backend="implicit")
    assert solve(lambda t, y: -y, y0, [0.0, 1.0], method="kvaerno5", backend="implicit").status.tolist() == [0, 0]


def test_controllers_and_steps_are_checked_as_for_explicit_methods() -> None:
    y0 = torch.ones(2, 3, dtype=F64)
    with pytest.raises(ValueError, match="no error estimate"):
        solve(lambda t, y: -y, y0, [0.0, 1.0], method="gl4", controller=IController())
    sol = solve(lambda t, y: -y, y0, [0.0, 0.5, 1.0], method="gl6")  # from output to output
    assert sol.stats.n_accepted.tolist() == [2, 2]
    with pytest.raises(ValueError, match=r"unknown method 'kvaerno6'.*kvaerno5"):
        solve(lambda t, y: -y, y0, [0.0, 1.0], method="kvaerno6")
