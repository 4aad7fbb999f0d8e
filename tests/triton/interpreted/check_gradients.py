"""Gradients by generated kernels, in every mode of the forward solve."""

import pytest
import torch

import fastode
from fastode import Checkpoint
from fastode.backends.triton import backend, record
from fastode.fields import ControlledField, MLPField
from tests.gradient_tools import assert_close
from tests.problems import same_bits
from tests.program.test_fields import randn
from tests.program.tools import F32, F64
from tests.test_cpu_backend import Case
from tests.triton.interpreted.check_solve import Y0, W, rotation
from tests.triton.interpreted.tools import launched, solved

SHAPES = pytest.mark.parametrize("launch", ["scalarised", "tiled"])
T = [0.0, 0.05, 0.2, 0.2, 0.26]


def case_of(kind):
    """A case, and its launch parameters."""
    if kind == "rotation":
        return Case(rotation, Y0, W)
    if kind == "controlled":
        return Case(ControlledField(3, hidden=5), randn(5, 3), randn(5, 38) / 2)
    if kind == "wide":
        return Case(ControlledField(9), randn(5, 9), randn(5, 90) / 3)
    return Case(MLPField(3, (7,), time=True), randn(5, 3))


KINDS = ["rotation", "controlled", "mlp"]


def compared(kind, launch, dtype=F64, batch=5, times=T, **options):
    """Gradients by the kernels, into poisoned memory, against the reference's."""
    case = case_of(kind)
    with launched(launch):
        ys, _, grads = solved(case, dtype, "triton", times, batch, **options)
    expected, _, truth = solved(case, dtype, "reference", times, batch, **options)
    torch.testing.assert_close(ys, expected, rtol=1e-9, atol=1e-10, equal_nan=True)
    assert_close(grads, truth, 1e-9)
    return grads


