"""Base classes of solvers."""

from fastode.compat.torchdiffeq._impl.misc import _handle_unused_kwargs
from fastode.dropin.legacy import find_event
from fastode.dropin.solvers import AdaptiveStepsizeEventODESolver, AdaptiveStepsizeODESolver, FixedGridODESolver

__all__ = [
    "AdaptiveStepsizeEventODESolver",
    "AdaptiveStepsizeODESolver",
    "FixedGridODESolver",
    "_handle_unused_kwargs",
    "find_event",
]
