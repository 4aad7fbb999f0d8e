"""CUDA graphs of backend ``stepped``: what is captured, when again, and what happens if it cannot be.

On the CPU, with kernels compiled for the host and graphs that are imitated (``fake_graphs``); never run on a GPU.
"""

import warnings
from contextlib import nullcontext

import pytest
import torch

import fastode
from fastode import Checkpoint
from fastode.backends import choose, step_graph, stepped_device
from fastode.backends.stepped import SteppedBackend
from fastode.backends.stepped_device import DeviceSteps
from tests import fake_graphs
from tests.fake_graphs import FakeGraph
from tests.problems import same_bits, stats_of


@pytest.fixture(autouse=True)
def imitated(monkeypatch):
    """Kernels of GPUs on the CPU, and graphs asked for."""
    replaced = [SteppedBackend(as_on_device=True) if b.name == "stepped" else b for b in choose.FIELDS]
    monkeypatch.setattr(choose, "FIELDS", tuple(replaced))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", fake_graphs.graph)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(step_graph, "_warned", set())
    monkeypatch.setattr(FakeGraph, "made", [])
    start = DeviceSteps.__init__

    def made(self, *args):
        start(self, *args)
        self._kernels = fake_graphs.Kernels(self._kernels)

    monkeypatch.setattr(DeviceSteps, "__init__", made)
    fastode.set_cuda_graphs(True)
    yield
    fastode.set_cuda_graphs(False)


class Counted:
    """A field that counts how often Python runs it."""

    def __init__(self):
        self.calls = 0

    def __call__(self, t, y, c):
        self.calls += 1
        return c * (torch.sin(y.roll(1, 1)) - y) + torch.cos(t)


RATES = torch.linspace(0.5, 1.0, 4, dtype=torch.float64)[:, None]


def solved(graphs, field=None, rates=RATES, width=3, **options):
    torch.manual_seed(0)
    y0 = torch.randn(len(rates), width, dtype=torch.float64, requires_grad=True)
    c = rates.clone().requires_grad_()
    fastode.set_cuda_graphs(graphs)
    options = {"rtol": 1e-8, "atol": 1e-8, "backend": "stepped", **options}
    sol = fastode.solve(field or Counted(), y0, [0.0, 0.4, 3.0], controls=c, **options)
    fastode.set_cuda_graphs(True)
    return sol, torch.autograd.grad(torch.nan_to_num(sol.ys).square().sum(), [y0, c])


def assert_the_same(got, expected):
    assert torch.equal(stats_of(got[0]), stats_of(expected[0]))
    assert same_bits(got[0].ys, expected[0].ys)
    for mine, true in zip(got[1], expected[1], strict=True):
        assert same_bits(mine, true)


@pytest.mark.parametrize("width", [1, 17, 8200])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_the_same_bits_as_without(method, width):
    options = {"method": method, "width": width, **({"step_size": 0.1} if method == "rk4" else {})}
    got = solved(True, **options)
    assert any(made.replays > 1 for made in FakeGraph.made)
    assert_the_same(got, solved(False, **options))


def test_one_capture_and_one_replay_for_each_attempt():
    field = Counted()
    with torch.no_grad():  # one sample: none is dropped
        sol = fastode.solve(field, torch.zeros(1, 3), [0.0, 3.0], controls=torch.ones(1, 1), backend="stepped")
    attempts = int((sol.stats.n_accepted + sol.stats.n_rejected).max())
    (made,) = FakeGraph.made
    assert attempts > 5
    assert made.replays == attempts - 1  # the first one was launched as it is
    assert field.calls <= 2 + 2 * 6  # the start, the choice of a step, and two attempts of six stages in Python


def test_captured_again_when_samples_are_dropped():
    """Three are done early; the field is then called with the rows that are left."""
    rates = torch.tensor([[0.01], [0.01], [0.01], [40.0]], dtype=torch.float64)
    got = solved(True, rates=rates)
    assert len(FakeGraph.made) == 2
    assert all(made.replays > 0 for made in FakeGraph.made)
    assert_the_same(got, solved(False, rates=rates))


def test_captured_again_when_the_record_is_thinned():
    """The spacing of states is a number that kernels are given at their launch."""
    policy = Checkpoint(max_bytes=600)
    got = solved(True, gradient=policy)
    assert len(FakeGraph.made) > 1
    assert_the_same(got, solved(False, gradient=policy))


def test_a_record_that_grows_keeps_its_graph(monkeypatch):
    """Chunks are found by a table on the device."""
    monkeypatch.setattr(stepped_device, "_CHUNK_BYTES", 1)
    options = {"rates": RATES[:1], "method": "bosh3", "rtol": 1e-9, "atol": 1e-9}
    got = solved(True, **options)
    assert len(FakeGraph.made) == 1
    assert int(got[0].stats.n_accepted) > 3 * 64  # rows of a chunk
    assert_the_same(got, solved(False, **options))


def test_weights_may_change_between_solves():
    weight = torch.full((3,), 0.5, dtype=torch.float64)
    field = lambda t, y, c: -c * weight * y  # noqa: E731
    for value in (0.5, 2.0):
        weight.fill_(value)
        assert_the_same(solved(True, field), solved(False, field))
    weight = torch.full((3,), 3.0, dtype=torch.float64)  # elsewhere
    assert_the_same(solved(True, field), solved(False, field))


def waiting(t, y, c):
    return -c * y if float(y.detach().sum()) > -1e9 else y


def test_a_field_that_waits_is_solved_without_and_said_once():
    with pytest.warns(RuntimeWarning, match=r"without: RuntimeError: CUDA error: operation not permitted") as seen:
        got = solved(True, waiting)
    assert "more lines" not in str(seen[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = solved(True, waiting)
    assert len(FakeGraph.made) == 2  # one attempt at it for each solve
    assert all(made.replays == 0 for made in FakeGraph.made)
    expected = solved(False, waiting)
    assert_the_same(got, expected)
    assert_the_same(again, expected)


def test_off_by_default_and_not_on_the_cpu(monkeypatch):
    fastode.set_cuda_graphs(False)
    assert not fastode.get_cuda_graphs()
    solved(False)
    assert FakeGraph.made == []
    fastode.set_cuda_graphs(True)
    monkeypatch.setattr(choose, "FIELDS", (SteppedBackend(),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solved(True)
    assert FakeGraph.made == []
