"""Backend ``cpu`` gives a sample the same bits in every batch: values, steps, gradients, dense output; every processor.

Not ``stepped``, which calls the field: torch's products have an order of summation for each batch size.
"""

import copy

import pytest
import torch
from torch import nn

import fastode
from fastode import Checkpoint
from fastode._environment import _C
from tests.problems import same_bits

BATCHES = [1, 2, 7, 9, 15, 16, 17, 33, 64, 70]
MOST = 131
TIMES = [0.0, 0.1, 0.5, 1.0]
F32, F64 = torch.float32, torch.float64


def shared_net(dim, hidden, activation):
    def make(dtype):
        torch.manual_seed(dim + hidden)
        net = nn.Sequential(nn.Linear(dim, hidden), activation(), nn.Linear(hidden, dim)).to(dtype)
        return lambda t, y, c: net(y) * c

    return make, dim, (dim,)


def own_matrix(dim):
    return lambda dtype: lambda t, y, c: torch.tanh((c @ y[:, :, None])[:, :, 0]), dim, (dim, dim)


def own_net(dim, hidden):
    n = dim * hidden

    def field(t, y, c):
        first, second = c[:, :n].reshape(-1, hidden, dim), c[:, n : 2 * n].reshape(-1, dim, hidden)
        inner = torch.tanh((first @ y[:, :, None])[:, :, 0] + c[:, 2 * n : 2 * n + hidden])
        return (second @ inner[:, :, None])[:, :, 0] + c[:, 2 * n + hidden :]

    return lambda dtype: field, dim, (2 * n + hidden + dim,)


def lorenz(t, y, c):
    x, z, w = y[:, 0], y[:, 1], y[:, 2]
    return torch.stack([10 * c[:, 0] ** 2 * (z - x), x * (28 - w) - z, x * z - 8 / 3 * w], 1)


def forced(t, y, c):
    return torch.sin(t * c) * y.roll(1, 1) - torch.softmax(y, 1) * y.mean(1, keepdim=True)


def ring(t, y, c):
    return torch.sigmoid(c) * (y.roll(1, 1) - 2 * y + y.roll(-1, 1)) - y * y.mean(1, keepdim=True)


FIELDS = {
    "shared 3": shared_net(3, 50, nn.Tanh),
    "shared 16": shared_net(16, 64, nn.SiLU),
    "shared 30": shared_net(30, 130, nn.GELU),
    "matrix 5": own_matrix(5),
    "matrix 21": own_matrix(21),  # rows forward, lanes backward
    "matrix 33": own_matrix(33),
    "matrix 50": own_matrix(50),  # rows both ways
    "net 12": own_net(12, 40),
    "lorenz": (lambda dtype: lorenz, 3, (1,)),
    "forced 1": (lambda dtype: forced, 1, (1,)),
    "forced 37": (lambda dtype: forced, 37, (37,)),
    "wide": (lambda dtype: ring, 8195, (1,)),  # rows, for its many components
}


class Problem:
    """Samples of one of the fields, and what becomes of some of them."""

    def __init__(self, name, dtype, most=None):
        most = most or (19 if name == "wide" else MOST)
        make, dim, shape = FIELDS[name]
        self.field = make(dtype)
        generator = torch.Generator().manual_seed(5)
        scale = 1.0 if len(shape) == 1 and shape[0] <= dim else dim**-0.5
        self.y0, self.controls, self.cotangent = (
            (factor * torch.randn(*size, dtype=F64, generator=generator)).to(dtype)
            for factor, size in ((1.0, (most, dim)), (scale, (most, *shape)), (1.0, (4, most, dim)))
        )

    def solve(self, rows, **options):
        options = {"backend": "cpu", "rtol": 1e-4, "atol": 1e-5, "on_failure": "nan", **options}
        return fastode.solve(self.field, self.y0[rows], TIMES, controls=self.controls[rows], **options)

    def results(self, rows, policy="checkpoint"):
        """Arrays with the samples in their first dimension."""
        own = copy.copy(self)
        own.y0, own.controls = (x[rows].clone().requires_grad_() for x in (self.y0, self.controls))
        sol = own.solve(slice(None), gradient=policy)
        grads = torch.autograd.grad((sol.ys * self.cotangent[:, rows]).sum(), [own.y0, own.controls])
        stats = sol.stats
        return [sol.ys.detach().movedim(1, 0), *grads, stats.n_accepted, stats.n_rejected, stats.n_evals, sol.status]

    def dense(self, rows):
        with torch.no_grad():
            sol = self.solve(rows, dense=True)
        return [sol.ys.movedim(1, 0), sol.interpolate([0.03, 0.33, 0.77]).movedim(1, 0)]


def assert_part(part, whole, rows):
    for a, b in zip(part, whole, strict=True):
        assert same_bits(a, b[rows])


@pytest.fixture(params=_C.usable_isas())
def isa(request):
    _C.set_isa(request.param)
    return request.param


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("name", FIELDS)
def test_any_batch(name, dtype):
    problem = Problem(name, dtype)
    whole = problem.results(slice(None))
    assert torch.equal(problem.results(slice(None))[1], whole[1])
    most = len(problem.y0)
    for batch in BATCHES if most == MOST else (1, 16):
        rows = slice(most - batch, most) if batch % 2 else slice(0, batch)
        assert_part(problem.results(rows), whole, rows)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("name", ["shared 16", "matrix 21", "net 12", "forced 37"])
def test_any_instruction_set(name, dtype, isa):
    problem = Problem(name, dtype)
    whole, dense = problem.results(slice(None)), problem.dense(slice(None))
    for rows in (slice(0, 1), slice(100, 101), slice(3, 12), slice(64, 81)):
        assert_part(problem.results(rows), whole, rows)
        assert_part(problem.dense(rows), dense, rows)


@pytest.mark.parametrize("policy", [Checkpoint(2), Checkpoint(10**9), Checkpoint(max_bytes=5000)], ids=str)
@pytest.mark.parametrize("name", ["shared 3", "matrix 21", "matrix 50", "net 12"])
def test_any_record(name, policy):
    problem = Problem(name, F32)
    whole = problem.results(slice(None), policy)
    for rows in (slice(0, 1), slice(130, 131), slice(5, 14), slice(60, 77)):
        assert_part(problem.results(rows, policy), whole, rows)


@pytest.mark.parametrize("name", ["shared 16", "matrix 21"])
def test_a_large_batch(name):
    problem = Problem(name, F32, most=2051)
    whole = problem.results(slice(None))
    for rows in (slice(0, 1), slice(2050, 2051), slice(1000, 1017), slice(0, 1999)):
        assert_part(problem.results(rows), whole, rows)


def test_sums_over_the_batch_are_repeatable():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 4))
    y0 = torch.randn(301, 4)

    def gradients():
        net.zero_grad()
        fastode.solve(lambda t, y: net(y), y0, TIMES, backend="cpu").ys.square().sum().backward()
        return [p.grad.clone() for p in net.parameters()]

    first = gradients()
    assert all(map(torch.equal, gradients(), first))
