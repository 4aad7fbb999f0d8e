"""Runge-Kutta steps, and the base class of adaptive methods."""

from fastode.dropin.legacy import ButcherTableau as _ButcherTableau
from fastode.dropin.legacy import RKAdaptiveStepsizeODESolver, rk4_alt_step_func, rk4_step_func
from fastode.dropin.legacy import RungeKuttaState as _RungeKuttaState
from fastode.dropin.legacy import runge_kutta_step as _runge_kutta_step
from fastode.dropin.legacy import tabulated_step as rk2_step_func
from fastode.dropin.legacy import tabulated_step as rk3_step_func

__all__ = [
    "RKAdaptiveStepsizeODESolver",
    "_ButcherTableau",
    "_RungeKuttaState",
    "_runge_kutta_step",
    "rk2_step_func",
    "rk3_step_func",
    "rk4_alt_step_func",
    "rk4_step_func",
]
