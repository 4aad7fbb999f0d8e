"""Fields as people write them have programs, whose values and gradients are those of the field on any data."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastode.fields import ACTIVATIONS, ControlledField, MLPField
from fastode.tree import tree_map
from tests.program.tools import F32, F64, check, refusal_of

DTYPES = pytest.mark.parametrize("dtype", [F64, F32], ids=["f64", "f32"])


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


@dataclass
class Case:
    """A field with example data in float64."""

    field: Callable[..., Any]
    y0: Any
    controls: Any = None

    def check(self, dtype: torch.dtype, **options: Any) -> Any:
        if isinstance(self.field, nn.Module):
            self.field.to(dtype)
        cast = lambda tree: tree_map(lambda x: x.to(dtype), tree)  # noqa: E731
        return check(self.field, cast(self.y0), None if self.controls is None else cast(self.controls), **options)


class Autonomous(nn.Module):
    """A network as a field."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


class Timed(nn.Module):
    """A network of the state and the time."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, t.expand(-1, 1)], dim=-1))


def mlp(sizes: list[int], activation: Callable[[], nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(n, m, bias=bias, dtype=F64)] + ([activation()] if i < len(sizes) - 2 else [])
    return nn.Sequential(*layers)


# -- networks


@DTYPES
@pytest.mark.parametrize("sizes", [[3, 3], [3, 7, 3], [5, 9, 8, 5], [1, 4, 1], [3, 5, 5, 5, 5, 5, 3]], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_mlp(dtype, sizes, bias):
    made = Case(Autonomous(mlp(sizes, bias=bias)), randn(5, sizes[0])).check(dtype)
    assert len(made.program.shared) == (len(sizes) - 1) * (1 + bias)
    assert made.is_plain(False)  # weights are read where they lie


@DTYPES
@pytest.mark.parametrize("sizes", [[4, 3], [4, 7, 3], [4, 6, 6, 3]], ids=str)
def test_mlp_of_time(dtype, sizes):
    Case(Timed(mlp(sizes)), randn(5, 3)).check(dtype)


ACTIVATION_MODULES = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "leaky_relu_steep": lambda: nn.LeakyReLU(0.3),
    "elu": nn.ELU,
    "elu_alpha": lambda: nn.ELU(0.7),
    "selu": nn.SELU,
    "celu": nn.CELU,
    "celu_alpha": lambda: nn.CELU(2.0),
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softplus_beta": lambda: nn.Softplus(beta=2, threshold=1),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
    "hardtanh_range": lambda: nn.Hardtanh(-0.3, 0.8),
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "relu6": nn.ReLU6,
    "log_sigmoid": nn.LogSigmoid,
    "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
    "softshrink": nn.Softshrink,
    "hardshrink": nn.Hardshrink,
    "hardshrink_wide": lambda: nn.Hardshrink(0.9),
    "threshold": lambda: nn.Threshold(0.1, -0.2),
    "rrelu": lambda: nn.RReLU().eval(),
    "prelu": nn.PReLU,
    "prelu_channels": lambda: nn.PReLU(6),
    "softmax": lambda: nn.Softmax(dim=-1),
    "softmax_dim1": lambda: nn.Softmax(dim=1),
    "log_softmax": lambda: nn.LogSoftmax(dim=-1),
    "softmin": lambda: nn.Softmin(dim=-1),
    "identity": nn.Identity,
    "dropout": lambda: nn.Dropout().eval(),
    "layer_norm": lambda: nn.LayerNorm(6),
    "layer_norm_plain": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "group_norm": lambda: nn.GroupNorm(3, 6),
    "rms_norm": lambda: nn.RMSNorm(6),
    "batch_norm": lambda: nn.BatchNorm1d(6).eval(),
}


@DTYPES
@pytest.mark.parametrize("activation", ACTIVATION_MODULES)
def test_activation_module(dtype, activation):
    module = ACTIVATION_MODULES[activation]()
    net = nn.Sequential(nn.Linear(5, 6), module, nn.Linear(6, 5)).to(F64)
    # Torch divides by 6 in float32 in the gradient of Hardsigmoid, also where it is of float64.
    Case(Autonomous(net), 2 * randn(5, 5)).check(dtype, precision=1e-6 if activation == "hardsigmoid" else None)


@pytest.mark.parametrize("activation", [name for name in ACTIVATION_MODULES if name != "softmax_dim1"])
def test_activation_far_out(activation):
    # Where exponentials over- and underflow; without weights in front, so that kinks are where they are.
    module = ACTIVATION_MODULES[activation]().to(F32)
    y = torch.tensor([[-900.0, -120.0, -25.0, 19.0, 95.0, 800.0]]).repeat(3, 1)
    check(Autonomous(module), y, move=lambda y, n: y[:1].repeat(n, 1))


def test_glu():
    net = nn.Sequential(nn.Linear(3, 8, dtype=F64), nn.GLU(), nn.Linear(4, 3, dtype=F64))
    Case(Autonomous(net), randn(5, 3)).check(F64)


@pytest.mark.parametrize("inplace", [nn.ReLU, nn.SiLU, nn.ELU, nn.Hardtanh, nn.LeakyReLU, nn.Mish, nn.Hardswish])
def test_activations_in_place(inplace):
    net = nn.Sequential(nn.Linear(3, 8), inplace(inplace=True), nn.Linear(8, 3))
    Case(Autonomous(net), randn(5, 3)).check(F64)


# -- fields of the package


@DTYPES
@pytest.mark.parametrize("hidden", [None, 4, 7])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_controlled_field(dtype, hidden, activation):
    field = ControlledField(3, hidden=hidden, activation=activation)
    made = Case(field, randn(5, 3), randn(5, field.n_controls)).check(dtype)
    assert made.is_plain(False)
    assert len(made.program.sample) == 1


@DTYPES
def test_controlled_field_of_dimension_one(dtype):
    field = ControlledField(1)
    Case(field, randn(5, 1), randn(5, field.n_controls)).check(dtype)


@DTYPES
def test_mlp_field(dtype):
    Case(MLPField(3, [8, 5], activation="silu").to(F64), randn(5, 3)).check(dtype)


# -- fields from the literature


def lorenz(t, y, c):
    sigma, rho, beta = c.unbind(-1)
    x, y, z = y.unbind(-1)
    return torch.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z], -1)


def lorenz_indexed(t, y):
    return torch.stack(
        [
            10.0 * (y[..., 1] - y[..., 0]),
            y[:, 0] * (28.0 - y[:, 2]) - y[:, 1],
            y[..., 0] * y[..., 1] - 8 / 3 * y[..., 2],
        ],
        dim=-1,
    )


def lotka_volterra(t, y, c):
    prey, predator = y[..., 0:1], y[..., 1:2]
    return torch.cat((c["a"] * prey - c["b"] * prey * predator, -c["c"] * predator + c["d"] * prey * predator), dim=-1)


def van_der_pol(t, y, mu):
    x, v = y[:, 0], y[:, 1]
    return torch.stack((v, mu * (1 - x**2) * v - x), dim=1)


def pleiades(t, y):
    """Seven stars in the plane: 14 positions, 14 velocities."""
    x, y_, vx, vy = y[..., 0:7], y[..., 7:14], y[..., 14:21], y[..., 21:28]
    mass = torch.arange(1, 8, dtype=y.dtype)
    dx, dy = x[..., None, :] - x[..., :, None], y_[..., None, :] - y_[..., :, None]
    r3 = (dx**2 + dy**2 + torch.eye(7, dtype=y.dtype)) ** 1.5
    return torch.cat([vx, vy, (mass * dx / r3).sum(-1), (mass * dy / r3).sum(-1)], dim=-1)


def pleiades_indexed(t, y):
    mass = [1.0, 2.0, 3.0]
    ax, ay = [], []
    for i in range(3):
        terms_x, terms_y = [], []
        for j in range(3):
            if i != j:
                dx, dy = y[..., j] - y[..., i], y[..., 3 + j] - y[..., 3 + i]
                r3 = (dx * dx + dy * dy + 0.1) ** 1.5
                terms_x.append(mass[j] * dx / r3)
                terms_y.append(mass[j] * dy / r3)
        ax.append(sum(terms_x))
        ay.append(sum(terms_y))
    return torch.stack([*y[..., 6:12].unbind(-1), *ax, *ay], dim=-1)


def written_in_place(t, y):
    dy = torch.zeros_like(y)
    dy[..., 0] = y[..., 1]
    dy[:, 1] = -torch.sin(y[:, 0]) - 0.1 * y[:, 1]
    dy[:, 2] += y[:, 0] * y[:, 1]
    dy[:, 2] *= 2
    return dy


def written_into_empty(t, y):
    dy = torch.empty_like(y)
    dy[..., 1:] = y[..., :-1]
    dy[..., 0] = 3.0
    dy[..., 2].mul_(t[..., 0]).add_(y[:, 0], alpha=2)
    return dy


def robertson(t, y):
    a, b, c = torch.split(y, 1, dim=-1)
    return torch.hstack([-0.04 * a + 1e2 * b * c, 0.04 * a - 1e2 * b * c - 3e1 * b**2, 3e1 * torch.square(b)])


def kuramoto(t, y):
    return 0.5 + torch.sin(y[:, None, :] - y[:, :, None]).mean(dim=-1)


def pendulum_of_dict(t, s):
    return {"angle": s["speed"], "speed": (-torch.sin(s["angle"]), s["angle"] * t)[0]}


def nested(t, s):
    q, (p, extra) = s
    return (p, (-q, {"z": -extra["z"] * q.sum(-1, keepdim=True)}))


def closed_loop(t, s):
    z, w = s
    m = w.reshape(-1, 3, 3)
    dz = torch.tanh(torch.einsum("bij,bj->bi", m, z))
    return dz, -0.1 * w + torch.einsum("bi,bj->bij", dz, z).flatten(1)


def heat_1d(t, y):
    return 4.0 * (F.pad(y[:, 1:], (0, 1)) - 2 * y + F.pad(y[:, :-1], (1, 0)))


def periodic(t, y):
    return torch.roll(y, 1, dims=-1) - 2 * y + torch.roll(y, -1, -1)


def lorenz96(t, y):
    return (torch.roll(y, -1, 1) - torch.roll(y, 2, 1)) * torch.roll(y, 1, 1) - y + 8.0


def brusselator(t, y):
    u, v = y.chunk(2, dim=-1)
    return torch.cat([1 + u**2 * v - 4 * u, 3 * u - u.pow(2) * v], -1)


def matrix_riccati(t, y):
    return torch.eye(3, dtype=y.dtype) - y @ y + y.mT - y.transpose(1, 2) @ y


def of_scalars(t, y):
    return torch.where(y > 0, -y, y.abs() + 1).clamp(-2, 3)


def gradient_of_potential(t, y):
    return -torch.cos(y) * torch.exp(torch.sin(y).sum(-1, keepdim=True))


def numbers_in_a_tensor(t, y):
    return y * torch.tensor([1.0, -2.0, 0.5], dtype=y.dtype) + torch.tensor(0.1, dtype=y.dtype)


def vmapped(t, y, c):
    one = lambda t, y, c: torch.stack([y[1], -c[0] * y[0] + c[1] * t[0]])  # noqa: E731
    return torch.func.vmap(one)(t, y, c)


FIELDS = {
    "lorenz": lambda: Case(lorenz, randn(5, 3), randn(5, 3)),
    "lorenz_indexed": lambda: Case(lorenz_indexed, randn(5, 3)),
    "lotka_volterra": lambda: Case(lotka_volterra, randn(5, 2), {k: randn(5, 1) for k in "abcd"}),
    "van_der_pol": lambda: Case(van_der_pol, randn(5, 2), randn(5)),
    "pleiades": lambda: Case(pleiades, 3 * randn(5, 28)),
    "pleiades_indexed": lambda: Case(pleiades_indexed, randn(5, 12)),
    "written_in_place": lambda: Case(written_in_place, randn(5, 3)),
    "written_into_empty": lambda: Case(written_into_empty, randn(5, 3)),
    "robertson": lambda: Case(robertson, randn(5, 3)),
    "kuramoto": lambda: Case(kuramoto, randn(7, 5)),
    "dict": lambda: Case(pendulum_of_dict, {"angle": randn(5, 1), "speed": randn(5, 1)}),
    "nested": lambda: Case(nested, (randn(5, 3), (randn(5, 3), {"z": randn(5, 1)}))),
    "closed_loop": lambda: Case(closed_loop, (randn(5, 3), randn(5, 9))),
    "heat_1d": lambda: Case(heat_1d, randn(5, 9)),
    "periodic": lambda: Case(periodic, randn(5, 7)),
    "lorenz96": lambda: Case(lorenz96, randn(5, 7)),
    "brusselator": lambda: Case(brusselator, randn(5, 6)),
    "matrix_riccati": lambda: Case(matrix_riccati, randn(5, 3, 3)),
    "of_scalars": lambda: Case(of_scalars, randn(7)),
    "gradient_of_potential": lambda: Case(gradient_of_potential, randn(5, 3)),
    "numbers_in_a_tensor": lambda: Case(numbers_in_a_tensor, randn(5, 3)),
    "vmapped": lambda: Case(vmapped, randn(5, 2), randn(5, 2)),
}


@DTYPES
@pytest.mark.parametrize("name", FIELDS)
def test_field(dtype, name):
    FIELDS[name]().check(dtype)


# -- time


TIMES = {
    "factor": lambda t, y: t * y,
    "sine": lambda t, y: torch.sin(t) - y,
    "column": lambda t, y: y * t[:, :1],
    "squeezed": lambda t, y: y * t.squeeze(-1)[:, None],
    "row_of_zeros": lambda t, y: t + torch.zeros_like(y),
    "expanded": lambda t, y: t.expand_as(y) * y,
    "features": lambda t, y: y * torch.cat([t, t**2, torch.cos(3 * t)], dim=-1),
    "filled": lambda t, y: torch.ones_like(y) * t + y,
    "compared": lambda t, y: torch.where(t < 1.0, y, -y),
    "heaviside": lambda t, y: y * (t > 0.9).to(y.dtype),
    "only": lambda t, y: torch.exp(-t).expand(-1, 3),
    "powers": lambda t, y: y * 2**t + t**-1,
    "flat": lambda t, y: y * t.view(-1, 1),
}


@DTYPES
@pytest.mark.parametrize("use", TIMES)
def test_time(dtype, use):
    Case(TIMES[use], randn(5, 3)).check(dtype)


def test_time_of_a_matrix_state():
    Case(lambda t, y: torch.cos(t) * y + t[:, 0, 0, None, None], randn(5, 2, 3)).check(F64)


def test_time_of_a_scalar_state():
    Case(lambda t, y: torch.cos(t) * y, randn(5)).check(F64)


def test_time_of_the_first_sample_for_all_is_refused():
    # Samples have their own times.
    assert "sample" in refusal_of(lambda t, y: t[0] * y, randn(5, 3)).reason


# -- modules with structure


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, t, y):
        return y + self.scale * self.second(F.silu(self.first(y)))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.gate = nn.Linear(3, 3), nn.Linear(4, 3)

    def forward(self, t, y):
        gate = torch.sigmoid(self.gate(torch.cat([y, t], -1)))
        return gate * torch.tanh(self.value(y)) + (1 - gate) * y


class Symmetric(nn.Module):
    """-A^T sigma(A z + b)."""

    def __init__(self):
        super().__init__()
        self.A, self.b = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(5))

    def forward(self, t, z):
        return -torch.tanh(z @ self.A.T + self.b) @ self.A


class Antisymmetric(nn.Module):
    def __init__(self):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))

    def forward(self, t, z):
        return torch.tanh(F.linear(z, self.W - self.W.T - 0.1 * torch.eye(3, dtype=z.dtype), self.b))


class Hamiltonian(nn.Module):
    def __init__(self):
        super().__init__()
        self.K, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))

    def forward(self, t, state):
        q, p = state
        return F.linear(torch.tanh(F.linear(p, self.K, self.b)), self.K.T), -torch.sin(q @ self.K.mT) @ self.K


class Transposed(nn.Module):
    """Columns as samples, as in the papers."""

    def __init__(self):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3, 1))

    def forward(self, t, y):
        return torch.relu(self.W @ y.T + self.b).T


class Columns(nn.Module):
    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(3, 3))

    def forward(self, t, y):
        return (self.W @ y[..., None])[..., 0] + torch.matmul(self.W, y.unsqueeze(-1)).squeeze(-1)


class Attention(nn.Module):
    """One head over the rows of the state."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, t, y):
        weights = torch.softmax(self.q(y) @ self.k(y).transpose(-1, -2) / math.sqrt(4), dim=-1)
        return weights @ self.v(y)


