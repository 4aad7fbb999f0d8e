"""One small solve with its gradient on one backend, for tools that look at every access to memory."""

from __future__ import annotations

import sys

import torch

import fastode
from bench.gpu.fields import example


def main(backend: str, device: str = "cuda") -> None:
    """Per-sample weights, and Lorenz' system; sizes that fill no vector and no tile."""
    for name, batch, dim in [("controlled tanh", 33, 7), ("lorenz", 33, 3)]:
        given = example(name, batch, dim).to(device, torch.float32)
        solution = fastode.solve(given.field, given.y0, [0.0, 0.1, 0.3], controls=given.controls, backend=backend)
        torch.autograd.grad(solution.ys.square().sum(), given.sources())
    if device == "cuda":
        torch.cuda.synchronize()
    print("solved")


if __name__ == "__main__":
    main(*sys.argv[1:])
