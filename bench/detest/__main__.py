"""``python -m bench.detest``: the accuracy that is reached on DETEST, against the accuracy that was asked for.

Every problem by every solver at rtol = atol = 1e-3 to 1e-12; the error at the end of the span, and the largest at
outputs between steps, both as |error| / (1 + |y|). It measures no times.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from bench import machine
from bench.detest.measure import SOLVERS, errors
from bench.detest.plots import draw
from bench.detest.problems import PROBLEMS
from bench.detest.reference import solution, times

COLUMNS = ["problem", "solver", "tolerance", "error_end", "error_between", "evaluations"]
OUTPUTS = 40
"""Output times between 0 and the end."""
TOLERANCES = [10.0**-k for k in range(3, 13)]
FLOAT32_LEAST = 1e-7
"""The least tolerance for states in float32, about their resolution."""


def tables(problems: Sequence[str], solvers: Sequence[str], tolerances: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each problem, solver and tolerance."""
    at, rows = times(OUTPUTS), []
    for name in problems:
        true = solution(PROBLEMS[name], at)
        for solver in solvers:
            for tolerance in tolerances:
                if "float32" in solver and tolerance < FLOAT32_LEAST:
                    continue
                answer = SOLVERS[solver](PROBLEMS[name], at, tolerance)
                end, between = errors(answer, true)
                rows.append(
                    {
                        "problem": name,
                        "solver": solver,
                        "tolerance": tolerance,
                        "error_end": end,
                        "error_between": between,
                        "evaluations": answer.evaluations,
                    }
                )
    return rows


def kept(path: Path, solvers: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of an earlier run by other solvers."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    others = [row for row in rows if row["solver"] not in solvers]
    return [{**row, **{k: float(row[k]) for k in COLUMNS[2:5]}, "evaluations": int(row[COLUMNS[5]])} for row in others]


def summary(rows: list[dict[str, Any]], solver: str) -> str:
    """Median and largest multiple of the tolerance, at the end and between."""
    own = [row for row in rows if row["solver"] == solver]
    parts = []
    for column in ("error_end", "error_between"):
        ratios = [row[column] / row["tolerance"] for row in own]
        parts.append(f"{median(ratios):8.2g} {max(ratios):8.2g}")
    return f"{solver:24}   end {parts[0]}   between {parts[1]}"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--problems", default="", help="Only those whose name begins so, A or B4, say.")
@click.option("--only", default="", help="Only solvers with this in their name.")
@click.option("--tolerances", default="", help="Exponents, 3,6,9; all from 3 to 12 by default.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for detest.csv and detest.png; rows of other solvers in it stay.",
)
def main(problems: str, only: str, tolerances: str, out: Path | None) -> None:
    """Error reached against tolerance asked for, on 25 problems."""
    names = [name for name in PROBLEMS if name.startswith(problems)]
    solvers = [name for name in SOLVERS if only in name]
    if not names or not solvers:
        raise click.BadParameter("no such problem or solver", param_hint="--problems, --only")
    asked = [10.0 ** -int(k) for k in tolerances.split(",")] if tolerances else TOLERANCES
    rows = tables(names, solvers, asked)
    click.echo(f"{'multiples of the tolerance':24}    median  largest")
    for solver in solvers:
        click.echo(summary(rows, solver))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        rows = kept(out / "detest.csv", solvers) + rows
        with (out / "detest.csv").open("w", newline="", encoding="utf-8") as file:
            file.write(f"# {machine.measure(torch.device('cpu'), torch.float64).names}\n")
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        draw(rows, out / "detest.png")


if __name__ == "__main__":
    main(prog_name="python -m bench.detest")
