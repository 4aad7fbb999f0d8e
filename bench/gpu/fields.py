"""The fields of the correctness checks, with example data in float64 on the CPU."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases.case import generator
from bench.cases.controlled import ClosedLoop
from bench.cases.convolution import ConvField
from bench.cases.flow import Flow
from bench.cases.systems import _lorenz_field, _van_der_pol_field
from fastode.fields import ACTIVATIONS, ControlledField, MLPField
from fastode.tree import leaves, tree_map

TESTS = "tests.program.test_fields"
"""Where the tests keep their lists of fields, in a checkout."""
_LEFT_OUT = {"robertson", "pleiades", "matrix_riccati", "numbers_in_a_tensor", "antisymmetric"}
"""Too stiff for the fixed steps of the comparison in float32; the others make tensors on the default device."""


@dataclass(frozen=True)
class Example:
    """A field, states y0 (B, ...) and controls (B, ...)."""

    field: Callable[..., Any]
    y0: Any
    controls: Any = None

    def to(self, device: str, dtype: torch.dtype) -> Example:
        """The same elsewhere, with leaves of its own that ask for gradients."""
        move = lambda tree: tree_map(lambda x: x.detach().to(device, dtype, copy=True).requires_grad_(), tree)  # noqa: E731
        field = copy.deepcopy(self.field).to(device, dtype) if isinstance(self.field, nn.Module) else self.field
        return replace(
            self, field=field, y0=move(self.y0), controls=None if self.controls is None else move(self.controls)
        )

    def sources(self) -> list[Tensor]:
        """What gradients are asked for: states, controls, parameters."""
        parameters = list(self.field.parameters()) if isinstance(self.field, nn.Module) else []
        return [*leaves(self.y0), *([] if self.controls is None else leaves(self.controls)), *parameters]


class Pair(nn.Module):
    """q' = K^T tanh(K p + b), p' = -K^T sin(K q): a separable Hamiltonian system with shared weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_randn(dim + 3, dim, seed=31) / dim**0.5)
        self.bias = nn.Parameter(_randn(dim + 3, seed=32))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q, p = state
        moved = torch.tanh(nn.functional.linear(p, self.weight, self.bias))
        return moved @ self.weight, -torch.sin(q @ self.weight.mT) @ self.weight


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def _controlled(batch: int, dim: int, activation: str = "tanh", hidden: int | None = None) -> Example:
    field = ControlledField(dim, hidden, activation)
    return Example(
        field, _randn(batch, dim, seed=1), _randn(batch, field.n_controls, seed=2) / max(dim, hidden or 0) ** 0.5
    )


def _mlp(batch: int, dim: int, hidden: tuple[int, ...], activation: str = "tanh", time: bool = False) -> Example:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        field = MLPField(dim, hidden, activation, time).double()
    return Example(field, _randn(batch, dim, seed=1))


def _lorenz(batch: int, dim: int) -> Example:
    rho = torch.linspace(0.0, 21.0, batch, dtype=torch.float64)[:, None]
    return Example(_lorenz_field, torch.tensor([1.0, 0.0, 0.0]).double() + 0.1 * _randn(batch, 3, seed=1), rho)


def _van_der_pol(batch: int, dim: int, most: float = 2.0) -> Example:
    mu = torch.linspace(0.5, most, batch, dtype=torch.float64)[:, None]
    return Example(_van_der_pol_field, torch.tensor([2.0, 0.0]).double() + 0.1 * _randn(batch, 2, seed=1), mu)


def _closed_loop(batch: int, dim: int) -> Example:
    state = _randn(batch, dim, seed=1), _randn(batch, dim, dim, seed=2) / dim**0.5
    return Example(ClosedLoop(dim).double(), state)


def _flow(batch: int, dim: int) -> Example:
    noise = (torch.randint(0, 2, (batch, dim), generator=generator(5)) * 2 - 1).double()
    return Example(Flow(dim).double(), (_randn(batch, dim, seed=1), torch.zeros(batch, 1).double()), noise)


def _conv(batch: int, dim: int) -> Example:
    return Example(ConvField(dim, groups=1).double(), _randn(batch, dim, 5, 4, seed=1))


MAKERS: dict[str, Callable[[int, int], Example]] = {
    **{f"controlled {name}": lambda b, d, name=name: _controlled(b, d, name) for name in ACTIVATIONS},  # type: ignore[misc]
    "controlled hidden": lambda b, d: _controlled(b, d, "tanh", d + 3),
    "mlp": lambda b, d: _mlp(b, d, (32,)),
    "mlp linear": lambda b, d: _mlp(b, d, ()),
    "mlp deep, time": lambda b, d: _mlp(b, d, (24, 17), "silu", True),
    "mlp 4-32-4": lambda b, d: _mlp(b, 4, (32,), "softplus"),
    "lorenz": _lorenz,
    "van der pol": _van_der_pol,
    "van der pol, stiff": lambda b, d: _van_der_pol(b, d, 60.0),
    "closed loop": _closed_loop,
    "ffjord": _flow,
    "hamiltonian pair": lambda b, d: Example(Pair(d), (_randn(b, d, seed=1), _randn(b, d, seed=2))),
    "convolution": _conv,
}


def example(name: str, batch: int, dim: int) -> Example:
    """The field of a name; "tests: NAME" is one of the tests' lists."""
    if not name.startswith("tests: "):
        return MAKERS[name](batch, dim)
    module, word = importlib.import_module(TESTS), name.removeprefix("tests: ")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        if word in module.FIELDS:
            case = module.FIELDS[word]()
            field, y0, controls = case.field, case.y0, case.controls
        else:
            kind, shape = module.MODULES[word]
            nested = isinstance(shape[0], tuple)
            field, controls = kind().double(), None
            y0 = tuple(module.randn(5, *s) for s in shape) if nested else module.randn(5, *shape)
        moved = importlib.import_module("tests.program.tools").moved
        return Example(field, moved(y0, batch, 0.1), None if controls is None else moved(controls, batch, 0.1))


def of_the_tests() -> list[str]:
    """Names of the fields of the tests' lists; empty where there is no checkout with tests, or no pytest."""
    try:
        module = importlib.import_module(TESTS)
    except ImportError:
        return []
    return [f"tests: {name}" for name in (*module.FIELDS, *module.MODULES) if name not in _LEFT_OUT]
