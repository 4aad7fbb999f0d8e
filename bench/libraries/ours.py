"""fastode: as it chooses by itself, and one entry per backend."""

from __future__ import annotations

from typing import Any

import fastode
from bench.cases import Problem
from bench.cases.case import Solve
from bench.libraries.base import TorchLibrary, Work
from fastode.backends.choose import available


class Fastode(TorchLibrary):
    """``fastode.solve`` on the backend that it chooses or on a given one.

    With its default gradient, the exact discrete adjoint from checkpoints.
    """

    package = "fastode"

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = "fastode" if backend == "auto" else f"fastode {backend}"

    def solver(self, problem: Problem, mode: str) -> Solve:
        return OurSolve(self.backend, times=problem.t.tolist() if problem.device.type == "cuda" else None)

    def work(self, problem: Problem, mode: str, solve: Solve) -> Work:
        stats = getattr(solve, "stats", None)
        if stats is None:
            return Work()
        return Work(
            steps_mean=float(stats.n_steps.double().mean()),
            steps_max=float(stats.n_steps.max()),
            evals=float(stats.n_evals.double().mean()),
            evals_total=float(stats.n_evals.sum()),
            accepted_total=float(stats.n_accepted.sum()),
            steps_total=float(stats.n_steps.sum()),
        )


class OurSolve:
    """Solves and keeps the statistics of the last solve.

    Args:
        backend, method: of ``fastode.solve``.
        rtol, atol: None takes those of the case.
        times: the output times as numbers, for a GPU: the host then checks them without asking the device.
    """

    def __init__(
        self,
        backend: str,
        method: str = "dopri5",
        rtol: float | None = None,
        atol: float | None = None,
        times: list[float] | None = None,
    ) -> None:
        self.backend, self.method, self.rtol, self.atol, self.times = backend, method, rtol, atol, times
        self.stats: fastode.Stats | None = None

    def __call__(self, problem: Problem, y0: Any, controls: Any) -> Any:
        case = problem.case
        solution = fastode.solve(
            problem.field,
            y0,
            problem.t if self.times is None else self.times,
            controls=controls,
            method=self.method,
            rtol=case.rtol if self.rtol is None else self.rtol,
            atol=case.atol if self.atol is None else self.atol,
            backend=self.backend,
        )
        self.stats = solution.stats
        ys = solution.ys
        return ys[1:] if not isinstance(ys, tuple) else tuple(leaf[1:] for leaf in ys)


OURS = [Fastode(name) for name in ("auto", *(name for name, _ in available() if name != "implicit"))]
"""The first of these in a run is what the others are compared with. The methods of backend ``implicit`` are compared in
``bench.stiff``: no case here is for them."""


def truth(device: str) -> OurSolve:
    """A far tighter solve with another method, for problems in float64; its field is evaluated by torch."""
    return OurSolve("stepped" if device == "cpu" else "reference", "dopri8", rtol=1e-11, atol=1e-12)
