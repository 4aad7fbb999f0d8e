"""The user's function in the form that step-by-step solvers call: one tensor as state, times that increase.

A solver sees y' = f(t, y) with t increasing and y one tensor: the state itself, or the parts of a tuple one after
another. Solving backward in time is solving dy/ds = -f(-s, y) forward in s = -t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from fastode.field import own_memory

CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")
"""Attributes of the user's function that solvers call with (t0, y0, dt)."""
ADJOINT_CALLBACKS = tuple(f"{name}_adjoint" for name in CALLBACKS)
"""The same, for the solve of the adjoint equation."""


class Perturb(Enum):
    """On which side of a time the function is evaluated, where it may jump there; in the direction of the solve."""

    NONE = 0
    PREV = 1
    NEXT = 2


def no_callback(*_: Any, **__: Any) -> None:
    """What stands in the place of a callback that the user has not given."""


def flatten(parts: Sequence[Tensor]) -> Tensor:
    """Parts of a state as one vector, in the dtype that they promote to."""
    return torch.cat([part.reshape(-1) for part in parts])


def unflatten(flat: Tensor, lead: Sequence[int], shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """Parts (*lead, *shape) of a state (*lead, N)."""
    parts = flat.split([shape.numel() for shape in shapes], dim=-1)
    return tuple(part.reshape((*lead, *shape)) for part, shape in zip(parts, shapes, strict=True))


def like_state(value: Any, state: Any) -> Any:
    """A function's value as slope of a state, in its shapes and dtypes, as far as torchdiffeq takes it.

    Args:
        value: for a tensor, one that broadcasts to it, leading dimensions of one entry aside; for a tuple, a sequence
            of such, of which each may also be shaped otherwise with the same number of entries.
        state: a tensor or a tuple of tensors.

    Raises:
        TypeError: other things than dense tensors, another number of them, or complex slopes of a real state.
        ValueError: shapes that do not fit.
    """
    if isinstance(state, Tensor):
        return _like_part(value, state, "the function's value", False)
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        raise TypeError(f"the function must return a tuple like the state's, got {type(value).__name__}")
    if len(value) != len(state):
        raise TypeError(f"the function must return {len(state)} tensors, like the state, got {len(value)}")
    pairs = enumerate(zip(value, state, strict=True))
    return tuple(_like_part(v, s, f"part {i} of the function's value", True) for i, (v, s) in pairs)


def _like_part(value: Any, state: Tensor, what: str, reshaped: bool) -> Tensor:
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        kind = value.layout if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{what} must be a dense tensor like the state, got {kind}")
    if value.shape != state.shape:
        shape = state.shape
        if reshaped and value.numel() == shape.numel():
            value = value.reshape(shape)
        else:
            lead, rest = value.shape[: max(value.ndim - len(shape), 0)], value.shape[max(value.ndim - len(shape), 0) :]
            fits = all(a in (1, b) for a, b in zip(reversed(rest), reversed(shape), strict=False))
            if lead.numel() != 1 or not fits:
                raise ValueError(f"{what} must have shape {tuple(shape)} like the state, got {tuple(value.shape)}")
            value = value.reshape(rest).expand(shape)
    if value.dtype == state.dtype:
        return value
    if value.is_complex() and not state.is_complex():
        raise TypeError(f"{what} is {value.dtype}, but the state is {state.dtype}; give a complex y0")
    return value.to(state.dtype)


def separate(flat: Tensor, lead: Sequence[int], shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """As ``unflatten``, with memory of its own for each part: torch forbids to change parts of a split in place."""
    parts, start = [], 0
    for shape in shapes:
        part = flat.narrow(-1, start, shape.numel()).clone(memory_format=torch.contiguous_format)
        parts.append(part.view((*lead, *shape)))
        start += shape.numel()
    return tuple(parts)


class Stitch(torch.autograd.Function):
    """A value of its own with the gradient of another tensor."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def beside(t: Tensor, side: Perturb) -> Tensor:
    """The next representable time in a direction, with the gradient of t itself."""
    if side is Perturb.NONE:
        return t
    with torch.no_grad():
        moved = torch.nextafter(t, t + 1 if side is Perturb.NEXT else t - 1)
    return Stitch.apply(t, moved)


class SolverFunction:
    """The user's function on the state and the clock of a solver.

    Callbacks of the user's function are attributes here, called with the state as the user holds it and in the user's
    time; dt is positive in either direction.

    Args:
        func: the user's ``func(t, y)``.
        shapes: shapes of the parts where the user's state is a tuple, else None.
        backward: whether the user's time runs backward.
    """

    def __init__(self, func: Callable[..., Any], shapes: Sequence[torch.Size] | None, backward: bool) -> None:
        self.base_func = func
        self.shapes = shapes
        self.sign = -1.0 if backward else 1.0
        for name in CALLBACKS:
            setattr(self, name, self._callback(getattr(func, name, no_callback)))
        for name in ADJOINT_CALLBACKS:
            if hasattr(func, name):
                setattr(self, name, getattr(func, name))

    def __call__(self, t: Tensor, y: Tensor, *, perturb: Perturb = Perturb.NONE) -> Tensor:
        """The slope at a time of the solver, shaped like y, in memory that the user's function does not write to again.

        Args:
            t: 0-d, of any floating dtype; the user's function gets it in the real dtype of y.
            y: the state.
            perturb: the side of t on which to evaluate.
        """
        if not isinstance(perturb, Perturb):
            raise AssertionError("perturb argument must be of type Perturb enum")
        t = beside(t.to(y.dtype.to_real()), perturb)
        if self.sign < 0:
            t = -t
        given = y if self.shapes is None else unflatten(y, (), self.shapes)
        value = self.base_func(t, given)
        if self.shapes is None and isinstance(value, Tensor):
            value = own_memory(value)
        value = like_state(value, given)
        slope: Tensor = value if self.shapes is None else flatten(value)
        return -slope if self.sign < 0 else slope

    def _callback(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        if callback is no_callback or (self.shapes is None and self.sign > 0):
            return callback

        def call(t0: Tensor, y0: Tensor, dt: Tensor) -> Any:
            given = y0 if self.shapes is None else unflatten(y0, (), self.shapes)
            return callback(t0 if self.sign > 0 else -t0, given, dt)

        return call


class SolverEvent:
    """The user's event function on the state and the clock of a solver: one number, positive before the event.

    Several functions, returned as one tensor, are one event: the first of them that changes its sign.

    Args:
        event_fn: the user's ``event_fn(t, y)``.
        t0: 0-d, the start in the user's time.
        y0: the start as the user holds it.
        shapes: as for ``SolverFunction``.
        backward: as for ``SolverFunction``.
    """

    def __init__(
        self,
        event_fn: Callable[..., Any],
        t0: Tensor,
        y0: Any,
        shapes: Sequence[torch.Size] | None,
        backward: bool,
    ) -> None:
        self.event_fn = event_fn
        self.shapes = shapes
        self.sign = -1.0 if backward else 1.0
        with torch.no_grad():
            self.signs = torch.sign(event_fn(t0, y0))

    def of_user(self, t: Tensor, y: Any) -> Tensor:
        """The event at the user's time and state, 0-d."""
        return (self.event_fn(t, y) * self.signs).min()

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The event at the solver's time and state, 0-d."""
        return self.of_user(t if self.sign > 0 else -t, y if self.shapes is None else unflatten(y, (), self.shapes))
