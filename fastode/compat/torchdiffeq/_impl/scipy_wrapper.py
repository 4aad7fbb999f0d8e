"""Solvers of scipy."""

from fastode.dropin.scipy_wrapper import ScipyWrapperODESolver

__all__ = ["ScipyWrapperODESolver"]
