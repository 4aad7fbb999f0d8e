"""``python -m bench.stiff``: 256 Robertson reactions with rates of their own, float64, forward and gradient.

Every library at the same rtol and atol; errors against scipy's Radau at rtol 1e-12, sample by sample, in units of the
tolerance. Apart from `fastode bench`, whose libraries run explicit methods.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import click
import torch
from torch import Tensor

import fastode

SPAN = 1e4
ATOL = 1e-6  # of rtol: concentrations go down to 1e-8


def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    """Robertson (1966), rates k (n, 3)."""
    a, b, c = y.unbind(1)
    first, second, third = k[:, 0] * a, k[:, 1] * b * b, k[:, 2] * b * c
    return torch.stack([third - first, first - third - second, second], 1)


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    """y0 and rates, (B, 3); the rates log-normal around Robertson's."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, 3, dtype=torch.float64, generator=generator)
    rates = torch.tensor([[0.04, 3e7, 1e4]], dtype=torch.float64) * torch.exp(0.5 * noise)
    return torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).repeat(batch, 1), rates


def ours(method: str, gradient: bool) -> Callable[[Tensor, Tensor, float], Tensor]:
    """fastode; with ``gradient`` that of the sum of squares to the rates, too."""

    def run(y0: Tensor, rates: Tensor, rtol: float) -> Tensor:
        rates = rates.clone().requires_grad_(gradient)
        sol = fastode.solve(field, y0, [0.0, SPAN], controls=rates, method=method, rtol=rtol, atol=ATOL * rtol)
        end: Tensor = sol.ys[-1]
        if gradient:
            torch.autograd.grad(end.square().sum(), rates)
        return end.detach()

    return run


def by_scipy(method: str, rtol_of: float | None = None) -> Callable[[Tensor, Tensor, float], Tensor]:
    """scipy, one sample after the other; the field is numpy code."""

    def run(y0: Tensor, rates: Tensor, rtol: float) -> Tensor:
        import numpy as np
        from scipy.integrate import solve_ivp

        ends = []
        rtol = rtol if rtol_of is None else rtol_of
        for k in rates.tolist():

            def one(t: float, y: Any, k: list[float] = k) -> Any:
                first, second, third = k[0] * y[0], k[1] * y[1] * y[1], k[2] * y[1] * y[2]
                return np.array([third - first, first - third - second, second])

            end = solve_ivp(one, (0.0, SPAN), [1.0, 0.0, 0.0], method=method, rtol=rtol, atol=ATOL * rtol).y[:, -1]
            ends.append(torch.from_numpy(end.copy()))
        return torch.stack(ends)

    return run


def by_diffrax(gradient: bool) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Diffrax's Kvaerno5 under jit and vmap; compiled in the first call."""
    compiled: dict[float, Any] = {}

    def run(y0: Tensor, rates: Tensor, rtol: float) -> Tensor:
        import diffrax
        import jax
        import jax.numpy as jnp
        import numpy as np

        jax.config.update("jax_enable_x64", True)

        def one(t: Any, y: Any, k: Any) -> Any:
            first, second, third = k[0] * y[0], k[1] * y[1] * y[1], k[2] * y[1] * y[2]
            return jnp.stack([third - first, first - third - second, second])

        def solve(y: Any, k: Any) -> Any:
            control = diffrax.PIDController(rtol=rtol, atol=ATOL * rtol)
            found = diffrax.diffeqsolve(
                diffrax.ODETerm(one),
                diffrax.Kvaerno5(),
                0.0,
                SPAN,
                None,
                y,
                k,
                stepsize_controller=control,
                max_steps=20_000,
                throw=False,
            )
            return found.ys[-1]

        def loss(k: Any, y: Any) -> Any:
            end = jax.vmap(solve)(y, k)
            return (end**2).sum(), end

        if rtol not in compiled:
            compiled[rtol] = jax.jit(jax.value_and_grad(loss, has_aux=True) if gradient else loss)
        result = jax.block_until_ready(compiled[rtol](jnp.asarray(rates.numpy()), jnp.asarray(y0.numpy())))
        return torch.from_numpy(np.array(result[0][1] if gradient else result[1]))

    return run


LIBRARIES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "fastode rodas5p": ours("rodas5p", False),
    "fastode kvaerno5": ours("kvaerno5", False),
    "diffrax Kvaerno5": by_diffrax(False),
    "scipy Radau": by_scipy("Radau"),
    "scipy LSODA": by_scipy("LSODA"),
    "fastode rodas5p gradient": ours("rodas5p", True),
    "fastode kvaerno5 gradient": ours("kvaerno5", True),
    "diffrax Kvaerno5 gradient": by_diffrax(True),
}


@click.command()
@click.option("--batch", default=256, help="Samples.")
@click.option("--rtol", default=1e-6, help="Relative tolerance; atol is a millionth of it.")
@click.option("--rounds", default=3, help="Timed rounds; the median counts.")
@click.option("--only", default="", help="Only libraries with this in their name.")
def main(batch: int, rtol: float, rounds: int, only: str) -> None:
    """Times and errors of stiff solvers on 256 Robertson reactions."""
    y0, rates = inputs(batch)
    checked = min(batch, 16)
    truth = by_scipy("Radau", 1e-12)(y0[:checked], rates[:checked], rtol)
    for name, run in LIBRARIES.items():
        if only not in name:
            continue
        end = run(y0, rates, rtol)
        times = []
        for _ in range(1 if "scipy" in name else rounds):
            start = time.perf_counter()
            run(y0, rates, rtol)
            times.append(time.perf_counter() - start)
        error = ((end[:checked] - truth).abs() / (ATOL * rtol + rtol * truth.abs())).max()
        click.echo(f"{name:28} {1e3 * median(times):10.1f} ms   error {float(error):8.2f} tolerances")


if __name__ == "__main__":
    main()