@pytest.mark.parametrize("launch", ["scalarised", "in_place", "tiled", "tiled_one", "tiled_dot"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_launch_parameters(kind, launch):
    compared(kind, launch)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("kind", [*KINDS, "wide"])
def test_batches_that_fill_no_program(kind, batch):
    compared(kind, None, batch=batch)


@SHAPES
@pytest.mark.parametrize("method", ["euler", "rk4", "bosh3", "dopri5", "dopri8"])
def test_methods(method, launch):
    options = {"step_size": 0.1} if method in ("euler", "rk4") else {"rtol": 1e-6, "atol": 1e-6}
    compared("rotation", launch, method=method, **options)


@SHAPES
@pytest.mark.parametrize("kind", KINDS)
def test_segments(kind, launch, monkeypatch):
    monkeypatch.setattr(record, "_FIRST_STEPS", 2)
    compared(kind, launch, rtol=1e-7, atol=1e-7)


@SHAPES
@pytest.mark.parametrize("first", [2, 48])
@pytest.mark.parametrize(
    "policy", [Checkpoint(2), Checkpoint(3), Checkpoint(10**30), Checkpoint(max_bytes=150), Checkpoint(2, 700)], ids=str
)
def test_fewer_states_give_the_same_gradient(policy, first, launch, monkeypatch):
    monkeypatch.setattr(record, "_FIRST_STEPS", first)
    for kind in ("rotation", "mlp"):
        compared(kind, launch, rtol=1e-7, atol=1e-7, gradient=policy)


def test_budgets_are_kept(monkeypatch):
    monkeypatch.setattr(record, "_FIRST_STEPS", 4)
    y0 = Y0.clone().requires_grad_()
    options = {"controls": W, "rtol": 1e-8, "atol": 1e-8, "backend": "triton"}
    ys = fastode.solve(rotation, y0, [0.0, 1.0], gradient=Checkpoint(max_bytes=800), **options).ys
    kept = ys.grad_fn.record
    assert len(kept.segments) > 1
    assert kept.state_bytes() <= 800


@SHAPES
def test_replays_in_turns(launch, monkeypatch):
    """With little memory for states between kept ones a program works on several groups of samples."""
    monkeypatch.setattr(backend, "_REPLAY_BYTES", 1)
    compared("rotation", launch, gradient=Checkpoint(2))


@SHAPES
def test_backwards_in_time_and_times_per_sample(launch):
    times = torch.tensor(
        [[0.0, 0.1, -1.0, 0.5, 2.0], [0.2, 0.1, -0.9, 0.5, 2.3], [0.2, 0.4, -0.5, 0.5, 2.4]], dtype=F64
    )
    compared("controlled", launch, times=times)
    compared("controlled", launch, times=times.flip(0))


@SHAPES
def test_gradients_by_times(launch):
    times = torch.tensor(T, dtype=F64, requires_grad=True)
    got = []
    for name in ("triton", "reference"):
        with launched(launch):
            ys = fastode.solve(rotation, Y0, times, controls=W, backend=name).ys
        got.append(torch.autograd.grad((ys**2).sum(), times))
    assert_close(list(got[0]), list(got[1]), 1e-9)


def test_second_derivatives(monkeypatch):
    """By a replay of the recorded steps, those of later launches among them."""
    monkeypatch.setattr(record, "_FIRST_STEPS", 3)
    got = []
    for name in ("triton", "reference"):
        y0 = Y0.clone().requires_grad_()
        ys = fastode.solve(rotation, y0, [0.0, 0.3], controls=W, backend=name).ys
        (first,) = torch.autograd.grad((ys**3).sum(), y0, create_graph=True)
        got.append([first, *torch.autograd.grad((first**2).sum(), y0)])
    assert_close(got[0], got[1], 1e-9)


@SHAPES
def test_failed_samples_have_no_gradient_and_leave_the_others(launch):
    def field(t, y, w):
        return w * y * y

    y0 = torch.tensor([[0.1, 0.2], [50.0, 1.0], [0.3, 0.1], [torch.nan, 0.0], [0.2, 0.2], [0.0, torch.inf]], dtype=F64)
    weight = torch.tensor([0.7, 1.1], dtype=F64, requires_grad=True)
    y0.requires_grad_()
    options = {"max_steps": 60, "on_failure": "nan"}
    got = []
    for name in ("triton", "reference"):
        with launched(launch):
            sol = fastode.solve(lambda t, y: field(t, y, weight), y0, [0.0, 0.01, 0.4], backend=name, **options)
        assert sol.status[[0, 2, 4]].tolist() == [0, 0, 0]
        loss = torch.where(sol.ys.isnan(), 0.0, sol.ys)[1:].square().sum()
        got.append(torch.autograd.grad(loss, [y0, weight]))
    assert_close(list(got[0]), list(got[1]), 1e-9)
    assert bool((got[0][0][[1, 3, 5]] == 0).all())


@SHAPES
def test_only_the_wanted_gradients(launch):
    """Of two controls one: the other is neither computed nor written."""
    y0, a = Y0.clone(), W.clone().requires_grad_()
    b = torch.ones(5, 2, dtype=F64)

    def field(t, y, c):
        return c["a"] * torch.sin(y) * c["b"]

    got = []
    for name in ("triton", "reference"):
        with launched(launch):
            ys = fastode.solve(field, y0, T, controls={"a": a, "b": b}, backend=name).ys
        got.append(torch.autograd.grad(ys.sum(), a))
    assert_close(list(got[0]), list(got[1]), 1e-9)


@SHAPES
def test_a_component_used_twice_and_one_not_at_all(launch):
    """Sums of a per-sample leaf that overlap, and components that have none."""

    def field(t, y, c):
        return torch.cat([c[:, :2] * y[:, :2], c[:, 1:2] * y[:, 2:] + c[:, 3:4] * c[:, 1:2]], dim=1)

    y0, c = randn(4, 3), randn(4, 5).requires_grad_()
    got = []
    for name in ("triton", "reference"):
        with launched(launch):
            ys = fastode.solve(field, y0, T, controls=c, backend=name).ys
        got.append(torch.autograd.grad(ys.sum(), c))
    assert_close(list(got[0]), list(got[1]), 1e-9)


@SHAPES
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_every_time(kind, launch):
    case = case_of(kind)
    results = []
    for _ in range(2):
        with launched(launch):
            ys, _, grads = solved(case, F32, "triton", T, 5)
        results.append([ys, *grads])
    assert same_bits(*results)
