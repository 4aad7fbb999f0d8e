"""The method adaptive_heun."""

from fastode.dropin.adaptive import AdaptiveHeunSolver

__all__ = ["AdaptiveHeunSolver"]
