"""FFJORD: a continuous normalizing flow on two moons, with Hutchinson's estimate of the divergence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.cases.case import Case, Problem, generator
from fastode.fields import MLPField

HIDDEN = (64, 64)


class Flow(nn.Module):
    """z' = f(z, t), (log p)' = -e . (df/dz)^T e, with e drawn once for every sample of a solve: the controls."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = MLPField(dim, HIDDEN, time=True)
        with torch.no_grad():
            g = generator(11)
            for parameter in self.net.parameters():
                n = parameter.shape[-1] if parameter.ndim == 2 else HIDDEN[0]
                parameter.copy_(torch.randn(parameter.shape, generator=g) / n**0.5)

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            z = y[0] if graph and y[0].requires_grad else y[0].detach().requires_grad_()
            dz = self.net(t, z)
            (pulled,) = torch.autograd.grad(dz, z, noise, create_graph=graph, retain_graph=True)
        return dz if graph else dz.detach(), -(pulled * noise).sum(1, keepdim=True)


def _jax_flow(t: Any, y: Any, noise: Any, weights: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def net(z: Any) -> Any:
        x = jnp.concatenate([z, jnp.asarray(t, z.dtype)[None]])
        for i in range(len(HIDDEN)):
            x = jnp.tanh(weights[f"net.layers.{i}.weight"] @ x + weights[f"net.layers.{i}.bias"])
        last = f"net.layers.{len(HIDDEN)}"
        return weights[f"{last}.weight"] @ x + weights[f"{last}.bias"]

    dz, pull = jax.vjp(net, y[0])
    (pulled,) = pull(noise)
    return dz, -(pulled @ noise)[None]


def two_moons(n: int) -> Tensor:
    """(n, 2) points on two interleaved half circles, with noise."""
    g = generator(12)
    angle = torch.pi * torch.rand(n, generator=g)
    x, y = angle.cos(), angle.sin()
    lower = torch.arange(n) % 2 == 1
    points = torch.stack([torch.where(lower, 1 - x, x), torch.where(lower, 0.5 - y, y)], dim=1)
    return points + 0.05 * torch.randn(n, 2, generator=g)


def _ffjord(case: Case) -> Problem:
    noise = (torch.randint(0, 2, (case.batch, case.width), generator=generator(13)) * 2 - 1).float()
    sizes = [case.width + 1, *HIDDEN, case.width]
    products = sum(2 * a * b for a, b in zip(sizes, sizes[1:]))  # noqa: B905, RUF007
    return Problem(
        case,
        Flow(case.width),
        y0=(two_moons(case.batch), torch.zeros(case.batch, 1)),
        t=case.times(),
        controls=noise,
        controls_fixed=True,
        jax_field=_jax_flow,
        flops=2 * products,
    )


FFJORD = Case("ffjord", "FFJORD on two moons, 2-64-64-2 with time, Hutchinson's estimate", _ffjord, 512, 2)
