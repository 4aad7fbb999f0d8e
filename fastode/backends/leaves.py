"""Tensors that a program reads, as kernels take them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def leaves_for_kernels(shared: Sequence[Tensor], sample: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Shared leaves contiguous; of per-sample ones (B, *shape) each sample."""
    return [leaf.contiguous() for leaf in shared], [_rows_of(leaf) for leaf in sample]


def _rows_of(leaf: Tensor) -> Tensor:
    """A per-sample leaf (B, *shape) whose samples are each contiguous."""
    if leaf.is_contiguous():
        return leaf
    expected = 1
    for size, stride in zip(reversed(leaf.shape[1:]), reversed(leaf.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return leaf.contiguous()
        expected *= size
    return leaf
