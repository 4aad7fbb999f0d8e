"""How times enter graphs: a state as a function of the time at which it was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastode.dropin.graph import pull
from fastode.hostflags import differentiation_hidden


def carry(func: Any, t0: Tensor, t1: Tensor, y: Tensor) -> Tensor:
    """The state at t1 with its derivatives by t0 and t1, where both have the same value: y itself.

    It is a step of no length by the classic Runge-Kutta method of order 4, whose derivatives are exact to the fourth.
    The function is called once, and three times more only where a derivative is differentiated again.

    Args:
        func: ``func(t, y)``, the slope.
        t0: 0-d, the time of y.
        t1: 0-d, the same time, as the state is to depend on it.
        y: the state.
    """
    h, slope = (t1 - t0).to(y.dtype.to_real()), func(t0, y)
    first = y + h * slope
    if differentiation_hidden():
        return first + _rest(func, t0, t1, y, slope)
    carried: Tensor = _Carry.apply(func, slope.detach(), first, t0, t1, y, *_leaves(slope, (t0, y)))
    return carried


def _rest(func: Any, t0: Tensor, t1: Tensor, y: Tensor, k1: Tensor) -> Tensor:
    """What the method of order 4 adds to Euler's: zero for t0 = t1, and so is its first derivative."""
    h, half = (t1 - t0).to(y.dtype.to_real()), (t0 + t1) / 2
    k2 = func(half, y + h / 2 * k1)
    k3 = func(half, y + h / 2 * k2)
    k4 = func(t1, y + h * k3)
    return h / 6 * (2 * (k2 + k3) + k4 - 5 * k1)


def _leaves(value: Tensor, ends: Sequence[Tensor]) -> list[Tensor]:
    """Leaves of the graph of a value, but for those that lie behind ``ends``."""
    closed = {(id(t.grad_fn), t.output_nr) for t in ends if t.grad_fn is not None}
    found: dict[int, Tensor] = {}
    seen: dict[int, Any] = {}
    stack: list[tuple[Any, int]] = [(value.grad_fn, value.output_nr)]
    while stack:
        node, output = stack.pop()
        if node is None or id(node) in seen or (id(node), output) in closed:
            continue
        seen[id(node)] = node
        variable = getattr(node, "variable", None)
        if variable is not None and not any(variable is t for t in ends):
            found[id(variable)] = variable
        stack.extend(node.next_functions)
    return list(found.values())


class _Carry(torch.autograd.Function):
    """The sum of Euler's step and ``_rest``, of which the latter is computed where its derivatives count."""

    @staticmethod
    def forward(ctx: Any, func: Any, slope: Tensor, first: Tensor, *sources: Tensor) -> Tensor:
        ctx.func, ctx.slope = func, slope
        ctx.save_for_backward(*sources)
        return first.view_as(first)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sources = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return None, None, grad, *[None] * len(sources)
        leaves = [*(x.detach().requires_grad_(x.requires_grad) for x in sources[:3]), *sources[3:]]
        t0, t1, y = leaves[:3]
        slope = ctx.func(t0, y)
        if not torch.allclose(slope, ctx.slope, equal_nan=True):
            raise RuntimeError(
                "second derivatives by times need the function's value again, and it is no longer what it was in the "
                "solve: was a parameter changed, or exchanged by torch.func.functional_call, or is it random?"
            )
        return None, None, grad, *pull([_rest(ctx.func, t0, t1, y, slope)], leaves, sources, [grad])
