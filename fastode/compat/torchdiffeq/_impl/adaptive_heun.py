"""The method adaptive_heun."""

from fastode.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, _ButcherTableau
from fastode.dropin.adaptive import AdaptiveHeunSolver
from fastode.dropin.legacy import butcher_tableau, middle_weights

_ADAPTIVE_HEUN_TABLEAU = butcher_tableau("adaptive_heun")
_AH_C_MID = middle_weights("adaptive_heun")

__all__ = [
    "_ADAPTIVE_HEUN_TABLEAU",
    "_AH_C_MID",
    "AdaptiveHeunSolver",
    "RKAdaptiveStepsizeODESolver",
    "_ButcherTableau",
]
