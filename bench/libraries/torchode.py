"""torchode: own step sizes per sample, in torch operations; gradients by backpropagation."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from bench.cases import MODES, Problem
from bench.cases.case import Solve
from bench.libraries.base import TorchLibrary, Work
from fastode.tree import StateSpec, flatten_state


class Torchode(TorchLibrary):
    """``AutoDiffAdjoint`` with an integral controller, step sizes being constants of the gradient as elsewhere.

    Not scripted: ``torch.jit.script`` of its solver fails in torch 2.13 with an internal assertion. Not compiled:
    ``torch.compile`` of it takes more than a minute and makes it slower.
    """

    name, package = "torchode", "torchode"
    modes = MODES

    def solver(self, problem: Problem, mode: str) -> Solve:
        return TorchodeSolve()

    def work(self, problem: Problem, mode: str, solve: Solve) -> Work:
        stats = getattr(solve, "stats", {})
        steps = stats["n_steps"].double()
        return Work(float(steps.mean()), float(steps.max()), float(stats["n_f_evals"].max()))


class TorchodeSolve:
    """Solves and keeps the statistics of the last solve."""

    stats: dict[str, Tensor]

    def __call__(self, problem: Problem, y0: Any, controls: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchode

        case = problem.case
        flat, spec = flatten_state(y0)
        batch = flat.shape[0]

        def field(t: Tensor, y: Tensor) -> Tensor:
            state = spec.unflatten(y)
            value = problem.field(t[:, None], state) if controls is None else problem.field(t[:, None], state, controls)
            return spec.flatten(value, "the field's value", batch)

        term = torchode.ODETerm(field)
        method = torchode.Dopri5(term=term)
        controller = torchode.IntegralController(atol=case.atol, rtol=case.rtol, term=term)
        solver = torchode.AutoDiffAdjoint(method, controller, backprop_through_step_size_control=False)
        start, end = problem.t[0].expand(batch), problem.t[-1].expand(batch)
        inner = None if case.n_times == 2 else problem.t[1:].expand(batch, -1).contiguous()
        solution = solver.solve(torchode.InitialValueProblem(flat, start, end, inner))
        self.stats = solution.stats
        if bool((solution.status != 0).any()):
            bad = solution.status[solution.status != 0]
            raise RuntimeError(f"{len(bad)} of {batch} samples failed, first status {int(bad[0])}")
        return _by_time(solution.ys, spec)


def _by_time(ys: Tensor, spec: StateSpec) -> Any:
    return spec.unflatten(torch.movedim(ys, 1, 0))
