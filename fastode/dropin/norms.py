"""Norms of a state, by which adaptive steps are accepted or rejected; those that torchdiffeq has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Norm = Callable[[Any], Any]
"""Of a state in the form in which the user holds it (a tensor, or a tuple of tensors): a number, or a 0-d tensor."""


def rms_norm(tensor: Tensor) -> Tensor:
    """Root mean square of all entries, 0-d: the norm of a state that is one tensor."""
    return tensor.abs().pow(2).mean().sqrt()


def linf_norm(tensor: Tensor) -> Tensor:
    """Largest magnitude of all entries, 0-d."""
    return tensor.abs().max()


def zero_norm(tensor: Tensor) -> float:
    """Zero: a norm that accepts every step."""
    return 0.0


def mixed_norm(tensors: Sequence[Tensor]) -> Any:
    """Largest root mean square among several tensors: the norm of a state that is a tuple."""
    return max((rms_norm(tensor) for tensor in tensors if tensor.numel()), default=0.0)
