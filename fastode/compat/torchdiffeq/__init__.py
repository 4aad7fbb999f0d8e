"""torchdiffeq's interface: ``import fastode.compat.torchdiffeq as torchdiffeq``.

For programs that import torchdiffeq themselves, call ``install()`` before they do.
"""

from fastode.compat.torchdiffeq import _impl
from fastode.compat.torchdiffeq._install import install
from fastode.dropin.adjoint import odeint_adjoint
from fastode.dropin.dense import odeint_dense
from fastode.dropin.event import odeint_event
from fastode.dropin.methods import SOLVERS
from fastode.dropin.odeint import odeint

__version__ = "0.2.5"
"""The version of torchdiffeq whose interface this is."""

__all__ = ["SOLVERS", "_impl", "install", "odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
