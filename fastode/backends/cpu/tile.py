"""Compiled tile programs of a captured field, made when first needed: one for each layout and wanted gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastode._environment import _C
from fastode.backends.cpu.assemble import assemble, largest_sample_matrix, with_terms
from fastode.program.capture import Capture
from fastode.program.ir import SAMPLE, SHARED

_ROWS_ABOVE = 400
"""Entries of a per-sample matrix above which rows, a few samples at a time with their weights in the first-level cache,
are faster than lanes of 16 samples."""
_ROWS_ABOVE_BACKWARD = 2000
"""The same for a backward pass: there transposed products and outer products need no sums within a vector in lanes.
Measured at 32 x 32 (adjoint in rows 1.5 ms, in lanes 1.1 ms) and 64 x 64 (about equal). For fewer than eight samples
rows would be faster, by up to a half; but sums have another order there, and a sample must get the same bits in every
batch."""
_WIDE = 8192
"""Components of a state from which on one sample alone fills the vectors, and the tile of sixteen no cache: rows,
unless there are products with shared weights, which want several samples. One sample of 10,000 components takes 0.6 ms,
in lanes 20; 64 samples of 4,096 take about as long in both."""
_MOST_LANES = 256
_TILE_BYTES = 32 * 1024
"""Of a tile, so that it stays in the first-level cache."""
_SHORT = 256
_SHORT_TILE_BYTES = 256 * 1024
"""Where an instruction works on fewer than ``_SHORT`` elements its fixed cost outweighs what the second-level cache
costs: the adjoint of 10,000 Lorenz systems takes 34 ms with 32 lanes, 14 with 256."""


class Tiles:
    """The tile programs of one capture and dtype.

    Attributes:
        rows: whether a solve has its SIMD across components, and not across samples.
        rows_backward: the same for a backward pass.
        largest_shared_product: multiply-adds of the largest product with weights that all samples share.
    """

    def __init__(self, capture: Capture, dtype: torch.dtype) -> None:
        self.program_of_field, self.pullback = capture.program, capture.pullback
        self.kind = _C.TileProgram64 if dtype == torch.float64 else _C.TileProgram32
        self.itemsize = dtype.itemsize
        largest = largest_sample_matrix(capture.program)
        products = [v for v in capture.program.values() if v.op == "matmul" and any(a.op == SHARED for a in v.args)]
        self.largest_shared_product = max((math.prod(v.data[:3]) for v in products), default=0)
        wide = capture.program.dim >= _WIDE and not products
        self.rows, self.rows_backward = wide or largest > _ROWS_ABOVE, wide or largest > _ROWS_ABOVE_BACKWARD
        self._arguments: dict[Any, dict[str, Any]] = {}
        self._programs: dict[Any, Any] = {}

    def program(self, batch: int, wanted: tuple[bool, ...] | None, replays: bool = False) -> Any:
        """The program for a batch.

        Args:
            batch: number of samples.
            wanted: for a backward pass, the leaves whose gradients are wanted (shared, then per sample); None: none.
            replays: the backward pass may compute states again, which must be those of the solve to the last bit.
        """
        rows = self.rows
        if rows and wanted is not None and not replays:
            rows = self.rows_backward
        # Layouts by the program alone, as sums have an order. How many lanes there are makes no difference to a sample.
        bound = 1 if rows else max(16, 1 << max(0, (batch // 4 - 1).bit_length()))
        key = (min(bound, _MOST_LANES), wanted)
        found = self._programs.get(key)
        if found is None:
            arguments = self._assembled(wanted, rows)
            lanes = back = 1
            if not rows:
                lanes = self._lanes(arguments, key[0], 12, arguments["n_tmp"], ("forward",))
                scratch = 7 * (arguments["n_tmp_keep"] + arguments["n_adj"])
                back = self._lanes(arguments, key[0], 30, scratch, ("forward_keep", "reverse"))
            found = self._programs[key] = self.kind(lanes=lanes, backward_lanes=back, **arguments)
        return found

    def _assembled(self, wanted: tuple[bool, ...] | None, rows: bool) -> dict[str, Any]:
        found = self._arguments.get((wanted, rows))
        if found is None:
            back = None
            if wanted is not None:
                n = len(self.program_of_field.shared)
                leaves = [(SHARED, i) if i < n else (SAMPLE, i - n) for i, flag in enumerate(wanted) if flag]
                back = with_terms(self.pullback, leaves)
            found = self._arguments[wanted, rows] = assemble(self.program_of_field, back, rows).arguments
        return found

    def _lanes(self, arguments: dict[str, Any], most: int, states: int, scratch: int, routines: Sequence[str]) -> int:
        components = arguments["dim"] * states + scratch + arguments["n_param"]
        lengths = [int(row[1]) for name in routines for row in arguments[name][0]]
        length = sum(lengths) / max(1, len(lengths))  # components that an instruction works on
        lanes = 16
        while lanes * 2 <= most:
            room = _SHORT_TILE_BYTES if lanes * length < _SHORT else _TILE_BYTES
            if lanes * 2 * components * self.itemsize > room:
                break
            lanes *= 2
        return lanes


def tiles_of(capture: Capture, dtype: torch.dtype) -> Tiles:
    """The tile programs of a capture."""
    found: Tiles | None = capture.compiled.get((Tiles, dtype))
    if found is None:
        found = capture.compiled[Tiles, dtype] = Tiles(capture, dtype)
    return found


def pointers(tensors: Sequence[Tensor]) -> list[int]:
    """Addresses of the tensors' data."""
    return [tensor.data_ptr() for tensor in tensors]
