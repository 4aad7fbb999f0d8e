"""The method tsit5."""

from fastode.dropin.adaptive import Tsit5Solver

__all__ = ["Tsit5Solver"]
