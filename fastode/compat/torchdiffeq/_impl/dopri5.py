"""The method dopri5."""

from fastode.dropin.adaptive import Dopri5Solver

__all__ = ["Dopri5Solver"]
