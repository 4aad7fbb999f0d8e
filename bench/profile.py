"""What one call does on a GPU: kernels launched, waits of the host, time in kernels. From torch's profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_CALL = "fastode: the call"
_WAITS = {
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaMalloc", "cudaFree"),
    *("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize", "cuMemcpyDtoH_v2"),
}


@dataclass(frozen=True)
class Activity:
    """One call on the device.

    Attributes:
        launches: launches of kernels or captured graphs; copies and fills are not counted.
        waits: times that the host waited for the device, whether by synchronising or in a blocking call of the driver.
        seconds: sum of the durations of all kernels, copies and fills.
        longest: name of the kernel that took most in all.
    """

    launches: int
    waits: int
    seconds: float
    longest: str


def profile(call: Callable[[], object], device: torch.device) -> Activity | None:
    """Runs the call once under the profiler. None without a GPU, or where the profiler sees nothing of the device."""
    if device.type != "cuda":
        return None
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=kinds) as found:
        with torch.profiler.record_function(_CALL):
            kept = call()
        torch.cuda.synchronize(device)
    del kept
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        return activity(json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"])


def activity(events: Iterable[dict[str, Any]]) -> Activity | None:
    """Counts in the events of a trace in Chrome's format."""
    events = [event for event in events if event.get("ph") == "X"]
    spans = [event for event in events if event.get("name") == _CALL and event.get("cat") == "user_annotation"]
    if not spans:
        return None
    start, end = spans[0]["ts"], spans[0]["ts"] + spans[0]["dur"]
    host = [e for e in events if e.get("cat") in ("cuda_runtime", "cuda_driver") and start <= e["ts"] <= end]
    waits = sum(event["name"] in _WAITS for event in host)
    work = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if not work:
        return None
    totals: dict[str, float] = {}
    for event in work:
        totals[event["name"]] = totals.get(event["name"], 0.0) + event["dur"]
    # One launch of a graph is one correlation with many kernels.
    launches = {e["args"]["correlation"] for e in work if e["cat"] == "kernel" and "correlation" in e.get("args", {})}
    return Activity(len(launches), waits, sum(totals.values()) * 1e-6, max(totals, key=lambda name: totals[name])[:120])
