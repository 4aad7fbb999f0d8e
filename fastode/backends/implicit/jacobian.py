"""The Jacobian of each sample's field, exactly, by reverse mode on the batched field.

Samples are independent, so that one pull-back of the unit vector e_i, the same for all samples, gives row i of every
sample's Jacobian: D pull-backs for any number of samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LOOP_BELOW = 8
"""So few rows are pulled back one by one: quicker than vmap, whose dispatch costs as much as some pull-backs."""
_MAX_ENTRIES = 1 << 24
"""Entries of the cotangents that are pulled back at once."""

Field = Callable[[Tensor, Tensor], Tensor]
"""dy/dt (n, D) at t (n,) and y (n, D)."""


def pull_rows(value: Tensor, by: list[Tensor], create_graph: bool = False) -> list[Tensor]:
    """Derivatives of each entry of a row of value (n, D) by the same row of each of ``by`` (n, ...): (n, D, ...).

    The graph of the value is kept; ``create_graph`` gives the derivatives one, too.
    """
    n, width = value.shape
    if not value.requires_grad:
        return [source.new_zeros(n, width, *source.shape[1:]) for source in by]
    unit = torch.eye(width, dtype=value.dtype, device=value.device)
    if width > _LOOP_BELOW:
        chunk = max(1, _MAX_ENTRIES // max(1, n * width))
        try:
            parts = [
                torch.autograd.grad(
                    value,
                    by,
                    unit[i : i + chunk, None, :].expand(-1, n, width),
                    retain_graph=True,
                    create_graph=create_graph,
                    is_grads_batched=True,
                    allow_unused=True,
                )
                for i in range(0, width, chunk)
            ]
            found = []
            for source, column in zip(by, zip(*parts, strict=True), strict=True):
                known = [part for part in column if part is not None]  # all, or none where it is not read
                zero = source.new_zeros(n, width, *source.shape[1:])
                found.append(torch.cat(known).movedim(0, 1).contiguous() if known else zero)
            return found
        except RuntimeError:  # an operation, or a Function of the user, that vmap does not know
            pass
    rows = [
        torch.autograd.grad(
            value,
            by,
            unit[i].expand(n, width),
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        for i in range(width)
    ]
    if not rows:
        return [source.new_zeros(n, 0, *source.shape[1:]) for source in by]
    return [torch.stack(column, 1) for column in zip(*rows, strict=True)]


def jacobian(field: Field, t: Tensor, y: Tensor, by_time: bool = False) -> tuple[Tensor, Tensor | None]:
    """df/dy (n, D, D), and df/dt (n, D) if asked for, at t (n,) float64 and y (n, D)."""
    with torch.enable_grad():
        y = y.detach().clone().requires_grad_()
        t = t.detach().to(y.dtype, copy=True).requires_grad_(by_time)
        value = field(t, y)
    found = pull_rows(value, [y, t] if by_time else [y])
    return found[0].detach(), found[1].detach() if by_time else None
