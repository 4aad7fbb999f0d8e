"""Scripts in the manner of torchdiffeq's examples, by torchdiffeq and by fastode in its place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchdiffeq

import fastode.compat.torchdiffeq as alias
from bench.clients import CLIENTS, Client, Training, error, with_library

FLOAT32 = 1e-5
"""What rounding in float32 may add."""
STEPS = {"latent": 60, "latent-no-counter": 60, "images": 30}
"""Training after the first five steps; 30 where nothing is said."""

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def both(name: str, **size: int) -> tuple[Client, Client]:
    make = CLIENTS[name]
    small = {**make(alias).small, **size}
    return make(alias, **small), make(torchdiffeq, **small)


def backpropagating() -> Any:
    """torchdiffeq without its adjoint equation."""
    return SimpleNamespace(
        odeint=torchdiffeq.odeint, odeint_adjoint=torchdiffeq.odeint, odeint_event=torchdiffeq.odeint_event
    )


@pytest.mark.parametrize("name", CLIENTS)
def test_loss_and_gradients(name: str) -> None:
    """As accurate as the less accurate of torchdiffeq's gradients: that of the adjoint equation, or of the steps."""
    mine, theirs = both(name)
    baseline = max(error(theirs), error(with_library(theirs, backpropagating())))
    assert error(mine) <= 3 * baseline + FLOAT32


@pytest.mark.parametrize("name", CLIENTS)
def test_training(name: str) -> None:
    """The same losses from step to step, and lower ones at the end."""
    size = {"batch": 64} if name == "images" else {}  # of eight images the loss is mostly noise
    mine, theirs = (Training(client) for client in both(name, **size))
    for _ in range(5):
        mine.step()
        theirs.step()
    bound = max(30 * mine.client.rtol, FLOAT32)
    assert mine.losses == pytest.approx(theirs.losses, rel=bound)
    for _ in range(STEPS.get(name, 30)):
        mine.step()
    with torch.no_grad():
        assert float(mine.client.loss(0)) < 0.9 * mine.losses[0]


def test_the_bouncing_ball_is_found() -> None:
    """Gravity and restitution that made the data, from times and speeds of five bounces."""
    client = CLIENTS["bouncing-ball"](alias)
    optimiser = torch.optim.LBFGS(client.parameters(), lr=1.0, max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = client.loss(0)
        loss.backward()
        return loss

    optimiser.step(closure)
    named = dict(client.named_parameters())
    assert named["fall.gravity"].item() == pytest.approx(9.8, abs=1e-3)
    assert named["restitution"].item() == pytest.approx(0.8, abs=1e-4)
