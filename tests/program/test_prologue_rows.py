"""Tensors that do not depend on the state, with several rows per sample and the samples wherever they are."""

import pytest
import torch
from torch.func import jacrev, vmap

import fastode
from fastode.program.capture import Capture
from tests.program.tools import F32, F64, attempt

B, K, D = 5, 3, 2
TIMES = torch.tensor([0.0, 1.0], dtype=F64)


def sized(x):
    """(B K, D) rows of the samples: those of one sample next to each other."""
    return x.view(-1, K, D).sum(1)


def rows_of(y):
    return y.repeat_interleave(K, 0)


class Experts(torch.nn.Module):
    """Rows of controls through a normalisation that has weights for each of the K rows."""

    def __init__(self, dtype):
        super().__init__()
        self.groups = torch.nn.GroupNorm(1, D, eps=0.1).to(dtype)
        with torch.no_grad():
            self.groups.weight.copy_(torch.tensor([0.5, 2.0]))

    def forward(self, t, y, c):
        return sized(torch.tanh(rows_of(y) * self.groups(c.reshape(-1, D).exp())))


# name: field of the state (B, D) and controls c (B, K, D), and whether it has a program.
LAYOUTS = {
    "merged": (lambda t, y, c: sized(rows_of(y) * c.reshape(-1, D).exp()), True),
    "merged and transposed": (lambda t, y, c: sized((rows_of(y).T * c.reshape(-1, D).exp().T).T), True),
    "flattened": (lambda t, y, c: -(y.flatten() * c[:, 0].flatten().exp()).view(-1, D), True),
    "flattened whole": (lambda t, y, c: sized((rows_of(y).flatten() * c.flatten().exp()).view(-1, D)), True),
    "behind": (lambda t, y, c: torch.einsum("bd,kbd->bd", y, c.movedim(0, 1).exp().contiguous()), True),
    "last": (lambda t, y, c: (y.T * c[:, 0].T.exp().contiguous()).T, True),
    "merged behind": (
        lambda t, y, c: (
            (rows_of(y).T[None] * c.permute(2, 0, 1).reshape(1, D, -1).exp()).reshape(D, -1).T.reshape(-1, K, D).sum(1)
        ),
        True,
    ),
    "every third": (lambda t, y, c: y * c.reshape(-1, D).exp()[1::K], True),
    "every third of rows of the state": (lambda t, y, c: (rows_of(y) * c.reshape(-1, D).exp())[2::K], True),
    "rows that no sample has": (lambda t, y, c: y * c.repeat(4, 1, 1).reshape(-1, D).exp()[:: 4 * K], True),
    "tiled": (lambda t, y, c: sized(rows_of(y) * c[:, 0].repeat(K, 1).exp()), True),
    "tiled state": (lambda t, y, c: (y.repeat(K, 1) * c[:, 0].repeat(K, 1).exp()).view(K, -1, D).sum(0), False),
    "samples inside": (lambda t, y, c: sized(rows_of(y) * c.movedim(1, 0).reshape(-1, D).exp()), True),
    "channels": (
        lambda t, y, c: sized(
            rows_of(y)
            * c.transpose(1, 2)
            .reshape(-1, K)
            .exp()[:, :1]
            .reshape(-1, 1)
            .repeat_interleave(K, 0)
            .view(-1, D, K)[:, 0]
            .reshape(-1, 1)
        ),
        True,
    ),
    "expanded": (lambda t, y, c: sized(rows_of(y) * c[:, :1].expand(-1, K, -1).reshape(-1, D).exp()), True),
    "one row for all": (lambda t, y, c: y * c.exp().sum((0, 1)).expand(len(y), D), True),
    "stride nought": (lambda t, y, c: y * c.exp()[:, 0, :1].expand(-1, D), True),
    "mixed beforehand": (lambda t, y, c: y * (c[:, 0].exp() - c[:, 1].mean(0)), True),
    "permuted beforehand": (lambda t, y, c: y * c[:, 0].exp().flip(0), True),
    "matrices": (
        lambda t, y, c: (
            torch.bmm(c.reshape(-1, D, 1).exp().expand(-1, D, D) / 4, rows_of(y)[..., None]).view(-1, K, D).mean(1)
        ),
        True,
    ),
    "products": (lambda t, y, c: sized(rows_of(y) @ torch.eye(D, dtype=y.dtype) * c.reshape(-1, D).sin()), True),
}


