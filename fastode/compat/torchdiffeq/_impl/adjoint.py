"""``odeint_adjoint`` and its parts."""

from fastode.compat.torchdiffeq._impl.misc import (
    _all_adjoint_callback_names,
    _all_callback_names,
    _check_inputs,
    _flat_to_shape,
    _mixed_norm,
)
from fastode.dropin.adjoint import find_parameters, odeint_adjoint
from fastode.dropin.legacy_adjoint import OdeintAdjointMethod
from fastode.dropin.legacy_adjoint import handle_adjoint_norm as handle_adjoint_norm_
from fastode.dropin.methods import SOLVERS
from fastode.dropin.odeint import odeint

__all__ = [
    "SOLVERS",
    "OdeintAdjointMethod",
    "_all_adjoint_callback_names",
    "_all_callback_names",
    "_check_inputs",
    "_flat_to_shape",
    "_mixed_norm",
    "find_parameters",
    "handle_adjoint_norm_",
    "odeint",
    "odeint_adjoint",
]
