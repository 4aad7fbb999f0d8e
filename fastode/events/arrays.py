"""The array functions of the search: numpy's for tensors on the CPU, torch's elsewhere.

The search makes many small arrays, for each of which numpy takes a fifth of the time that torch takes. What is written
with these functions and with operators runs on either; all are elementwise or along the first dimension, so that a
sample's values do not depend on its company.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastode.status import Status

Array = Any
"""An ``np.ndarray`` or a ``Tensor``."""
SUCCESS, EVENT, MAX_STEPS = int(Status.SUCCESS), int(Status.EVENT), int(Status.MAX_STEPS)
"""Statuses that are compared with arrays: numpy takes a hundred times as long for a member of an enum."""


def of(x: Tensor) -> Array:
    """A tensor as the search holds it; memory is shared."""
    if not x.is_cpu:
        return x.detach()
    return x.detach().numpy() if x.requires_grad else x.numpy()


def tensor(x: Array) -> Tensor:
    """An array as a tensor; memory is shared."""
    return x if isinstance(x, Tensor) else torch.from_numpy(x)


def where(mask: Array, x: Array, y: Array) -> Array:
    """X where the mask is set, else y; either may be a number."""
    return torch.where(mask, x, y) if isinstance(mask, Tensor) else np.where(mask, x, y)


def isnan(x: Array) -> Array:
    """Which entries are NaN."""
    return x != x


def finite(x: Array) -> Array:
    """Which entries are neither NaN nor infinite."""
    return torch.isfinite(x) if isinstance(x, Tensor) else np.isfinite(x)


def sign_of(x: Array) -> Array:
    """-1, 0 or 1, and NaN for NaN, of which ``torch.sign`` says 0."""
    return torch.where(x.isnan(), x, torch.sign(x)) if isinstance(x, Tensor) else np.sign(x)


def larger(x: Array, y: Array) -> Array:
    """The larger of two arrays, or of an array and a number."""
    if isinstance(x, Tensor):
        return torch.maximum(x, y) if isinstance(y, Tensor) else x.clamp_min(y)
    return np.maximum(x, y)


def smaller(x: Array, y: Array) -> Array:
    """The smaller of two arrays, or of an array and a number."""
    if isinstance(x, Tensor):
        return torch.minimum(x, y) if isinstance(y, Tensor) else x.clamp_max(y)
    return np.minimum(x, y)


def stack(parts: Sequence[Array], axis: int = 0) -> Array:
    """Arrays side by side in a new dimension."""
    return torch.stack(list(parts), axis) if isinstance(parts[0], Tensor) else np.stack(parts, axis)


def cat(parts: Sequence[Array], axis: int = 0) -> Array:
    """Arrays one after another."""
    return torch.cat(list(parts), axis) if isinstance(parts[0], Tensor) else np.concatenate(parts, axis)


def take(x: Array, index: Array) -> Array:
    """x[index[i, j], j] for x (m, n) and an index (k, n)."""
    return x.gather(0, index) if isinstance(x, Tensor) else np.take_along_axis(x, index, 0)


def sort_order(x: Array) -> Array:
    """The order that sorts the first dimension; equal entries stay as they are."""
    return torch.argsort(x, dim=0, stable=True) if isinstance(x, Tensor) else np.argsort(x, 0, "stable")


def search_sorted(x: Array, values: Array) -> Array:
    """For each value the number of entries of a sorted array (n,) that are smaller."""
    return torch.searchsorted(x, values) if isinstance(x, Tensor) else np.searchsorted(x, values)


def count_of(index: Array, n: int) -> Array:
    """(n,) int64: how often each number comes."""
    return torch.bincount(index, minlength=n) if isinstance(index, Tensor) else np.bincount(index, minlength=n)


def copy(x: Array) -> Array:
    """An array of its own."""
    return x.clone() if isinstance(x, Tensor) else x.copy()


def zeros(like: Array, shape: Sequence[int]) -> Array:
    """An int64 array of zeros where ``like`` is."""
    if isinstance(like, Tensor):
        return torch.zeros(tuple(shape), dtype=torch.int64, device=like.device)
    return np.zeros(shape, np.int64)


def full(like: Array, shape: Sequence[int], value: float) -> Array:
    """A float64 array where ``like`` is."""
    if isinstance(like, Tensor):
        return torch.full(tuple(shape), value, dtype=torch.float64, device=like.device)
    return np.full(shape, value, np.float64)


def count_up(like: Array, n: int) -> Array:
    """0, 1, ..., n - 1 as int64, where ``like`` is."""
    return torch.arange(n, device=like.device) if isinstance(like, Tensor) else np.arange(n, dtype=np.int64)


def count_up_real(like: Array, n: int) -> Array:
    """The same as float64, of which quotients are: those of integers are float32 in torch."""
    return count_up(like, n).double() if isinstance(like, Tensor) else np.arange(n, dtype=np.float64)


def places(mask: Array) -> tuple[Array, ...]:
    """The places at which a mask is set, one index for each dimension."""
    return mask.nonzero(as_tuple=True) if isinstance(mask, Tensor) else np.nonzero(mask)


def repeat(x: Array, n: int) -> Array:
    """Each row n times."""
    return x.repeat_interleave(n, 0) if isinstance(x, Tensor) else np.repeat(x, n, 0)


def running_max(x: Array) -> Array:
    """The largest entry so far, along the first dimension."""
    return x.cummax(0).values if isinstance(x, Tensor) else np.maximum.accumulate(x, 0)


def spread(like: Array, shape: Sequence[int]) -> Array:
    """An array of another shape whose repeated entries share memory."""
    return like.expand(*shape) if isinstance(like, Tensor) else np.broadcast_to(like, shape)


def put_smallest(target: Array, index: Array, values: Array) -> None:
    """target[index[i]] becomes the smallest of itself and all values[i], in place."""
    if isinstance(target, Tensor):
        target.scatter_reduce_(0, index, values, "amin")
    else:
        np.minimum.at(target, index, values)


def count_at(target: Array, index: Array) -> None:
    """target[index[i]] grows by one for every i, in place."""
    if isinstance(target, Tensor):
        target.index_add_(0, index, torch.ones_like(index))
    else:
        np.add.at(target, index, 1)


def quiet() -> Any:
    """A context in which numpy does not warn about what is not finite, as torch does not."""
    return np.errstate(all="ignore")
