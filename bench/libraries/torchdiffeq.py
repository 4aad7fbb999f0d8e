"""torchdiffeq: backpropagation through its operations, and its adjoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bench.cases import GRADIENT, MODES, TRAIN, Problem
from bench.cases.case import Solve
from bench.libraries.base import TorchLibrary, Work
from fastode.tree import leaves


class Torchdiffeq(TorchLibrary):
    """``odeint``, or ``odeint_adjoint``, which differs in the backward pass only."""

    package = "torchdiffeq"

    def __init__(self, adjoint: bool) -> None:
        self.adjoint = adjoint
        self.name = "torchdiffeq adjoint" if adjoint else "torchdiffeq"
        self.modes = (GRADIENT, TRAIN) if adjoint else MODES

    def solver(self, problem: Problem, mode: str) -> Solve:
        return self._solve

    def _solve(self, problem: Problem, y0: Any, controls: Any, count: Callable[[], None] | None = None) -> Any:
        from torchdiffeq import odeint, odeint_adjoint

        field, case = problem.field, problem.case

        def func(t: Any, y: Any) -> Any:
            if count is not None:
                count()
            return field(t, y) if controls is None else field(t, y, controls)

        if self.adjoint:
            # The field's own weights: those of a model around it reach the solve through the controls already.
            weights = field.parameters() if isinstance(field, nn.Module) else []
            tensors = [*([] if controls is None else leaves(controls)), *weights]
            params = tuple(tensor for tensor in tensors if tensor.requires_grad)
            ys = odeint_adjoint(
                func, y0, problem.t, rtol=case.rtol, atol=case.atol, method="dopri5", adjoint_params=params
            )
        else:
            ys = odeint(func, y0, problem.t, rtol=case.rtol, atol=case.atol, method="dopri5")
        return tuple(leaf[1:] for leaf in ys) if isinstance(ys, tuple) else ys[1:]

    def work(self, problem: Problem, mode: str, solve: Solve) -> Work:
        """Counted in a forward solve of its own: 2 evaluations at the start and 6 in each step, for the whole batch."""
        calls = [0]

        def count() -> None:
            calls[0] += 1

        problem.forward(lambda p, y0, controls: self._solve(p, y0, controls, count))
        steps = (calls[0] - 2) / 6
        return Work(steps_mean=steps, steps_max=steps, evals=calls[0])
