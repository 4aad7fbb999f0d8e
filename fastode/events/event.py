"""``Event``, and the functions of events as solves call them: on rows, checked at every call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastode.field import FlatField

_SAME = 64
"""Roundings by which two evaluations of an event function on the same rows may differ."""


@dataclass(frozen=True, eq=False)
class Event:
    """Where ``fn(t, y)`` changes its sign, for every sample by itself.

    Attributes:
        fn: ``fn(t, y)``, or ``fn(t, y, controls)`` if it has a third argument without default: with t (n, 1, ..., 1)
            and y (n, *state) as the field gets them, one number per sample, (n,) or (n, 1, ..., 1). n is any number:
            samples come at several times in one call, or not at all, so whatever differs between samples must come in
            through ``controls``. NaN has no sign: the last one before it counts.
        terminal: whether the event ends the sample. None: if it has neither ``reset`` nor ``max_count``.
        direction: +1 counts changes from negative to positive along the solve, -1 the other ones, 0 both.
        reset: ``reset(t, y)`` or ``reset(t, y, controls)``: the state (n, *state) from which a sample goes on after
            the event; like ``fn``, for any number of samples.
        max_count: the sample ends at this occurrence of the event (of those that ``direction`` counts), without reset.
        parts: every step is looked at at the ends of this many equal parts, and inside of a part where a parabola
            through three of them leaves less than half of the value; narrower pulses are not seen.
        name: by which ``Solution.events`` knows it, in place of its number.

    Raises:
        TypeError: ``fn`` or ``reset`` is not callable, or another argument is of the wrong type.
        ValueError: a direction other than -1, 0, 1, numbers below 1, or a reset of a terminal event.
    """

    fn: Callable[..., Any]
    terminal: bool | None = None
    direction: int = 0
    reset: Callable[..., Any] | None = None
    max_count: int | None = None
    parts: int = 4
    name: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.fn) or inspect.isclass(self.fn):
            raise TypeError(f"fn must be a callable fn(t, y) or fn(t, y, controls), got {self.fn!r}")
        if self.reset is not None and (not callable(self.reset) or inspect.isclass(self.reset)):
            raise TypeError(f"reset must be a callable reset(t, y) or reset(t, y, controls), got {self.reset!r}")
        if self.terminal is not None and not isinstance(self.terminal, bool):
            raise TypeError(f"terminal must be a bool or None, got {self.terminal!r}; max_count ends after some events")
        if self.name is not None and not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {self.name!r}")
        if isinstance(self.direction, bool) or self.direction not in (-1, 0, 1):
            raise ValueError(f"direction must be +1 (rising), -1 (falling) or 0 (both), got {self.direction!r}")
        for what, number in (("max_count", self.max_count), ("parts", self.parts)):
            if what == "max_count" and number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{what} must be an integer, got {number!r}")
            if number < 1:
                raise ValueError(f"{what} must be at least 1, got {number}")
        if self.reset is not None and self.terminal and self.max_count is None:
            raise ValueError("terminal=True ends the sample at the first event, so that reset would never be applied")

    @property
    def ends_at(self) -> int | None:
        """The occurrence that ends a sample; None if none does."""
        if self.max_count is not None:
            return self.max_count
        free = self.reset is None if self.terminal is None else self.terminal
        return 1 if free else None


def check_events(events: Any) -> tuple[Event, ...]:
    """The events of a solve: one, or a sequence.

    Raises:
        TypeError: anything else.
        ValueError: no events, or a name that comes twice.
    """
    given = (events,) if isinstance(events, Event) else events
    if not isinstance(given, (list, tuple)) or not all(isinstance(event, Event) for event in given):
        raise TypeError(f"events must be an Event or a sequence of them, got {events!r}")
    if not given:
        raise ValueError("events must hold at least one Event; leave it out to solve without")
    names = [event.name for event in given if event.name is not None]
    if len(set(names)) < len(names):
        raise ValueError(f"the names of events must differ, got {names}")
    return tuple(given)


class FlatEvents:
    """Calls the functions of events on n samples held as rows.

    Args:
        events: the events.
        field: the solve's field, for the layout of rows.
        controls: leaves of the controls, (B, ...).
    """

    def __init__(self, events: Sequence[Event], field: FlatField, controls: Sequence[Tensor]) -> None:
        self.events = tuple(events)
        self.state = field.state
        self._spec = field.controls_spec
        self._time_shape = (1,) * (self.state.time_rank - 1)
        extra = [self._spec is not None] * len(self.events)
        self._fn_reads = [flag and _takes_controls(event.fn) for flag, event in zip(extra, self.events, strict=True)]
        self._reset_reads = [
            flag and event.reset is not None and _takes_controls(event.reset)
            for flag, event in zip(extra, self.events, strict=True)
        ]
        width = sum(c[0].numel() if c.shape[0] else 0 for c in controls)
        self.row_size = self.state.width + (width if any(self._fn_reads) else 0)
        """Numbers per row of a call of the event functions, to bound the memory of one."""
        self.parts = max(event.parts for event in self.events)
        self.directions = tuple(event.direction for event in self.events)
        self.ending = tuple(event.reset is not None or event.ends_at == 1 for event in self.events)
        """Whether the flow ends at every occurrence, by a reset or by the end of the sample."""
        self.kinds = [(x.direction, ends, x.ends_at or 0) for x, ends in zip(self.events, self.ending, strict=True)]
        """Direction, ``ending`` and the occurrence that ends the sample, 0 for none, of each event."""

        self.differentiable = False
        """Whether the functions have parameters that require a gradient; known after ``check_rows``."""

    def __len__(self) -> int:
        return len(self.events)

    @property
    def fn_reads(self) -> bool:
        """Whether any event function is called with the controls."""
        return any(self._fn_reads)

    def reads(self, e: int) -> bool:
        """Whether the function of event e is called with the controls."""
        return self._fn_reads[e]

    def title(self, e: int) -> str:
        """How messages call an event."""
        name = self.events[e].name
        return f"event {e}" if name is None else f"event {name!r}"

    def value(self, e: int, t: Tensor, y: Tensor, controls: Sequence[Tensor]) -> Tensor:
        """The event function of event e, (n,) float64, at times (n,) and states (n, D), with their graph.

        Raises:
            TypeError: its value is no floating tensor.
            ValueError: not one number per sample.
        """
        value = self.raw(e, t, y, controls)
        return value if value.dtype is torch.float64 else value.double()

    def raw(self, e: int, t: Tensor, y: Tensor, controls: Sequence[Tensor]) -> Tensor:
        """The same in the dtype in which the function returns it."""
        n = y.shape[0]
        value = self.events[e].fn(*self._arguments(t, y, controls if self._fn_reads[e] else None))
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"the function of {self.title(e)} must return a floating tensor, got {kind}")
        if value.ndim == 0 or value.shape[0] != n or value.numel() != n:
            raise ValueError(
                f"the function of {self.title(e)} must return one number per sample, of shape {(n,)}, for y of shape "
                f"{(n, *self.state.shapes[0])}; got {tuple(value.shape)}"
            )
        value = value if value.ndim == 1 else value.reshape(n)
        return value if value.device == y.device else value.to(y.device)

    def after(self, e: int, t: Tensor, y: Tensor, controls: Sequence[Tensor]) -> Tensor:
        """The state (n, D) after the reset of event e, at times (n,) and states (n, D), with its graph.

        Raises:
            TypeError, ValueError: the reset's value has not the structure, shape, dtype or device of the state.
        """
        reset, n = self.events[e].reset, y.shape[0]
        assert reset is not None
        value = reset(*self._arguments(t, y, controls if self._reset_reads[e] else None))
        what = f"the reset of {self.title(e)}"
        flat = self.state.flatten(value, what, n)
        for leaf in [value] if self.state.is_tensor else pytree.tree_leaves(value):
            if leaf.dtype != self.state.dtype:
                raise TypeError(f"{what} must return the state's dtype, {self.state.dtype}; got {leaf.dtype}")
        return flat.to(y.dtype)

    def _arguments(self, t: Tensor, y: Tensor, controls: Sequence[Tensor] | None) -> list[Any]:
        state, dtype = self.state, self.state.dtype
        time = (t if t.dtype is dtype else t.to(dtype)).reshape(y.shape[0], *self._time_shape)
        arguments = [time, state.unflatten(y if y.dtype is dtype else y.to(dtype))]
        if controls is not None:
            arguments.append(pytree.tree_unflatten(controls, self._spec))
        return arguments

    def check_rows(self, t: Tensor, y: Tensor, controls: Sequence[Tensor]) -> list[Tensor]:
        """The event functions, each (n,) float64 without graph; raises where one holds something per sample, or mixes.

        Each is called on all samples, and on all but one in reverse order: at the end of solves samples are missing,
        and in the search they come many times.

        Raises:
            ValueError: the two calls disagree.
        """
        n, found = y.shape[0], []
        values = [self.value(e, t, y, controls) for e in range(len(self))]
        self.differentiable = any(value.requires_grad for value in values)
        with torch.no_grad():
            fewer = (t[1:].flip(0), y[1:].flip(0), [c[1:].flip(0) for c in controls])
            for e, value in enumerate(values):
                value = value.detach()
                found.append(value)
                if n < 2:
                    continue
                try:
                    other = self.value(e, *fewer).flip(0)
                except Exception as error:
                    raise ValueError(self._mixes(e)) from error
                value = value[1:]
                if torch.equal(value, other):  # not where there is NaN
                    continue
                bound = _SAME * torch.finfo(y.dtype).eps * found[e].abs().nan_to_num(0.0).max()
                same = ((other - value).abs() <= bound) | (other == value) | (other.isnan() & value.isnan())
                if not bool(same.all()):
                    raise ValueError(self._mixes(e))
        return found

    def _mixes(self, e: int) -> str:
        return (
            f"the function of {self.title(e)} does not give each sample a value of its own when the samples come in "
            "another number and order; what differs between samples must come in through controls"
        )


def _takes_controls(fn: Callable[..., Any]) -> bool:
    """Whether a function has a third argument without default, or any number of them."""
    try:
        parameters = inspect.signature(fn.forward if isinstance(fn, torch.nn.Module) else fn).parameters.values()
    except (TypeError, ValueError):  # no signature: builtins
        return True
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return len(needed) >= 3
