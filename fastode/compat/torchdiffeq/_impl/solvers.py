"""Base classes of solvers."""

from fastode.dropin.solvers import AdaptiveStepsizeEventODESolver, AdaptiveStepsizeODESolver, FixedGridODESolver

__all__ = ["AdaptiveStepsizeEventODESolver", "AdaptiveStepsizeODESolver", "FixedGridODESolver"]
