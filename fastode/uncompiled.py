"""Functions of ``torch.compile`` as they were written, for whoever records what they do.

Recorders are Python code that torch calls in the middle of a function: dynamo would compile them along with it, which
takes seconds, and its own steps would be taken for the function's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled functions run their original code. Costs nothing where nothing was compiled in this process."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
