"""One sample of two components: so little arithmetic that what is timed is what surrounds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.cases.case import Case, Problem, generator, randn
from fastode.fields import ControlledField


def _oscillator(t: Tensor, y: Tensor) -> Tensor:
    x, v = y.unbind(1)
    return torch.stack([v, (1.0 - x * x) * v - x], dim=1)


def _jax_oscillator(t: Any, y: Any, controls: Any, weights: Any) -> Any:
    import jax.numpy as jnp

    x, v = y
    return jnp.stack([v, (1.0 - x * x) * v - x])


class _Network(nn.Module):
    """2-16-2, tanh inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        with torch.no_grad():
            g = generator(7)
            for parameter in self.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=g) - 0.5)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.layers(y)
        return out


def _jax_network(t: Any, y: Any, controls: Any, weights: Any) -> Any:
    import jax.numpy as jnp

    hidden = jnp.tanh(weights["layers.0.weight"] @ y + weights["layers.0.bias"])
    return weights["layers.2.weight"] @ hidden + weights["layers.2.bias"]


def _jax_controlled(t: Any, y: Any, controls: Any, weights: Any) -> Any:
    import jax.numpy as jnp

    return jnp.tanh(controls[:4].reshape(2, 2) @ y + controls[4:])


def _plain(case: Case) -> Problem:
    return Problem(case, _oscillator, randn(1, 2, seed=1), case.times(), jax_field=_jax_oscillator, flops=5)


def _network(case: Case) -> Problem:
    return Problem(case, _Network(), randn(1, 2, seed=1), case.times(), jax_field=_jax_network, flops=2 * 64 + 16)


def _controlled(case: Case) -> Problem:
    field = ControlledField(2)
    controls = randn(1, field.n_controls, seed=2) / 2
    return Problem(case, field, randn(1, 2, seed=1), case.times(), controls, jax_field=_jax_controlled, flops=10)


OVERHEAD = [
    Case(f"overhead-{name}", f"what a solve costs by itself: one sample of two components, {about}", make, 1, 2)
    for name, about, make in (
        ("plain", "Van der Pol, no parameters", _plain),
        ("network", "2-16-2 with tanh", _network),
        ("controlled", "tanh(W y + b) with controls", _controlled),
    )
]
