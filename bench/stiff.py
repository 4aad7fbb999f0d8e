"""``python -m bench.stiff``: 256 Robertson reactions with rates of their own, float64, forward and gradient.

Every library at the same rtol and atol; errors against scipy's Radau at rtol 1e-12, sample by sample, in units of the
tolerance. Apart from `fastode bench`, whose libraries run explicit methods.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch import Tensor

import fastode
from bench import machine

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


COLUMNS = ["library", "batch", "rtol", "rounds", "median_ms", "best_ms", "error"]


def measure(names: list[str], batch: int, rtol: float, rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """A row for each library; rounds in turn, scipy in the first only."""
    y0, rates = inputs(batch)
    checked = min(batch, 16)
    truth = by_scipy("Radau", 1e-12)(y0[:checked], rates[:checked], rtol)
    ends: dict[str, Tensor] = {}
    for name in names:
        if "scipy" not in name:
            LIBRARIES[name](y0, rates, rtol)  # compiles
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            if number and "scipy" in name:
                continue
            start = clock()
            ends[name] = LIBRARIES[name](y0, rates, rtol)
            times[name].append(1e3 * (clock() - start))
    scale = ATOL * rtol + rtol * truth.abs()
    return [
        {
            "library": name,
            "batch": batch,
            "rtol": rtol,
            "rounds": len(times[name]),
            "median_ms": f"{median(times[name]):.4g}",
            "best_ms": f"{min(times[name]):.4g}",
            "error": f"{float(((ends[name][:checked] - truth).abs() / scale).max()):.3g}",
        }
        for name in names
    ]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--batch", default=256, help="Samples.")
@click.option("--rtol", default=1e-6, help="Relative tolerance; atol is a millionth of it.")
@click.option("--rounds", default=5, help="Timed rounds; the median counts.")
@click.option("--only", default="", help="Only libraries with this in their name.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch.")
@click.option("--processor", is_flag=True, help="Time of the processor, where others use the core.")
@click.option("--note", default="", help="Goes into the machine line: what else ran there.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for stiff.csv.")
def main(
    batch: int, rtol: float, rounds: int, only: str, threads: int | None, processor: bool, note: str, out: Path | None
) -> None:
    """Times and errors of stiff solvers on 256 Robertson reactions; errors in units of the tolerance."""
    names = [name for name in LIBRARIES if only in name]
    if not names:
        raise click.BadParameter(f"{only!r} is in none of {', '.join(LIBRARIES)}", param_hint="--only")
    if threads is not None:
        torch.set_num_threads(threads)
    here = machine.measure(torch.device("cpu"), torch.float64)
    line = ", ".join(part for part in (here.line(), "times of the processor" if processor else "", note) if part)
    click.echo(line)
    rows = measure(names, batch, rtol, rounds, time.process_time if processor else time.perf_counter)
    for row in rows:
        click.echo(f"{row['library']:28} {row['median_ms']:>10} ms   error {row['error']:>8} tolerances")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "stiff.csv").open("w", newline="", encoding="utf-8") as file:
            file.write(f"# {line}\n")
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
