"""The functions under ``torch.compile``: outside of its graphs, with the same results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")
_REASON = "only fields from fastode.capture are solved inside a graph, by fastode.solve"


def outside_of_graphs(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function; while torch compiles its caller, as a break of the graph."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        return _disabled(function)(*args, **kwargs)

    return call


def _disabled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    import torch._dynamo  # torch's compiler, which only those who compile need

    return torch._dynamo.disable(function, reason=_REASON)
