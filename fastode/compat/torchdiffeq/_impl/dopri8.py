"""The method dopri8."""

from fastode.dropin.adaptive import Dopri8Solver

__all__ = ["Dopri8Solver"]
