"""Gravity and restitution of a ball from the times and speeds of its bounces: torchdiffeq's bouncing_ball, learned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bench.clients.client import Client

GRAVITY, RESTITUTION, HEIGHT, RADIUS = 9.8, 0.8, 5.0, 0.2


class Fall(nn.Module):
    """Free fall. The radius is a part of the state, so that the event's function has no parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(7.0))

    def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        _, speed, radius = state
        return speed, -self.gravity * torch.ones_like(speed), torch.zeros_like(radius)


def touches(t: Tensor, state: tuple[Tensor, ...]) -> Tensor:
    """Zero where the ball touches the ground."""
    height, _, radius = state
    return height - radius


def observed(bounces: int) -> tuple[Tensor, Tensor]:
    """Times of the bounces and speeds after them, in closed form."""
    fall = math.sqrt(2 * (HEIGHT - RADIUS) / GRAVITY)
    times, speeds = [fall], [RESTITUTION * GRAVITY * fall]
    for _ in range(bounces - 1):
        times.append(times[-1] + 2 * speeds[-1] / GRAVITY)
        speeds.append(RESTITUTION * speeds[-1])
    return torch.tensor(times, dtype=torch.float64), torch.tensor(speeds, dtype=torch.float64)


class BouncingBall(Client):
    """Args: ode; adjoint: by ``odeint_adjoint``; bounces: how many are observed."""

    about = "bouncing ball, times and speeds of 5 bounces"
    rate = 5e-2
    rtol = 1e-8
    dtype = torch.float64

    def __init__(self, ode: Any, adjoint: bool = False, bounces: int = 5) -> None:
        super().__init__(ode)
        self.fall = Fall()
        self.restitution = nn.Parameter(torch.tensor(0.9))
        self.adjoint = adjoint
        times, speeds = observed(bounces)
        self.double()
        self.register_buffer("times", times)
        self.register_buffer("speeds", speeds)

    def loss(self, step: int) -> Tensor:
        """The mean square of the deviations of times and speeds; every bounce starts a solve at a learned time."""
        times: Any = self.times
        speeds: Any = self.speeds
        interface = self.ode.odeint_adjoint if self.adjoint else self.ode.odeint
        t = torch.zeros((), dtype=self.dtype)
        state = tuple(torch.tensor(x, dtype=self.dtype) for x in (HEIGHT, 0.0, RADIUS))
        total = torch.zeros((), dtype=self.dtype)
        for time, speed in zip(times, speeds, strict=True):
            t, solution = self.ode.odeint_event(
                self.fall, state, t, event_fn=touches, odeint_interface=interface, rtol=self.rtol, atol=self.rtol
            )
            height, falling, radius = (part[-1] for part in solution)
            state = (height + 1e-7, -self.restitution * falling, radius)  # off the ground, or it would touch at once
            total = total + (t - time) ** 2 + (state[1] - speed) ** 2
        return total / len(times)