class Rows(nn.Module):
    """A linear layer on each row of a (B, r, n) state."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))

    def forward(self, t, y):
        return self.net(y) * t


class Hyper(nn.Module):
    """Weights made from parameters by another network: the prologue."""

    def __init__(self):
        super().__init__()
        self.make = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 9))
        self.code = nn.Parameter(torch.randn(2))

    def forward(self, t, y):
        return torch.tanh(y @ self.make(self.code).reshape(3, 3))


class HyperControls(nn.Module):
    """Weights made from controls by a network, anew at every call."""

    def __init__(self):
        super().__init__()
        self.make = nn.Linear(2, 12)

    def forward(self, t, y, code):
        weights = self.make(torch.sin(code))
        return torch.tanh(torch.bmm(weights[:, :9].reshape(-1, 3, 3), y[..., None])[..., 0] + weights[:, 9:])


class HyperTime(nn.Module):
    """Weights made from time by a network."""

    def __init__(self):
        super().__init__()
        self.make = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 9))

    def forward(self, t, y):
        return torch.tanh(torch.einsum("bij,bj->bi", self.make(t).view(-1, 3, 3), y))


class Heads(nn.ModuleList):
    def __init__(self):
        super().__init__([nn.Linear(3, 1) for _ in range(3)])

    def forward(self, t, y):
        return torch.cat([head(y) for head in self], dim=-1)


class SecondOrder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)

    def forward(self, t, state):
        x, v = state
        return v, self.net(torch.cat([x, v], 1)) - 0.1 * v


class Augmented(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

    def forward(self, t, y):
        return torch.tanh(self.net(y))


class Reused(nn.Module):
    """One layer applied twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, t, y):
        return self.layer(torch.tanh(self.layer(y)))


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.T = nn.Parameter(torch.randn(3, 3, 3))

    def forward(self, t, y):
        return torch.einsum("ijk,bj,bk->bi", self.T, y, y)


