"""Comparisons of two evaluations of a field that should agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastode.field import HALF_DTYPES, FlatField

_SAME_ULPS, _SAME_ULPS_HALF = 64, 4
_NOT_REPEATABLE = (
    "the field gave another value in the backward pass than in the forward pass at the same time and state: it is "
    "random (dropout?), or something it depends on has changed since; its gradient would be wrong"
)
_NOT_REPEATABLE_STEP = (
    f"{_NOT_REPEATABLE}. Or it mixes samples, which are at other times then: fixed steps, or odeint with one step size "
    "for all, keep them together"
)


def same_up_to_rounding(value: Tensor, expected: Tensor, field: FlatField) -> bool:
    """Whether rows (n, D) agree within 64 roundings (half precision: 4) of their largest entry in the state's dtype."""
    dtype = field.state.dtype
    return _within(value, expected, (_SAME_ULPS_HALF if dtype in HALF_DTYPES else _SAME_ULPS) * torch.finfo(dtype).eps)


def same_rows(field: FlatField, t: Tensor, y: Tensor, controls: list[Tensor], expected: Tensor) -> bool | None:
    """Whether the field gives these rows by themselves the values they had among all rows, up to rounding.

    None if all of the values are NaN or infinite (steps about to be rejected): they tell nothing.
    """
    known = torch.isfinite(expected).all(dim=1)
    if not bool(known.any()):
        return None
    try:
        value = field(t, y, controls)
    except Exception:  # the field holds something that only fits the whole batch; there it works
        return False
    return same_up_to_rounding(value[known], expected[known], field)


class NotRepeatable(RuntimeError):  # noqa: N818 - says what the field is
    """A field that gives other values when it is called again."""


def check_repeatable(value: Tensor, expected: Tensor, y: Tensor, h: Tensor, field: FlatField) -> None:
    """Raises NotRepeatable if the field's value (n, D) in the backward pass is not that of the forward pass.

    Far apart, that is: by more than the square root of the precision, which other kernels for other batch sizes stay
    well below and dropout, noise or changed weights do not. Where the value is nothing but rounding, as at a fixed
    point, a difference that the step h (n,) float64 would not make felt in the state y (n, D) does not count either.
    """
    precision, rounding = _precision(field)
    felt = rounding * y.abs().amax(dim=1, keepdim=True) / h.abs()[:, None] if y.shape[1] else 0.0
    if not _within(value.detach(), expected, precision**0.5, felt):
        raise NotRepeatable(_NOT_REPEATABLE)


def check_step(
    end: Tensor,
    expected: Tensor,
    y: Tensor,
    h: Tensor,
    slopes: Sequence[Tensor],
    field: FlatField,
    accuracy: Tensor | float = 0.0,
) -> None:
    """As ``check_repeatable``, of a whole step: a field may give its old values at the start and nowhere else.

    Args:
        end: (n, D), where the step ends with the values of the backward pass.
        expected: (n, D), where it ended in the forward pass.
        y: (n, D), where it starts.
        h: (n,) float64, its size.
        slopes: (n, D) each, of its stages.
        field: the vector field.
        accuracy: of a step whose stages are solved for, in units of y, a number or (n, D).
    """
    if not y.shape[1]:
        return
    precision, rounding = _precision(field)
    largest = torch.stack([k.detach().abs().amax(dim=1, keepdim=True) for k in slopes]).amax(dim=0)
    felt = rounding * (y.abs().amax(dim=1, keepdim=True) + h.abs()[:, None] * largest) + accuracy
    if not _within(end - y, expected - y, precision**0.5, felt):
        raise NotRepeatable(_NOT_REPEATABLE_STEP)


def _precision(field: FlatField) -> tuple[float, float]:
    """The roundings that a field computes with, and how far apart values are that are the same up to rounding."""
    enabled, autocast_dtype = field.autocast
    precision = max(torch.finfo(dtype).eps for dtype in [field.state.dtype, *([autocast_dtype] if enabled else [])])
    return precision, (_SAME_ULPS_HALF if precision > 1e-4 else _SAME_ULPS) * precision


def _within(value: Tensor, expected: Tensor, relative: float, absolute: Tensor | float = 0.0) -> bool:
    if expected.numel() == 0:
        return True
    bound = relative * expected.abs().amax(dim=1, keepdim=True) + absolute
    finite = torch.isfinite(expected).all(1)  # a rejected attempt may have left anything in the other rows
    return bool((((value - expected).abs() <= bound) | ~finite[:, None]).all())
