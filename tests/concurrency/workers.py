"""What worker processes run: importable by name, without pytest, so that they start fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import fastode
from fastode import Checkpoint


def decay(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    return -rate * y * (1 + y * y)


def solved(i: int) -> Tensor:
    """Outputs (3, 5, 2) number i, by the default backend, and the gradient by the states, together (4, 5, 2)."""
    y0 = torch.linspace(0.5, 1.5, 10, dtype=torch.float64).reshape(5, 2).requires_grad_()
    rate = torch.full((5, 1), 1.0 + i, dtype=torch.float64)
    ys = fastode.solve(decay, y0, [0.0, 0.5, 1.0], controls=rate).ys
    (grad,) = torch.autograd.grad(ys.square().sum(), y0)
    return torch.cat([ys.detach(), grad[None]])


class Solves(Dataset[Tensor]):
    """Its items are solved when they are asked for."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Tensor:
        return solved(i)


class Model(nn.Module):
    """A net as field, recorded once, whose gradient keeps every second state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        self.field = fastode.capture(lambda t, y: self.net(y), batch())

    def forward(self, y0: Tensor) -> Tensor:
        return fastode.solve(self.field, y0, [0.0, 1.0], gradient=Checkpoint(2), rtol=1e-8, atol=1e-8).ys[-1]


def batch() -> Tensor:
    return torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(8, 3)


def gradients(model: nn.Module, y0: Tensor) -> list[Tensor]:
    """Of the mean over samples."""
    model.zero_grad()
    model(y0).square().sum(1).mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def distributed(rank: int, folder: str, result: Any) -> None:
    """One of two processes: its half of the batch; sends the gradients of two passes that all have."""
    torch.set_num_threads(1)
    store = f"file://{Path(folder) / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(Model())
    half = batch().chunk(2)[rank]
    found = [gradients(model, half) for _ in range(2)]
    result.put((rank, [[g.tolist() for g in grads] for grads in found]))
    torch.distributed.destroy_process_group()
