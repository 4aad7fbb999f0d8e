"""What a solve cannot be part of: recordings of torch's operations, and tensors that hold no numbers.

Kernels read memory, and the steps depend on the numbers there: a tracer would keep the numbers of one call as
constants, and of a tensor without memory there is nothing to read.
"""

from __future__ import annotations

import torch
from torch import Tensor

_INSTEAD = "call it outside of what is traced, or compile the code around it by torch.compile"
_MODES = (
    (torch._C._TorchDispatchModeKey.PROXY, "make_fx"),
    (torch._C._TorchDispatchModeKey.FUNCTIONAL, "a functionalizing tracer"),
    (torch._C._TorchDispatchModeKey.FAKE, "FakeTensorMode, whose tensors hold no numbers"),
)


def refuse_tracers(what: str) -> None:
    """Raises RuntimeError inside of a tracer of torch's operations.

    Args:
        what: is called, for the message.
    """
    if torch._C._get_tracing_state() is not None:
        _refuse(what, "torch.jit.trace")
    if torch._C._len_torch_dispatch_stack():
        for key, tracer in _MODES:
            if torch._C._get_dispatch_mode(key) is not None:
                _refuse(what, tracer)


def refuse_export(what: str) -> None:
    """Raises RuntimeError inside of ``torch.export``; for calls in code that torch compiles."""
    if torch.compiler.is_exporting():
        _refuse(what, "torch.export")


def _refuse(what: str, tracer: str) -> None:
    raise RuntimeError(
        f"{what} cannot be traced by {tracer}: its steps depend on the numbers in y0, so that a trace would hold for "
        f"one y0 only; {_INSTEAD}"
    )


def check_memory(tensor: Tensor, name: str) -> None:
    """Raises unless a tensor is one whose numbers lie in memory.

    Args:
        tensor: an argument.
        name: of the argument, for the message.

    Raises:
        TypeError: a subclass that computes in its own way (fake, distributed, quantized tensors), or another layout
            than strided.
    """
    if type(tensor).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl:
        raise TypeError(f"{name} must be a torch.Tensor whose numbers lie in memory, got a {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, got a tensor of layout {tensor.layout}; {name}.to_dense() is")


def check_device(tensor: Tensor, name: str) -> None:
    """Raises ValueError for a tensor on the device ``meta``."""
    if tensor.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on device meta")
