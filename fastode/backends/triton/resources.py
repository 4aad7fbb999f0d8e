"""Registers, shared memory and spills of generated kernels, compiled ahead of time: no GPU is needed.

``python -m fastode.backends.triton.resources FILE`` writes a table of the kernels listed here.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastode.backends.triton.kernels import GeneratedKernel, adjoint_kernel, forward_kernel
from fastode.backends.triton.method import method_of
from fastode.fields import ControlledField, MLPField
from fastode.problem import make_problem
from fastode.program.capture import Capture, Refusal, capture_field
from fastode.program.ir import SAMPLE, SHARED
from fastode.tableaus import get_tableau

ARCHITECTURES = (80, 90, 100)
_FORWARD = {"START": True, "SOME": False, "RECORD": True, "CHOOSE": True, "PID": False, "K1": False}
_ADJOINT = {"SOME": False, "SOLVED": False, "ADD": False, "REPLAY": False}


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel.

    Attributes:
        case, kernel, dtype: which one.
        shape, samples, warps: its launch parameters.
        arch: compute capability.
        registers: of a thread.
        shared: bytes of shared memory of a program.
        spilled: bytes of spill stores and loads of a thread, by ptxas.
        stack: bytes of local memory of a thread: spills, and what libdevice takes to reduce large arguments of sines.
    """

    case: str
    kernel: str
    dtype: str
    shape: str
    samples: int
    warps: int
    arch: int
    registers: int
    shared: int
    spilled: int
    stack: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Which kernel, and for which architecture."""
        return self.case, self.kernel, self.dtype, self.arch


def lorenz(t: Any, y: Any, c: Any) -> Any:
    """The Lorenz system with parameters (n, 3)."""
    sigma, rho, beta = c.unbind(-1)
    x, y, z = y.unbind(-1)
    return torch.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z], -1)


def captured(field: Any, dim: int, n_controls: int, dtype: torch.dtype) -> Capture:
    """The program of a field."""
    y0 = torch.linspace(-1, 1, 3 * dim, dtype=dtype).reshape(3, dim)
    controls = torch.linspace(-1, 1, 3 * n_controls, dtype=dtype).reshape(3, n_controls) if n_controls else None
    plan, inputs = make_problem(field, y0, (0.0, 1.0), controls, "dopri5", 1e-5, 1e-6, None, None, 10, False)
    found, _ = capture_field(plan.field, plan.times, inputs.y0, inputs.controls)
    assert not isinstance(found, Refusal), found
    return found


def kernels() -> Iterator[tuple[str, torch.dtype, Callable[[], Capture]]]:
    """The listed kernels: (name, dtype, how to make the program)."""

    def mlp(dim: int, hidden: int, dtype: torch.dtype) -> Capture:
        return captured(MLPField(dim, (hidden,)).to(dtype), dim, 0, dtype)

    def controlled(dim: int, dtype: torch.dtype) -> Capture:
        field = ControlledField(dim)
        return captured(field, dim, field.n_controls, dtype)

    for dtype in (torch.float32, torch.float64):
        yield "lorenz", dtype, partial(captured, lorenz, 3, 3, dtype)
        yield "mlp 4-32-4", dtype, partial(mlp, 4, 32, dtype)
        for dim in (16, 32, 64):
            yield f"controlled {dim}", dtype, partial(controlled, dim, dtype)
    yield "mlp 2-50-2", torch.float32, partial(mlp, 2, 50, torch.float32)
    yield "mlp 64-128-64", torch.float32, partial(mlp, 64, 128, torch.float32)


def generated(program: Capture, dtype: torch.dtype) -> list[GeneratedKernel]:
    """The forward kernel and the adjoint, with all gradients, for dopri5 with step control."""
    method = method_of(get_tableau("dopri5"), True)
    wanted = (True,) * (len(program.program.shared) + len(program.program.sample))
    return [
        forward_kernel(program.program, dtype, method),
        adjoint_kernel(program.program, program.pullback, dtype, method, wanted).kernel,
    ]


def signature(kernel: GeneratedKernel, **changed: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """Types of a kernel's arguments as a launch on a GPU gives them, and its compile-time flags."""
    flags = {**(_FORWARD if kernel.name == "forward" else _ADJOINT), **changed}
    own = {torch.float32: "*fp32", torch.float64: "*fp64"}[kernel.code.dtype]
    doubles = ("times", "control", "step_size", "first_step", "clocks", "record")
    known = {f"{name}_ptr": "*fp64" for name in doubles}
    halves = {"bfloat16": "*bf16", "float16": "*fp16"}
    for kind, leaves in ((SHARED, kernel.code.program.shared), (SAMPLE, kernel.code.program.sample)):
        stored = {i: halves[leaf.half] for i, leaf in enumerate(leaves) if leaf.half}
        known |= {f"{kind}{i}_ptr": pointer for i, pointer in stored.items()}
        known |= {f"grad{i}_ptr": pointer for i, pointer in stored.items() if kind == SAMPLE}
    known |= {"tables_ptr": "*i32", "running_ptr": "*i32", "solved_ptr": "*i8"}
    known |= dict.fromkeys(("counts_ptr", "rows_ptr", "taken_ptr", "e_ptr"), "*i64")
    types = {}
    for name in kernel.kernel.arg_names:
        if name in flags:
            types[name] = "constexpr"
        elif name.endswith("_ptr"):
            types[name] = known.get(name, own)
        else:
            types[name] = "i32"
    return types, flags


