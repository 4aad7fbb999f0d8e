"""The method bosh3."""

from fastode.dropin.adaptive import Bosh3Solver

__all__ = ["Bosh3Solver"]
