"""scipy: RK45, the pair of dopri5, with the whole batch as one system in float64. Forward only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.cases import FORWARD, Problem
from bench.libraries.base import DoesNotApply, Run, Work, require
from fastode.tree import flatten_state, leaves

LARGEST = 20_000
"""Numbers in the state of the whole batch."""


class Scipy:
    """``scipy.integrate.solve_ivp``; the field is torch code on the CPU, reached through numpy."""

    name, package = "scipy RK45", "scipy"
    modes = (FORWARD,)

    def prepare(self, problem: Problem, mode: str) -> Run:
        require(self.package)
        from scipy.integrate import solve_ivp

        if type(problem) is not Problem:
            raise DoesNotApply("a torch model around the solve")
        problem = problem.to("cpu", torch.float64)
        flat, spec = flatten_state(problem.y0)
        if flat.numel() > LARGEST:
            raise DoesNotApply(f"more than {LARGEST} numbers as one system")
        batch, width = flat.shape
        y0, t = flat.flatten().numpy(), problem.t.numpy()
        span = float(t[0]), float(t[-1])
        last: dict[str, Any] = {}

        def field(t: float, y: Any) -> Any:
            state = spec.unflatten(torch.from_numpy(y).reshape(batch, width))
            time = torch.tensor(t, dtype=torch.float64)
            value = (
                problem.field(time, state) if problem.controls is None else problem.field(time, state, problem.controls)
            )
            return spec.flatten(value, "the field's value", batch).flatten().numpy()

        def call() -> Any:
            with torch.no_grad():
                result = solve_ivp(
                    field, span, y0, method="RK45", t_eval=t[1:], rtol=problem.case.rtol, atol=problem.case.atol
                )
            last["result"] = result
            return result

        def values(result: Any) -> list[Tensor]:
            if not result.success:
                raise RuntimeError(result.message)
            ys = torch.from_numpy(result.y.T.copy()).reshape(-1, batch, width)
            return leaves(spec.unflatten(ys))

        def work() -> Work:
            steps = (last["result"].nfev - 2) / 6
            return Work(steps, steps, last["result"].nfev)

        return Run(call, values, work)
