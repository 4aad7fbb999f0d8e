"""The time that no implementation of the method can beat on a machine: its arithmetic and its compulsory traffic."""

from __future__ import annotations

import numpy as np

from bench.cases import FORWARD, TRAIN, Problem
from bench.libraries import Work
from bench.machine import Machine
from fastode import TABLEAUS

METHOD = "dopri5"


def floor_seconds(problem: Problem, mode: str, work: Work, machine: Machine) -> tuple[float, str] | None:
    """The floor, and which rate bounds it ("flops" or "bytes").

    Arithmetic: every evaluation that the steps of ``work`` need, and the method's own sums over stages; a gradient adds
    twice each accepted step's evaluations (the products with the transposed Jacobians by state and by weights; nothing
    for computing stages again) and the sums again. All of it at the rate of a matrix product.

    Traffic: inputs read once and outputs written once; a gradient reads the inputs and the gradients of the outputs,
    writes its results, and writes and reads one state per accepted step. All of it at the rate of a copy.

    On a GPU one kernel launch comes on top, whichever bounds.

    None where the arithmetic of the case is not known, or fastode's own statistics are not there.
    """
    if problem.flops is None or not work.evals_total or work.steps_total is None or work.accepted_total is None:
        return None
    tableau = TABLEAUS[METHOD]
    assert tableau.e is not None
    width = problem.values()["state"] / problem.case.batch
    sums = 2.0 * width * (np.count_nonzero(tableau.a) + np.count_nonzero(tableau.e))
    flops = work.evals_total * problem.flops + work.steps_total * sums
    values = problem.values()
    traffic = float(values["inputs"] + values["outputs"])
    if mode != FORWARD:
        flops += work.accepted_total * ((tableau.n_stages - 1) * 2 * problem.flops + sums)
        traffic += values["inputs"] + values["outputs"] + values["gradients"] + 2 * work.accepted_total * width
    times = {"flops": flops / machine.flops, "bytes": traffic * problem.t.element_size() / machine.copied}
    bound = max(times, key=lambda name: times[name])
    seconds = times[bound] + machine.launch
    return seconds * (problem.case.train_steps if mode == TRAIN else 1), bound
