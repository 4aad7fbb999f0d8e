"""How wrong a step's dense output is between the ends of the step: its defect, brought back to the state.

A step ends on the slow manifold of a stiff problem however long it is, and its error estimate, the difference of two
such ends, does not see what lies between. With u the dense output, d(theta) = f(t + theta h, u) - u' says how far u is
from solving the equation (Enright 2000, J. Comput. Appl. Math. 125, 159-170). As an error of the state it is

    (I - gamma h J)^-1 gamma h d

which is J^-1 (u' - f), the distance of u to the manifold, where h J is large, and the change by d over a time gamma h
where it is small: the filter for error estimates of Shampine and Baca (1984, Numer. Math. 44, 319-333).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from fastode.backends.implicit.arithmetic import column, combine
from fastode.backends.implicit.jacobian import Field
from fastode.backends.implicit.linear import Factors
from fastode.tableaus import Tableau

POINTS = (0.4, 0.85)
"""Theta of the points at which the defect is taken.

In the stiff limit the error for the solution t^q is a polynomial of theta with one or two roots inside the step: with
rodas5p near 1/4 and 3/4, with kvaerno3 at 17/20, with kvaerno4 and kvaerno5 near 1/2. For q up to 6 it is near its
largest value at one of these points at least.
"""


@dataclass(frozen=True)
class Filter:
    """Factors of a matrix ``weight / gamma (I - gamma h J)``, such that the filter is its inverse times ``weight``."""

    factors: Factors
    weight: float


@lru_cache(maxsize=64)
def _weights(tableau: Tableau, theta: float) -> tuple[list[float], list[float]]:
    """b_i(theta), and minus its derivative."""
    power = np.arange(1, tableau.p.shape[1] + 1)
    return (tableau.p @ theta**power).tolist(), (-tableau.p @ (power * theta ** (power - 1))).tolist()


def defects(
    tableau: Tableau, field: Field, t: Tensor, h: Tensor, y: Tensor, slopes: list[Tensor], filter: Filter
) -> list[Tensor]:
    """Errors (n, D) of the dense output at ``POINTS`` of steps h (n,) float64 from t (n,) float64 and y (n, D)."""
    found = []
    for theta in POINTS:
        weights, rates = _weights(tableau, theta)
        value = field(t + theta * h, combine(y, h, weights, slopes))
        defect = combine(value, None, rates, slopes)
        found.append(filter.factors.solve(column(filter.weight * h, y) * defect))
    return found
