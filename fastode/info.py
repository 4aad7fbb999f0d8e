"""What ``fastode info`` prints: versions, the extension, backends, processor, threads and GPUs."""

from __future__ import annotations

import os
import platform
import subprocess
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fastode._environment import _C, OPENMP, get_num_threads

Rows = list[tuple[str, str]]


def report() -> str:
    """A readable account of this installation and machine, several lines of text without a final newline."""
    sections = {
        f"fastode {_version('fastode')}": _versions(),
        "Extension": _extension(),
        "Backends": _backends(),
        "CPU": _cpu(),
        "GPU": _gpus(),
    }
    width = max(len(label) for rows in sections.values() for label, _ in rows) + 2
    lines = []
    for title, rows in sections.items():
        lines += ["", title]
        for label, text in rows:
            first, *rest = text.splitlines() or [""]
            lines.append(f"  {label:<{width}}{first}")
            lines += [" " * (width + 2) + line for line in rest]
    return "\n".join(line.rstrip() for line in lines[1:])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _versions() -> Rows:
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    return [
        ("python", f"{platform.python_version()} ({platform.python_implementation()}, {sysconfig.get_platform()})"),
        ("torch", f"{torch.__version__} ({cuda})"),
        *((name, _version(name)) for name in ("numpy", "triton", "lightning")),
    ]


def _extension() -> Rows:
    info = _C.build_info()
    if info["cuda"]:
        cuda = f"compiled with nvcc {info['nvcc']} for {' '.join('sm_' + arch for arch in info['cuda_archs'])}"
    else:
        cuda = f"not compiled: {info['cuda_reason']}"
    return [
        ("compiler", f"{info['compiler']}, {info['target']}"),
        ("instruction sets", f"{' '.join(info['isas'])} (in use: {_C.get_isa()})"),
        ("CUDA sources", cuda),
    ]


def _backends() -> Rows:
    from fastode.backends.choose import available  # here, because that imports the whole solver

    return [(name, "can run" if reason is None else f"cannot run: {reason}") for name, reason in available()]


def _cpu() -> Rows:
    return [
        ("model", cpu_model()),
        ("features", " ".join(_C.cpu_features()) or "none known"),
        ("cores", f"{_usable_cores()} usable of {os.cpu_count()}"),
        ("threads", f"fastode {get_num_threads()}{' of OpenMP' if OPENMP else ''}, torch {torch.get_num_threads()}"),
    ]


def _gpus() -> Rows:
    runtime = _C.cuda_runtime()
    rows = []
    if runtime["driver"]:
        rows.append(("driver", f"supports CUDA up to {cuda_version(runtime['driver'])}"))
    for index, device in enumerate(_C.cuda_devices()):
        major, minor = device["capability"]
        text = f"{device['name']}, sm_{major}{minor}, {device['multiprocessors']} multiprocessors"
        rows.append((f"cuda:{index}", f"{text}, {device['memory'] / 2**30:.1f} GiB"))
    return rows if not runtime["reason"] else [*rows, ("none usable", runtime["reason"])]


def cuda_version(number: int) -> str:
    """CUDA's version number as text: 12040 is '12.4'."""
    return f"{number // 1000}.{number % 1000 // 10}"


def cpu_model() -> str:
    """The processor's marketing name, or its architecture where no name is to be had."""
    if brand := _C.cpu_brand():
        return brand
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.lower().startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
