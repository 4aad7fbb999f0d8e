"""Solvers of scipy."""

from fastode.compat.torchdiffeq._impl.misc import _handle_unused_kwargs
from fastode.dropin.scipy_wrapper import ScipyWrapperODESolver

__all__ = ["ScipyWrapperODESolver", "_handle_unused_kwargs"]
