"""What the two shapes of generated code have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fastode.backends.triton.heuristics import Launch
from fastode.backends.triton.text import Source, joined, triton_type
from fastode.program.ir import SAMPLE, SHARED, TIME, Map, Program, Pullback
from fastode.program.printing import leaf_text


@dataclass(frozen=True)
class Accumulator:
    """A gradient by some components of a leaf, summed over the steps of a launch.

    Attributes:
        name: of the variable, or the first of several.
        kind: ``shared`` or ``sample``.
        leaf: its number.
        positions: component of the leaf for each entry, in row-major order; -1 in padding.
        offset: shared only: where its entries are in a row of the workspace.
    """

    name: str
    kind: str
    leaf: int
    positions: Map
    offset: int


@dataclass
class Pool:
    """Index tables of a kernel, one int32 tensor."""

    numbers: list[int] = field(default_factory=list)
    known: dict[bytes, int] = field(default_factory=dict)

    def place(self, table: Map) -> int:
        """Offset of a table."""
        key = np.ascontiguousarray(table, dtype=np.int64).tobytes()
        if key not in self.known:
            self.known[key] = len(self.numbers)
            self.numbers += table.reshape(-1).tolist()
        return self.known[key]


class Routine:
    """One device function: a body under construction, and the constants that it takes as arguments.

    Attributes:
        body: its lines.
        constants: names of its arguments after time, state and cotangent, in order.
    """

    def __init__(self) -> None:
        self.body = Source(1)
        self.constants: dict[str, None] = {}
        self.numbers = 0

    def name(self, prefix: str = "v") -> str:
        """A fresh name."""
        self.numbers += 1
        return f"{prefix}{self.numbers - 1}"


class Code(ABC):
    """The source of a program in one shape: device functions ``field`` and ``pull``, and how a kernel handles states.

    Attributes:
        program, back: the field, and its pullback with the wanted terms (None: forward only).
        dtype: of the state; ``kind`` is Triton's name of it.
        launch: the launch parameters.
        uses_time: whether the field, or its pullback, depends on time.
        pool: index tables.
        loads: lines that load the constants of a program before its steps, by their names.
        accumulators: gradients by leaves.
        workspace: numbers in a program's row of the workspace.
    """

    def __init__(self, program: Program, back: Pullback | None, dtype: torch.dtype, launch: Launch) -> None:
        self.program, self.back, self.dtype, self.launch = program, back, dtype, launch
        self.kind = triton_type(dtype)
        self.samples = launch.samples
        self.pool = Pool()
        self.loads: dict[str, str] = {}
        self.accumulators: list[Accumulator] = []
        self.workspace = 0
        self.uses_time = any(v.op == TIME for v in (*program.values(), *(back.values() if back else ())))
        self.field_constants: list[str] = []
        self.pull_constants: list[str] = []

    # -- what the shapes say

    @abstractmethod
    def parts(self, name: str) -> list[str]:
        """Names of the variables that hold a state called ``name``."""

    @abstractmethod
    def wide(self, name: str) -> str:
        """A vector over samples, broadcast to a state's parts."""

    @abstractmethod
    def address(self, row: str) -> list[str]:
        """Offset of each part of a state in an array of states, from the number of its row (a vector over samples)."""

    @abstractmethod
    def components(self) -> list[str]:
        """Offset of each part in an array with one number for each component of the state."""

    @abstractmethod
    def mask(self, condition: str | None) -> str:
        """A condition on samples (None: all) as the mask of a part of a state."""

    @abstractmethod
    def sum_squares(self, parts: Sequence[str]) -> str:
        """Sum of squares of a state's components in float64, a vector over samples."""

    @abstractmethod
    def finite(self, parts: Sequence[str]) -> str:
        """Whether all components are finite, 0 or 1, a vector over samples."""

    @abstractmethod
    def zeros(self) -> str:
        """A part of a state, all zero."""

    @abstractmethod
    def build_field(self, routine: Routine) -> list[str]:
        """Fills the body of ``field``; returns the parts of its result."""

    @abstractmethod
    def build_pull(self, routine: Routine) -> tuple[list[str], list[str]]:
        """Fills the body of ``pull``; returns the parts of the state's gradient and the accumulators' new values."""

    @abstractmethod
    def accumulator_names(self, accumulator: Accumulator) -> list[str]:
        """The variables of an accumulator."""

    @abstractmethod
    def accumulator_start(self, accumulator: Accumulator) -> list[str]:
        """What these are at the start of a program, or of a group of samples."""

    @abstractmethod
    def accumulator_places(self, accumulator: Accumulator) -> list[tuple[str, str, str]]:
        """For each variable, (value, offset, mask) of what is to be stored.

        Offsets are in the gradient of the leaf, with ``sample`` as the vector of samples, or in a row of the workspace.
        An empty mask stores everything.
        """

    # -- device functions

    def functions(self) -> Source:
        """``field`` and, with a pullback, ``pull``."""
        source = Source()
        routine = Routine()
        result = self.build_field(routine)
        self.field_constants = list(routine.constants)
        arguments = [*self._time(), *self.parts("y"), *self.field_constants]
        source.add("@device_function")
        with source.block(f"def field({joined(arguments)}):"):
            source.add(f'"""dy/dt of {self.samples} samples, state of {self.program.dim} components."""')
        source.add(*routine.body.lines)
        source.add(f"    return {joined(result)}", "", "")
        if self.back is None:
            return source
        routine = Routine()
        result, values = self.build_pull(routine)
        self.pull_constants = list(routine.constants)
        names = [name for a in self.accumulators for name in self.accumulator_names(a)]
        arguments = [*self._time(), *self.parts("y"), *self.parts("g"), *self.pull_constants, *names]
        source.add("@device_function")
        with source.block(f"def pull({joined(arguments)}):"):
            source.add('"""g times the derivative of dy/dt by the state; adds those by the leaves to their sums."""')
        source.add(*routine.body.lines)
        source.add(f"    return {joined([*result, *values])}", "", "")
        return source

    def _time(self) -> list[str]:
        return ["t"] if self.uses_time else []

    def call_field(self, time: str, state: str) -> str:
        """A call of ``field`` at a time in float64 (a vector over samples)."""
        times = [f"({time}).to({self.kind})"] if self.uses_time else []
        return f"field({joined([*times, *self.parts(state), *self.field_constants])})"

    def call_pull(self, time: str, state: str, cotangent: str) -> tuple[str, list[str]]:
        """A call of ``pull``, and the accumulators' variables among its targets."""
        times = [f"({time}).to({self.kind})"] if self.uses_time else []
        names = [name for a in self.accumulators for name in self.accumulator_names(a)]
        arguments = [*times, *self.parts(state), *self.parts(cotangent), *self.pull_constants, *names]
        return f"pull({joined(arguments)})", names

    def leaf_arguments(self) -> list[str]:
        """Arguments of a kernel for the leaves."""
        shared = [f"shared{i}_ptr" for i in range(len(self.program.shared))]
        sample = [f"sample{i}_{what}" for i in range(len(self.program.sample)) for what in ("ptr", "stride")]
        return [*shared, *sample]

    def half(self, kind: str, leaf: int) -> str | None:
        """The type that a leaf is stored in, None if it is the state's."""
        return (self.program.shared if kind == SHARED else self.program.sample)[leaf].half

    def leaf_comment(self) -> list[str]:
        """What the leaves are."""
        lines = [
            f"{kind}{i}: {leaf_text(leaf)}"
            for kind, leaves in ((SHARED, self.program.shared), (SAMPLE, self.program.sample))
            for i, leaf in enumerate(leaves)
        ]
        return [f"# {line}" for line in lines]

    def _written(self, leaf: int) -> Map:
        """Components of a per-sample leaf that have sums, in order, as often as they have."""
        own = [a.positions.reshape(-1) for a in self.accumulators if a.kind == SAMPLE and a.leaf == leaf]
        places = np.concatenate(own) if own else np.zeros(0, dtype=np.int64)
        return np.sort(places[places >= 0])

    def covers(self, leaf: int) -> bool:
        """Whether every component of a per-sample leaf has exactly one sum; otherwise its gradient starts as zeros."""
        return bool(np.array_equal(self._written(leaf), np.arange(self.program.sample[leaf].size)))

    def overlaps(self, leaf: int) -> bool:
        """Whether a component of a per-sample leaf has several sums."""
        places = self._written(leaf)
        return len(np.unique(places)) < len(places)

    def add_accumulator(self, kind: str, leaf: int, positions: Map) -> Accumulator:
        """A new accumulator."""
        made = Accumulator(f"sum{len(self.accumulators)}", kind, leaf, positions, self.workspace)
        if kind == SHARED:
            self.workspace += len(positions.reshape(-1))
        self.accumulators.append(made)
        return made
