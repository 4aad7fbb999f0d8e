"""The method fehlberg2."""

from fastode.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, _ButcherTableau
from fastode.dropin.adaptive import Fehlberg2
from fastode.dropin.legacy import butcher_tableau, middle_weights

_FEHLBERG2_TABLEAU = butcher_tableau("fehlberg2")
_FE_C_MID = middle_weights("fehlberg2")

__all__ = ["_FEHLBERG2_TABLEAU", "_FE_C_MID", "Fehlberg2", "RKAdaptiveStepsizeODESolver", "_ButcherTableau"]
