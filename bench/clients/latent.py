"""A latent ODE of spirals that are observed at irregular times of their own: torchdiffeq's latent_ode."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bench.clients.client import Client

NOISE = 0.3


class LatentField(nn.Module):
    """4-20-20-4, ELU; counts its evaluations, as published code does."""

    def __init__(self, counts: bool, latent: int = 4, hidden: int = 20) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(latent, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, latent)
        )
        self.counts, self.nfe = counts, 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        if self.counts:
            self.nfe += 1
        value: Tensor = self.net(z)
        return value


class Encoder(nn.Module):
    """A recurrent network over the observations, last one first, with the time since the one before."""

    def __init__(self, latent: int = 4, hidden: int = 25) -> None:
        super().__init__()
        self.cell, self.read = nn.GRUCell(3, hidden), nn.Linear(hidden, 2 * latent)
        self.hidden = hidden

    def forward(self, t: Tensor, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(x.shape[1], self.hidden)
        last = t[-1].expand(x.shape[1])
        for i in reversed(range(len(t))):
            news = self.cell(torch.cat([x[i], (last - t[i])[:, None]], 1), h)
            h = torch.where(seen[i][:, None], news, h)
            last = torch.where(seen[i], t[i], last)
        mean, log_variance = self.read(h).chunk(2, 1)
        return mean, log_variance


class Latent(Client):
    """Args: ode; counts: whether the field counts its evaluations; sequences; observed: times of each; grid: of all."""

    about = "latent ODE, irregular times, field 4-20-20-4"
    small = {"sequences": 32, "observed": 12, "grid": 40}  # noqa: RUF012

    def __init__(
        self, ode: Any, counts: bool = True, sequences: int = 128, observed: int = 30, grid: int = 100
    ) -> None:
        super().__init__(ode)
        torch.manual_seed(0)
        self.encoder, self.field = Encoder(), LatentField(counts)
        self.decoder = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
        t = torch.linspace(0.0, 3.0, grid) + 0.8 * 3.0 / grid * torch.rand(grid)
        x = _spirals(sequences, t)
        seen = torch.zeros(grid, sequences, dtype=torch.bool)
        for i in range(sequences):
            seen[torch.randperm(grid)[:observed], i] = True
        union = seen.any(1)  # the times at which any sequence is observed
        self.register_buffer("t", t[union])
        self.register_buffer("x", (x + NOISE * torch.randn_like(x))[union] * seen[union, :, None])
        self.register_buffer("seen", seen[union])

    def loss(self, step: int) -> Tensor:
        """Minus the evidence lower bound for one sequence."""
        t: Any = self.t
        x: Any = self.x
        seen: Any = self.seen
        mean, log_variance = self.encoder(t, x, seen)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(step)).to(mean)
        z0 = mean + noise * (0.5 * log_variance).exp()
        zs = self.ode.odeint(self.field, z0, t)
        misfit = ((self.decoder(zs) - x) / NOISE).square().sum(2) + math.log(2 * math.pi * NOISE**2) * 2
        likelihood = -0.5 * (misfit * seen).sum(0)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return (divergence - likelihood).mean()


def _spirals(n: int, t: Tensor) -> Tensor:
    """(T, n, 2): spirals outward from phases of their own, half of them clockwise."""
    phase = 2 * math.pi * torch.rand(n)
    turns = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    angle = phase + 2.0 * turns * t[:, None]
    return (0.5 + 0.4 * t[:, None, None]) * torch.stack([angle.cos(), angle.sin()], 2)
