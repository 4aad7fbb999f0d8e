"""Registers, spills and stack of every CUDA kernel: ``python -m build_support.cuda_resources`` writes the table.

Compiles each .cu for all architectures of the build with warnings as errors; no GPU is needed.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from . import BuildError
from .cuda import NVCC_FLAGS, Cuda, decide
from .toolchain import find_host_compiler

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "gpu_resources_cuda.csv"


@dataclass(frozen=True, order=True)
class Usage:
    """What a kernel needs on one architecture; sizes in bytes."""

    kernel: str
    arch: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int


def sources() -> list[Path]:
    """All CUDA sources."""
    return sorted((ROOT / "csrc").rglob("*.cu"))


def compile_one(cuda: Cuda, source: Path) -> str:
    """Compiles a source for all architectures; returns what ptxas said.

    Raises:
        BuildError: it does not compile without warnings.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [cuda.nvcc, *cuda.compile_flags, *NVCC_FLAGS, "-DFASTODE_HAVE_CUDA=1", f"-I{ROOT / 'csrc'}"]
        command += ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror", "-Xptxas", "-v"]
        command += ["-c", str(source), "-o", str(Path(folder, "object.o"))]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or re.search(r"\bwarning\b", done.stderr, re.IGNORECASE):
        raise BuildError(f"{source.name} does not compile without warnings:\n{done.stderr[-4000:]}")
    return done.stderr


def usages(text: str) -> list[Usage]:
    """The kernels in what ``ptxas -v`` says."""
    found = []
    pattern = re.compile(
        r"Compiling entry function '(\S+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    for name, arch, stack, stores, loads, registers in pattern.findall(text):
        found.append(Usage(readable(name), arch, int(registers), int(stores), int(loads), int(stack)))
    return sorted(found)


def readable(mangled: str) -> str:
    """A kernel's name, type and sizes from its mangled name."""
    kinds = {"f": "float", "d": "double"}
    net = re.search(r"net_(forward|adjoint)_kernelINS_\d+Net(?:Wide)?ShapeI([fd])Li(\d+)ELi(\d+)E", mangled)
    if net:
        direction, kind, dim, layers = net.groups()
        return f"net_{direction} {kinds[kind]} {dim} layers {layers}"
    group = re.search(r"group_kernelILi(\d+)E([fd])NS_\d+([A-Za-z]+)I[fd]E", mangled)
    if group:
        return f"step {group.group(3)} {kinds[group.group(2)]} threads {group.group(1)}"
    element = re.search(r"element_kernelINS_\d+([A-Za-z]+)I([fd])(?:Li(\d+)E)?E", mangled)
    if element:
        each = f" by {element.group(3)}" if element.group(3) else ""
        return f"step {element.group(1)} {kinds[element.group(2)]}{each}"
    return mangled


def measure(cuda: Cuda) -> list[Usage]:
    """Compiles everything."""
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda source: compile_one(cuda, source), sources()))
    return sorted(usage for text in texts for usage in usages(text))


def read_table() -> list[Usage]:
    """The table that is checked in."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [Usage(row["kernel"], row["arch"], *(int(row[field.name]) for field in fields(Usage)[2:])) for row in rows]


def main() -> None:
    """Writes the table."""
    cuda = decide(find_host_compiler().executable)
    if not cuda.nvcc:
        sys.exit(f"cannot compile CUDA sources: {cuda.reason}")
    rows = measure(cuda)
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Usage)])
        writer.writerows(astuple(row) for row in rows)
    spilling = [row for row in rows if row.spill_stores or row.spill_loads]
    print(f"{len(rows)} rows, {len(spilling)} that spill, nvcc {cuda.version}: {TABLE}")


if __name__ == "__main__":
    main()
