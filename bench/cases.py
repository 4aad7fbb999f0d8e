"""The workloads: a field, a batch and a tolerance each, the same for every library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor, tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class Case:
    """One workload.

    Attributes:
        name: what tables call it.
        field: dy/dt at (t (n, 1), y (n, D), parameters), ordinary torch code; parameters (n, ...) are per sample.
        y0: (B, D) float32.
        parameters: per-sample tensors, leading dimension B.
        t: (T,) output times.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    name: str
    field: Field
    y0: Tensor
    parameters: tuple[Tensor, ...]
    t: Tensor
    rtol: float = 1e-5
    atol: float = 1e-6

    def double(self) -> Case:
        """The same in float64, for the solution that errors are measured against."""
        tensors = tuple(p.double() for p in self.parameters)
        return Case(self.name, self.field, self.y0.double(), tensors, self.t.double(), self.rtol, self.atol)


def _controlled_field(t: Tensor, y: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    weight, bias = parameters
    return torch.tanh(torch.baddbmm(bias[:, :, None], weight, y[:, :, None])[:, :, 0])


def controlled(batch: int, width: int) -> Case:
    """tanh(W_i y + b_i), each sample with its own W_i (width, width) and b_i: the field of an AutoencODE."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(batch, width, width, generator=g) / width**0.5
    bias = torch.randn(batch, width, generator=g)
    y0 = torch.randn(batch, width, generator=g)
    return Case(f"controlled {batch}x{width}", _controlled_field, y0, (weight, bias), torch.tensor([0.0, 1.0]))


def _lorenz_field(t: Tensor, y: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    (rho,) = parameters
    x, v, z = y.unbind(1)
    return torch.stack([10.0 * (v - x), x * (rho[:, 0] - z) - v, x * v - (8.0 / 3.0) * z], dim=1)


def lorenz(batch: int) -> Case:
    """Lorenz' system, rho from 0 to 21 over the batch, to t = 1."""
    rho = torch.linspace(0.0, 21.0, batch)[:, None]
    y0 = torch.tensor([1.0, 0.0, 0.0]).expand(batch, 3).contiguous()
    return Case(f"lorenz {batch}", _lorenz_field, y0, (rho,), torch.tensor([0.0, 1.0]))


def _van_der_pol_field(t: Tensor, y: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    (mu,) = parameters
    x, v = y.unbind(1)
    return torch.stack([v, mu[:, 0] * (1.0 - x * x) * v - x], dim=1)


def one_stiff() -> Case:
    """256 Van der Pol oscillators to t = 6, one with mu = 30 and the others with mu from 0.5 to 2."""
    mu = torch.linspace(0.5, 2.0, 256)[:, None].clone()
    mu[100] = 30.0
    y0 = torch.tensor([2.0, 0.0]).expand(256, 2).contiguous()
    return Case("one stiff in 256", _van_der_pol_field, y0, (mu,), torch.tensor([0.0, 6.0]))


CASES: dict[str, Callable[[], Case]] = {
    "controlled-128x16": lambda: controlled(128, 16),
    "controlled-256x32": lambda: controlled(256, 32),
    "controlled-1024x64": lambda: controlled(1024, 64),
    "controlled-4096x8": lambda: controlled(4096, 8),
    "lorenz-1000": lambda: lorenz(1000),
    "one-stiff-in-256": one_stiff,
}
