"""Small systems with a parameter per sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.cases.case import Case, Problem


def _lorenz_field(t: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    x, v, z = y.unbind(1)
    return torch.stack([10.0 * (v - x), x * (rho[:, 0] - z) - v, x * v - (8.0 / 3.0) * z], dim=1)


def _jax_lorenz(t: Any, y: Any, rho: Any, weights: Any) -> Any:
    import jax.numpy as jnp

    x, v, z = y
    return jnp.stack([10.0 * (v - x), x * (rho[0] - z) - v, x * v - (8.0 / 3.0) * z])


def _lorenz(case: Case) -> Problem:
    rho = torch.linspace(0.0, 21.0, case.batch)[:, None]
    y0 = torch.tensor([1.0, 0.0, 0.0]).repeat(case.batch, 1)
    return Problem(case, _lorenz_field, y0, case.times(), rho, jax_field=_jax_lorenz, flops=8)


LORENZ = [
    Case(f"lorenz-{batch}", "Lorenz' system, rho from 0 to 21 over the batch", _lorenz, batch, 3, group=group)
    for group, sizes in {"": (10**2, 10**3, 10**4, 10**5, 10**6), "gpu": (8192,)}.items()
    for batch in sizes
]


def _van_der_pol_field(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    x, v = y.unbind(1)
    return torch.stack([v, mu[:, 0] * (1.0 - x * x) * v - x], dim=1)


def _jax_van_der_pol(t: Any, y: Any, mu: Any, weights: Any) -> Any:
    import jax.numpy as jnp

    x, v = y
    return jnp.stack([v, mu[0] * (1.0 - x * x) * v - x])


def _van_der_pol(case: Case, stiff: bool = False) -> Problem:
    mu = torch.linspace(0.5, 2.0, case.batch)[:, None].clone()
    if stiff:
        mu[case.batch // 2] = 30.0
    y0 = torch.tensor([2.0, 0.0]).repeat(case.batch, 1)
    return Problem(case, _van_der_pol_field, y0, case.times(), mu, jax_field=_jax_van_der_pol, flops=5)


def _one_stiff(case: Case) -> Problem:
    return _van_der_pol(case, stiff=True)


ONE_STIFF = Case(
    "one-stiff-in-256", "Van der Pol, one with mu = 30, the others from 0.5 to 2", _one_stiff, 256, 2, span=(0.0, 6.0)
)
VAN_DER_POL = Case(
    "van-der-pol-1048576", "Van der Pol, mu from 0.5 to 2", _van_der_pol, 2**20, 2, span=(0.0, 6.0), group="gpu"
)
