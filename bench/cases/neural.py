"""Neural ODEs with shared weights: diffrax's small one, and the spiral of torchdiffeq's and DiffEqFlux's tutorials."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases.case import FORWARD, GRADIENT, TRAIN, Case, Problem, generator, randn


class SmallField(nn.Module):
    """4-32-4, softplus inside and tanh outside, as in diffrax's benchmarks/small_neural_ode.py."""

    def __init__(self, dim: int, hidden: int = 32) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        _fill(self, [dim, dim, hidden, hidden])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.last(nn.functional.softplus(self.first(y))))


def _fill(module: nn.Module, fan_in: list[int]) -> None:
    """Parameters uniform in +-1/sqrt(fan in), whatever torch's global seed is."""
    with torch.no_grad():
        g = generator(7)
        for parameter, n in zip(module.parameters(), fan_in, strict=True):
            parameter.copy_((2 * torch.rand(parameter.shape, generator=g) - 1) / n**0.5)


def _jax_small(t: Any, y: Any, controls: Any, weights: Any) -> Any:
    import jax
    import jax.numpy as jnp

    hidden = jax.nn.softplus(weights["first.weight"] @ y + weights["first.bias"])
    return jnp.tanh(weights["last.weight"] @ hidden + weights["last.bias"])


def _small(case: Case) -> Problem:
    d, m = case.width, 32
    flops = 4 * d * m + m + d
    y0 = randn(case.batch, d, seed=1)
    return Problem(case, SmallField(d, m), y0, case.times(), jax_field=_jax_small, flops=flops)


NEURAL_ODE = [
    Case(
        f"neural-ode-{outputs}" if batch == 64 else f"neural-ode-{outputs}-{batch}",
        f"diffrax's small neural ODE, 4-32-4, {outputs} output time{'s' if outputs > 1 else ''}",
        _small,
        batch=batch,
        width=4,
        span=(0.0, 100.0),
        n_times=max(outputs, 2),
        rtol=1e-6,
        atol=1e-6,
        group=group,
    )
    for outputs, batch, group in [(1, 64, ""), (100, 64, ""), (1, 512, "gpu"), (1, 4096, "gpu")]
]


class SpiralField(nn.Module):
    """2-50-2, tanh, on the cubes of the state."""

    def __init__(self, dim: int = 2, hidden: int = 50) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        _fill(self, [100, 100, 100, 100])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(y**3)))


def _jax_spiral(t: Any, y: Any, controls: Any, weights: Any) -> Any:
    import jax.numpy as jnp

    hidden = jnp.tanh(weights["first.weight"] @ y**3 + weights["first.bias"])
    return weights["last.weight"] @ hidden + weights["last.bias"]


def _true_spiral(y0: Tensor, t: Tensor, substeps: int = 20) -> Tensor:
    """(T, B, 2) states of y' = A y^3, by the classical Runge-Kutta method in float64."""
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
    field = lambda y: (y**3) @ matrix  # noqa: E731
    ys = [y0.double()]
    for step in t.double().diff():
        y, h = ys[-1], step / substeps
        for _ in range(substeps):
            k1 = field(y)
            k2 = field(y + h / 2 * k1)
            k3 = field(y + h / 2 * k2)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(y + h * k3))
        ys.append(y)
    return torch.stack(ys)


def _spiral(case: Case) -> Problem:
    y0 = torch.tensor([[2.0, 0.0]]).repeat(case.batch, 1)
    y0[1:] = randn(case.batch, 2, seed=8)[1:]  # the first is the one of the tutorials
    t = case.times()
    return Problem(
        case,
        SpiralField(),
        y0,
        t,
        target=_true_spiral(y0, t)[1:].float(),
        jax_field=_jax_spiral,
        flops=2 * 2 + 4 * 2 * 50 + 50 + 2,
    )


SPIRAL = Case(
    "spiral",
    "spiral neural ODE, 2-50-2 on y^3, 30 output times, one sample; train: 500 steps of Adam",
    _spiral,
    batch=1,
    width=2,
    span=(0.0, 1.5),
    n_times=30,
    rtol=1e-7,
    atol=1e-9,
    modes=(FORWARD, GRADIENT, TRAIN),
    train_steps=500,
)
SPIRALS = [
    replace(
        SPIRAL,
        name=f"spiral-{batch}",
        about="2-50-2 on y^3, 30 output times",
        batch=batch,
        rtol=1e-5,
        atol=1e-6,
        modes=(FORWARD, GRADIENT),
        train_steps=0,
        group="gpu",
    )
    for batch in (64, 512, 4096)
]
