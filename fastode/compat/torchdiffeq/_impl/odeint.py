"""``odeint`` and its methods."""

from fastode.dropin.dense import odeint_dense
from fastode.dropin.event import odeint_event
from fastode.dropin.methods import SOLVERS
from fastode.dropin.odeint import odeint

__all__ = ["SOLVERS", "odeint", "odeint_dense", "odeint_event"]
