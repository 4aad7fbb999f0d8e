"""Explicit methods on fixed grids."""

from fastode.compat.torchdiffeq._impl.rk_common import Perturb, rk2_step_func, rk3_step_func, rk4_alt_step_func
from fastode.dropin.fixed_grid import RK4, Euler, Heun2, Heun3, Midpoint
from fastode.dropin.solvers import FixedGridODESolver

__all__ = [
    "RK4",
    "Euler",
    "FixedGridODESolver",
    "Heun2",
    "Heun3",
    "Midpoint",
    "Perturb",
    "rk2_step_func",
    "rk3_step_func",
    "rk4_alt_step_func",
]
