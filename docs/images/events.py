"""Draws events.png: balls that bounce, and thermostats with thresholds of their own. Run from anywhere."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import fastode
from fastode import Event

PURPLE, TEAL, ORANGE, BLUE = "#5b3a8e", "#1b7f79", "#d1691c", "#2f6db5"


def balls(axes: plt.Axes) -> None:
    """Four balls in one solve; dots where they hit the ground."""
    restitution = torch.tensor([[0.9], [0.8], [0.65], [0.5]], dtype=torch.float64)

    def fall(t: torch.Tensor, y: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return torch.stack([y[:, 1], -9.81 * torch.ones_like(y[:, 1])], 1)

    ground = Event(
        lambda t, y: y[:, 0],
        direction=-1,
        reset=lambda t, y, e: torch.stack([y[:, 0], -e[:, 0] * y[:, 1]], 1),
        max_count=7,
    )
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2)
    t = torch.linspace(0.0, 4.0, 1201, dtype=torch.float64)
    sol = fastode.solve(fall, start, t, controls=restitution, events=ground)
    for b, color in enumerate((PURPLE, BLUE, TEAL, ORANGE)):
        axes.plot(t, sol.ys[:, b, 0], color=color, label=f"restitution {restitution[b, 0]:.2g}")
        axes.plot(sol.events[0].t[b], sol.events[0].y[b, :, 0], "o", color=color, markersize=4)
    axes.set_xlabel("time")
    axes.set_ylabel("height")
    axes.set_title("each ball ends at its seventh bounce", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def thermostats(axes: plt.Axes) -> None:
    """Three rooms that lose heat at different rates; the heating is a component of the state that resets switch."""
    loss = torch.tensor([[0.25], [0.5], [1.0]], dtype=torch.float64)

    def room(t: torch.Tensor, y: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.stack([-k[:, 0] * (y[:, 0] - 10.0) + 15.0 * y[:, 1], torch.zeros_like(y[:, 1])], 1)

    def switch(to: float) -> object:
        return lambda t, y: torch.stack([y[:, 0], torch.full_like(y[:, 1], to)], 1)

    events = [
        Event(lambda t, y: y[:, 0] - 19.0, direction=-1, reset=switch(1.0), name="cold"),
        Event(lambda t, y: y[:, 0] - 21.0, direction=1, reset=switch(0.0), name="warm"),
    ]
    start = torch.tensor([[15.0, 1.0]], dtype=torch.float64).expand(3, 2)
    t = torch.linspace(0.0, 4.0, 801, dtype=torch.float64)
    sol = fastode.solve(room, start, t, controls=loss, events=events)
    for b, color in enumerate((PURPLE, TEAL, ORANGE)):
        axes.plot(t, sol.ys[:, b, 0], color=color, label=f"loss {loss[b, 0]:.2g}")
        for event in sol.events:
            axes.plot(event.t[b], event.y[b, :, 0], "o", color=color, markersize=4)
    axes.set_xlabel("time")
    axes.set_ylabel("temperature")
    axes.set_title("a field that switches: two events with resets", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def main() -> None:
    """Draws both, side by side."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    balls(left)
    thermostats(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130, facecolor="white")


if __name__ == "__main__":
    main()
