"""Functions of ``torch.compile`` as they were written, for whoever records what they do.

Recorders are Python code that torch calls in the middle of a function: dynamo would compile them along with it, which
takes seconds, and its own steps would be taken for the function's.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_within = 0
_stance: Any = None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled functions run their original code. Costs nothing where nothing was compiled in this process.

    Torch has one stance for all threads: the first that comes sets it, the last that leaves puts back what was there.
    """
    global _within, _stance
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with _lock:
        if not _within:
            _stance = torch.compiler.set_stance("force_eager")  # sets it by being made
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                _stance.__exit__(None, None, None)
