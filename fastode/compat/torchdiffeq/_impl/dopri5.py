"""The method dopri5."""

from fastode.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, _ButcherTableau
from fastode.dropin.adaptive import Dopri5Solver
from fastode.dropin.legacy import butcher_tableau, middle_weights

_DORMAND_PRINCE_SHAMPINE_TABLEAU = butcher_tableau("dopri5")
DPS_C_MID = middle_weights("dopri5")

__all__ = [
    "DPS_C_MID",
    "_DORMAND_PRINCE_SHAMPINE_TABLEAU",
    "Dopri5Solver",
    "RKAdaptiveStepsizeODESolver",
    "_ButcherTableau",
]
