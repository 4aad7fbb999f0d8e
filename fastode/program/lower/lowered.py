"""What lowering gives: a program, and where its leaves come from."""

from __future__ import annotations

from dataclasses import dataclass

from fastode.program.ir import Builder, Program
from fastode.program.trace import Call


@dataclass
class Origin:
    """Where a program's leaves come from.

    Attributes:
        shared, sample: numbers of the graph's tensors that are its leaves.
        prologue: the calls that compute them from the graph's inputs and externals.
    """

    shared: list[int]
    sample: list[int]
    prologue: list[Call]


@dataclass
class Lowered:
    """A program and where its leaves come from.

    Attributes:
        program: the program.
        origin: of its leaves in the state's dtype.
        stored: of its leaves as they are stored, where that is in half precision; None if none is.
        indices: numbers of externals whose values, integers, are part of the program.
    """

    program: Program
    builder: Builder
    origin: Origin
    stored: Origin | None
    indices: set[int]