MODULES = {
    "residual": (Residual, (3,)),
    "gated": (Gated, (3,)),
    "symmetric": (Symmetric, (3,)),
    "antisymmetric": (Antisymmetric, (3,)),
    "hamiltonian": (Hamiltonian, ((3,), (3,))),
    "transposed": (Transposed, (3,)),
    "columns": (Columns, (3,)),
    "attention": (Attention, (3, 4)),
    "rows": (Rows, (3, 4)),
    "hyper": (Hyper, (3,)),
    "hyper_time": (HyperTime, (3,)),
    "heads": (Heads, (3,)),
    "second_order": (SecondOrder, ((3,), (3,))),
    "weight_norm": (Augmented, (3,)),
    "reused": (Reused, (3,)),
    "bilinear": (Bilinear, (3,)),
}


@DTYPES
@pytest.mark.parametrize("name", MODULES)
def test_module(dtype, name):
    kind, shape = MODULES[name]
    parts = tuple(randn(5, *s) for s in shape) if isinstance(shape[0], tuple) else randn(5, *shape)
    Case(kind(), parts).check(dtype)


@DTYPES
def test_weights_made_from_controls(dtype):
    made = Case(HyperControls(), randn(5, 3), randn(5, 2)).check(dtype)
    assert not made.is_plain(False)  # torch makes them, once per solve
    assert not made.program.shared


