"""Backward passes for several incoming gradients at once: ``torch.autograd.grad(..., is_grads_batched=True)``.

Autograd then hands over tensors that hide a dimension. Kernels read memory, so the pass is taken once for each entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from fastode.hostflags import transforms_active

Pass = Callable[..., tuple[Any, ...]]
"""From the incoming gradients, tensors or None, to the gradients of a node's inputs."""

_functorch = torch._C._functorch


def one_by_one(backward: Pass, incoming: tuple[Any, ...]) -> tuple[Any, ...]:
    """A backward pass, for each entry of a dimension that ``vmap`` hides in some of the incoming gradients.

    Raises:
        RuntimeError: ``torch.func`` differentiates by one of them.
    """
    tensors = [grad for grad in incoming if isinstance(grad, Tensor)]
    if any(map(_functorch.is_gradtrackingtensor, tensors)):
        raise RuntimeError("a backward pass of fastode cannot be differentiated by torch.func; use gradient='backprop'")
    if not any(map(_is_hidden, tensors)):
        if not transforms_active():
            return backward(*incoming)
        with temporarily_clear_interpreter_stack():
            return backward(*incoming)
    level, legacy = _innermost(incoming)
    held = [grad if not isinstance(grad, Tensor) else _shown(grad, level, legacy) for grad in incoming]
    size = next(len(entry) for entry in held if isinstance(entry, _Entries))
    results = [
        one_by_one(backward, tuple(entry[i] if isinstance(entry, _Entries) else entry for entry in held))
        for i in range(size)
    ]
    hide = torch._add_batch_dim if legacy else _functorch._add_batch_dim
    return tuple(
        hide(torch.stack(column), 0, level) if isinstance(column[0], Tensor) else column[0]
        for column in zip(*results, strict=True)
    )


class _Entries(list[Tensor]):
    """A tensor along the dimension that was hidden."""


def _is_hidden(tensor: Tensor) -> bool:
    return bool(_functorch.is_batchedtensor(tensor) or _functorch.is_legacy_batchedtensor(tensor))


def _innermost(incoming: tuple[Any, ...]) -> tuple[int, bool]:
    """The level of the ``vmap`` that hides the dimension, and whether it is that of ``is_grads_batched``."""
    hidden = [grad for grad in incoming if isinstance(grad, Tensor) and _is_hidden(grad)]
    if any(_functorch.is_legacy_batchedtensor(grad) for grad in hidden):
        level: int = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        return level, True
    return max(int(_functorch.maybe_get_level(grad)) for grad in hidden), False


def _shown(grad: Tensor, level: int, legacy: bool) -> Tensor | _Entries:
    """The entries of a gradient along its hidden dimension; the gradient itself if it hides none at this level."""
    if legacy:
        if not _functorch.is_legacy_batchedtensor(grad):
            return grad
        return _Entries(torch._remove_batch_dim(grad, level, 1, 0).unbind())
    if not _functorch.is_batchedtensor(grad) or _functorch.maybe_get_level(grad) != level:
        return grad
    return _Entries(_functorch._remove_batch_dim(grad, level, 1, 0).unbind())
