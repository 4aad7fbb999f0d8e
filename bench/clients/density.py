"""A continuous normalizing flow learns two circles, with the exact trace: torchdiffeq's cnf."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bench.clients.client import Client

DURATION = 10.0


class Flow(nn.Module):
    """dz/dt, a layer of planar units whose weights a small network makes from t, and d(log p)/dt = -trace(df/dz)."""

    def __init__(self, units: int, hidden: int) -> None:
        super().__init__()
        self.units = units
        self.weights = nn.Sequential(
            nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 7 * units)
        )

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        m = self.units
        raw = self.weights(t.reshape(1, 1)).reshape(-1)
        into, out, gate, bias = raw.split([2 * m, 2 * m, 2 * m, m])
        inner = torch.tanh(z @ into.reshape(2, m) + bias)
        value: Tensor = inner @ (out * torch.sigmoid(gate)).reshape(m, 2) / m
        return value

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z = state[0]
        with torch.enable_grad():
            z = z.requires_grad_() if z.is_leaf else z
            value = self.velocity(t, z)
            rows = [torch.autograd.grad(value[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2)]
        return value, -(rows[0] + rows[1])[:, None]


class Density(Client):
    """Args: ode; samples: in a batch; units: of the flow; hidden: width of the network that makes its weights."""

    about = "continuous normalizing flow, two circles, exact trace"
    rate = 3e-3
    rtol = 1e-5
    small = {"samples": 64, "units": 16}  # noqa: RUF012

    def __init__(self, ode: Any, samples: int = 512, units: int = 64, hidden: int = 32) -> None:
        super().__init__(ode)
        torch.manual_seed(0)
        self.flow, self.samples = Flow(units, hidden), samples
        self.register_buffer("t", torch.tensor([DURATION, 0.0]))

    def loss(self, step: int) -> Tensor:
        """Minus the mean log density of new points; their flow starts from a normal distribution at time 0."""
        t: Any = self.t
        x = _circles(self.samples, step).to(t)
        zero = torch.zeros(self.samples, 1).to(t)
        z, change = self.ode.odeint_adjoint(self.flow, (x, zero), t, rtol=self.rtol, atol=self.rtol, method="dopri5")
        normal = -0.5 * z[-1].square().sum(1) - math.log(2 * math.pi)
        return -(normal - change[-1, :, 0]).mean()


def _circles(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    radius = torch.where(torch.rand(n, generator=generator) < 0.5, 0.5, 1.0)
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.06 * torch.randn(n, 2, generator=generator)
