"""The registry of workloads. Nothing in it knows which library, backend or device will run it."""

from bench.cases.autoencode import AUTOENCODE
from bench.cases.case import FORWARD, GRADIENT, MODES, TRAIN, Case, Problem
from bench.cases.controlled import CLOSED_LOOP, CONTROLLED
from bench.cases.flow import FFJORD
from bench.cases.neural import NEURAL_ODE, SPIRAL
from bench.cases.systems import LORENZ, ONE_STIFF

CASES: dict[str, Case] = {
    case.name: case for case in (*CONTROLLED, *NEURAL_ODE, SPIRAL, *LORENZ, ONE_STIFF, CLOSED_LOOP, FFJORD, AUTOENCODE)
}
QUICK = ("controlled-128x16", "neural-ode-1", "lorenz-1000", "closed-loop")
"""What ``--quick`` runs; also our own regression runs under pytest-benchmark."""
PRECISION = ("controlled-256x32", "neural-ode-1", "lorenz-1000")
"""What work-precision diagrams are drawn for."""

__all__ = ["CASES", "FORWARD", "GRADIENT", "MODES", "PRECISION", "QUICK", "TRAIN", "Case", "Problem"]
