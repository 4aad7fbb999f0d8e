"""Records of backends that execute programs as two tensors, for operators, whose results are tensors in fixed number.

Pieces are copied, but for a record that is one tensor as it is: what operators return must not share memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastode.backends.cpu.record import PackedRecord
from fastode.backends.cuda.record import PagedRecord
from fastode.backends.triton.record import Segment, SegmentedRecord

_PACKED, _SEGMENTED, _PAGED = range(3)
_DTYPES = (torch.int64, torch.float64, torch.float32)
_ALIGN = 32
"""Words: kernels may read and write packs of 16 bytes, and memory of the GPU's own is aligned to 256."""


def pack(record: Any) -> tuple[Tensor, Tensor]:
    """The record's contents, int64 on its device, and how they lie there, int64 on the CPU."""
    if isinstance(record, PackedRecord):
        return torch.from_numpy(record.words), torch.tensor([_PACKED], device="cpu")
    if isinstance(record, SegmentedRecord):
        numbers = [_SEGMENTED, len(record.segments)]
        tensors: list[Tensor] = []
        for segment in record.segments:
            used = max(1, int(segment.taken.max()))  # the host has waited for this launch anyway
            numbers += [segment.n, used, segment.every, segment.rows is None]
            tensors += [] if segment.rows is None else [segment.rows]
            tensors += [segment.table[:, :used], segment.states[: -(-used // segment.every)], segment.taken]
        return _joined(numbers, tensors)
    assert isinstance(record, PagedRecord)
    numbers = [_PAGED, record.every, record.per_page, record.pages, len(record.chunks)]
    numbers += [first for first, *_ in record.chunks]
    return _joined(numbers, [record.last, record.whole, *(x for _, *chunk in record.chunks for x in chunk)])


def unpack(words: Tensor, layout: Tensor, batch: int, width: int, dtype: torch.dtype) -> Any:
    """The record again, in the memory of ``words``.

    Args:
        words: as returned by ``pack``.
        layout: as returned by it.
        batch: B.
        width: components of a state, D.
        dtype: of the states.
    """
    numbers = iter(layout.tolist())
    kind = next(numbers)
    if kind == _PACKED:
        return PackedRecord(words.numpy(), batch, width, dtype)
    if kind == _SEGMENTED:
        heads = [[next(numbers) for _ in range(4)] for _ in range(next(numbers))]
        tensors = _parted(words, numbers)
        segments = []
        for n, capacity, every, everyone in heads:
            rows = None if everyone else next(tensors)
            segments.append(Segment(rows, n, capacity, every, next(tensors), next(tensors), next(tensors)))
        return SegmentedRecord(segments)
    every, per_page, pages, n_chunks = (next(numbers) for _ in range(4))
    firsts = [next(numbers) for _ in range(n_chunks)]
    tensors = _parted(words, numbers)
    last, whole = next(tensors), next(tensors)
    chunks = [(first, next(tensors), next(tensors), next(tensors)) for first in firsts]
    return PagedRecord(width, dtype, every, per_page, last.new_full((1,), pages), last, whole, pages, chunks)


def _joined(numbers: Sequence[int], tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors one after another; the layout is the numbers, and dtype and shape of each tensor."""
    sizes = [_size(tensor.dtype, tensor.shape) for tensor in tensors]
    words = torch.empty(sum(sizes), dtype=torch.int64, device=tensors[0].device)
    layout = list(map(int, numbers))
    for tensor, part in zip(tensors, words.split(sizes), strict=True):
        _seen(part, tensor.dtype, tensor.shape).copy_(tensor)
        layout += [_DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape]
    return words, torch.tensor(layout, dtype=torch.int64, device="cpu")


def _parted(words: Tensor, numbers: Iterator[int]) -> Iterator[Tensor]:
    """What ``_joined`` was given, in its order."""
    start = 0
    for code in numbers:
        dtype, rank = _DTYPES[code], next(numbers)
        shape = [next(numbers) for _ in range(rank)]
        yield _seen(words[start:], dtype, shape)
        start += _size(dtype, shape)


def _size(dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Words that a tensor takes."""
    return -(-math.prod(shape) * dtype.itemsize // (8 * _ALIGN)) * _ALIGN


def _seen(words: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The first words as a tensor of another dtype and shape."""
    return words.view(dtype)[: math.prod(shape)].view(torch.Size(shape))
