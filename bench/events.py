"""What events cost: ``python -m bench.events``, as a multiple of the time of the same solve without.

Balls that fall, for as long as the slowest takes to the ground, and a pendulum over three periods: each event alone, in
turns with the solve without events, without gradient. Times are those of the processor: other work on the machine would
slow down what is longer by more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import torch
from torch import Tensor

import fastode
from bench.machine import measure
from fastode import Event


def fall(t: Tensor, y: Tensor) -> Tensor:
    """Free fall: y = (height, velocity)."""
    return torch.stack([y[:, 1], torch.full_like(y[:, 1], -9.81)], 1)


def swing(t: Tensor, y: Tensor) -> Tensor:
    """A pendulum: y = (angle, velocity)."""
    return torch.stack([y[:, 1], -torch.sin(y[:, 0])], 1)


def first(t: Tensor, y: Tensor) -> Tensor:
    """The first component."""
    return y[:, 0]


def reflect(t: Tensor, y: Tensor) -> Tensor:
    """A bounce with restitution 0.8."""
    return torch.stack([y[:, 0], -0.8 * y[:, 1]], 1)


EVENTS: dict[str, tuple[Any, float, Event]] = {
    "recorded, one in each": (fall, 0.7, Event(first, terminal=False)),
    "recorded, six in each": (swing, 19.0, Event(first, terminal=False)),
    "ended by the first": (fall, 0.7, Event(first, direction=-1)),
    "ended by the seventh": (fall, 5.0, Event(first, direction=-1, reset=reflect, max_count=7)),
}
"""Field, span and event."""


def calls(name: str, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The solve with events and that without."""
    field, span, event = EVENTS[name]
    y0 = torch.stack([torch.linspace(1, 2, batch), torch.zeros(batch)], 1)
    return lambda: fastode.solve(field, y0, [0.0, span], events=event), lambda: fastode.solve(field, y0, [0.0, span])


def multiple(name: str, batch: int, rounds: int, repeats: int) -> tuple[float, float]:
    """Median over rounds of the time with events by that without, and the least time with events in microseconds."""
    pair = calls(name, batch)
    found = []
    for call in pair:
        call()
    for _ in range(rounds):
        taken = []
        for call in pair:
            start = time.process_time_ns()
            for _ in range(repeats):
                call()
            taken.append((time.process_time_ns() - start) / repeats / 1e3)
        found.append(taken)
    return statistics.median(with_events / without for with_events, without in found), min(x for x, _ in found)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 64, 256), help="Samples; may be repeated.")
@click.option("--rounds", default=15, help="Pairs of times that the median is taken of.")
@click.option("--repeats", default=5, help="Calls in a row for one time.")
def main(batches: tuple[int, ...], rounds: int, repeats: int) -> None:
    """Prints multiples, and least times in microseconds."""
    click.echo(measure(torch.device("cpu"), torch.float32).line())
    with torch.no_grad():
        for name in EVENTS:
            for batch in batches:
                ratio, least = multiple(name, batch, rounds, repeats)
                click.echo(f"{name:24} B = {batch:<5} {ratio:6.1f} times the solve without   least {least:8.0f} us")


if __name__ == "__main__":
    main()
