"""What the numbers were measured on: names, versions, and the two rates that floors are computed from."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import fastode
from bench.libraries.base import version_of
from fastode._environment import _C
from fastode.info import cpu_model

PACKAGES = ("torchdiffeq", "torchode", "diffrax", "jax", "scipy")


@dataclass(frozen=True)
class Machine:
    """Where and with what, and how fast.

    Attributes:
        names: processor, threads and versions in one line.
        load: processes that wanted to run in the last minute before the start (Unix's load average).
        flops: additions and multiplications in a second of torch's matrix product.
        copied: bytes read plus bytes written in a second of a copy far larger than the caches.
        launch: seconds that one more kernel adds to a queue of kernels with nothing to do; 0 on a CPU.
    """

    names: str
    load: float
    flops: float
    copied: float
    launch: float = 0.0

    def line(self) -> str:
        """Everything in one line."""
        rates = f"gemm {self.flops / 1e9:.0f} GFLOP/s, copy {self.copied / 1e9:.1f} GB/s"
        if self.launch:
            rates += f", launch {self.launch * 1e6:.1f} us"
        return f"{self.names}, load {self.load:.1f}, {rates}"


def sync(device: torch.device) -> None:
    """Waits until torch's queue on a GPU is empty."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measures this machine; about a second."""
    packages = [f"{name} {version}" for name in PACKAGES if (version := version_of(name))]
    where = cpu_model()
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, {where}"
    names = ", ".join(
        [
            where,
            f"{torch.get_num_threads()} threads",
            _C.get_isa(),
            f"python {platform.python_version()}",
            f"torch {torch.__version__}",
            f"fastode {fastode.__version__}",
            *packages,
        ]
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    n = 1024 if device.type == "cpu" else 8192
    a, b = torch.rand(2, n, n, device=device, dtype=dtype)
    product = torch.empty_like(a)
    flops = 2 * n**3 / best_seconds(lambda: torch.mm(a, b, out=product), device)
    size = 2**27 if device.type == "cpu" else 2**31
    source = torch.zeros(size // 4, device=device)
    if device.type == "cuda":
        source.uniform_()  # zeros cost a GPU less power, and that shows
    target = torch.zeros_like(source)
    copied = 2 * size / best_seconds(lambda: target.copy_(source), device)
    launch = launch_seconds(device) if device.type == "cuda" else 0.0
    return Machine(names, load, flops, copied, launch)


def launch_seconds(device: torch.device, n: int = 1000) -> float:
    """What one more kernel adds to a queue of kernels with next to nothing to do, by the device's clock."""
    one = torch.zeros(1, device=device)

    def queue() -> None:
        for _ in range(n):
            one.zero_()

    queue()
    torch.cuda.synchronize(device)
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        queue()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3 / n)
    return min(times)


def best_seconds(action: Callable[[], object], device: torch.device, seconds: float = 0.4) -> float:
    """Shortest time of one call, over as many as fit in some seconds after a first one."""
    action()
    sync(device)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        action()
        sync(device)
        best = min(best, time.perf_counter() - start)
    return best
