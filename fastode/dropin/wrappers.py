"""What ``SolverFunction`` and the checks of arguments do, in single parts that other programs put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastode.dropin.functions import Perturb, Stitch, beside, flatten, no_callback, unflatten


class TupleFunc(nn.Module):
    """A function of tuples as one of vectors.

    Args:
        base_func: ``base_func(t, y)`` of a tuple, with a tuple as value.
        shapes: of its parts.
    """

    def __init__(self, base_func: Callable[..., Any], shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.base_func = base_func
        self.shapes = shapes

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The value (N,) for a state (N,)."""
        return flatten(self.base_func(t, unflatten(y, (), self.shapes)))


class TupleInputOnlyFunc(TupleFunc):
    """The same for a function, as that of an event, whose value is one tensor."""

    def forward(self, t: Tensor, y: Tensor) -> Any:
        """The value for a state (N,)."""
        return self.base_func(t, unflatten(y, (), self.shapes))


class ReverseFunc(nn.Module):
    """A function at the negative time, times a factor.

    Args:
        base_func: ``base_func(t, y)``.
        mul: the factor.
    """

    def __init__(self, base_func: Callable[..., Any], mul: float = 1.0) -> None:
        super().__init__()
        self.base_func = base_func
        self.mul = mul

    def forward(self, t: Tensor, y: Any) -> Any:
        """The value."""
        return self.mul * self.base_func(-t, y)


class PerturbFunc(nn.Module):
    """A function with the argument ``perturb`` and the callbacks that solvers ask for.

    Args:
        base_func: ``base_func(t, y)``.
    """

    callback_step = callback_accept_step = callback_reject_step = staticmethod(no_callback)

    def __init__(self, base_func: Callable[..., Any]) -> None:
        super().__init__()
        self.base_func = base_func

    def forward(self, t: Tensor, y: Tensor, *, perturb: Perturb = Perturb.NONE) -> Any:
        """The value at t, or next to it, in the real dtype of y."""
        if not isinstance(perturb, Perturb):
            raise AssertionError("perturb argument must be of type Perturb enum")
        return self.base_func(beside((t.real if t.is_complex() else t).to(y.dtype.to_real()), perturb), y)


def next_after(start: Tensor, towards: Tensor) -> Tensor:
    """The next representable number in a direction, with the gradient of the first."""
    with torch.no_grad():
        moved = torch.nextafter(start, towards)
    stitched: Tensor = Stitch.apply(start, moved)
    return stitched


def decreasing(t: Tensor) -> Tensor:
    """Whether times decrease strictly, 0-d bool."""
    return (t[1:] < t[:-1]).all()


def assert_one_dimensional(name: str, t: Tensor) -> None:
    """AssertionError unless a tensor is (T,)."""
    if t.ndim != 1:
        raise AssertionError(f"{name} must be one dimensional")


def assert_increasing(name: str, t: Tensor) -> None:
    """AssertionError unless times (T,) increase strictly."""
    if not (t[1:] > t[:-1]).all():
        raise AssertionError(f"{name} must be strictly increasing or decreasing")


def assert_floating(name: str, t: Tensor) -> None:
    """TypeError unless a tensor is floating."""
    if not t.is_floating_point():
        raise TypeError(f"`{name}` must be a floating point Tensor but is a {t.type()}")


def check_timelike(name: str, timelike: Any, can_grad: bool) -> None:
    """Raises unless an argument is a strictly monotone, floating tensor (T,).

    Args:
        name: of the argument.
        timelike: the argument.
        can_grad: whether it may require grad.
    """
    if not isinstance(timelike, Tensor):
        raise AssertionError(f"{name} must be a torch.Tensor")
    assert_floating(name, timelike)
    assert_one_dimensional(name, timelike)
    if timelike.requires_grad and not can_grad:
        raise AssertionError(f"{name} cannot require gradient")
    rises = timelike[1:] > timelike[:-1]
    if not (rises.all() or (~rises).all()):
        raise AssertionError(f"{name} must be strictly increasing or decreasing")


def flip_option(options: dict[str, Any], name: str) -> None:
    """Negates the times of an option in place, where there are such."""
    if isinstance(options.get(name), Tensor):
        options[name] = -options[name]


def sort_times(times: Tensor, t0: Any) -> Tensor:
    """The times that are not before t0, sorted."""
    return times[times >= t0].sort().values
