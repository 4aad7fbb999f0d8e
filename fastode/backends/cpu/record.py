"""The accepted steps of a solve as the kernels of backend ``cpu`` write them."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastode.backends.program_record import ProgramRecord

_HEADER = 4  # words: numbers of steps and of states, spacing of the states, whether a wider one might have been chosen
_COLUMNS = 3  # of the table of steps


class PackedRecord(ProgramRecord):
    """A record as kernels write it, in one piece; its parts become tensors when they are asked for.

    Args:
        words: (W,) int64: numbers of steps and of states, ``every``, ``replays``; offsets;
            state_offsets; table; states. See ``csrc/cpu/bind_tile.cpp``.
        batch: B.
        width: components of a state, D.
        dtype: of the states.
    """

    def __init__(self, words: NDArray[np.int64], batch: int, width: int, dtype: torch.dtype) -> None:
        self.words, self._batch, self._width, self._dtype = words, batch, width, dtype

    def _part(self, start: int, size: int | None) -> Tensor:
        end = None if size is None else _HEADER + start + size
        return torch.from_numpy(self.words[_HEADER + start : end])

    @cached_property
    def offsets(self) -> Tensor:  # type: ignore[override]
        return self._part(0, self._batch + 1)

    @cached_property
    def state_offsets(self) -> Tensor:  # type: ignore[override]
        return self._part(self._batch + 1, self._batch + 1)

    @cached_property
    def table(self) -> Tensor:  # type: ignore[override]
        n = int(self.words[0])
        return self._part(2 * (self._batch + 1), _COLUMNS * n).view(torch.float64).reshape(n, _COLUMNS)

    @cached_property
    def states(self) -> Tensor:  # type: ignore[override]
        n = int(self.words[1])
        part = self._part(2 * (self._batch + 1) + _COLUMNS * int(self.words[0]), None).view(self._dtype)
        return part[: n * self._width].reshape(n, self._width)

    @cached_property
    def every(self) -> int:  # type: ignore[override]
        return int(self.words[2])

    @cached_property
    def replays(self) -> bool:
        """Whether states may be missing, by what was asked for: not whether any is, which depends on other samples."""
        return bool(self.words[3])