@DTYPES
@pytest.mark.parametrize("equation", ["bij,bj->bi", "bji,bj->bi", "bj,bij->bi"])
def test_einsum_with_weights_per_sample(dtype, equation):
    def field(t, y, w):
        operands = (w, y) if equation.startswith(("bij", "bji")) else (y, w)
        return torch.tanh(torch.einsum(equation, *operands))

    Case(field, randn(5, 3), randn(5, 3, 3)).check(dtype)


def test_weights_per_sample_of_a_matrix_state():
    Case(lambda t, y, w: w @ y - y @ w.mT + torch.bmm(w, y).transpose(1, 2).mT, randn(5, 3, 3), randn(5, 3, 3)).check(
        F64
    )


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 6])
def test_batches_as_large_as_other_dimensions(batch, dim):
    # The batch dimension must not be found by its size.
    def field(t, y, c):
        m = torch.stack([y, c * t, y * c], dim=1)  # (B, 3, d)
        return m.sum(1) + (m @ m.mT).sum((1, 2))[:, None] + (m.mT @ m).diagonal(dim1=1, dim2=2)

    Case(field, randn(batch, dim), randn(batch, dim)).check(F64)


# -- log-densities


def hutchinson(net, noise_of):
    def field(t, state):
        y, _ = state
        with torch.enable_grad():
            y = y if y.requires_grad else y.requires_grad_()
            dy = net(y)
            noise = noise_of(y)
            (product,) = torch.autograd.grad(dy, y, noise, create_graph=True)
        return dy, -(product * noise).sum(-1, keepdim=True)

    return field


