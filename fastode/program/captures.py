"""What recording a field gives: its program, or the reason why it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastode.program.ir import Program, Pullback
from fastode.program.lower import Lowered, run_prologue

Places = tuple[tuple[int, ...], tuple[int, ...]] | None


@dataclass(frozen=True, eq=False)
class Capture:
    """A field's program, its pullback, and where the leaves come from.

    Attributes:
        program, pullback: what backends execute.
        lowered: with the prologue.
        controls: numbers of the leaves of the controls in the prologue.
        externals: (number in the prologue, place among ``Description.tensors``) of the tensors that the field holds.
        literals: tensors that the field makes from numbers in its code, by number.
        batch: the batch size that it holds for, None for any.
        batch_dims: of each per-sample leaf, the dimension of the tensor that the samples are in, and how many rows in
            a row each sample has there.
        plain: where no prologue is needed, the leaves' places among controls and externals; first of the leaves in the
            state's dtype, then of those as they are stored.
        indices: (place among ``Description.tensors``, integers there) that are part of the program.
        compiled: what backends made of it, by keys of their own.
    """

    program: Program
    pullback: Pullback
    lowered: Lowered
    controls: tuple[int, ...]
    externals: tuple[tuple[int, int], ...]
    literals: dict[int, Tensor]
    batch: int | None
    batch_dims: tuple[tuple[int, int], ...]
    plain: tuple[Places, Places]
    indices: tuple[tuple[int, Tensor], ...] = ()
    compiled: dict[Any, Any] = field(default_factory=dict, repr=False)

    def fits(self, tensors: Sequence[Tensor], batch: int) -> bool:
        """Whether it holds for these tensors of the field, which are described alike, and for this batch size."""
        if self.indices and not all(torch.equal(tensors[i], known) for i, known in self.indices):
            return False
        return self.batch is None or self.batch == batch

    def is_plain(self, stored: bool) -> bool:
        """Whether the leaves are controls and externals themselves, in the state's dtype or as they are stored."""
        return self.plain[stored] is not None

    def leaves(
        self, tensors: Sequence[Tensor], controls: Sequence[Tensor], batch: int, stored: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The program's leaves, shared (*shape) and per sample (B, *shape), with their graph.

        Args:
            tensors: of the field's description, as they are now.
            controls: leaves (B, ...).
            batch: B.
            stored: leaves with ``half`` as they are stored; otherwise all are of the state's dtype.
        """
        places = self.plain[stored]
        if places is not None:
            pool = (*controls, *tensors)
            return [pool[i] for i in places[0]], [pool[i] for i in places[1]]
        origin = self.lowered.stored if stored and self.lowered.stored is not None else self.lowered.origin
        known = dict(zip(self.controls, controls, strict=True))
        known.update((number, tensors[place]) for number, place in self.externals)
        known.update(self.literals)
        known = run_prologue(origin.prologue, known, batch)
        shared = [known[n] for n in origin.shared]
        sample = [
            _by_sample(known[n], dim, rows, batch)
            for n, (dim, rows) in zip(origin.sample, self.batch_dims, strict=True)
        ]
        return shared, sample


def _by_sample(x: Tensor, dim: int, rows: int, batch: int) -> Tensor:
    """(B, ...) of a tensor with (B rows) in a dimension: row r is read by sample r // rows, whatever it is made of."""
    if rows != 1:
        x = x.unflatten(dim, (batch, rows))
    return x if dim == 0 else x.movedim(dim, 0)


@dataclass(frozen=True)
class Refusal:
    """Why a field has no program, and the line of the user's code where that is decided.

    Attributes:
        reason: in words.
        where: file, line and text, None if no line is to blame.
        cure: what would give the field a program, None if nothing is known to.
        numbers_change: whether it has programs, each for numbers that are others at the next solve.
    """

    reason: str
    where: str | None
    cure: str | None = None
    numbers_change: bool = False

    def __str__(self) -> str:
        return self.reason if self.where is None else f"{self.reason}, at {self.where}"
