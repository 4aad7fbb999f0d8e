"""Names that other projects import from inside of torchdiffeq.

As there, the functions hide the modules of the same names: ``_impl.odeint`` is the function. The imports are relative
so that this holds under the name torchdiffeq, too.
"""

from .adjoint import odeint_adjoint
from .odeint import odeint, odeint_dense, odeint_event

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
