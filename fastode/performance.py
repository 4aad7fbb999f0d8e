"""Says once for each field that it is solved slowly, and what would help."""

from __future__ import annotations

import functools
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

from fastode.program import trust
from fastode.program.captures import Refusal
from fastode.program.known import kind_of

_MOST = 1000
_warned: dict[Any, None] = {}


class PerformanceWarning(UserWarning):
    """A field is solved by calling it step by step, and a change of a line would spare that."""


def warn_of(field: Callable[..., Any], refusal: Refusal) -> None:
    """Warns of a field that has no program, if something is known to help, and if it was not warned of before."""
    if refusal.cure is None:
        return
    while isinstance(field, functools.partial) and _is_ours(field.func) and field.args:
        field = field.args[0]  # the user's function behind another reading of it
    kind = kind_of(field)
    if kind in _warned:
        return
    if len(_warned) >= _MOST:
        _warned.clear()
    _warned[kind] = None
    name = getattr(field, "__qualname__", type(field).__qualname__)
    text = f"{name} is called step by step: {refusal}. Faster: {refusal.cure}. fastode.explain tells more."
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_back is not None and trust.verdict(frame.f_code) != trust.USER:
        frame = frame.f_back
    if frame is None:
        warnings.warn(text, PerformanceWarning, stacklevel=2)
    else:
        warnings.warn_explicit(text, PerformanceWarning, frame.f_code.co_filename, frame.f_lineno)


def _is_ours(function: Any) -> bool:
    return getattr(function, "__module__", "").startswith("fastode.dropin")
