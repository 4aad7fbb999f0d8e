"""How each library runs a case: forward, and forward with the gradient to everything."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import fastode
from bench.cases import Case

Solve = Callable[[Case, Tensor, tuple[Tensor, ...]], Tensor]
"""The end state (B, D) from y0 and the parameters, differentiable in both."""


def _fastode(backend: str) -> Solve:
    def solve(case: Case, y0: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        solution = fastode.solve(
            case.field,
            y0,
            case.t,
            controls=parameters,
            rtol=case.rtol,
            atol=case.atol,
            backend=backend,
        )
        return solution.ys[-1]

    return solve


def _torchdiffeq(case: Case, y0: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    from torchdiffeq import odeint

    return odeint(lambda t, y: case.field(t, y, parameters), y0, case.t, rtol=case.rtol, atol=case.atol)[-1]


def _torchdiffeq_adjoint(case: Case, y0: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    from torchdiffeq import odeint_adjoint

    return odeint_adjoint(
        lambda t, y: case.field(t, y, parameters),
        y0,
        case.t,
        rtol=case.rtol,
        atol=case.atol,
        adjoint_params=tuple(p for p in parameters if p.requires_grad),
    )[-1]


LIBRARIES: dict[str, Solve] = {
    "fastode stepped": _fastode("stepped"),
    "torchdiffeq": _torchdiffeq,
    "torchdiffeq adjoint": _torchdiffeq_adjoint,
}
"""The two of torchdiffeq differ in the backward pass only."""


def forward(solve: Solve, case: Case) -> Tensor:
    """The end state, without gradient."""
    with torch.no_grad():
        return solve(case, case.y0, case.parameters)


def gradient(solve: Solve, case: Case) -> list[Tensor]:
    """Gradients of the sum of squares of the end state by y0 and the parameters."""
    y0 = case.y0.clone().requires_grad_()
    parameters = tuple(p.clone().requires_grad_() for p in case.parameters)
    loss = solve(case, y0, parameters).square().sum()
    return list(torch.autograd.grad(loss, [y0, *parameters]))
