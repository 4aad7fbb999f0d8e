"""Peak memory of one call, and a limit that turns running out of memory into an exception."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object], device: torch.device, in_torch: bool = True) -> int | None:
    """The most memory that a call held at once beyond what was held before it, None where that is not to be had.

    On a CPU: the high-water mark of the process's resident memory, which Linux lets a process reset; freed memory is
    first given back, so that the call cannot live on what an earlier one left. On a GPU: torch's allocator.
    """
    release()
    if device.type == "cuda":
        if not in_torch:
            return None
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = call()
        torch.cuda.synchronize(device)
        del kept
        return torch.cuda.max_memory_allocated(device) - before
    if not _CLEAR.exists():
        return None
    try:
        _CLEAR.write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    kept = call()
    peak = _status("VmHWM")
    del kept
    return max(0, peak - before)


def release() -> None:
    """Collects garbage and gives freed memory back to the system, where the C library can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in {_STATUS}")


@contextlib.contextmanager
def limited(part: float = 0.9) -> Iterator[None]:
    """Limits the process to what it has and a part of what is free, so that an allocation fails and nothing is killed.

    On Linux only, and not with a GPU, whose driver reserves far more than it uses.
    """
    if not sys.platform.startswith("linux") or torch.cuda.is_available():
        yield
        return
    import resource

    free = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _status("VmData") + int(part * free)
    if free == 0 or soft != resource.RLIM_INFINITY:
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
