"""Runge-Kutta steps, and the base class of adaptive methods."""

from fastode.compat.torchdiffeq._impl.interp import _interp_evaluate, _interp_fit
from fastode.compat.torchdiffeq._impl.misc import (
    Perturb,
    _compute_error_ratio,
    _handle_unused_kwargs,
    _optimal_step_size,
    _select_initial_step,
)
from fastode.dropin.legacy import ButcherTableau as _ButcherTableau
from fastode.dropin.legacy import (
    RKAdaptiveStepsizeODESolver,
    find_event,
    rk4_alt_step_func,
    rk4_step_func,
)
from fastode.dropin.legacy import runge_kutta_step as _runge_kutta_step
from fastode.dropin.legacy import tabulated_step as rk2_step_func
from fastode.dropin.legacy import tabulated_step as rk3_step_func
from fastode.dropin.rk_state import RungeKuttaState as _RungeKuttaState
from fastode.dropin.solvers import AdaptiveStepsizeEventODESolver
from fastode.dropin.wrappers import sort_times as _sort_tvals

_one_third, _two_thirds, _one_sixth = 1 / 3, 2 / 3, 1 / 6

__all__ = [
    "AdaptiveStepsizeEventODESolver",
    "Perturb",
    "RKAdaptiveStepsizeODESolver",
    "_ButcherTableau",
    "_RungeKuttaState",
    "_compute_error_ratio",
    "_handle_unused_kwargs",
    "_interp_evaluate",
    "_interp_fit",
    "_one_sixth",
    "_one_third",
    "_optimal_step_size",
    "_runge_kutta_step",
    "_select_initial_step",
    "_sort_tvals",
    "_two_thirds",
    "find_event",
    "rk2_step_func",
    "rk3_step_func",
    "rk4_alt_step_func",
    "rk4_step_func",
]
