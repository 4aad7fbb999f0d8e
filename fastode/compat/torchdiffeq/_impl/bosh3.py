"""The method bosh3."""

from fastode.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, _ButcherTableau
from fastode.dropin.adaptive import Bosh3Solver
from fastode.dropin.legacy import butcher_tableau, middle_weights

_BOGACKI_SHAMPINE_TABLEAU = butcher_tableau("bosh3")
_BS_C_MID = middle_weights("bosh3")

__all__ = ["_BOGACKI_SHAMPINE_TABLEAU", "_BS_C_MID", "Bosh3Solver", "RKAdaptiveStepsizeODESolver", "_ButcherTableau"]
