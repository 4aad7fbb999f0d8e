"""Launch parameters of generated kernels: a pure function of program and dtype, nothing is tried out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fastode.backends.triton.text import power_of_two
from fastode.program.ir import LEAVES, SAMPLE, SHARED, Program, Pullback, Value, is_constant

SCALARISED, TILED = "scalarised", "tiled"

_SCALARISED_WORK = 160
"""Most scalar operations of one evaluation for the scalarised shape. More would not stay in a thread's registers, and
Triton's time to compile grows with the square of the number of components: 20 seconds for 36 weights."""
_SCALARISED_COMPONENTS = 8
_SCALARISED_LEAVES = 16
_SUM_ENTRIES = 16384
"""Most entries of shared matrices, all together, for products by multiply-and-sum with weights in registers."""
_SUM_WARPS = 8
_REGISTERS = 96
"""Of a thread's 255, those that weights and their gradients may take."""
_MOST_WARPS = 16
_MOST_ENTRIES = 128 * 128
"""Of one matrix in a tile."""
_MOST_PRODUCT = 1 << 17
"""Terms of one product that are formed side by side."""


@dataclass(frozen=True)
class Launch:
    """How a kernel is compiled and launched.

    Attributes:
        shape: ``scalarised`` (a component of the state is a vector over the samples of the program, a thread has a
            sample) or ``tiled`` (values are [samples, width] tiles, threads share a sample).
        samples: samples of a program, a power of two.
        warps: warps of a program.
        stages: depth of software pipelining; loops here have no loads worth it.
        dot: products with shared matrices by ``tl.dot``, otherwise by multiply-and-sum.
        precision: of ``tl.dot``: ``ieee``, ``tf32x3``, or ``tf32``, where ``matmul_precision`` allows it.
        hoist: shared weights are loaded once, before the steps; otherwise where they are used.
        programs: most programs of the adjoint where it sums gradients by shared weights; each works on one group of
            samples after another, and has its row of the workspace.
        registers: most registers of a thread, so that more programs run side by side; None leaves it to the compiler.
    """

    shape: str
    samples: int
    warps: int
    stages: int = 1
    dot: bool = False
    precision: str = "ieee"
    hoist: bool = True
    programs: int = 1024
    registers: int | None = None


def work(values: Iterable[Value]) -> int:
    """Scalar operations of one evaluation."""
    total = 0
    for value in values:
        if value.op == "matmul":
            total += math.prod(value.data[:3])
        elif value.op in ("sum", "amax"):
            total += value.args[0].size
        elif value.op not in (*LEAVES, "const", "gather", "cat", "stop"):
            total += value.size
    return total


def _matrices(values: Iterable[Value], kind: str) -> dict[int, int]:
    """Entries that products read of each leaf of a kind."""
    found: dict[int, int] = {}
    for value in values:
        if value.op != "matmul":
            continue
        m, k, n = value.data[:3]
        for arg, entries in zip(value.args, (m * k, k * n), strict=True):
            if is_constant(arg) and arg.op == kind and min(entries, m * k * n) > 1:
                leaf = int(arg.data[0])
                found[leaf] = found.get(leaf, 0) + power_of_two(entries)
    return found


def matmul_precision() -> str:
    """How exact torch's own float32 products are asked to be, ``highest`` or less: ours are not asked for more."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set by torch's newer names, of which torch no longer makes one of these
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"


def choose_launch(program: Program, back: Pullback | None, dtype: torch.dtype, exact: str = "highest") -> Launch:
    """Launch parameters of the forward kernel, or of the adjoint's.

    Args:
        program: the field.
        back: its pullback, with the gradients that are wanted; None for the forward kernel.
        dtype: float32 or float64.
        exact: ``matmul_precision()``; below ``highest`` products by ``tl.dot`` are in tf32.
    """
    values = program.values()
    words = dtype.itemsize // 4
    largest = max((v.size for v in values if v.op not in (SHARED, SAMPLE)), default=1)
    leaves = sum(leaf.size for leaf in (*program.shared, *program.sample))
    small = work(values) <= _SCALARISED_WORK and max(program.dim, largest) <= _SCALARISED_COMPONENTS
    if small and leaves <= _SCALARISED_LEAVES:
        return Launch(SCALARISED, samples=32, warps=1)
    own = sum(_matrices(values, SAMPLE).values())
    common = sum(_matrices(values, SHARED).values())
    copies = 1
    if back is not None and any(term.leaf.op == SAMPLE for term in back.terms):
        copies = 2  # the weights and their gradients
    if own:
        # Weights of a sample in the registers of as few warps as hold them; several small samples in one warp.
        per_warp = 32 * _REGISTERS // words
        samples = max(1, min(16, power_of_two(per_warp // 3 // max(1, own * copies) + 1) // 2))
        warps = max(1, min(_MOST_WARPS, power_of_two(-(-own * copies * samples // per_warp))))
        # The forward kernel needs its weights and some 90 registers more; the compiler would take all there are.
        registers = 168 if back is None and warps > 1 and words == 1 else None
        return Launch(TILED, samples, warps, hoist=common <= _SUM_ENTRIES, registers=registers)
    if common <= _SUM_ENTRIES or dtype == torch.float64:
        per_warp = 32 * (32 if back is not None else 64) // words
        warps = max(1, min(_SUM_WARPS, power_of_two(-(-common // per_warp))))
        return Launch(TILED, samples=1, warps=warps, hoist=common <= _SUM_ENTRIES)
    precision = "tf32" if exact != "highest" else "tf32x3" if common >= 2 * _SUM_ENTRIES else "ieee"
    return Launch(TILED, samples=16, warps=4, dot=True, precision=precision, hoist=False, programs=528)


def too_large(program: Program, dtype: torch.dtype) -> str | None:
    """Why neither shape can hold the program on chip, or None.

    Args:
        program: the field.
        dtype: float32 or float64.
    """
    words = dtype.itemsize // 4
    values = program.values()
    own = max(_matrices(values, SAMPLE).values(), default=0)
    if own * 2 * words > _MOST_WARPS * 32 * _REGISTERS:
        return f"per-sample weights of {own} numbers and their gradients do not fit into registers"
    for value in values:
        if value.op == "matmul":
            m, k, n = (power_of_two(size) for size in value.data[:3])
            if max(m * k, k * n, m * n) > _MOST_ENTRIES or (min(m, n) > 1 and m * k * n > _MOST_PRODUCT):
                return f"a product of {value.data[0]}x{value.data[1]} and {value.data[1]}x{value.data[2]} is too large"
        elif value.op not in (SHARED, SAMPLE) and value.size > _MOST_ENTRIES // 4:
            return f"a value of {value.size} components is too large"
    return None
