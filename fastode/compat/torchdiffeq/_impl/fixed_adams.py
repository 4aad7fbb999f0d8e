"""Adams methods on fixed grids."""

from fastode.compat.torchdiffeq._impl.misc import Perturb, _compute_error_ratio, _linf_norm
from fastode.compat.torchdiffeq._impl.rk_common import rk4_alt_step_func
from fastode.dropin.adams import AdamsBashforth, AdamsBashforthMoulton
from fastode.dropin.solvers import FixedGridODESolver

__all__ = [
    "AdamsBashforth",
    "AdamsBashforthMoulton",
    "FixedGridODESolver",
    "Perturb",
    "_compute_error_ratio",
    "_linf_norm",
    "rk4_alt_step_func",
]