def one_step(field, y, c):
    """One Euler step of the solver from t = 0 to 1: y + f(0, y, c)."""
    return fastode.solve(field, y, TIMES, controls=c, method="euler").ys[-1]


def plain(field, y, c):
    return y + field(torch.zeros(len(y), 1, dtype=y.dtype), y, c)


def compare(field, dtype, fused, seed=0):
    """Values and gradients of a step, on controls that are zero when the program is made and are not later."""
    torch.manual_seed(seed)
    y, c = torch.randn(B, D, dtype=dtype), torch.randn(B, K, D, dtype=dtype)
    made = attempt(field, y, torch.zeros_like(c))
    assert isinstance(made, Capture) == fused, made
    results = []
    for run in (one_step, plain):
        own = y.clone().requires_grad_(), c.clone().requires_grad_()
        out = run(field, *own)
        weights = torch.arange(1.0, 1.0 + out.numel(), dtype=dtype).view_as(out)
        results.append((out.detach(), *torch.autograd.grad(out, own, weights, materialize_grads=True)))
    tolerance = 1e-12 if dtype == F64 else 1e-5
    for got, right in zip(*results, strict=True):
        torch.testing.assert_close(got, right, rtol=tolerance, atol=tolerance * float(right.abs().max()))


@pytest.mark.parametrize("dtype", [F64, F32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name, dtype):
    field, fused = LAYOUTS[name]
    compare(field, dtype, fused)


@pytest.mark.parametrize("dtype", [F64, F32], ids=["f64", "f32"])
def test_group_normalisation_of_rows(dtype):
    compare(Experts(dtype), dtype, True)


@pytest.mark.parametrize("rows", ["state", "controls"])
def test_normalisations_of_rows_that_depend_on_the_state(rows):
    """Each of the K rows of a sample is a row of its own for these."""
    torch.manual_seed(1)
    group, batch = torch.nn.GroupNorm(2, 4).double(), torch.nn.BatchNorm1d(D).double().eval()
    with torch.no_grad():
        for norm in (group, batch):
            norm.weight.normal_()
            norm.bias.normal_()
        batch.running_mean.normal_()
        batch.running_var.uniform_(0.5, 2.0)

    def field(t, y, c):
        rows = rows_of(y) * (c.reshape(-1, D) if rows_from_controls else 1.0)
        return sized(batch(rows)) + group(torch.cat([rows, rows.sin()], 1)).view(-1, K, 4).sum(1)[:, :D]

    rows_from_controls = rows == "controls"
    compare(field, F64, True)


def test_exact_trace_of_a_jacobian():
    """vmap(jacrev(net)) makes tensors of (B k) rows from weights alone."""
    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Linear(D, 8), torch.nn.Tanh(), torch.nn.Linear(8, D)).double()

    def field(t, y, c):
        trace = torch.diagonal(vmap(jacrev(net))(y * c[:, 0]), dim1=-2, dim2=-1).sum(-1, keepdim=True)
        return net(y) - trace

    compare(field, F64, True)


@pytest.mark.parametrize(
    "cut",
    [
        lambda rows: rows[::4],
        lambda rows: torch.diagonal(rows.view(-1, K, D)[:, :, :1].expand(-1, K, 8)[:, 0])[:, None],
    ],
    ids=["every fourth", "diagonal"],
)
def test_views_that_take_other_rows_of_other_samples(cut):
    """Of (3 B, D) rows x[::4] has a row for each of two or three samples, but those of another sample."""
    torch.manual_seed(3)
    y, c = torch.randn(3, D, dtype=F64), torch.randn(3, K, D, dtype=F64)
    field = lambda t, y, c: y * cut(rows_of(y) * c.reshape(-1, D))  # noqa: E731
    assert not isinstance(attempt(field, y, c), Capture)
    torch.testing.assert_close(one_step(field, y, c), plain(field, y, c), rtol=1e-12, atol=1e-12)
