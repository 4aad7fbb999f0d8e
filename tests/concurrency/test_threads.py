"""Many threads of Python at once: each solve gives the bits that it gives alone, the first one of a field too."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import fastode
from fastode import Checkpoint

N_THREADS = 6


def net(seed, made_of):
    """A field that nobody has seen: a module, or a function of weights, with numbers of its own."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(4, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    if made_of == "closure":
        return lambda t, y: torch.tanh(y @ weights[0]) @ weights[1] - seed * y, weights

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = map(nn.Parameter, weights)
            self.rate = float(seed)

        def forward(self, t, y):
            return torch.tanh(y @ self.first) @ self.second - self.rate * y

    module = Net()
    return module, [module.first, module.second]


def results(field, weights, **options):
    """Outputs and gradients of a solve."""
    y0 = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4).requires_grad_()
    ys = fastode.solve(field, y0, [0.0, 0.4, 1.0], **options).ys
    return [ys.detach(), *torch.autograd.grad(ys.square().sum(), [y0, *weights])]


def at_once(work):
    """What ``work(i)`` returns for every thread i; all start together."""
    barrier = threading.Barrier(N_THREADS)

    def wait_and_work(i):
        barrier.wait(60)
        return work(i)

    with ThreadPoolExecutor(N_THREADS) as pool:
        return list(pool.map(wait_and_work, range(N_THREADS)))


@pytest.mark.parametrize("made_of", ["closure", "module"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="auto"),
        pytest.param({"gradient": Checkpoint(2)}, id="checkpoint"),
        pytest.param({"backend": "stepped"}, id="stepped"),
        pytest.param({"method": "kvaerno3"}, id="implicit", marks=pytest.mark.slow),
    ],
)
def test_different_fields_recorded_at_once(options, made_of):
    fastode.set_num_threads(2)
    alone = [results(*net(i, made_of), **options) for i in range(N_THREADS)]
    fields = [net(i, made_of) for i in range(N_THREADS)]
    for again in range(2):  # first recorded, then found again
        for i, found in enumerate(at_once(lambda i: results(*fields[i], **options))):
            for value, expected in zip(found, alone[i], strict=True):
                assert torch.equal(value, expected), (i, again)


def test_one_field_recorded_by_all_at_once():
    fastode.set_num_threads(2)
    alone = results(*net(1, "module"))
    field, weights = net(1, "module")
    for found in at_once(lambda i: results(field, weights)):
        assert all(torch.equal(value, expected) for value, expected in zip(found, alone, strict=True))


def test_one_captured_field_in_all_threads():
    """The threads want different specialisations at once: dtypes, gradient or not, one sample or five."""

    def solve(captured, i):
        dtype = (torch.float32, torch.float64)[i % 2]
        y0 = torch.linspace(-1, 1, 4 * (1 + i), dtype=dtype).reshape(-1, 4).requires_grad_(i % 3 == 0)
        return fastode.solve(captured, y0, [0.0, 1.0]).ys.detach()

    field = lambda t, y: torch.sin(3 * y) - y  # noqa: E731
    expected = [solve(field, i) for i in range(N_THREADS)]
    captured = fastode.capture(field, torch.zeros(2, 4, dtype=torch.float64))
    for _ in range(2):
        found = at_once(lambda i: solve(captured, i))
        assert all(torch.equal(value, true) for value, true in zip(found, expected, strict=True))
