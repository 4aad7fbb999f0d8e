"""Forward solves by generated kernels: steps, outputs and status are those of the reference, in every mode."""

import pytest
import torch

import fastode
from fastode import Status
from fastode.backends.triton import record
from fastode.tableaus import TABLEAUS, Tableau
from tests.problems import PROBLEMS, assert_as_accurate, same_bits, stats_of
from tests.triton.interpreted.tools import launched

F32, F64 = torch.float32, torch.float64
SHAPES = pytest.mark.parametrize("launch", ["scalarised", "tiled"])
EXPLICIT = [name for name, tableau in TABLEAUS.items() if type(tableau) is Tableau]


def both(launch, field, y0, t, **options):
    """Solved by the kernels, into poisoned memory, and by the reference."""
    with launched(launch):
        got = fastode.solve(field, y0, t, backend="triton", on_failure="nan", **options)
    return got, fastode.solve(field, y0, t, backend="reference", on_failure="nan", **options)


def assert_same(got, expected, rtol=1e-9, atol=1e-10):
    assert torch.equal(got.status, expected.status)
    assert torch.equal(stats_of(got), stats_of(expected))
    torch.testing.assert_close(got.ys, expected.ys, rtol=rtol, atol=atol, equal_nan=True)


def rotation(t, y, w):
    return torch.stack([w[:, 0] * y[:, 1], -w[:, 0] * y[:, 0] + 0.1 * t[:, 0]], dim=1)


Y0 = torch.tensor([[1.0, 0.0], [0.5, -0.5], [0.0, 2.0], [1.0, 1.0], [0.3, 0.1]], dtype=F64)
W = torch.tensor([[1.0], [3.0], [0.2], [7.0], [2.0]], dtype=F64)


@SHAPES
@pytest.mark.parametrize("method", EXPLICIT)
def test_every_tableau(method, launch):
    fixed = {} if TABLEAUS[method].is_adaptive else {"step_size": 0.07}
    assert_same(*both(launch, rotation, Y0[:3], [0.0, 0.11, 0.2], controls=W[:3], method=method, **fixed))


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_with_known_solutions(name, dtype):
    problem = PROBLEMS[name]().to(dtype)
    times = torch.tensor([0.0, 0.13, 0.3])
    got, expected = both(None, problem.field, problem.y0, times, controls=problem.controls, rtol=1e-5, atol=1e-6)
    if dtype == F64:
        assert torch.equal(stats_of(got), stats_of(expected))
    batch = got.status.shape[0]
    exact = PROBLEMS[name]().exact(times.double()[:, None].expand(-1, batch))
    assert_as_accurate(got.ys, expected.ys, exact)


@SHAPES
@pytest.mark.parametrize("backwards", [False, True])
def test_times_of_their_own(launch, backwards):
    times = torch.tensor(
        [[0.0, 0.1, -1.0, 0.5, 2.0], [0.2, 0.1, -0.9, 0.5, 2.3], [0.2, 0.4, -0.5, 0.5, 2.4]], dtype=F64
    )
    assert_same(*both(launch, rotation, Y0, times.flip(0) if backwards else times, controls=W))


@SHAPES
@pytest.mark.parametrize("backwards", [False, True])
def test_repeated_outputs(launch, backwards):
    times = [0.0, 0.0, 0.1, 0.1, 0.15, 0.4, 0.4]
    times = [-t for t in times] if backwards else times
    assert_same(*both(launch, rotation, Y0, times, controls=W))


@SHAPES
def test_one_output_time(launch):
    assert_same(*both(launch, rotation, Y0, [0.7], controls=W))


@SHAPES
@pytest.mark.parametrize("step_size", [0.06, torch.tensor([0.05, 0.1, 0.2, 0.03, 1.0])])
def test_fixed_steps(launch, step_size):
    times = [0.0, 0.05, 0.2, 0.2, 0.31]
    assert_same(*both(launch, rotation, Y0, times, controls=W, method="rk4", step_size=step_size))


@SHAPES
def test_steps_from_output_to_output(launch):
    assert_same(*both(launch, rotation, Y0, [0.0, 0.05, 0.2, 0.2, 0.31], controls=W, method="rk4"))


