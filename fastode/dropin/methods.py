"""The methods by name."""

from __future__ import annotations

import inspect
from typing import Any

from fastode.dropin.adams import AdamsBashforth, AdamsBashforthMoulton
from fastode.dropin.adaptive import (
    AdaptiveHeunSolver,
    Bosh3Solver,
    Dopri5Solver,
    Dopri8Solver,
    Fehlberg2,
    RungeKutta,
    Tsit5Solver,
)
from fastode.dropin.fixed_grid import RK4, Euler, Heun2, Heun3, Midpoint
from fastode.dropin.implicit import METHODS as IMPLICIT
from fastode.dropin.scipy_wrapper import ScipyWrapperODESolver
from fastode.dropin.solvers import FixedGridODESolver

SOLVERS: dict[str, Any] = {
    "dopri8": Dopri8Solver,
    "dopri5": Dopri5Solver,
    "tsit5": Tsit5Solver,
    "bosh3": Bosh3Solver,
    "fehlberg2": Fehlberg2,
    "adaptive_heun": AdaptiveHeunSolver,
    "euler": Euler,
    "midpoint": Midpoint,
    "heun2": Heun2,
    "heun3": Heun3,
    "rk4": RK4,
    "explicit_adams": AdamsBashforth,
    "implicit_adams": AdamsBashforthMoulton,
    "fixed_adams": AdamsBashforthMoulton,
    **{solver.method: solver for solver in IMPLICIT},
    "scipy_solver": ScipyWrapperODESolver,
}
"""Classes of solvers by the name of their method; classes that users add are made and called like these."""

OWN = dict(SOLVERS)
"""Those that come with fastode."""

_NOT_OPTIONS = {"self", "func", "y0", "rtol", "atol", "kwargs", "unused_kwargs"}


def known_options(solver: Any) -> set[str]:
    """Names of the options of one of fastode's solvers."""
    names: set[str] = {"norm"}
    for base in solver.__mro__:
        if "__init__" in vars(base) and base is not object:
            names |= set(inspect.signature(base.__init__).parameters)
    if issubclass(solver, FixedGridODESolver):
        names -= {"dtype"}
    if solver is AdamsBashforth:
        names -= {"implicit"}
    if solver is ScipyWrapperODESolver:
        names |= {"grid_points", "eps"}
    return names - _NOT_OPTIONS


def takes_grid(solver: Any) -> bool:
    """Whether a solver steps along a grid."""
    return isinstance(solver, type) and issubclass(solver, FixedGridODESolver)


def is_fixed(solver: Any) -> bool:
    """Whether a solver is an explicit Runge-Kutta method on a fixed grid."""
    return solver in (Euler, Midpoint, Heun2, Heun3, RK4)


def is_implicit(solver: Any) -> bool:
    """Whether a solver is an implicit Runge-Kutta method on a fixed grid."""
    return solver in IMPLICIT


def is_adaptive(solver: Any) -> bool:
    """Whether a solver is an adaptive explicit Runge-Kutta method."""
    return isinstance(solver, type) and issubclass(solver, RungeKutta)
