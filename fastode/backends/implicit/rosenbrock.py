"""One step of a Rosenbrock method, for all samples at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastode.backends.implicit.arithmetic import column, combine
from fastode.backends.implicit.defect import Filter
from fastode.backends.implicit.jacobian import Field
from fastode.backends.implicit.linear import Factors, factorise
from fastode.backends.implicit.stages import Stages
from fastode.tableaus.rosenbrock import RosenbrockTableau


def rosenbrock_matrix(tableau: RosenbrockTableau, h: Tensor, jac: Tensor) -> Tensor:
    """I / gamma - h J, (n, D, D), for h (n,) float64 and J (n, D, D)."""
    matrix = -column(h, jac)[:, :, None] * jac
    matrix.diagonal(dim1=1, dim2=2).add_(1.0 / tableau.gamma)
    return matrix


def rosenbrock_stages(
    tableau: RosenbrockTableau, field: Field, t: Tensor, h: Tensor, y: Tensor, k1: Tensor, jac: Tensor, dfdt: Tensor
) -> tuple[list[Tensor], list[Tensor], Factors]:
    """The K_i, the states at which the field was evaluated for them, and the factors.

    Args:
        tableau: the method.
        field: dy/dt of these samples.
        t: (n,) float64.
        h: (n,) float64.
        y: (n, D).
        k1: (n, D), the field at (t, y).
        jac: (n, D, D), its derivative by y there.
        dfdt: (n, D), its derivative by t there.
    """
    factors = factorise(rosenbrock_matrix(tableau, h, jac))
    slopes: list[Tensor] = []
    states = [y]
    for i in range(tableau.n_stages):
        value = k1
        if i:
            states.append(combine(y, h, tableau.a[i, :i].tolist(), slopes))
            value = field(t + float(tableau.c[i]) * h, states[i])
        right = combine(value, None, tableau.C[i, :i].tolist(), slopes) if i else value
        if tableau.d[i] != 0.0:
            right = right + column(float(tableau.d[i]) * h, y) * dfdt
        slopes.append(factors.solve(right))
    return slopes, states, factors


def rosenbrock_attempt(
    tableau: RosenbrockTableau,
    field: Field,
    t: Tensor,
    h: Tensor,
    y: Tensor,
    k1: Tensor,
    jac: Tensor,
    dfdt: Tensor,
    live: Tensor,
) -> tuple[Stages, Tensor, Callable[[], Filter]]:
    """One attempted step as ``Stages``, the field at its end, and the filter for defects of its dense output."""
    slopes, _, factors = rosenbrock_stages(tableau, field, t, h, y, k1, jac, dfdt)
    y1 = combine(y, h, tableau.b.tolist(), slopes)
    last = field(t + h, y1)
    evals = live * torch.full_like(live, tableau.n_stages, dtype=torch.int64)
    return Stages(y1, slopes, live, torch.ones_like(h), evals), last, lambda: Filter(factors, 1.0)
