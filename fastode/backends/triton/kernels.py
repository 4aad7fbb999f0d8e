"""The generated kernels of captured fields, made when first needed: no Triton is needed to write their source."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from fastode.backends.triton.adjoint_source import AdjointKernel
from fastode.backends.triton.cache import imported
from fastode.backends.triton.code import Code
from fastode.backends.triton.forward_source import ForwardKernel
from fastode.backends.triton.heuristics import SCALARISED, Launch, choose_launch, matmul_precision
from fastode.backends.triton.method import Method
from fastode.backends.triton.scalarised import ScalarisedCode
from fastode.backends.triton.tiled import TiledCode
from fastode.program.capture import Capture
from fastode.program.ir import SAMPLE, SHARED, Map, Program, Pullback

ENABLE_FP_FUSION = True
"""Products and sums are contracted: it is faster, and the rounding of one product less."""


def code_of(program: Program, back: Pullback | None, dtype: torch.dtype, launch: Launch) -> Code:
    """The source of a program in the shape of the launch parameters."""
    kind = ScalarisedCode if launch.shape == SCALARISED else TiledCode
    return kind(program, back, dtype, launch)


@dataclass
class GeneratedKernel:
    """A kernel's source and how to launch it.

    Attributes:
        name: of the kernel in its module.
        code: what its source was made from.
        source: the module.
    """

    name: str
    code: Code
    source: str
    _tables: dict[torch.device, Tensor] = field(default_factory=dict)

    @property
    def launch(self) -> Launch:
        """The launch parameters."""
        return self.code.launch

    @cached_property
    def kernel(self) -> Any:
        """The kernel, compiled when it is called."""
        return getattr(imported(self.source), self.name)

    def tables(self, device: torch.device) -> Tensor:
        """The index tables on a device, int32."""
        if device not in self._tables:
            numbers = self.code.pool.numbers or [0]
            self._tables[device] = torch.tensor(numbers, dtype=torch.int32, device=device)
        return self._tables[device]

    def groups(self, n: int) -> int:
        """Groups of samples that n samples make."""
        return -(-n // self.launch.samples)

    def run(self, programs: int, arguments: Sequence[Any], **flags: Any) -> None:
        """Launches it on the device of its first argument."""
        device = arguments[0].device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.kernel[(programs,)](*arguments, **flags, **self.options())

    def options(self) -> dict[str, Any]:
        """What the compiler is told."""
        launch = self.launch
        made = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": ENABLE_FP_FUSION}
        return made if launch.registers is None else {**made, "maxnreg": launch.registers}


@dataclass
class AdjointParts:
    """The adjoint kernel for some wanted gradients, and where it leaves those by shared leaves.

    Attributes:
        kernel: the kernel.
        wanted: for each leaf, shared ones first, whether its gradient is wanted.
    """

    kernel: GeneratedKernel
    wanted: tuple[bool, ...]
    _places: dict[torch.device, Tensor] = field(default_factory=dict)

    def programs(self, n: int) -> int:
        """Programs for n samples: each sums gradients by shared leaves over its groups of samples."""
        groups = self.kernel.groups(n)
        return min(groups, self.kernel.launch.programs) if self.kernel.code.workspace else groups

    @cached_property
    def _sources(self) -> Map:
        """(r, N): places in the workspace's row that add up to the gradient by each component of the shared leaves.

        The row's length stands for none.
        """
        code = self.kernel.code
        shared = code.program.shared
        starts, total = {}, 0
        for i, leaf in enumerate(shared):
            if self.wanted[i]:
                starts[i] = total
                total += leaf.size
        places: list[list[int]] = [[] for _ in range(total)]
        for made in code.accumulators:
            if made.kind == SHARED:
                for i, position in enumerate(made.positions.reshape(-1).tolist()):
                    if position >= 0:
                        places[starts[made.leaf] + position].append(made.offset + i)
        longest = max(map(len, places), default=0)
        table = [row + [code.workspace] * (longest - len(row)) for row in places]
        return np.array(table, dtype=np.int64).reshape(total, longest).T.copy()

    def shared_gradients(self, workspace: Tensor) -> list[Tensor | None]:
        """Gradients by the shared leaves from the programs' rows (programs, numbers), summed in a fixed order."""
        code = self.kernel.code
        device = workspace.device
        if device not in self._places:
            self._places[device] = torch.from_numpy(self._sources).to(device)
        places = self._places[device]
        total = torch.nn.functional.pad(workspace.sum(0), (0, 1))
        flat = total[places].sum(0)
        sizes = [leaf.size for i, leaf in enumerate(code.program.shared) if self.wanted[i]]
        parts = iter(flat.split(sizes))
        return [
            next(parts).reshape(leaf.shape) if self.wanted[i] else None for i, leaf in enumerate(code.program.shared)
        ]


def forward_kernel(
    program: Program, dtype: torch.dtype, method: Method, launch: Launch | None = None, exact: str = "highest"
) -> GeneratedKernel:
    """The kernel of a forward solve; ``exact`` as for ``choose_launch``."""
    code = code_of(program, None, dtype, launch or choose_launch(program, None, dtype, exact))
    return GeneratedKernel("forward", code, ForwardKernel(code, method).source("Forward solve."))


def adjoint_kernel(
    program: Program,
    back: Pullback,
    dtype: torch.dtype,
    method: Method,
    wanted: tuple[bool, ...],
    launch: Launch | None = None,
    exact: str = "highest",
) -> AdjointParts:
    """The kernel of the adjoint, with the wanted gradients only; ``exact`` as for ``choose_launch``."""
    n = len(program.shared)
    kept = {(SHARED, i) if i < n else (SAMPLE, i - n) for i, flag in enumerate(wanted) if flag}
    back = Pullback(
        program, back.state, tuple(term for term in back.terms if (term.leaf.op, term.leaf.data[0]) in kept)
    )
    code = code_of(program, back, dtype, launch or choose_launch(program, back, dtype, exact))
    return AdjointParts(
        GeneratedKernel("adjoint", code, AdjointKernel(code, method).source("Discrete adjoint.")), wanted
    )


class Kernels:
    """The kernels of one capture.

    Attributes:
        launch: launch parameters to take instead of those of the heuristics; for tests and experiments.
    """

    launch: Launch | None = None

    def __init__(self, capture: Capture) -> None:
        # Not the capture itself, which would keep itself alive by the table below.
        self.program, self.back = capture.program, capture.pullback
        self._made: dict[Any, Any] = {}

    def forward(self, dtype: torch.dtype, method: Method) -> GeneratedKernel:
        """The kernel of a forward solve."""
        exact = matmul_precision()
        key = ("forward", dtype, method, self.launch, exact)
        if key not in self._made:
            self._made[key] = forward_kernel(self.program, dtype, method, self.launch, exact)
        made: GeneratedKernel = self._made[key]
        return made

    def adjoint(self, dtype: torch.dtype, method: Method, wanted: tuple[bool, ...]) -> AdjointParts:
        """The kernel of the adjoint."""
        exact = matmul_precision()
        key = ("adjoint", dtype, method, wanted, self.launch, exact)
        if key not in self._made:
            self._made[key] = adjoint_kernel(self.program, self.back, dtype, method, wanted, self.launch, exact)
        made: AdjointParts = self._made[key]
        return made


_kernels: WeakKeyDictionary[Capture, Kernels] = WeakKeyDictionary()


def kernels_of(capture: Capture) -> Kernels:
    """The kernels of a capture."""
    found = _kernels.get(capture)
    if found is None:
        found = _kernels[capture] = Kernels(capture)
    return found
