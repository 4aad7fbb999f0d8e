"""The command behind ``fastode bench``."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import click
import torch

from bench import machine, plots, report
from bench.cases import CASES, MODES, PRECISION, QUICK, TRAIN
from bench.cases import DEFAULT as DEFAULT_CASES
from bench.libraries import DEFAULT, LIBRARIES, OURS
from bench.measure import Settings, compare
from bench.memory import limited

TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)
QUICK_TRAIN_STEPS = 10
BUSY = 0.7
"""Load average at the start above which there is a warning."""


class Names(click.ParamType):
    """Some of a list of names, given one by one, with commas between them, or as beginnings."""

    name = "name"

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        found = []
        for word in str(value).split(","):
            exact = [name for name in self.names if name == word.strip()]
            some = exact or [name for name in self.names if word.strip() and name.startswith(word.strip())]
            if not some:
                self.fail(f"{word.strip()!r} is none of {', '.join(self.names)}, and none begins with it", param, ctx)
            found += some
        return found


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110})
@click.option(
    "--case", "cases", multiple=True, type=Names(list(CASES)), help="Only these cases  [default: all but GPU sizes]."
)
@click.option(
    "--mode", "modes", multiple=True, type=Names(list(MODES)), help="forward, gradient, train  [default: all]."
)
@click.option("--library", "libraries", multiple=True, type=Names(list(LIBRARIES)), help="Only these  [default: all].")
@click.option("--rounds", type=click.IntRange(1), default=7, help="Timed rounds; the median counts.")
@click.option("--budget", type=float, default=60.0, help="Seconds of timing for one library and case.")
@click.option("--limit", type=float, default=600.0, help="Seconds after which a single run is given up.")
@click.option("--quick", is_flag=True, help=f"Two rounds of {', '.join(QUICK)}; training cut short; no diagrams.")
@click.option("--memory/--no-memory", default=True, help="Measure peak memory.")
@click.option("--precision/--no-precision", default=True, help="Also several tolerances, for work-precision diagrams.")
@click.option("--threads", type=click.IntRange(1), help="As many threads and processor cores for every library.")
@click.option("--device", default="cpu", help="cpu or cuda.")
@click.option("--double", is_flag=True, help="float64.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("bench-results"), help="Folder.")
@click.option("--redraw", is_flag=True, help="Only the pictures and the table, from the CSV that is in --out.")
@click.option("--list", "only_list", is_flag=True, help="List cases and libraries.")
def main(
    cases: tuple[list[str], ...],
    modes: tuple[list[str], ...],
    libraries: tuple[list[str], ...],
    rounds: int,
    budget: float,
    limit: float,
    quick: bool,
    memory: bool,
    precision: bool,
    threads: int | None,
    device: str,
    double: bool,
    out: Path,
    redraw: bool,
    only_list: bool,
) -> None:
    """Compare fastode with other libraries on the workloads of bench/cases.

    Writes bench.csv and pictures into --out and prints a table: fastode's time, and how many times as long each of the
    others took. Interleaved rounds, medians, and the error that each reached. See docs/benchmarks.md.

    \b
    Examples:
      fastode bench --quick
      fastode bench --case controlled,spiral --library fastode --library diffrax
      fastode bench --out bench/results/my-machine
    """  # noqa: D301
    if only_list:
        click.echo("\n".join([*(f"{case.name:<20} {case.about}" for case in CASES.values()), "", *LIBRARIES]))
        return
    path = out / "bench.csv"
    if redraw:
        if not path.is_file():
            raise click.ClickException(f"no {path}")
        line, rows = report.read(path)
    else:
        if threads is not None:
            _use_threads(threads)
        where = _device(device)
        settings = Settings(rounds, budget, limit, memory=memory, activity=where.type == "cuda", device=where)
        if double:
            settings = replace(settings, dtype=torch.float64)
        if quick:
            settings = replace(settings, rounds=min(rounds, 2), budget=min(budget, 5.0))
        chosen = list(dict.fromkeys(name for some in cases for name in some)) or list(QUICK if quick else DEFAULT_CASES)
        names = list(dict.fromkeys(name for some in libraries for name in some)) or list(DEFAULT)
        wanted = [name for some in modes for name in some] or list(MODES)
        out.mkdir(parents=True, exist_ok=True)
        line = run(path, settings, chosen, wanted, names, quick, precision and not quick)
        _, rows = report.read(path)
    if find_spec("matplotlib") is None:
        click.echo("no pictures: matplotlib is not installed (pip install 'fastode[bench]')")
    else:
        for file in plots.draw(rows, out):
            click.echo(str(file))
    click.echo(f"{path}\n\n{line}\n\n{report.table(rows)}")


def run(
    path: Path, settings: Settings, cases: list[str], modes: list[str], names: list[str], quick: bool, precision: bool
) -> str:
    """Measures, writes the CSV as it goes, and returns the machine line."""
    here = machine.measure(settings.device, settings.dtype)
    click.echo(here.line())
    if here.load > BUSY:
        click.echo(
            f"warning: the machine is busy (load {here.load:.1f}). Threads that wait for each other then cost many"
        )
        click.echo("times their work: these are no numbers to keep.")
    with limited(), report.Report(path, here.line()) as book:
        for name in cases:
            case = CASES[name]
            if quick and case.train_steps:
                case = replace(case, train_steps=QUICK_TRAIN_STEPS)
            for mode in (mode for mode in case.modes if mode in modes):
                rows = compare(case, mode, names, settings, here)
                book.add(rows)
                click.echo("\n".join(report.describe(row) for row in rows))
                if precision and name in PRECISION and mode != TRAIN:
                    few = replace(settings, rounds=min(settings.rounds, 3), memory=False)
                    some = [name for name in names if name == OURS[0].name or OURS[0].name not in name]
                    for rtol in TOLERANCES:
                        book.add(compare(case.with_tolerance(rtol), mode, some or names, few, here, kind="precision"))
    return here.line()


def _use_threads(n: int) -> None:
    """Limits torch's threads and, on Linux, the cores of the process: jax makes a thread for each core that it sees."""
    torch.set_num_threads(n)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n])


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise click.BadParameter(f"{name}: {str(error).splitlines()[0]}", param_hint="--device") from error
    return device