@pytest.mark.parametrize(
    "activation", [nn.Tanh, nn.Softplus, nn.SiLU, nn.ELU, nn.Sigmoid, nn.GELU], ids=lambda a: a.__name__
)
def test_hutchinson_noise_in_a_closure(activation):
    net, noise = mlp([3, 8, 3], activation), randn(5, 3)
    made = Case(hutchinson(net, lambda y: noise), (randn(5, 3), randn(5, 1))).check(F64)
    assert made.batch == 5  # the noise belongs to these samples


def test_hutchinson_noise_in_an_attribute():
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.noise = mlp([3, 8, 3]), None

        def forward(self, t, state):
            y, _ = state
            y = y.requires_grad_()
            dy = self.net(y)
            (product,) = torch.autograd.grad(dy, y, self.noise, create_graph=True)
            return dy, -(product * self.noise).sum(-1, keepdim=True)

    flow = Flow()
    flow.noise = randn(5, 3)
    assert Case(flow, (randn(5, 3), randn(5, 1))).check(F64).batch == 5


def test_hutchinson_noise_in_controls():
    net = mlp([3, 8, 3])

    def field(t, state, noise):
        return hutchinson(net, lambda y: noise)(t, state)

    assert Case(field, (randn(5, 3), randn(5, 1)), randn(5, 3)).check(F64).batch is None


