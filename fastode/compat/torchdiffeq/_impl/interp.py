"""Polynomials between the ends of a step."""

from fastode.dropin.rk_state import interpolation_evaluate as _interp_evaluate
from fastode.dropin.rk_state import interpolation_fit as _interp_fit

__all__ = ["_interp_evaluate", "_interp_fit"]
