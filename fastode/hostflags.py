"""Booleans on the host, also under torch.func transforms.

``bool(tensor)`` fails on a tensor batched by ``torch.func.vmap``. The functions here ask "anywhere in any batch?", the
question that a loop over masked steps has: an ``autograd.Function`` whose vmap rule returns an unbatched tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class _AnyPerRow(torch.autograd.Function):
    @staticmethod
    def forward(mask: Tensor) -> Tensor:
        return mask.flatten(1).any(1) if mask.ndim > 1 else mask.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], mask: Tensor) -> tuple[Tensor, None]:
        assert in_dims[0] is not None
        return _AnyPerRow.apply(mask.movedim(in_dims[0], -1)), None


def transforms_active() -> bool:
    """Whether the call happens inside a ``torch.func`` transform."""
    return bool(torch._C._are_functorch_transforms_active())


def differentiation_hidden() -> bool:
    """Whether derivatives may be taken that ``requires_grad`` does not show: by transforms or in forward mode."""
    return transforms_active() or forward_ad._current_level >= 0


def may_vary(tensor: Tensor) -> bool:
    """Whether a derivative by a tensor may be wanted, of any mode and by any transform."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return bool(tensor.requires_grad or wrapped or forward_ad.unpack_dual(tensor).tangent is not None)


def host_flags(mask: Tensor) -> list[bool]:
    """For each row of a bool mask (R, ...), whether anything in it is set, in any vmapped batch."""
    if not transforms_active():
        return _AnyPerRow.forward(mask).tolist()
    return [bool(flag) for flag in _AnyPerRow.apply(mask)]


def host_any(mask: Tensor) -> bool:
    """Whether anything in a bool mask of any shape is set, in any vmapped batch."""
    return host_flags(mask.flatten()[None])[0]
