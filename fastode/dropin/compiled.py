"""The functions under ``torch.compile``: outside of its graphs, with the same results. Tracers are refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from fastode.tracers import refuse_export, refuse_tracers

_P = ParamSpec("_P")
_R = TypeVar("_R")
_REASON = "only fields from fastode.capture are solved inside a graph, by fastode.solve"


def outside_of_graphs(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function; while torch compiles its caller, as a break of the graph.

    Inside of ``torch.jit.trace``, ``torch.export`` and ``make_fx`` it raises RuntimeError.
    """
    name = f"fastode.{function.__name__}"

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not torch.compiler.is_compiling():
            refuse_tracers(name)
            return function(*args, **kwargs)
        refuse_export(name)
        return _disabled(function)(*args, **kwargs)

    return call


def _disabled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    import torch._dynamo  # torch's compiler, which only those who compile need

    return torch._dynamo.disable(function, reason=_REASON)
