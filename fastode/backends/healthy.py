"""Failed samples must not disturb the gradients of the others."""

from __future__ import annotations

import torch
from torch import Tensor


def healthy_index(healthy: Tensor) -> Tensor:
    """(B,) int64: each healthy sample itself, and the first healthy one in the place of the others.

    A failed sample may hold infinities that a zero cotangent does not silence (0 * inf); a copy of a healthy sample
    with a zero cotangent adds exact zeros.
    """
    own = torch.arange(healthy.shape[0], device=healthy.device)
    return torch.where(healthy, own, healthy.to(torch.int8).argmax()) if healthy.shape[0] else own
