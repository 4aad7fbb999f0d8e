"""Compares libraries on the cases: interleaved runs in one process, medians, and the error that each reached.

    python -m bench.compare --out DIR [--case NAME ...] [--rounds N]

writes DIR/compare.csv, one row per case, library and direction, after a comment line about the machine.
"""

from __future__ import annotations

import csv
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

import fastode
from bench.cases import CASES, Case
from bench.libraries import LIBRARIES, forward, gradient
from fastode._environment import _C

COLUMNS = ["case", "direction", "library", "median_ms", "best_ms", "error", "ratio_to_torchdiffeq", "failed"]
DIRECTIONS: dict[str, Callable[..., Tensor | list[Tensor]]] = {"forward": forward, "gradient": gradient}


def machine() -> str:
    """What the numbers were measured on."""
    return (
        f"{_C.cpu_brand() or platform.processor()}, {torch.get_num_threads()} threads, {_C.get_isa()}, "
        f"torch {torch.__version__}, fastode {fastode.__version__}"
    )


def truth(case: Case, direction: str) -> Tensor | list[Tensor]:
    """The case solved in float64 to a far tighter tolerance."""

    def solve(case: Case, y0: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        solution = fastode.solve(
            case.field, y0, case.t, controls=parameters, method="dopri8", rtol=1e-11, atol=1e-12, backend="reference"
        )
        return solution.ys[-1]

    return DIRECTIONS[direction](solve, case.double())


def error(value: Tensor | list[Tensor], exact: Tensor | list[Tensor]) -> float:
    """Greatest deviation over greatest magnitude, worst of the tensors."""
    values, exacts = ([x] if isinstance(x, Tensor) else x for x in (value, exact))
    pairs = zip(values, exacts, strict=True)
    return max(float((v.double() - e).abs().max() / e.abs().max().clamp_min(1e-30)) for v, e in pairs)


def compare(case: Case, direction: str, rounds: int) -> list[dict[str, str | float]]:
    """Rows for one case: each library's median time over interleaved rounds after a warm-up, and its error."""
    run = DIRECTIONS[direction]
    exact = truth(case, direction)
    errors: dict[str, float] = {}
    failures: list[dict[str, str | float]] = []
    times: dict[str, list[float]] = {}
    for name, solve in LIBRARIES.items():
        if name == "torchdiffeq adjoint" and direction == "forward":
            continue
        try:
            errors[name] = error(run(solve, case), exact)
        except Exception as failure:  # one library's failure is a result too
            failures.append({"case": case.name, "direction": direction, "library": name, "failed": str(failure)})
            continue
        times[name] = []
    for _ in range(rounds):
        for name, seconds in times.items():
            start = time.perf_counter()
            run(LIBRARIES[name], case)
            seconds.append(time.perf_counter() - start)
    return failures + [
        {
            "case": case.name,
            "direction": direction,
            "library": name,
            "median_ms": round(1e3 * statistics.median(seconds), 3),
            "best_ms": round(1e3 * min(seconds), 3),
            "error": float(f"{errors[name]:.2e}"),
            "ratio_to_torchdiffeq": _ratio(times.get("torchdiffeq", []), seconds),
        }
        for name, seconds in times.items()
    ]


def _ratio(theirs: list[float], ours: list[float]) -> float:
    """Median over the rounds of their time over ours; NaN where they failed."""
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 2) if theirs else math.nan


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where compare.csv goes.")
@click.option("--case", "names", multiple=True, type=click.Choice(sorted(CASES)), help="Only these cases.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="Timed runs of each library.")
def main(out: Path, names: tuple[str, ...], rounds: int) -> None:
    """Compare fastode with torchdiffeq on the cases."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names or CASES:
        for direction in DIRECTIONS:
            for row in compare(CASES[name](), direction, rounds):
                rows.append(row)
                if "failed" in row:
                    click.echo(f"{row['case']:<20} {row['direction']:<9} {row['library']:<20} failed: {row['failed']}")
                    continue
                click.echo(
                    f"{row['case']:<20} {row['direction']:<9} {row['library']:<20} {row['median_ms']:>10} ms   "
                    f"error {row['error']:.1e}   {row['ratio_to_torchdiffeq']:>6} x torchdiffeq's speed"
                )
    with (out / "compare.csv").open("w", newline="") as file:
        file.write(f"# {machine()}\n")
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
