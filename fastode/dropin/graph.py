"""Gradients through a graph of one's own inside of another, to any order.

Values are computed from leaves that stand for the sources: detached copies, or, for tensors that the computation finds
by itself, the sources themselves. So a source that was computed from another is not differentiated through twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pull(
    values: Sequence[Tensor], leaves: Sequence[Tensor], sources: Sequence[Tensor], incoming: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients by the leaves; where a graph is recorded, as functions of the sources and of the incoming gradients.

    Args:
        values: results of a computation with the leaves.
        leaves: what it was made of.
        sources: what the leaves stand for, one for each.
        incoming: gradients of the values.
    """
    higher = torch.is_grad_enabled()
    given = [g for g in incoming if g is not None]
    cut = [g.detach().requires_grad_() for g in given] if higher else given
    each = iter(cut)
    pairs = [(v, None if g is None else next(each)) for v, g in zip(values, incoming, strict=True)]
    used = [(v, g) for v, g in pairs if v.requires_grad and g is not None]
    wanted = [i for i, leaf in enumerate(leaves) if leaf.requires_grad]
    grads: list[Tensor | None] = [None] * len(leaves)
    if not used or not wanted:
        return grads
    found = torch.autograd.grad(
        [v for v, _ in used],
        [leaves[i] for i in wanted],
        [g for _, g in used],
        retain_graph=True,
        create_graph=higher,
        allow_unused=True,
    )
    for i, grad in zip(wanted, found, strict=True):
        grads[i] = grad
    varying = [i for i, grad in enumerate(grads) if grad is not None and grad.requires_grad]
    if varying:
        inner = [grads[i] for i in varying]
        for i, grad in zip(varying, _Connect.apply(inner, [*leaves, *cut], *sources, *given), strict=True):
            grads[i] = grad
    return grads


class _Connect(torch.autograd.Function):
    """Values of an inner graph as functions of the sources in the outer one."""

    @staticmethod
    def forward(ctx: Any, values: list[Tensor], leaves: list[Tensor], *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.values, ctx.leaves = values, leaves
        ctx.save_for_backward(*sources)
        ctx.set_materialize_grads(False)
        return tuple(value.detach().clone() for value in values)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Any, ...]:
        return None, None, *pull(ctx.values, ctx.leaves, ctx.saved_tensors, incoming)
