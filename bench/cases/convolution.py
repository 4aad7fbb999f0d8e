"""A convolutional field on feature maps, of the kind that ODE-Nets for images have between two ordinary layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.cases.case import Case, Problem, generator, randn

CHANNELS, SIDE = 64, 6
"""Sizes of the ODE-Net for MNIST in torchdiffeq's examples (Chen et al., arXiv 1806.07366, section 3)."""
GROUPS = 32


class ConvField(nn.Module):
    """norm, silu, conv, norm, silu, conv, norm; the time is one more channel of the input of each convolution.

    The original has relu, whose kinks leave no tight solve to measure errors against.
    """

    def __init__(self, channels: int, groups: int = GROUPS) -> None:
        super().__init__()
        groups = min(groups, channels)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(channels + 1, channels, 3, padding=1) for _ in range(2))
        with torch.no_grad():
            g = generator(17)
            for parameter in self.convs.parameters():
                bound = (9 * (channels + 1)) ** -0.5
                parameter.copy_((2 * torch.rand(parameter.shape, generator=g) - 1) * bound)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.to(y.dtype).reshape(-1, 1, 1, 1).expand(y.shape[0], 1, *y.shape[2:])
        for norm, conv in zip(self.norms, self.convs):  # noqa: B905, the third norm comes after both
            y = conv(torch.cat([nn.functional.silu(norm(y)), time], dim=1))
        out: Tensor = self.norms[2](y)
        return out


def _jax_conv(t: Any, y: Any, controls: Any, weights: Any) -> Any:
    import jax
    import jax.numpy as jnp

    channels = y.shape[0]
    time = jnp.full((1, *y.shape[1:]), t, y.dtype)

    def norm(x: Any, i: int) -> Any:
        groups = x.reshape(min(GROUPS, channels), -1)
        mean, var = groups.mean(1, keepdims=True), groups.var(1, keepdims=True)
        scaled = ((groups - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape)
        return scaled * weights[f"norms.{i}.weight"][:, None, None] + weights[f"norms.{i}.bias"][:, None, None]

    for i in range(2):
        x = jnp.concatenate([jax.nn.silu(norm(y, i)), time])[None]
        y = jax.lax.conv_general_dilated(x, weights[f"convs.{i}.weight"], (1, 1), ((1, 1), (1, 1)))[0]
        y = y + weights[f"convs.{i}.bias"][:, None, None]
    return norm(y, 2)


def _convolution(case: Case) -> Problem:
    side = SIDE
    return Problem(
        case,
        ConvField(case.width),
        y0=randn(case.batch, case.width, side, side, seed=1),
        t=case.times(),
        jax_field=_jax_conv,
        flops=side * side * case.width * (2 * 2 * 9 * (case.width + 1) + 3 * 8),
    )


CONVOLUTION = Case(
    "convolution",
    "the ODE-Net for MNIST: two 3x3 convolutions with time, group norms, 64 channels of 6x6 pixels",
    _convolution,
    batch=128,
    width=CHANNELS,
    rtol=1e-3,
    atol=1e-3,
    group="gpu",
)
