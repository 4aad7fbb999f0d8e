"""One case of the benchmarks with all libraries, in a child: forward and gradient prepared first, then timed alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from bench.cases import CASES, FORWARD, GRADIENT, Case
from bench.cases.autoencode import ModelProblem
from bench.gpu.worker import Link, device_error
from bench.libraries import OURS
from bench.machine import Machine
from bench.measure import Contest, Settings
from fastode.train.timing import training_times


def run(
    link: Link,
    case: str,
    libraries: list[str],
    without: list[list[str]],
    machine: dict[str, Any],
    device: str,
    rounds: int,
    budget: float,
    limit: float,
    small: bool = False,
) -> dict[str, Any]:
    """Sends ("rows", mode) as they come, and ("at", mode, library) whenever another library begins something.

    Args:
        link: to the parent.
        case: a name of the registry.
        libraries: names of libraries.
        without: [mode, library] that are left out, since they broke the process before.
        machine: fields of ``Machine``.
        device: where.
        rounds: of ``Settings``.
        budget: of ``Settings``.
        limit: of ``Settings``.
        small: a few samples and a short span, for rehearsals.
    """
    settings = Settings(rounds, budget, limit, memory=True, activity=True, device=torch.device(device))
    problem = CASES[case]
    if small:
        start, end = problem.span
        problem = replace(problem, batch=5, n_times=2, span=(start, start + 0.1 * (end - start)))
    contests = []
    for mode in (mode for mode in problem.modes if mode in (FORWARD, GRADIENT)):
        names = [name for name in libraries if [mode, name] not in without]

        def notify(name: str, mode: str = mode) -> None:
            broken = device_error()  # by the one before, to which the last event belongs
            if broken:
                raise RuntimeError(f"CUDA is in error: {broken}")
            link.send(event="at", mode=mode, library=name)

        contest = Contest(problem, mode, names, settings, notify)
        contest.prepare()
        contests.append(contest)
    link.wait_for_turn()
    for contest in contests:
        link.send(event="rows", mode=contest.mode, rows=contest.measure(Machine(**machine)))
    if isinstance(contests[0].problem, ModelProblem):
        link.send(event="shares", shares=_shares(problem, libraries, torch.device(device), rounds))
    return {}


def _shares(case: Case, libraries: list[str], device: torch.device, rounds: int) -> dict[str, Any]:
    """For each of our backends, milliseconds of the parts of a training step, or why there are none."""
    shares: dict[str, Any] = {}
    for library in OURS:
        if library.name not in libraries:
            continue
        problem = case.problem(device)
        assert isinstance(problem, ModelProblem)
        assert problem.model is not None
        problem.model.solver["backend"] = library.backend
        try:
            times = training_times(problem.model, problem.y0, repeats=rounds)
        except Exception as reason:
            shares[library.name] = str(reason).splitlines()[0][:300]
            continue
        parts = {name: 1e3 * getattr(times, name) for name in ("encoder", "solve", "decoder", "update")}
        shares[library.name] = {**parts, "share": times.solve_share}
    return shares