def test_hutchinson_noise_in_the_state():
    net = mlp([3, 8, 3])

    def field(t, state):
        y, rho, noise = state
        return (*hutchinson(net, lambda y: noise)(t, (y, rho)), torch.zeros_like(noise))

    assert Case(field, (randn(5, 3), randn(5, 1), randn(5, 3))).check(F64).batch is None


def test_exact_trace_by_autograd():
    net = mlp([3, 8, 3])

    def field(t, state):
        y = state[0].requires_grad_()
        dy = net(y)
        trace = sum(torch.autograd.grad(dy[:, i].sum(), y, create_graph=True)[0][:, i] for i in range(3))
        return dy, -trace[:, None]

    Case(field, (randn(5, 3), randn(5, 1))).check(F64)


def test_exact_trace_of_torch_func():
    net = mlp([3, 8, 3])

    def field(t, state):
        jacobian = torch.func.vmap(torch.func.jacrev(net))(state[0])
        return net(state[0]), -torch.einsum("bii->b", jacobian)[:, None]

    Case(field, (randn(5, 3), randn(5, 1))).check(F64)


def test_trace_written_out():
    w, u = nn.Parameter(randn(8, 3)), nn.Parameter(randn(3, 8))

    def field(t, state):
        h = torch.tanh(state[0] @ w.T)
        return h @ u.T, -((1 - h**2) * (w * u.T).sum(-1)).sum(-1, keepdim=True)

    Case(field, (randn(5, 3), randn(5, 1))).check(F64)


def test_gradient_field_of_a_network():
    net = mlp([3, 8, 1])

    def field(t, y):
        y = y.requires_grad_()
        return -torch.autograd.grad(net(y).sum(), y, create_graph=True)[0]

    Case(field, randn(5, 3)).check(F64)
