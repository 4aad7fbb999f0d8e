"""``python -m bench.clients``: what a script of torchdiffeq's gains by changing its import.

Two copies of a script, with the same parameters and data, train in turn: some steps with torchdiffeq, as many with
``fastode.compat.torchdiffeq``, the other way round in the next round.
"""

from __future__ import annotations

import csv
import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import torchdiffeq

import fastode.compat.torchdiffeq as ours
from bench import machine
from bench.clients import CLIENTS, Training, error

WARM = 3
"""Steps between the first, in which functions are recorded, and those that are timed."""
SHORTEST, MOST_STEPS = 20.0, 20
"""Milliseconds that fastode's steps of a round are to take together, and how many they are at most."""
COLUMNS = [
    *(
        "client",
        "about",
        "rounds",
        "steps",
        "torchdiffeq_ms",
        "fastode_ms",
        "times",
        "times_least",
        "times_most",
        "first_ms",
    ),
    *("torchdiffeq_error", "fastode_error", "torchdiffeq_loss", "fastode_loss"),
]


def measure(name: str, rounds: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """One row of the table: milliseconds of a step, and how many times as long torchdiffeq takes, by rounds."""
    libraries = {"torchdiffeq": torchdiffeq, "fastode": ours}
    trainings = {key: Training(CLIENTS[name](library)) for key, library in libraries.items()}
    for training in trainings.values():
        first = _milliseconds(training, 1, clock)  # that of fastode, the last, is kept
        warm = min(_milliseconds(training, 1, clock) for _ in range(WARM))
    steps = min(MOST_STEPS, math.ceil(SHORTEST / warm))
    times: dict[str, list[float]] = {key: [] for key in libraries}
    for number in range(rounds):
        gc.collect()
        for key in list(libraries)[:: 1 if number % 2 else -1]:
            times[key].append(_milliseconds(trainings[key], steps, clock))
    small = trainings["fastode"].client.small
    errors = {key: error(CLIENTS[name](library, **small)) for key, library in libraries.items()}
    ratios = [a / b for a, b in zip(times["torchdiffeq"], times["fastode"], strict=True)]
    return {
        "client": name,
        "about": trainings["fastode"].client.about,
        "rounds": rounds,
        "steps": steps,
        "torchdiffeq_ms": f"{statistics.median(times['torchdiffeq']):.4g}",
        "fastode_ms": f"{statistics.median(times['fastode']):.4g}",
        "times": f"{statistics.median(ratios):.3g}",
        "times_least": f"{min(ratios):.3g}",
        "times_most": f"{max(ratios):.3g}",
        "first_ms": f"{first:.4g}",
        **{f"{key}_error": f"{value:.2g}" for key, value in errors.items()},
        **{f"{key}_loss": f"{training.losses[-1]:.6g}" for key, training in trainings.items()},
    }


def _milliseconds(training: Training, steps: int, clock: Callable[[], float]) -> float:
    """The mean time of some steps in a row."""
    gc.disable()
    try:
        start = clock()
        for _ in range(steps):
            training.step()
        return 1e3 * (clock() - start) / steps
    finally:
        gc.enable()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--client", "names", multiple=True, type=click.Choice(list(CLIENTS)), help="Only these  [default: all].")
@click.option("--rounds", type=click.IntRange(1), default=15, help="Rounds; the median counts.")
@click.option("--threads", type=click.IntRange(1), default=1, help="Threads of torch.")
@click.option("--processor", is_flag=True, help="Time of the processor, where others use the core.")
@click.option("--note", default="", help="Goes into the machine line: what else ran there.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for clients.csv.")
def main(names: tuple[str, ...], rounds: int, threads: int, processor: bool, note: str, out: Path | None) -> None:
    """Times training steps of the scripts in bench/clients with torchdiffeq and with fastode in its place.

    Errors are those of loss and gradients in the first step, at a smaller size, against a far tighter solve in
    float64. The losses are those of the last step.
    """
    torch.set_num_threads(threads)
    clock = time.process_time if processor else time.perf_counter
    kind = "times of the processor" if processor else ""
    line = ", ".join(part for part in (machine.measure(torch.device("cpu"), torch.float32).line(), kind, note) if part)
    click.echo(line)
    rows = []
    for name in names or CLIENTS:
        row = measure(name, rounds, clock)
        rows.append(row)
        click.echo("   ".join(f"{key} {value}" for key, value in row.items() if key not in ("about", "rounds")))
        if out is not None:  # after every client, so that an interrupted run keeps what it has
            out.mkdir(parents=True, exist_ok=True)
            with (out / "clients.csv").open("w", newline="", encoding="utf-8") as file:
                file.write(f"# {line}\n")
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
