"""Per-sample weights: as controls that stay as they are, and as a part of the state (closed loop)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.cases.case import Case, Problem, randn


def _field(t: Tensor, y: Tensor, controls: tuple[Tensor, Tensor]) -> Tensor:
    weight, bias = controls
    return torch.tanh(torch.baddbmm(bias[:, :, None], weight, y[:, :, None])[:, :, 0])


def _jax_field(t: Any, y: Any, controls: Any, weights: Any) -> Any:
    import jax.numpy as jnp

    weight, bias = controls
    return jnp.tanh(weight @ y + bias)


def _controlled(case: Case) -> Problem:
    batch, d = case.batch, case.width
    return Problem(
        case,
        _field,
        y0=randn(batch, d, seed=1),
        t=case.times(),
        controls=(randn(batch, d, d, seed=2) / d**0.5, randn(batch, d, seed=3)),
        jax_field=_jax_field,
        flops=2 * d * d + d,
    )


CONTROLLED = [
    Case(
        f"controlled-{batch}x{width}",
        "tanh(W_i y + b_i), per-sample W_i and b_i",
        _controlled,
        batch,
        width,
        group=group,
    )
    for group, sizes in {
        "": [(128, 16), (256, 32), (1024, 64), (4096, 8)],
        "gpu": [*((1024, d) for d in (16, 32)), *((batch, d) for batch in (4096, 16384) for d in (16, 32, 64))],
    }.items()
    for batch, width in sizes
]


class ClosedLoop(nn.Module):
    """x' = tanh(Theta x), Theta' = tanh(M x + c) - Theta: a sample's weights follow its state; M, c are shared."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(dim * dim, dim, seed=4) / dim**0.5)
        self.bias = nn.Parameter(0.1 * randn(dim * dim, seed=5))

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, theta = y
        moved = torch.tanh(torch.bmm(theta, x[:, :, None])[:, :, 0])
        return moved, torch.tanh(nn.functional.linear(x, self.weight, self.bias)).reshape(theta.shape) - theta


def _jax_closed_loop(t: Any, y: Any, controls: Any, weights: Any) -> Any:
    import jax.numpy as jnp

    x, theta = y
    return jnp.tanh(theta @ x), jnp.tanh(weights["weight"] @ x + weights["bias"]).reshape(theta.shape) - theta


def _closed_loop(case: Case) -> Problem:
    batch, d = case.batch, case.width
    return Problem(
        case,
        ClosedLoop(d),
        y0=(randn(batch, d, seed=1), randn(batch, d, d, seed=2) / d**0.5),
        t=case.times(),
        jax_field=_jax_closed_loop,
        flops=2 * d * d + d + d * d * (2 * d + 2),
    )


CLOSED_LOOP = Case(
    "closed-loop", "state (x, Theta), Theta' = g(Theta, x) with shared weights", _closed_loop, 256, 8, span=(0.0, 2.0)
)
