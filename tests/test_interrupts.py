"""A signal ends a solve: with the exception of its handler, soon, and without a trace in later solves."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastode
from fastode import Checkpoint, Event
from fastode._environment import _C

F64 = torch.float64
LONG = {"rtol": 1e-9, "atol": 1e-9, "max_steps": 10**8}  # half a minute or more where nothing ends it
pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers that send signals here")


class Stopped(Exception):
    pass


def stop(*_):
    raise Stopped


@pytest.fixture(params=["own", "openmp"])
def two_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_num_threads(2)
    if _C.share_openmp(request.param == "openmp") != (request.param == "openmp"):
        pytest.skip("torch has no OpenMP runtime here")
    yield
    _C.share_openmp(os.environ.get("FASTODE_OPENMP") != "0")


@pytest.fixture
def alarm() -> Iterator[None]:
    """The handler may be replaced; it is called 0.15 s after ``signal.setitimer(signal.ITIMER_REAL, 0.15)``."""
    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def lorenz(t, y):
    a, b, c = y[:, 0], y[:, 1], y[:, 2]
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], 1)


def states(batch):
    return torch.randn(batch, 3, dtype=F64, generator=torch.Generator().manual_seed(3))


def forward(batch):
    fastode.solve(lorenz, states(batch), [0.0, 1e9], backend="cpu", **LONG)


def recorded(batch):
    fastode.solve(lorenz, states(batch).requires_grad_(), [0.0, 1e9], backend="cpu", gradient=Checkpoint(8), **LONG)


def stepped(batch):
    fastode.solve(lorenz, states(batch), [0.0, 1e9], backend="stepped", **LONG)


def events(batch):
    event = Event(lambda t, y: y[:, 0] - 1e6, terminal=True)
    fastode.solve(lorenz, states(batch), [0.0, 1e9], events=event, **LONG)


def stiff(batch):
    fastode.solve(lorenz, states(batch), [0.0, 1e9], method="kvaerno5", **LONG)


@pytest.mark.parametrize("batch", [1, 2, 300])
@pytest.mark.parametrize("run", [forward, recorded])
def test_the_exception_of_the_handler_is_raised(run, batch, two_threads, alarm):
    expected = fastode.solve(lorenz, states(batch), [0.0, 0.5], backend="cpu").ys
    for handler, error in ((stop, Stopped), (signal.default_int_handler, KeyboardInterrupt)):
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        with pytest.raises(error):
            run(batch)
        assert torch.equal(fastode.solve(lorenz, states(batch), [0.0, 0.5], backend="cpu").ys, expected)


@pytest.mark.parametrize("run", [stepped, events, stiff])
def test_other_solves_end_too(run, alarm):
    signal.setitimer(signal.ITIMER_REAL, 0.15)
    with pytest.raises(Stopped):
        run(3)


@pytest.mark.parametrize("batch", [1, 40])
def test_a_backward_pass_ends(batch, two_threads, alarm):
    """The record has one state of each sample: then the backward pass is the longer one, and begins with a solve."""
    y0 = states(batch).requires_grad_()
    end = 3000.0 / batch
    ys = fastode.solve(lorenz, y0, [0.0, end], backend="cpu", gradient=Checkpoint(1000), max_steps=10**8).ys
    signal.setitimer(signal.ITIMER_REAL, 0.12)
    loss = ys[-1].sum()

    def backward():
        while True:  # one of them is under way then
            loss.backward(retain_graph=True)

    with pytest.raises(Stopped):
        backward()
    assert y0.grad is None or y0.grad.shape == y0.shape
    torch.autograd.grad(ys[0].sum(), y0)


def test_a_handler_that_returns_disturbs_nothing(two_threads, alarm):
    expected = fastode.solve(lorenz, states(100), [0.0, 40.0], backend="cpu", **LONG).ys
    calls = []

    def handler(*_):
        calls.append(fastode.solve(lorenz, states(5), [0.0, 0.5], backend="cpu").ys)

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    while len(calls) < 3:
        assert torch.equal(fastode.solve(lorenz, states(100), [0.0, 40.0], backend="cpu", **LONG).ys, expected)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert all(torch.equal(ys, fastode.solve(lorenz, states(5), [0.0, 0.5], backend="cpu").ys) for ys in calls)


def test_solves_of_other_threads_go_on(two_threads, alarm):
    expected = fastode.solve(lorenz, states(20), [0.0, 200.0], backend="cpu", **LONG).ys
    results, errors = [], []
    ended = threading.Event()

    def work():
        try:
            while not ended.is_set() or not results:
                results.append(fastode.solve(lorenz, states(20), [0.0, 200.0], backend="cpu", **LONG).ys)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    signal.setitimer(signal.ITIMER_REAL, 0.15)
    with pytest.raises(Stopped):
        forward(300)
    ended.set()
    thread.join()
    assert errors == []
    assert all(torch.equal(ys, expected) for ys in results)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use through /proc")
def test_memory_is_freed(alarm):
    def used():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def interrupted():
        signal.setitimer(signal.ITIMER_REAL, 0.12)
        with pytest.raises(Stopped):
            fastode.solve(lorenz, states(64).requires_grad_(), [0.0, 1e9], backend="cpu", **LONG)

    interrupted()
    before, grown = used(), []
    for _ in range(6):
        interrupted()
        grown.append(used() - before)
    # A solve records some 100 MB in that time; up to 64 MB are kept for the next.
    assert max(grown) < 100e6
