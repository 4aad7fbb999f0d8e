"""Solves of DETEST's problems by several libraries, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import fastode
from bench.detest.problems import END, Problem
from bench.detest.reference import Array

MAX_STEPS = 1_000_000


@dataclass(frozen=True)
class Answer:
    """States (T, D) at the output times, and the number of evaluations."""

    states: Array
    evaluations: int


Solver = Callable[[Problem, Array, float], Answer]


def ours(method: str, dtype: torch.dtype = torch.float64) -> Solver:
    """fastode, rtol = atol = tolerance."""

    def run(problem: Problem, at: Array, tolerance: float) -> Answer:
        y0 = torch.tensor([problem.start], dtype=dtype)
        with torch.no_grad():
            sol = fastode.solve(
                problem.field,
                y0,
                torch.from_numpy(at),
                method=method,
                rtol=tolerance,
                atol=tolerance,
                max_steps=MAX_STEPS,
                on_failure="nan",
            )
        return Answer(sol.ys[:, 0].double().numpy(), int(sol.stats.n_evals))

    return run


def by_scipy(method: str) -> Solver:
    """``scipy.integrate.solve_ivp``, outputs by its dense output."""

    def run(problem: Problem, at: Array, tolerance: float) -> Answer:
        from scipy.integrate import solve_ivp

        found = solve_ivp(
            problem.array, (0.0, END), np.array(problem.start), method, t_eval=at, rtol=tolerance, atol=tolerance
        )
        return Answer(found.y.T, found.nfev)

    return run


def by_torchdiffeq(method: str) -> Solver:
    """``torchdiffeq.odeint`` on one sample in float64."""

    def run(problem: Problem, at: Array, tolerance: float) -> Answer:
        import torchdiffeq

        calls = 0

        def single(t: Any, y: Any) -> Any:
            nonlocal calls
            calls += 1
            return problem.single(t, y)

        y0 = torch.tensor(problem.start, dtype=torch.float64)
        with torch.no_grad():
            ys = torchdiffeq.odeint(single, y0, torch.from_numpy(at), rtol=tolerance, atol=tolerance, method=method)
        return Answer(ys.numpy(), calls)

    return run


SOLVERS: dict[str, Solver] = {
    "fastode dopri5": ours("dopri5"),
    "fastode tsit5": ours("tsit5"),
    "fastode dopri8": ours("dopri8"),
    "fastode bosh3": ours("bosh3"),
    "fastode dopri5 float32": ours("dopri5", torch.float32),
    "scipy RK45": by_scipy("RK45"),
    "scipy DOP853": by_scipy("DOP853"),
    "torchdiffeq dopri5": by_torchdiffeq("dopri5"),
    "torchdiffeq dopri8": by_torchdiffeq("dopri8"),
}


def errors(answer: Answer, true: Array) -> tuple[float, float]:
    """Largest |error| / (1 + |y|) at the end, and at the outputs between; NaN where there is no answer."""
    if answer.states.shape != true.shape:
        return float("nan"), float("nan")
    relative = (np.abs(answer.states - true) / (1 + np.abs(true))).max(1)
    return float(relative[-1]), float(relative[1:-1].max())