@SHAPES
@pytest.mark.parametrize(
    "controller",
    [
        fastode.PIController(),
        fastode.PIDController(0.3, 0.4, 0.1, safety=0.8, first_step=0.3),
        fastode.IController(max_step=0.05, min_step=0.01),
    ],
)
def test_controllers(launch, controller):
    assert_same(*both(launch, rotation, Y0, [0.0, 0.4], controls=W, controller=controller, rtol=1e-6, atol=1e-8))


@SHAPES
def test_tolerances_of_components(launch):
    options = {"rtol": torch.tensor([1e-3, 1e-7]), "atol": torch.tensor([1e-8, 1e-4]), "controls": W}
    assert_same(*both(launch, rotation, Y0, [0.0, 0.6], **options))


@SHAPES
def test_samples_that_fail_leave_the_others(launch):
    def field(t, y):
        return y * y

    y0 = torch.tensor([[0.1, 0.2], [50.0, 1.0], [0.3, 0.1], [torch.nan, 0.0], [0.0, torch.inf], [0.2, 0.2], [1e3, 1.0]])
    got, expected = both(launch, field, y0.double(), [0.0, 0.0, 0.01, 0.5], max_steps=60)
    assert_same(got, expected, rtol=1e-6)
    assert got.status[3] == got.status[4] == Status.NON_FINITE
    assert got.status[[0, 2, 5]].tolist() == [0, 0, 0]
    alone, _ = both(launch, field, y0.double()[[0, 2, 5]], [0.0, 0.0, 0.01, 0.5])
    assert same_bits(alone.ys, got.ys[:, [0, 2, 5]])


@SHAPES
@pytest.mark.parametrize("max_steps", [1, 3])
def test_step_limit(launch, max_steps):
    got, expected = both(launch, rotation, Y0, [0.0, 0.1, 3.0], controls=W, max_steps=max_steps)
    assert_same(got, expected)
    assert (got.status == Status.MAX_STEPS).any()


@SHAPES
def test_step_underflow(launch):
    options = {"controller": fastode.IController(min_step=0.1), "rtol": 1e-9, "atol": 1e-9}
    got, expected = both(launch, rotation, Y0, [0.0, 0.1, 1.0], controls=W, **options)
    assert_same(got, expected)
    assert (got.status == Status.STEP_UNDERFLOW).any()


@SHAPES
def test_a_full_record_goes_on_in_the_next_launch(launch, monkeypatch):
    monkeypatch.setattr(record, "_FIRST_STEPS", 2)
    y0 = Y0.clone().requires_grad_()
    got, expected = both(launch, rotation, y0, [0.0, 0.1, 0.5, 1.0], controls=W)
    assert len(got.ys.grad_fn.record.segments) > 2
    assert_same(got, expected)


@SHAPES
@pytest.mark.parametrize("first", [2, 48])
def test_dense_output(launch, first, monkeypatch):
    monkeypatch.setattr(record, "_FIRST_STEPS", first)
    got, expected = both(launch, rotation, Y0, [0.0, 0.5], controls=W, dense=True)
    t = torch.linspace(0.0, 0.5, 7, dtype=F64)
    torch.testing.assert_close(got.interpolate(t), expected.interpolate(t), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("launch", ["scalarised", "tiled", "tiled_one"])
def test_batches_that_fill_no_program(launch, batch):
    assert_same(*both(launch, rotation, Y0[:batch], [0.0, 0.2], controls=W[:batch]))


@SHAPES
def test_the_same_bits_every_time_and_in_any_batch(launch):
    first, _ = both(launch, rotation, Y0, [0.0, 0.07, 0.2], controls=W)
    again, _ = both(launch, rotation, Y0, [0.0, 0.07, 0.2], controls=W)
    part, _ = both(launch, rotation, Y0[2:4], [0.0, 0.07, 0.2], controls=W[2:4])
    assert same_bits(first.ys, again.ys)
    assert same_bits(first.ys[:, 2:4], part.ys)


def test_what_it_refuses():
    y0 = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match=r"backend 'triton' cannot run this solve: .* over the samples"):
        fastode.solve(lambda t, y: y - y.mean(0), y0, [0.0, 1.0], backend="triton")
    weights = torch.zeros(2, 300, 300)
    field = lambda t, y, w: (w @ y[..., None])[..., 0]  # noqa: E731
    with pytest.raises(RuntimeError, match="do not fit into registers"):
        fastode.solve(field, torch.ones(2, 300), [0.0, 1.0], controls=weights, backend="triton")
    assert fastode.explain(lambda t, y: -y, y0).backend == "cpu"  # not by itself: it is interpreted
