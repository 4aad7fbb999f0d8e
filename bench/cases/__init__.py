"""The registry of workloads. Nothing in it knows which library, backend or device will run it."""

from bench.cases.autoencode import AUTOENCODE, AUTOENCODE_CIFAR
from bench.cases.case import FORWARD, GRADIENT, MODES, TRAIN, Case, Problem
from bench.cases.controlled import CLOSED_LOOP, CONTROLLED
from bench.cases.convolution import CONVOLUTION
from bench.cases.flow import FFJORD
from bench.cases.neural import NEURAL_ODE, SPIRAL, SPIRALS
from bench.cases.overhead import OVERHEAD
from bench.cases.systems import LORENZ, ONE_STIFF, VAN_DER_POL

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *(*CONTROLLED, *NEURAL_ODE, SPIRAL, *SPIRALS, *LORENZ, ONE_STIFF, VAN_DER_POL, CLOSED_LOOP, FFJORD),
        *(CONVOLUTION, AUTOENCODE, AUTOENCODE_CIFAR, *OVERHEAD),
    )
}
DEFAULT = tuple(name for name, case in CASES.items() if case.group == "")
"""What ``fastode bench`` runs."""
QUICK = ("controlled-128x16", "neural-ode-1", "lorenz-1000", "closed-loop")
"""What ``--quick`` runs; also our own regression runs under pytest-benchmark."""
PRECISION = ("controlled-256x32", "neural-ode-1", "lorenz-1000")
"""What work-precision diagrams are drawn for."""

__all__ = [
    "CASES",
    "DEFAULT",
    "FORWARD",
    "GRADIENT",
    "MODES",
    "OVERHEAD",
    "PRECISION",
    "QUICK",
    "TRAIN",
    "Case",
    "Problem",
]
