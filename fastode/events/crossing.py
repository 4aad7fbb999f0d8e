"""Times and states at events, with their derivatives by the implicit function theorem.

The event function g of a sample, along its solution y(t), has a root at t*: g(t*, y(t*)) = 0. With the state y at a
constant time near the root, and everything that g and y depend on,

    t* = t - g / g',    y(t*) = y + (t* - t) f(t, y),    g' = dg/dt + dg/dy f(t, y)

has the right first derivatives: dt* = -dg / g', dy* = dy + f dt* (Chen, Amos, Nickel, "Learning neural event functions
for ordinary differential equations", 2021). As values, these are one Newton step from the root that the search found on
its polynomials to that of the solution itself, from which the search may differ by as much as the tolerances allow;
the step is taken where it makes g smaller, and stays within a part of the step of the solve. Where g' = 0, at a root
that the solution only touches, the time of the event has no derivative and counts as constant; and so where g jumps,
instead of passing through zero, of which derivatives say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastode.autograd import once_only
from fastode.events import arrays as xp
from fastode.events.arrays import Array
from fastode.events.event import FlatEvents
from fastode.reference import rk_step
from fastode.tableaus import get_tableau

_SHIFT = get_tableau("rk4")
_NEWTON_STEPS = 3
"""Each doubles the number of derivatives that are exact, 1, 3, 7; ``_SHIFT`` carries states exactly to the fourth."""
_FARTHEST = 0.25
"""Part of a step by which its polynomial may place an event wrongly."""
_NOISE = 8
"""Roundings of the state within which an event function counts as zero after an event."""


class _AtEvent(torch.autograd.Function):
    """(t*, y*) from (y, g): see above; ``delta`` is t* - t as a value, ``inverse`` is 1 / g', 0 where there is none."""

    @staticmethod
    def forward(
        ctx: Any, t: Tensor, delta: Tensor, inverse: Tensor, slope: Tensor, y: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(inverse, slope)
        ctx.sources = (y, g)
        return t + delta, y + delta.to(y.dtype)[:, None] * slope

    @staticmethod
    @once_only("checkpoint")
    def backward(ctx: Any, grad_t: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        inverse, slope = ctx.saved_tensors
        products = torch.where(grad_y != 0, grad_y * slope, 0.0)
        total = grad_t + products.double().sum(1)
        return None, None, None, None, grad_y, torch.where(inverse != 0, -total * inverse, 0.0)


def rates(
    events: FlatEvents, e: int, t: Tensor, y: Tensor, controls: Sequence[Tensor], slope: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    """Values g of event e, derivatives g' along the flow, each (n,), and (dg/dt (n,), dg/dy (n, D)), None where zero.

    Args:
        events: the functions.
        e: which.
        t: (n,) float64.
        y: (n, D).
        controls: leaves (n, ...).
        slope: (n, D), the field there.
    """
    with torch.inference_mode(False), torch.enable_grad():
        time, state, *held = (x.detach().clone() if x.is_inference() else x.detach() for x in (t, y, *controls))
        g = events.value(e, time.requires_grad_(), state.requires_grad_(), held)
        by_t = by_y = None
        if g.requires_grad:
            by_t, by_y = torch.autograd.grad(g, (time, state), torch.ones_like(g), allow_unused=True)
    rate = torch.zeros_like(g) if by_t is None else by_t
    if by_y is not None:
        change = torch.where(by_y != 0, by_y * slope, 0.0)
        rate = rate + change.double().sum(1)
    return g.detach(), rate, (by_t, by_y)


def magnitudes(t: Tensor, y: Tensor, by_t: Tensor | None, by_y: Tensor | None) -> Tensor:
    """What event functions are computed from, sum |dg/dy| |y| + |dg/dt| |t| (n,), from what ``rates`` returns."""
    size = torch.zeros_like(t) if by_t is None else by_t.abs() * t.detach().abs()
    return size if by_y is None else size + (by_y * y.detach()).abs().double().sum(1)


def locate(
    events: FlatEvents,
    e: int,
    t: Tensor,
    y: Tensor,
    size: Array,
    jumps: Array,
    controls: Sequence[Tensor],
    slope: Tensor,
) -> tuple[Tensor, Tensor, Array]:
    """Event e of n samples near t, once differentiable.

    Args:
        events: the functions.
        e: which.
        t: (n,) float64, without graph.
        y: (n, D), the states there, with their graph.
        size: (n,) float64, size of the step in which the search saw it.
        jumps: (n,) bool, whether the function jumps there.
        controls: leaves (n, ...), with their graph.
        slope: (n, D), the field there, without graph.

    Returns:
        Time (n,) float64 and state (n, D) of the event, with their graph, and |g| there (n,), 0 where it jumps.
    """
    g, by_flow, _ = rates(events, e, t, y, controls, slope)
    rate = xp.of(by_flow)
    usable = xp.finite(rate) & (rate != 0) & ~jumps
    value = xp.where(jumps, 0.0, xp.of(g))
    inverse = xp.where(usable, 1 / xp.where(usable, rate, 1.0), 0.0)
    delta = -xp.where(usable & xp.finite(value), value, 0.0) * inverse
    delta = xp.where(abs(delta) <= _FARTHEST * abs(size), delta, 0.0)
    with torch.no_grad():
        shift = xp.tensor(delta)
        moved = y.detach() + shift.to(y.dtype)[:, None] * torch.where(shift[:, None] != 0, slope, 0.0)
        after = abs(xp.of(events.value(e, t + shift, moved, controls)))
    better = after < abs(value)
    residual = xp.where(better, after, abs(value))
    shift = xp.tensor(xp.where(better, delta, 0.0))
    slope = slope if bool(usable.all()) else torch.where(xp.tensor(usable)[:, None], slope, 0.0)
    g = events.value(e, t, y, controls) if torch.is_grad_enabled() else g
    if not (y.requires_grad or g.requires_grad):
        return t + shift, y + shift.to(y.dtype)[:, None] * slope, residual
    time, state = _AtEvent.apply(t, shift, xp.tensor(inverse), slope, y, g)
    return time, state, residual


def locate_any_order(
    events: FlatEvents,
    e: int,
    t: Tensor,
    y: Tensor,
    size: Array,
    jumps: Array,
    controls: Sequence[Tensor],
    field: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Array]:
    """The same as torch operations, differentiable four times: Newton steps along the flow, each with its graph.

    Args:
        events: the functions.
        e: which.
        t: (n,) float64, without graph.
        y: (n, D), the states there, with their graph.
        size: (n,) float64, size of the step in which the search saw it.
        jumps: (n,) bool, whether the function jumps there.
        controls: leaves (n, ...), with their graph.
        field: dy/dt (n, D) at times (n,) and states (n, D), with its graph.
    """
    delta, state, start = torch.zeros_like(t), y, field(t, y)
    residual = torch.full_like(t, torch.inf)
    jumped, farthest = xp.tensor(jumps), _FARTHEST * xp.tensor(size).abs()
    create = torch.is_grad_enabled()
    for _ in range(_NEWTON_STEPS):
        with torch.enable_grad():
            time, point = (x if x.requires_grad else x.detach().requires_grad_() for x in (t + delta, state))
            g = events.value(e, time, point, controls)
            grads: Sequence[Tensor | None] = (None, None)
            if g.requires_grad:
                grads = torch.autograd.grad(g.sum(), (time, point), create_graph=create, allow_unused=True)
        slope = field(t + delta, state)
        rate = torch.zeros_like(t) if grads[0] is None else grads[0]
        if grads[1] is not None:
            rate = rate + (grads[1] * slope).double().sum(1)
        usable = torch.isfinite(rate) & (rate != 0) & torch.isfinite(g) & ~jumped
        change = torch.where(usable, -g / torch.where(usable, rate, 1.0), 0.0)
        # As a value a step is taken while it helps; its derivatives always are.
        helps = (g.detach().abs() < residual) | (delta.detach() == 0)
        helps &= (delta + change).detach().abs() <= farthest
        residual = torch.minimum(residual, torch.where(jumped, 0.0, g.detach().abs()))
        delta = delta + torch.where(helps, change, change - change.detach())
        state, _ = rk_step(_SHIFT, field, t, delta, y, start)
    return delta + t, state, xp.of(residual)


def leaves_root(residual: Tensor, g: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether values g (n,) after an event are no more than rounding away from zero.

    Args:
        residual: |g| at the event, before the reset; 0 where the function had no event.
        g: after the reset.
        size: magnitude of what g is computed from, see ``magnitudes``.
        dtype: of the state.
    """
    return g.abs() <= _NOISE * (residual + torch.finfo(dtype).eps * size)
