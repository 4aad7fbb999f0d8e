"""An ODE-Net classifies digits, its ODE between two convolutional layers: torchdiffeq's odenet_mnist, on 8x8 pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.clients.client import Client


class ConvolutionWithTime(nn.Module):
    """A convolution of 3x3 pixels that has the time as one more channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        value: Tensor = self.layer(torch.cat([t.expand(x.shape[0], 1, *x.shape[2:]), x], 1))
        return value


class Field(nn.Module):
    """Two convolutions with group norms and ReLU; counts its evaluations, as published code does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(channels // 2, channels) for _ in range(3))
        self.layers = nn.ModuleList(ConvolutionWithTime(channels) for _ in range(2))
        self.nfe = 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.nfe += 1
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = layer(t, torch.relu(norm(x)))
        value: Tensor = self.norms[2](x)
        return value


class Images(Client):
    """Args: ode; channels; batch: images of a step."""

    about = "ODE-Net, 64 channels of 6x6, 128 digits"
    rate = 3e-3
    rtol = 1e-3
    reference = 1e-6  # the field has kinks, which tighter tolerances would look for one by one
    small = {"channels": 16, "batch": 8}  # noqa: RUF012

    def __init__(self, ode: Any, channels: int = 64, batch: int = 128) -> None:
        super().__init__(ode)
        from sklearn.datasets import load_digits

        torch.manual_seed(0)
        self.batch = batch
        self.into = nn.Conv2d(1, channels, 3)
        self.field = Field(channels)
        self.out = nn.Sequential(
            nn.GroupNorm(channels // 2, channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 10),
        )
        images, labels = load_digits(return_X_y=True)
        self.register_buffer("images", torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8))
        self.register_buffer("labels", torch.tensor(labels))
        self.register_buffer("t", torch.tensor([0.0, 1.0]))

    def loss(self, step: int) -> Tensor:
        """Cross entropy."""
        images: Any = self.images
        labels: Any = self.labels
        chosen = torch.randint(len(images), (self.batch,), generator=torch.Generator().manual_seed(step))
        start = self.into(images[chosen])
        end = self.ode.odeint_adjoint(self.field, start, self.t, rtol=self.rtol, atol=self.rtol)[-1]
        return nn.functional.cross_entropy(self.out(end), labels[chosen])
