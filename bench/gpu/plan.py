"""Which checks are made, the most telling ones first."""

from __future__ import annotations

from bench.gpu.checks import Check
from bench.gpu.fields import of_the_tests
from fastode.fields import ACTIVATIONS

PRECISIONS = [("float64", ""), ("float32", "fixed steps"), ("float32", "")]
TIMES = ["per sample", "per sample, reversed", "reversed", "repeated", "one", "many"]
METHODS = ["dopri8", "tsit5", "bosh3", "rk4", "PI", "PID", "tolerances", "adaptive_heun", "fehlberg2", "heun3", "euler"]
SIZES = [(1, 1), (3, 2), (33, 16), (1000, 7), (3, 33), (33, 64), (3, 100), (1, 64), (1000, 33), (5, 160), (3, 257)]
"""(batch, width): alone, below and across what vectors, warps and tiles hold."""


def first(backend: str, device: str) -> list[Check]:
    """A minute's worth: whether the backend works at all."""
    found = [
        Check("solve", backend, name, batch, dim, dtype, what, device)
        for name, batch, dim in [("controlled tanh", 33, 16), ("lorenz", 33, 3), ("mlp 4-32-4", 33, 4)]
        for dtype, what in PRECISIONS
    ]
    found += [Check("status", backend, dtype=dtype, device=device) for dtype in ("float64", "float32")]
    if backend == "stepped":
        found += [Check("solve", backend, "convolution", 3, 8, dtype, what, device) for dtype, what in PRECISIONS]
    return found


def rest(backend: str, device: str) -> list[Check]:
    """The others."""

    def solve(name: str, batch: int, dim: int, dtype: str = "float64", what: str = "") -> Check:
        return Check("solve", backend, name, batch, dim, dtype, what, device)

    found = [Check("times", backend, "controlled tanh", what=what, device=device) for what in TIMES]
    found += [Check("checkpoint", backend, "mlp", what=what, device=device) for what in ("every 3", "few bytes")]
    found += [solve("van der pol", 5, 2, what="many steps"), solve("van der pol, stiff", 33, 2, what="stiff")]
    for batch, dim in SIZES:
        found += [solve("controlled tanh", batch, dim, *precision) for precision in PRECISIONS[:2]]
    names = ["controlled hidden", "mlp", "mlp deep, time", "mlp linear", "closed loop", "ffjord", "hamiltonian pair"]
    found += [solve(name, 33, 7, *precision) for precision in PRECISIONS for name in [*names, "van der pol"]]
    found += [solve("mlp", batch, dim, "float32", "fixed steps") for batch, dim in [(1, 1), (1000, 33), (3, 100)]]
    found += [solve(f"controlled {name}", 33, 7, "float32", "fixed steps") for name in ACTIVATIONS if name != "tanh"]
    found += [solve("", 33, dim, "float32", "half weights") for dim in (2, 7, 16, 33, 64)]
    if backend == "stepped":
        found += [solve(name, 33, 7, dtype, "graphs") for name in ("mlp", "ffjord") for dtype in ("float64", "float32")]
    found += [Check("method", backend, "mlp", what=what, device=device) for what in METHODS]
    found += [Check("dense", backend, "controlled tanh", device=device)]
    found += [Check("times", backend, "mlp deep, time", what=what, device=device) for what in TIMES]
    found += [Check("status", backend, batch=1000, dtype=dtype, device=device) for dtype in ("float64", "float32")]
    for dtype, what in PRECISIONS[:2]:
        found += [solve(name, 37, 1, dtype, what) for name in of_the_tests()]
    return found


def sample(backend: str, device: str) -> list[Check]:
    """A handful, for a rehearsal."""
    return [
        Check("solve", backend, "controlled tanh", 3, 4, "float64", "", device),
        Check("solve", backend, "mlp 4-32-4", 3, 4, "float32", "fixed steps", device),
        Check("status", backend, dtype="float32", device=device),
        Check("times", backend, "controlled tanh", 3, 4, what="repeated", device=device),
    ]
