"""``odeint`` and its methods."""

from fastode.compat.torchdiffeq._impl.interp import _interp_evaluate
from fastode.compat.torchdiffeq._impl.misc import _check_inputs, _flat_to_shape
from fastode.dropin.adams import AdamsBashforth, AdamsBashforthMoulton
from fastode.dropin.adaptive import (
    AdaptiveHeunSolver,
    Bosh3Solver,
    Dopri5Solver,
    Dopri8Solver,
    Fehlberg2,
    Tsit5Solver,
)
from fastode.dropin.dense import odeint_dense
from fastode.dropin.event import odeint_event
from fastode.dropin.fixed_grid import RK4, Euler, Heun2, Heun3, Midpoint
from fastode.dropin.legacy_adjoint import ImplicitFnGradientRerouting
from fastode.dropin.methods import SOLVERS
from fastode.dropin.odeint import odeint
from fastode.dropin.scipy_wrapper import ScipyWrapperODESolver

__all__ = [
    "RK4",
    "SOLVERS",
    "AdamsBashforth",
    "AdamsBashforthMoulton",
    "AdaptiveHeunSolver",
    "Bosh3Solver",
    "Dopri5Solver",
    "Dopri8Solver",
    "Euler",
    "Fehlberg2",
    "Heun2",
    "Heun3",
    "ImplicitFnGradientRerouting",
    "Midpoint",
    "ScipyWrapperODESolver",
    "Tsit5Solver",
    "_check_inputs",
    "_flat_to_shape",
    "_interp_evaluate",
    "odeint",
    "odeint_dense",
    "odeint_event",
]
