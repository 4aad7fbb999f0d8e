"""Names that other projects import from inside of torchdiffeq."""

from fastode.dropin.adjoint import odeint_adjoint
from fastode.dropin.dense import odeint_dense
from fastode.dropin.event import odeint_event
from fastode.dropin.odeint import odeint

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
