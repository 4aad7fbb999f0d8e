"""Norms, checks and small parts."""

from fastode.dropin.arguments import flat_tolerance as _tuple_tol
from fastode.dropin.functions import ADJOINT_CALLBACKS, CALLBACKS, Perturb
from fastode.dropin.functions import Stitch as _StitchGradient
from fastode.dropin.functions import no_callback as _null_callback
from fastode.dropin.functions import unflatten as _flat_to_shape
from fastode.dropin.legacy import check_inputs as _check_inputs
from fastode.dropin.legacy import combine_event_functions
from fastode.dropin.legacy import error_ratio as _compute_error_ratio
from fastode.dropin.legacy import is_finite as _is_finite
from fastode.dropin.legacy import is_iterable as _is_iterable
from fastode.dropin.legacy import optimal_step_size as _optimal_step_size
from fastode.dropin.legacy import scaled_dot_product as _scaled_dot_product
from fastode.dropin.legacy import select_initial_step as _select_initial_step
from fastode.dropin.legacy import to_tensor as _convert_to_tensor
from fastode.dropin.norms import linf_norm as _linf_norm
from fastode.dropin.norms import mixed_norm as _mixed_norm
from fastode.dropin.norms import rms_norm as _rms_norm
from fastode.dropin.norms import zero_norm as _zero_norm
from fastode.dropin.solvers import warn_unused as _handle_unused_kwargs
from fastode.dropin.wrappers import PerturbFunc as _PerturbFunc
from fastode.dropin.wrappers import ReverseFunc as _ReverseFunc
from fastode.dropin.wrappers import TupleFunc as _TupleFunc
from fastode.dropin.wrappers import TupleInputOnlyFunc as _TupleInputOnlyFunc
from fastode.dropin.wrappers import assert_floating as _assert_floating
from fastode.dropin.wrappers import assert_increasing as _assert_increasing
from fastode.dropin.wrappers import assert_one_dimensional as _assert_one_dimensional
from fastode.dropin.wrappers import check_timelike as _check_timelike
from fastode.dropin.wrappers import decreasing as _decreasing
from fastode.dropin.wrappers import flip_option as _flip_option
from fastode.dropin.wrappers import next_after as _nextafter

_all_callback_names = list(CALLBACKS)
_all_adjoint_callback_names = list(ADJOINT_CALLBACKS)

__all__ = [
    "Perturb",
    "_PerturbFunc",
    "_ReverseFunc",
    "_StitchGradient",
    "_TupleFunc",
    "_TupleInputOnlyFunc",
    "_all_adjoint_callback_names",
    "_all_callback_names",
    "_assert_floating",
    "_assert_increasing",
    "_assert_one_dimensional",
    "_check_inputs",
    "_check_timelike",
    "_compute_error_ratio",
    "_convert_to_tensor",
    "_decreasing",
    "_flat_to_shape",
    "_flip_option",
    "_handle_unused_kwargs",
    "_is_finite",
    "_is_iterable",
    "_linf_norm",
    "_mixed_norm",
    "_nextafter",
    "_null_callback",
    "_optimal_step_size",
    "_rms_norm",
    "_scaled_dot_product",
    "_select_initial_step",
    "_tuple_tol",
    "_zero_norm",
    "combine_event_functions",
]
