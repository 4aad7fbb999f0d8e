"""The method dopri8."""

from fastode.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, _ButcherTableau
from fastode.dropin.adaptive import Dopri8Solver
from fastode.dropin.legacy import butcher_tableau, middle_weights

_DOPRI8_TABLEAU = butcher_tableau("dopri8")
C_mid = middle_weights("dopri8")

__all__ = ["_DOPRI8_TABLEAU", "C_mid", "Dopri8Solver", "RKAdaptiveStepsizeODESolver", "_ButcherTableau"]
