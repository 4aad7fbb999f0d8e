"""Ten thousand solves in one process: memory stays where it is after the first."""

import gc
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import fastode
from fastode import Checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use through /proc"),
]


def used() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


Y0 = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(16, 3)
NET = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()


class Timed(nn.Module):
    """``NET`` as the drop-in wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = NET

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.net(y)


TIMED = Timed()


def one_field(i: int) -> None:
    """Of changing size, with gradient, every other one by checkpoints."""
    options = {"gradient": Checkpoint(2)} if i % 2 else {}
    ys = fastode.solve(lambda t, y: NET(y), Y0[: 1 + i % 16], [0.0, 1.0], **options).ys
    ys[-1].sum().backward()


def a_new_model(i: int) -> None:
    """A module made for this solve, and forgotten after it."""
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    fastode.solve(lambda t, y: net(y), Y0, [0.0, 1.0]).ys[-1].sum().backward()


def a_failure(i: int) -> None:
    """The error is caught; it must not hold the solve."""
    with pytest.raises(fastode.SolveError):
        fastode.solve(lambda t, y: y * y, 2 + Y0, [0.0, 5.0])


def drop_in(i: int) -> None:
    """A solve by the name of torchdiffeq, with its adjoint."""
    fastode.odeint_adjoint(TIMED, Y0, torch.tensor([0.0, 1.0]), method="dopri5")[-1].sum().backward()


@pytest.mark.parametrize(
    ("solve", "number"), [(one_field, 10_000), (a_new_model, 2_000), (a_failure, 2_000), (drop_in, 2_000)]
)
def test_memory_stays_flat(solve, number):
    for i in range(number // 5):
        solve(i)
    before = used()
    for i in range(number):
        solve(i)
    assert used() - before < 8e6  # a kilobyte and more of each solve would be more
