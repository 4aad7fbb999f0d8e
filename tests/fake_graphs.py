"""Torch's CUDA graphs on the CPU: a capture writes down what is launched, a replay does it.

Addresses are those of the capture, as on a GPU: a replay reads and writes the same memory, and runs no Python.
"""

from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Torch's operations as calls that write into the results of the capture."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more lines")
        # Done at once, too, for the shape of the result: a field writes into tensors of its own only.
        out = func(*args, **kwargs)
        if not func.is_view:
            self.calls.append((func, args, kwargs, out))
        return out


class FakeGraph:
    """In the place of ``torch.cuda.CUDAGraph``."""

    made: ClassVar[list["FakeGraph"]] = []

    def __init__(self):
        self.calls, self.replays = [], 0
        FakeGraph.made.append(self)

    def replay(self):
        self.replays += 1
        for call in self.calls:
            if len(call) == 2:
                kernel, arguments = call
                kernel(*arguments)
                continue
            func, args, kwargs, out = call
            again = func(*args, **kwargs)
            for x, y in zip(pytree.tree_leaves(out), pytree.tree_leaves(again), strict=True):
                if isinstance(x, Tensor) and x.data_ptr() != y.data_ptr():
                    x.copy_(y)


class Kernels:
    """Compiled kernels whose launches are written down during a capture instead of being done."""

    capturing: FakeGraph | None = None

    def __init__(self, kernels):
        self._kernels, self._version = kernels, 0

    def __getattr__(self, name):
        found = getattr(self._kernels, name)
        if name in ("use_lanes", "keep_record"):
            self._version += 1
        if Kernels.capturing is None or name not in ("stage", "finish_step"):
            return found
        version = self._version

        def launch(*args):
            assert self._version == version, "a replay would have the arguments of the capture"
            found(*args)

        return lambda *args: Kernels.capturing.calls.append((launch, args))


@contextmanager
def graph(made, capture_error_mode):
    """In the place of ``torch.cuda.graph``."""
    assert capture_error_mode == "thread_local"
    Kernels.capturing = made
    try:
        with Recorder(made.calls):
            yield
    finally:
        Kernels.capturing = None
