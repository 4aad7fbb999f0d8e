"""Linear combinations and norms in which a sample's rounding never depends on its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastode._environment import _C

_CPU = torch.device("cpu")


def combine(base: Tensor | None, scale: Tensor | None, coefs: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """Computes base + scale sum_j coefs[j] terms[j]; all (n, D) contiguous, scale (n,) float64. Not differentiable."""
    used = [(float(c), term) for c, term in zip(coefs, terms, strict=True) if c != 0.0]
    like = terms[0] if base is None else base
    if not used:
        return torch.zeros_like(like) if base is None else base.clone()
    if like.device.type != "cpu":
        total = used[0][0] * used[0][1]
        for coef, term in used[1:]:
            total = total + coef * term
        total = total if scale is None else scale.to(total.dtype)[:, None] * total
        return total if base is None else base + total
    out = torch.empty(like.shape, dtype=like.dtype, device=_CPU)
    held = [term.contiguous() for _, term in used]
    base = None if base is None else base.contiguous()
    scale = None if scale is None else scale.contiguous()
    _C.combine(
        out.data_ptr(),
        0 if base is None else base.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        [coef for coef, _ in used],
        [term.data_ptr() for term in held],
        like.shape[0],
        like.shape[1],
        like.dtype == torch.float64,
    )
    return out


def column(values: Tensor, like: Tensor) -> Tensor:
    """(n,) float64 as (n, 1) in the dtype of ``like``."""
    return values.to(like.dtype)[:, None]


def rms(x: Tensor) -> Tensor:
    """Root mean square over each row, (n, D) to (n,) float64."""
    return x.double().square().mean(1).sqrt() if x.shape[1] else x.new_zeros(x.shape[0], dtype=torch.float64)
