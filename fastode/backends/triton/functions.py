"""Functions that generated kernels call: libdevice's, and a few of our own.

Triton's interpreter cannot call libdevice; there, functions of the same names compute on the host.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl


def interpreting() -> bool:
    """Whether kernels made from now on run in Triton's interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


class _OnHost:
    """libdevice by torch, on the arrays of the interpreter."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(torch, {"rint": "round"}.get(name, name))

        def call(*args: Any) -> Any:
            tensors = [arg for arg in args if isinstance(arg, tl.tensor)]
            dtype = tensors[0].dtype
            kind = torch.float64 if dtype == tl.float64 else torch.float32
            values = [
                torch.as_tensor(arg.handle.data if isinstance(arg, tl.tensor) else float(arg), dtype=kind)
                for arg in args
            ]
            data = function(*values).numpy()
            made = tl.block_type(dtype, list(data.shape)) if data.shape else dtype
            return tl.tensor(type(tensors[0].handle)(data, dtype), made)

        return call


if interpreting():
    libdevice: Any = _OnHost()
else:
    libdevice = importlib.import_module("triton.language.extra.cuda.libdevice")


def device_function(function: Callable[..., Any]) -> Any:
    """Decorator of generated functions that kernels call; the interpreter runs them as they are, which is quicker."""
    return function if interpreting() else triton.jit(function)


@triton.jit
def larger(a, b):  # type: ignore[no-untyped-def] # Triton reads annotations
    """The larger of two, NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sign(x):  # type: ignore[no-untyped-def] # Triton reads annotations
    """-1, 0 or 1; 0 of NaN."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def remainder(a, b):  # type: ignore[no-untyped-def] # Triton reads annotations
    """Rest of a / b, with the sign of b."""
    rest = libdevice.fmod(a, b)
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)
