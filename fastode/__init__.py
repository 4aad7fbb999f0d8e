"""fastode: batched ODE solves in PyTorch, every sample with its own parameters and its own step sizes."""

from fastode import fields, models
from fastode._environment import get_num_threads, set_num_threads
from fastode._version import __version__
from fastode.backends.step_graph import get_cuda_graphs, set_cuda_graphs
from fastode.captured import CapturedField, Explanation, capture, explain
from fastode.checked import CheckError, checking
from fastode.checkpoint import Checkpoint
from fastode.controllers import IController, PIController, PIDController
from fastode.dropin.adjoint import odeint_adjoint
from fastode.dropin.dense import odeint_dense
from fastode.dropin.event import odeint_event
from fastode.dropin.failure import OdeintError
from fastode.dropin.odeint import odeint
from fastode.events import Event, Events, Occurrences
from fastode.performance import PerformanceWarning
from fastode.solution import DenseOutput, Solution, Stats
from fastode.solve import solve
from fastode.status import SolveError, Status
from fastode.tableaus import IMPLICIT_TABLEAUS, TABLEAUS, ImplicitTableau, RosenbrockTableau, Tableau

__all__ = [
    "IMPLICIT_TABLEAUS",
    "TABLEAUS",
    "CapturedField",
    "CheckError",
    "Checkpoint",
    "DenseOutput",
    "Event",
    "Events",
    "Explanation",
    "IController",
    "ImplicitTableau",
    "Occurrences",
    "OdeintError",
    "PIController",
    "PIDController",
    "PerformanceWarning",
    "RosenbrockTableau",
    "Solution",
    "SolveError",
    "Stats",
    "Status",
    "Tableau",
    "__version__",
    "capture",
    "checking",
    "explain",
    "fields",
    "get_cuda_graphs",
    "get_num_threads",
    "models",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "set_cuda_graphs",
    "set_num_threads",
    "solve",
]
