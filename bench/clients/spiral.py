"""A neural ODE learns a spiral from short pieces of it: torchdiffeq's ode_demo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.clients.client import Client


class Field(nn.Module):
    """2-50-2, tanh, on the cubes of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        for name, parameter in self.net.named_parameters():
            nn.init.normal_(parameter, std=0.1 if name.endswith("weight") else 0.0)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        value: Tensor = self.net(y**3)
        return value


class Truth(nn.Module):
    """The spiral itself."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix: Tensor
        self.register_buffer("matrix", torch.tensor([[-0.1, 2.0], [-2.0, -0.1]]))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        value: Tensor = y**3 @ self.matrix
        return value


class Spiral(Client):
    """Args: ode; adjoint: gradients by ``odeint_adjoint``; pieces: in a batch; length: times in a piece."""

    about = "spiral neural ODE, 2-50-2"

    def __init__(self, ode: Any, adjoint: bool = False, pieces: int = 20, length: int = 10) -> None:
        super().__init__(ode)
        torch.manual_seed(0)
        self.field = Field()
        self.adjoint, self.pieces, self.length = adjoint, pieces, length
        t = torch.linspace(0.0, 25.0, 1000)
        with torch.no_grad():
            data = ode.odeint(Truth(), torch.tensor([2.0, 0.0]), t)
        self.register_buffer("t", t)
        self.register_buffer("data", data)

    def loss(self, step: int) -> Tensor:
        """The mean deviation from pieces of the spiral that start anywhere on it."""
        t: Any = self.t
        data: Any = self.data
        starts = torch.randint(len(t) - self.length, (self.pieces,), generator=torch.Generator().manual_seed(step))
        wanted = torch.stack([data[starts + i] for i in range(self.length)])
        solve = self.ode.odeint_adjoint if self.adjoint else self.ode.odeint
        found: Tensor = solve(self.field, data[starts], t[: self.length])
        return (found - wanted).abs().mean()
