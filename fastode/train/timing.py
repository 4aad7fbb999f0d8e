"""Where the time of an AutoencODE goes: how much of it the solve takes, forward and in a training step."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

from fastode.models import AutoencODE, ModelOutput
from fastode.train.objective import objective


@dataclass(frozen=True)
class StageTimes:
    """Wall-clock seconds of the parts of one batch, each the median of several repetitions.

    ``solve`` runs from the call of `fastode.solve` to its return (in a training step also its backward pass);
    ``encoder`` includes the map from codes to controls, ``decoder`` the loss, ``update`` the optimiser's step.
    """

    encoder: float
    solve: float
    decoder: float
    update: float = 0.0

    @property
    def total(self) -> float:
        return self.encoder + self.solve + self.decoder + self.update

    @property
    def solve_share(self) -> float:
        """Share of the solve in the total."""
        return self.solve / self.total


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _medians(measure: Callable[[], list[float]], repeats: int) -> StageTimes:
    measure()  # the first call pays for caches and memory
    rows = [measure() for _ in range(repeats)]
    return StageTimes(*(median(column) for column in zip(*rows, strict=True)))


@torch.no_grad()
def forward_times(model: AutoencODE, x: Tensor, repeats: int = 7) -> StageTimes:
    """Times of a forward pass over the batch ``x`` without gradients."""

    def measure() -> list[float]:
        marks = [_clock(x.device)]
        codes = model.encode(x)
        y0, controls = model.initial_state(codes), model.controls(codes)
        marks.append(_clock(x.device))
        end = model.solve(y0, controls).ys[-1]
        marks.append(_clock(x.device))
        model.decode_state(end)
        marks.append(_clock(x.device))
        return [b - a for a, b in pairwise(marks)]

    return _medians(measure, repeats)


def training_times(model: AutoencODE, x: Tensor, loss: str = "bce", repeats: int = 7) -> StageTimes:
    """Times of a training step on the batch ``x``: forward, backward and a (zero-length) optimiser step.

    The graph is cut at both ends of the solve and the gradients handed over, so that each part's backward pass can be
    timed by itself; together the parts do the work of the uncut step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)

    def measure() -> list[float]:
        optimizer.zero_grad()
        marks = [_clock(x.device)]
        codes = model.encode(x)
        inputs = [model.initial_state(codes), model.controls(codes)]
        leaves = [value.detach().requires_grad_() for value in inputs]
        marks.append(_clock(x.device))
        end = model.solve(*leaves).ys[-1]
        leaf = end.detach().requires_grad_()
        marks.append(_clock(x.device))
        objective(ModelOutput(model.decoder(leaf), codes), x, loss, 1.0).backward()
        marks.append(_clock(x.device))
        end.backward(leaf.grad)
        marks.append(_clock(x.device))
        torch.autograd.backward(inputs, [leaf.grad for leaf in leaves])
        marks.append(_clock(x.device))
        optimizer.step()
        marks.append(_clock(x.device))
        encode, solve, decode, solve_back, encode_back, update = (b - a for a, b in pairwise(marks))
        return [encode + encode_back, solve + solve_back, decode, update]

    was_training = model.training
    model.train()
    try:
        return _medians(measure, repeats)
    finally:
        model.zero_grad()
        model.train(was_training)
