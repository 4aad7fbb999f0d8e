"""fastode: batched ODE solves in PyTorch, every sample with its own parameters and its own step sizes."""

from fastode import fields, models
from fastode._environment import get_num_threads, set_num_threads
from fastode._version import __version__
from fastode.captured import CapturedField, Explanation, capture, explain
from fastode.checkpoint import Checkpoint
from fastode.controllers import IController, PIController, PIDController
from fastode.solution import DenseOutput, Solution, Stats
from fastode.solve import solve
from fastode.status import SolveError, Status
from fastode.tableaus import TABLEAUS, Tableau

__all__ = [
    "TABLEAUS",
    "CapturedField",
    "Checkpoint",
    "DenseOutput",
    "Explanation",
    "IController",
    "PIController",
    "PIDController",
    "Solution",
    "SolveError",
    "Stats",
    "Status",
    "Tableau",
    "__version__",
    "capture",
    "explain",
    "fields",
    "get_num_threads",
    "models",
    "set_num_threads",
    "solve",
]
