"""The accepted steps of a whole solve on a GPU, in pages that samples take as they need them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastode._environment import _C

_ROWS = _C.net_rows
_PAGE = _ROWS["page"]
WIDEST_SPACING = 256
"""Of states in a record whose pages are made before the solve: each has room for so many times more steps."""


@dataclass
class PagedRecord:
    """Pages of ``per_page`` states and ``per_page * every`` steps; the first page of sample b is page b.

    Attributes:
        width: D.
        dtype: of the states.
        every: spacing of the kept states.
        per_page: states in a page.
        taken: (1,) int64, pages that are taken.
        last: (B,) int64, each sample's last page.
        whole: (rows, B) int64, status and counts of the solve, which the adjoint reads.
        pages: number of pages.
        chunks: (first page, steps, states, page before) of each chunk.
    """

    width: int
    dtype: torch.dtype
    every: int
    per_page: int
    taken: Tensor
    last: Tensor
    whole: Tensor
    pages: int = 0
    chunks: list[tuple[int, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def grow(self, pages: int) -> None:
        """Adds so many pages.

        Raises:
            RuntimeError: there are as many chunks as kernels can read.
        """
        if len(self.chunks) == _ROWS["chunks"]:
            raise RuntimeError(f"the record of {self.pages * self.per_page * self.every} steps cannot grow any further")
        device = self.last.device
        steps = torch.empty(pages, self.per_page * self.every, 3, dtype=torch.float64, device=device)
        states = torch.empty(pages, self.per_page, self.width, dtype=self.dtype, device=device)
        before = torch.empty(pages, dtype=torch.int64, device=device)
        self.chunks.append((self.pages, steps, states, before))
        self.pages += pages

    def pointers(self) -> list[tuple[int, int, int, int]]:
        """The chunks as kernels take them."""
        return [(first, a.data_ptr(), b.data_ptr(), c.data_ptr()) for first, a, b, c in self.chunks]

    @property
    def state_bytes(self) -> int:
        """Memory of the states, those of pages that are not full included."""
        return self.pages * self.per_page * self.width * self.dtype.itemsize


def new_record(batch: int, width: int, dtype: torch.dtype, every: int, whole: Tensor) -> PagedRecord:
    """A record with room for two pages per sample; one more chunk for each time that this was not enough."""
    device = whole.device
    taken = torch.full((1,), batch, dtype=torch.int64, device=device)
    record = PagedRecord(width, dtype, every, _PAGE, taken, torch.empty_like(whole[0]), whole)
    record.grow(2 * batch)
    return record


def record_within(
    n_accepted: Tensor, width: int, dtype: torch.dtype, every: int, budget: int | None, whole: Tensor
) -> PagedRecord:
    """A record for a solve whose numbers of steps (B,) int64 are known; its states fit a budget in bytes if they can.

    Past the largest number of steps only the first state of each sample is kept, and a wider spacing can gain nothing.
    """
    longest = int(n_accepted.max())

    def states() -> int:
        return int((n_accepted + every - 1).div(every, rounding_mode="floor").clamp_min(1).sum())

    while budget is not None and every <= longest and states() * width * dtype.itemsize > budget:
        every *= 2
    every = min(every, max(1, longest))
    taken = torch.full((1,), n_accepted.shape[0], dtype=torch.int64, device=whole.device)
    record = PagedRecord(width, dtype, every, 1, taken, torch.empty_like(whole[0]), whole)
    record.grow(states())
    return record
