"""``odeint_adjoint``."""

from fastode.dropin.adjoint import find_parameters, odeint_adjoint
from fastode.dropin.methods import SOLVERS
from fastode.dropin.odeint import odeint

__all__ = ["SOLVERS", "find_parameters", "odeint", "odeint_adjoint"]
