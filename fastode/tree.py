"""A batched state as one matrix: trees of tensors with a common leading dimension, flattened to (B, D) and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastode.tracers import check_device, check_memory

LEAF = pytree.tree_flatten(0)[1]
"""The structure of a tree that is one leaf."""
STATE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tree_flatten(tree: Any) -> tuple[list[Any], Any]:
    """Leaves and structure of nested tuples, lists and dicts, as torch's; without its cost where nothing is nested."""
    kind: Any = type(tree)
    if kind is tuple or kind is list:
        if all(isinstance(leaf, Tensor) for leaf in tree):
            return list(tree), _flat(kind, len(tree))
    elif kind is dict and all(isinstance(leaf, Tensor) for leaf in tree.values()):
        return list(tree.values()), _flat(kind, tuple(tree))
    elif isinstance(tree, Tensor):
        return [tree], LEAF
    return pytree.tree_flatten(tree)


@lru_cache(maxsize=256)
def _flat(kind: Any, entries: Any) -> Any:
    """The structure of a tuple or list of so many leaves, or of a dict with these keys."""
    return pytree.tree_flatten(dict.fromkeys(entries, 0) if kind is dict else kind([0] * entries))[1]


def leaves(tree: Any) -> list[Any]:
    """The leaves of nested tuples, lists and dicts, in a fixed order."""
    return tree_flatten(tree)[0]


def tree_map(fn: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree with ``fn`` applied to each leaf."""
    return pytree.tree_map(fn, tree)


@dataclass(frozen=True)
class StateSpec:
    """How one sample's state is laid out in a row of width ``width``: shapes of the leaves, one after another."""

    treespec: Any
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def is_tensor(self) -> bool:
        """Whether the state is one tensor and no tree."""
        return bool(self.treespec.is_leaf())

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of components of the leaves."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def width(self) -> int:
        """Number of components of one sample's state, D."""
        return sum(self.sizes)

    @property
    def time_rank(self) -> int:
        """Rank of the time that a field receives: that of the first leaf, batch dimension included."""
        return 1 + len(self.shapes[0])

    def unflatten(self, flat: Tensor) -> Any:
        """(..., D) to the tree whose leaves are (..., *shape); views where strides allow."""
        lead = flat.shape[:-1]
        if self.is_tensor:
            return flat if len(self.shapes[0]) == 1 else flat.reshape(*lead, *self.shapes[0])
        split = flat.split(self.sizes, dim=-1)
        parts = [part.reshape(*lead, *shape) for part, shape in zip(split, self.shapes, strict=True)]
        return pytree.tree_unflatten(parts, self.treespec)

    def separate(self, flat: Tensor) -> Any:
        """As ``unflatten``, with memory of its own for every leaf of a tree.

        So results may be changed in place: torch forbids that for the parts of a split, and of one tensor seen by
        several leaves each would see the changes of the others.
        """
        if self.is_tensor:
            return self.unflatten(flat)
        lead, parts, start = flat.shape[:-1], [], 0
        for size, shape in zip(self.sizes, self.shapes, strict=True):
            part = flat.narrow(-1, start, size).clone(memory_format=torch.contiguous_format)
            parts.append(part if len(shape) == 1 else part.view(*lead, *shape))
            start += size
        return pytree.tree_unflatten(parts, self.treespec)

    def flatten(self, tree: Any, what: str, lead: int) -> Tensor:
        """The tree with leaves (lead, *shape) as one (lead, D) matrix.

        Raises:
            TypeError: another tree structure, a leaf that is no tensor, another dtype.
            ValueError: a leaf of another shape or device.
        """
        if self.is_tensor and isinstance(tree, Tensor):  # the common case, called for every stage
            self._check_leaf(tree, self.shapes[0], what, lead)
            return tree if tree.ndim == 2 else tree.reshape(lead, self.width)
        parts, treespec = tree_flatten(tree)
        if treespec != self.treespec:
            try:
                parts = self.treespec.flatten_up_to(tree)  # the keys of a dict may come in another order
            except ValueError:
                raise TypeError(
                    f"{what} must have the structure of the state, {self.treespec}; got {treespec}"
                ) from None
        for part, shape in zip(parts, self.shapes, strict=True):
            self._check_leaf(part, shape, what, lead)
        return torch.cat([p.reshape(lead, size) for p, size in zip(parts, self.sizes, strict=True)], dim=1)

    def _check_leaf(self, part: Any, shape: torch.Size, what: str, lead: int) -> None:
        if not isinstance(part, Tensor):
            raise TypeError(f"{what} must consist of tensors, got {type(part).__name__}")
        if part.shape != (lead, *shape):
            raise ValueError(f"{what} must have shape {(lead, *shape)} like the state, got {tuple(part.shape)}")
        if part.device != self.device:
            raise ValueError(f"{what} must be on the device of the state, {self.device}; got {part.device}")


@lru_cache(maxsize=256)
def _spec(treespec: Any, shapes: tuple[torch.Size, ...], dtype: torch.dtype, device: torch.device) -> StateSpec:
    """The same object for the same layout: what it computes from it is then computed once."""
    return StateSpec(treespec, shapes, dtype, device)


@lru_cache(maxsize=256)
def _rows(width: int, dtype: torch.dtype, device: torch.device) -> StateSpec:
    return _spec(LEAF, (torch.Size((width,)),), dtype, device)


def flatten_state(y0: Any) -> tuple[Tensor, StateSpec]:
    """A batched initial state as a (B, D) matrix in its own dtype, and its layout.

    Raises:
        TypeError: no tensors, or tensors that are not floating, of several dtypes, or not plain memory.
        ValueError: a leaf without batch dimension, differing batch sizes or devices, the device meta.
    """
    if isinstance(y0, Tensor) and y0.ndim == 2 and y0.dtype in STATE_DTYPES:  # the common case
        check_memory(y0, "y0")
        check_device(y0, "y0")
        return y0.resolve_neg(), _rows(y0.shape[1], y0.dtype, y0.device)
    parts, treespec = tree_flatten(y0)
    if not parts:
        raise TypeError(f"y0 must be a tensor or a tree of tensors, got an empty {type(y0).__name__}")
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(f"y0 must be a tensor or a tree of tensors, got a leaf of type {type(part).__name__}")
        check_memory(part, "y0")
        if part.dtype not in STATE_DTYPES:
            raise TypeError(f"y0 must have a floating dtype of 16, 32 or 64 bits, got {part.dtype}")
        if part.ndim == 0:
            raise ValueError("y0 must have a leading batch dimension, got a tensor of shape ()")
    first = parts[0]
    for part in parts[1:]:
        if part.dtype != first.dtype:
            raise TypeError(f"all tensors of y0 must share one dtype, got {first.dtype} and {part.dtype}")
        if part.device != first.device:
            raise ValueError(f"all tensors of y0 must be on one device, got {first.device} and {part.device}")
        if part.shape[0] != first.shape[0]:
            raise ValueError(
                f"all tensors of y0 must share the batch dimension, got {first.shape[0]} and {part.shape[0]}"
            )
    check_device(first, "y0")
    spec = _spec(treespec, tuple(p.shape[1:] for p in parts), first.dtype, first.device)
    return spec.flatten(y0, "y0", first.shape[0]).resolve_neg(), spec
