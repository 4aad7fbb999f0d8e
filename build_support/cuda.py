"""Decides whether CUDA sources are compiled and for which GPUs, without ever looking for a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from . import BuildError
from .toolchain import output_of

DEFAULT_ARCHS = "80;90;100"
# No contraction, as on the host: what tests find out about the arithmetic there holds on the device.
NVCC_FLAGS = ["-O3", "-fmad=false", "-DNDEBUG"]
_PROBE = """\
#include <cuda_runtime.h>
__global__ void probe(int *p) { *p = 1; }
int count() { int n; cudaGetDeviceCount(&n); return n; }
"""


@dataclass(frozen=True)
class Cuda:
    """The outcome: ``nvcc`` is '' when CUDA sources are left out, and ``reason`` then says why."""

    reason: str
    nvcc: str = ""
    version: str = ""
    archs: list[str] = field(default_factory=list)
    compile_flags: list[str] = field(default_factory=list)
    link_flags: list[str] = field(default_factory=list)


def decide(compiler: str) -> Cuda:
    """Decide from ``FASTODE_CUDA`` (auto, 0 or 1), ``FASTODE_CUDA_ARCHS`` and what nvcc can do.

    Args:
        compiler: the host compiler, handed to nvcc as ``-ccbin``.

    Raises:
        BuildError: a variable has a value that makes no sense, or ``FASTODE_CUDA=1`` and CUDA cannot be compiled.
    """
    mode = os.environ.get("FASTODE_CUDA", "").strip().lower() or "auto"
    if mode not in ("auto", "0", "1"):
        raise BuildError(
            f"FASTODE_CUDA={os.environ['FASTODE_CUDA']!r} is not understood: set auto (compile the CUDA sources if "
            "nvcc is found), 0 (never) or 1 (always; an error without nvcc)."
        )
    if mode == "0":
        return Cuda("switched off by FASTODE_CUDA=0")
    nvcc = find_nvcc()
    if not nvcc:
        return _without("nvcc was not found (looked in CUDA_HOME, CUDA_PATH, PATH and /usr/local/cuda)", mode)
    release = re.search(r"release ([\d.]+)", output_of([nvcc, "--version"]))
    if release is None:
        return _without(f"{nvcc} --version does not work", mode)
    supported = set(re.findall(r"sm_(\d+)", output_of([nvcc, "--list-gpu-code"])))
    archs = choose_archs(os.environ.get("FASTODE_CUDA_ARCHS", ""), supported, nvcc)
    if not archs:
        return _without(f"{nvcc} supports none of the architectures {DEFAULT_ARCHS}; set FASTODE_CUDA_ARCHS", mode)
    compile_flags = ["-ccbin", compiler, "-std=c++17", *gencode_flags(archs)]
    problem = _probe(nvcc, compile_flags)
    if problem:
        return _without(f"{nvcc} does not work with the host compiler {compiler}:\n{problem}", mode)
    return Cuda("nvcc found", nvcc, release.group(1), archs, compile_flags, _library_flags(nvcc))


def find_nvcc() -> str:
    """Path of nvcc, '' if there is none."""
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    candidates = [os.path.join(home, "bin", "nvcc") for home in homes if home]
    candidates += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for found in map(shutil.which, candidates) if found), "")


def choose_archs(requested: str, supported: set[str], nvcc: str = "nvcc") -> list[str]:
    """Turn ``FASTODE_CUDA_ARCHS`` (as "80;90", "8.0 9.0", "90a", "sm_90") into a sorted list such as ["80", "90a"].

    The default list is cut down to what nvcc supports; an architecture that was asked for must be supported.
    """
    words = re.split(r"[;,\s]+", (requested.strip() or DEFAULT_ARCHS).strip(";, "))
    archs = []
    for word in words:
        match = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)([af]?)", word)
        if match is None:
            raise BuildError(
                f"FASTODE_CUDA_ARCHS={requested!r}: {word!r} is no GPU architecture; give compute capabilities such "
                'as "80;90".'
            )
        number = match.group(1) + match.group(2)
        if number in supported:
            archs.append(number + match.group(3))
        elif requested.strip():
            known = " ".join(sorted(supported, key=int))
            raise BuildError(f"FASTODE_CUDA_ARCHS={requested!r}: {nvcc} does not support {word}; it supports {known}.")
    return sorted(set(archs), key=lambda arch: (int(arch.rstrip("af")), arch))


def gencode_flags(archs: list[str]) -> list[str]:
    """Machine code for every architecture, and PTX of the newest so that later GPUs can run it."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*flags, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


def _without(reason: str, mode: str) -> Cuda:
    if mode == "1":
        raise BuildError(f"FASTODE_CUDA=1, but {reason}")
    return Cuda(reason)


def _probe(nvcc: str, flags: list[str]) -> str:
    """Compile and link a kernel: '' if that works, else the end of what nvcc said."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text(_PROBE)
        command = [nvcc, *flags, "-Xcompiler", "-fPIC", "-shared", "-cudart", "static", str(source)]
        try:
            done = subprocess.run([*command, "-o", str(Path(folder, "probe.so"))], capture_output=True, text=True)
        except OSError as error:
            return str(error)
    said = (done.stderr or done.stdout).strip()
    return "" if done.returncode == 0 else "\n".join(said.splitlines()[-6:]) or f"exit status {done.returncode}"


def _library_flags(nvcc: str) -> list[str]:
    """Flags that link the static CUDA runtime with the host compiler, from nvcc's own list of library folders."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text(_PROBE)
        done = subprocess.run([nvcc, "--dryrun", "-c", str(source)], capture_output=True, text=True, cwd=folder)
    libraries = re.search(r"^#\$ LIBRARIES=(.*)$", done.stderr, re.MULTILINE)
    folders = re.findall(r'"?-L([^"\s]+)"?', libraries.group(1)) if libraries else []
    return [*(f"-L{os.path.normpath(path)}" for path in folders), "-lcudart_static", "-lrt", "-ldl"]
