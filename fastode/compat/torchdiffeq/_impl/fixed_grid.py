"""Explicit methods on fixed grids."""

from fastode.dropin.fixed_grid import RK4, Euler, Heun2, Heun3, Midpoint
from fastode.dropin.solvers import FixedGridODESolver

__all__ = ["RK4", "Euler", "FixedGridODESolver", "Heun2", "Heun3", "Midpoint"]
