"""CUDA graphs of the steps of backend ``stepped``: an attempt's launches sent to the GPU as one.

Off unless asked for: whether a field can be captured is the user's promise, since a graph repeats launches, not Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_wanted = False
_warned: set[str] = set()


def set_cuda_graphs(wanted: bool) -> None:
    """Choose whether backend ``stepped`` captures a step as a CUDA graph, for solves on NVIDIA GPUs that start now.

    The field has to be static: it does not wait for the GPU, the shapes of its tensors do not depend on their values,
    and what it does in Python need not happen at every evaluation. See docs/gpu.md.

    Args:
        wanted: True or False, the default.
    """
    global _wanted
    _wanted = bool(wanted)


def get_cuda_graphs() -> bool:
    """Whether backend ``stepped`` captures steps as CUDA graphs."""
    return _wanted


class StepGraph:
    """Runs the attempts of one solve: the first in each layout as it is, later ones as replays of the second.

    If a capture fails, that is said once, and the solve goes on without graphs: a capture launches nothing, so nothing
    has to be undone.

    Args:
        device: where it runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._layout: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._value: Tensor | None = None
        self._failed = False

    def run(self, layout: Hashable, attempt: Callable[[], Tensor]) -> Tensor:
        """The value of an attempt.

        Args:
            layout: changes whenever an attempt reads or writes other memory, or memory of another shape.
            attempt: launches everything of an attempt; returns the field's last value.
        """
        if self._failed:
            return attempt()
        if layout != self._layout:
            # As it is: what initialises itself at its first call must not do so in a capture.
            self._layout, self._graph, self._value = layout, None, None
            return attempt()
        if self._graph is None and not self._capture(attempt):
            return attempt()
        assert self._graph is not None
        assert self._value is not None
        self._graph.replay()
        return self._value

    def _capture(self, attempt: Callable[[], Tensor]) -> bool:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, of data loaders for example, may do meanwhile what a capture forbids.
            with torch.cuda.device(self._device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._value = attempt()
        except Exception as error:
            self._failed = True
            lines = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
            if reason not in _warned:
                _warned.add(reason)
                warnings.warn(
                    f"a step cannot be captured as a CUDA graph, the solve goes on without: {reason}. Fields that wait "
                    "for the GPU, or whose shapes depend on values, cannot be captured",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return False
        self._graph = graph
        return True
