"""The self check of a tableau: row sums and order conditions, each compared with a rounding-error bound."""

from __future__ import annotations

import numpy as np

from fastode.tableaus.order_conditions import Array, elementary_weights, rooted_trees

# A condition is violated when |residual| > TOLERANCE * (sum of the absolute values of the terms summed). Coefficients
# that are correctly rounded to float64 and the rounding errors of the sums need at most 5e-16 here (dopri8, whose
# published fractions satisfy the conditions to 2e-17; 2e-16 and less for the others, tsit5 included). 4e-15 leaves room
# for a user's method printed with 16 digits, and is far below a wrong digit anywhere.
TOLERANCE = 4e-15


def _require(name: str, what: str, value: Array, expected: Array, size: Array) -> None:
    """Raise ValueError for the first of the quantities in ``value`` that differs from ``expected``."""
    residual = np.abs(value - expected)
    limit = TOLERANCE * (size + np.abs(expected))
    wrong = np.flatnonzero(~(residual <= limit))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(
            f"tableau {name!r}: {what.format(i=i + 1)} is {value[i]:.17g}, expected {expected[i]:.17g} "
            f"(residual {residual[i]:.3e}, tolerance {limit[i]:.1e})"
        )


def check_nodes(name: str, c: Array, a: Array) -> None:
    """Row sums of ``a`` equal ``c``."""
    _require(name, "the sum of row {i} of a", a.sum(axis=1), c, np.abs(a).sum(axis=1))


class OrderConditions:
    """Elementary weights of ``a`` for all trees of at most ``max_order`` vertices, to check weights against."""

    def __init__(self, name: str, a: Array, max_order: int) -> None:
        self.name = name
        self.trees = rooted_trees(max_order)
        self.phi, self.size = elementary_weights(a, max_order)

    def check_weights(self, label: str, weights: Array, order: int) -> None:
        """sum_i w_i Phi_i(tree) = 1 / gamma(tree) for every tree of at most ``order`` vertices."""
        self._check(label, weights, 1.0 / self.trees.gamma, order)

    def check_dense(self, p: Array, order: int) -> None:
        """sum_i b_i(theta) Phi_i(tree) = theta^rho / gamma(tree), one power of theta after the other."""
        for power in range(1, max(p.shape[1], order) + 1):
            column = p[:, power - 1] if power <= p.shape[1] else np.zeros(len(p))
            expected = np.where(self.trees.order == power, 1.0 / self.trees.gamma, 0.0)
            self._check(f"b(theta), coefficient of theta^{power}", column, expected, order)

    def _check(self, label: str, weights: Array, expected: Array, order: int) -> None:
        n = int(np.searchsorted(self.trees.order, order, side="right"))
        value = self.phi[:n] @ weights
        residual = np.abs(value - expected[:n])
        size = self.size[:n] @ np.abs(weights) + np.abs(expected[:n])
        wrong = np.flatnonzero(~(residual <= TOLERANCE * size))
        if wrong.size:
            i = int(wrong[0])
            raise ValueError(
                f"tableau {self.name!r}: the order condition '{self.trees.condition(i)}' (order {self.trees.order[i]}) "
                f"of {label} gives {value[i]:.17g}, expected {expected[i]:.17g} "
                f"(residual {residual[i]:.3e}, tolerance {TOLERANCE * size[i]:.1e})"
            )


def check_error_weights(name: str, e: Array) -> None:
    """The error weights sum to zero and are not all zero."""
    _require(name, "the sum of the error weights b - b_embedded", e.sum(keepdims=True), np.zeros(1), np.abs([e]).sum(1))
    if not e.any():
        raise ValueError(f"tableau {name!r}: b_embedded equals b, so the error estimate would always be zero")


def check_end_point(name: str, b: Array, p: Array) -> None:
    """Dense output ends in the step's result: b_i(theta = 1) = b_i."""
    _require(name, "dense output at theta = 1, stage {i},", p.sum(axis=1), b, np.abs(p).sum(axis=1))