def compiled(kernel: GeneratedKernel, arch: int, **changed: bool) -> Any:
    """The kernel compiled for an architecture, with other compile-time flags than usual where given."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, flags = signature(kernel, **changed)
    names = list(types)
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith("_ptr")}
    source = ASTSource(
        fn=kernel.kernel, signature=types, constexprs={(names.index(k),): v for k, v in flags.items()}, attrs=aligned
    )
    options = kernel.options()
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def measured(case: str, kernel: GeneratedKernel, arch: int) -> Resources:
    """Compiles a kernel and reads off what it takes."""
    from triton.backends.nvidia.compiler import get_ptxas

    made = compiled(kernel, arch)
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "k.ptx", Path(folder) / "k.cubin"
        ptx.write_text(made.asm["ptx"])
        cubin.write_bytes(made.asm["cubin"])
        usage = subprocess.run(
            [_tool("cuobjdump"), "--dump-resource-usage", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
        target = re.search(r"\.target (sm_\w+)", made.asm["ptx"])
        assert target is not None
        ptxas = str(get_ptxas(arch).path)
        report = subprocess.run(
            [ptxas, "-v", f"--gpu-name={target.group(1)}", str(ptx), "-o", str(cubin)], capture_output=True, text=True
        ).stderr
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert found is not None, usage
    assert spills is not None, report
    launch, dtype = kernel.launch, str(kernel.code.dtype).removeprefix("torch.")
    return Resources(
        case,
        kernel.name,
        dtype,
        launch.shape,
        launch.samples,
        launch.warps,
        arch,
        int(found.group(1)),
        int(made.metadata.shared),
        int(spills.group(1)) + int(spills.group(2)),
        int(found.group(2)),
    )


def read(path: Path) -> list[Resources]:
    """The rows of a table."""
    with path.open(newline="") as file:
        return [
            Resources(*(int(row[f.name]) if f.type == "int" else row[f.name] for f in fields(Resources)))  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        ]


def write(path: Path, rows: list[Resources]) -> None:
    """Writes a table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Resources)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def main(path: str) -> None:
    """Writes the table, and prints it as it grows."""
    rows = []
    for case, dtype, program in kernels():
        for kernel in generated(program(), dtype):
            for arch in ARCHITECTURES:
                rows.append(measured(case, kernel, arch))
                print(rows[-1], flush=True)
    write(Path(path), rows)


if __name__ == "__main__":
    main(sys.argv[1])
