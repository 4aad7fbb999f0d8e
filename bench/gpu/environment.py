"""What the machine is and how fast: the facts that every number of the report depends on. Runs in a child."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import fastode
from bench import machine
from bench.gpu.worker import Link
from bench.libraries.base import version_of
from fastode._environment import _C
from fastode.backends.choose import available
from fastode.info import cpu_model

Facts = dict[str, Any]


def tool(name: str) -> str | None:
    """Path of one of CUDA's tools, on the PATH or where CUDA is installed."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


def output_of(*command: str, seconds: float = 15.0) -> str:
    """What a command prints; empty if it is not there, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def no_device(device: str) -> str:
    """Why the device cannot be used; empty if it can."""
    if device == "cpu":
        return ""
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is built without CUDA"
        return _C.cuda_runtime()["reason"] or f"torch {torch.__version__} sees no CUDA device"
    try:
        if float(torch.ones(3, device=device).sum()) != 3.0:
            return "a sum on the device is wrong"
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def measure(link: Link, device: str, names_only: bool = False) -> Facts:
    """Names, versions, rates; ``reason`` says why the device cannot be used, if so.

    Args:
        link: unused.
        device: "cuda" or "cpu".
        names_only: leave out what takes seconds to measure.
    """
    facts: Facts = {"device": device, "reason": no_device(device)}
    facts |= {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda of torch": torch.version.cuda or "none",
        "triton": version_of("triton") or "not installed",
        "fastode": fastode.__version__,
        "commit": output_of("git", "rev-parse", "--short", "HEAD") or "unknown",
        "cpu": f"{cpu_model()}, {_cores()} cores",
        "nvcc": (output_of(tool("nvcc") or "nvcc", "--version").splitlines() or ["not installed"])[-1],
        "compute-sanitizer": tool("compute-sanitizer") or "not installed",
        "libraries": {name: version_of(name) or "not installed" for name in machine.PACKAGES},
        "backends": [list(pair) for pair in available()],
    }
    facts["extension"] = _extension(device)
    if facts["reason"] or names_only:
        return facts
    where = torch.device(device)
    facts["name"] = torch.cuda.get_device_name(where) if device == "cuda" else cpu_model()
    if device == "cuda":
        facts |= _gpu(where)
    found = machine.measure(where, torch.float32)
    facts["machine"], facts["line"] = asdict(found), found.line()
    facts["rates"] = {"copy, GB/s": found.copied / 1e9, "float32 matrix product, TFLOP/s": found.flops / 1e12}
    if device == "cuda":
        facts["rates"] |= _more_rates(where) | {"one launch in a queue, us": found.launch * 1e6}
    return facts


def jax_devices(link: Link) -> str:
    """What jax runs on, in words. A child of its own: it may take long, or take the process with it."""
    try:
        import jax
    except ImportError:
        return "jax is not installed"
    try:
        return f"jax {jax.__version__} on {', '.join(str(device) for device in jax.devices('gpu'))}"
    except RuntimeError as error:
        return f"jax {jax.__version__} on the CPU only: {str(error).splitlines()[0]}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _extension(device: str) -> str:
    """Whether the extension has CUDA code for this device."""
    info = _C.build_info()
    if not info["cuda"]:
        return f"CUDA not compiled: {info['cuda_reason']}"
    text = f"compiled with nvcc {info['nvcc']} for {' '.join('sm_' + arch for arch in info['cuda_archs'])}"
    if device != "cuda" or not torch.cuda.is_available():
        return text
    major, minor = torch.cuda.get_device_capability()
    digits = ["".join(filter(str.isdigit, arch)) for arch in info["cuda_archs"]]
    if f"{major}{minor}" in digits:
        return f"{text}: this device's among them"
    # Machine code runs on later minor versions of its own major version, intermediate code on anything later.
    return f"{text}: not this device's sm_{major}{minor} itself"


def _gpu(device: torch.device) -> Facts:
    properties = torch.cuda.get_device_properties(device)
    smi = output_of("nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader")
    return {
        "driver": (smi.splitlines() or [""])[0] or f"CUDA up to {_C.cuda_runtime()['driver']}",
        "architecture": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory, GiB": round(properties.total_memory / 2**30, 1),
    }


def _more_rates(device: torch.device) -> dict[str, float]:
    n = 8192
    a, b = torch.randn(2, n, n, device=device)
    product = torch.empty_like(a)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    tf32 = machine.best_seconds(lambda: torch.mm(a, b, out=product), device)
    torch.backends.cuda.matmul.allow_tf32 = before
    wide = [x[: n // 2, : n // 2].double() for x in (a, b)]
    double = machine.best_seconds(lambda: torch.mm(*wide), device)
    one = torch.zeros(1, device=device)
    waits = []
    for _ in range(200):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        one.zero_()
        torch.cuda.synchronize(device)
        waits.append(time.perf_counter() - start)
    return {
        "tf32 matrix product, TFLOP/s": 2 * n**3 / tf32 / 1e12,
        "float64 matrix product, TFLOP/s": 2 * (n // 2) ** 3 / double / 1e12,
        "one launch and a wait for it, us": sorted(waits)[len(waits) // 2] * 1e6,
    }
