"""Norms, checks and small parts."""

from fastode.dropin.functions import ADJOINT_CALLBACKS, CALLBACKS, Perturb
from fastode.dropin.functions import no_callback as _null_callback
from fastode.dropin.functions import unflatten as _flat_to_shape
from fastode.dropin.legacy import check_inputs as _check_inputs
from fastode.dropin.legacy import error_ratio as _compute_error_ratio
from fastode.dropin.norms import linf_norm as _linf_norm
from fastode.dropin.norms import mixed_norm as _mixed_norm
from fastode.dropin.norms import rms_norm as _rms_norm
from fastode.dropin.norms import zero_norm as _zero_norm
from fastode.dropin.solvers import warn_unused as _handle_unused_kwargs

_all_callback_names = CALLBACKS
_all_adjoint_callback_names = ADJOINT_CALLBACKS

__all__ = [
    "Perturb",
    "_all_adjoint_callback_names",
    "_all_callback_names",
    "_check_inputs",
    "_compute_error_ratio",
    "_flat_to_shape",
    "_handle_unused_kwargs",
    "_linf_norm",
    "_mixed_norm",
    "_null_callback",
    "_rms_norm",
    "_zero_norm",
]
