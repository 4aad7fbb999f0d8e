"""``RosenbrockTableau``: the coefficients of a Rosenbrock method, verified when they are put together.

Source: Hairer and Wanner (1996), Solving Ordinary Differential Equations II, section IV.7: the methods, (7.4); the
order conditions by trees, (7.11), theorems 7.3 and 7.4; the form without products by the Jacobian, (7.25).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from fastode.tableaus.base import Number, Tableau, _array, _bernstein, _check_order, _exact, _row
from fastode.tableaus.checks import check_end_point
from fastode.tableaus.order_conditions import Array, rooted_trees

# The published coefficients have 16 digits and are those of the transformed form, which the conditions are a nonlinear
# function of. Rodas5P's residuals are below 1.1e-15 of the magnitudes that enter; a wrong digit anywhere is above this.
TOLERANCE = 4e-15


class RosenbrockTableau(Tableau):
    """A Rosenbrock method with s stages: one factorisation and s linear solves per step, no iteration.

        (I / gamma - h J) K_i = f(t + c_i h, y + h sum_{j<i} a_ij K_j) + sum_{j<i} C_ij K_j + d_i h df/dt
        y(t + h) = y + h sum_i b_i K_i                    error = h sum_i e_i K_i
        y(t + theta h) = y + h sum_i b_i(theta) K_i

    with J and df/dt at (t, y). In terms of the classical coefficients alpha_ij and gamma_ij, K = Gamma k: a = alpha
    Gamma^-1, C = I / gamma - Gamma^-1, b = b_classical Gamma^-1, and c, d are the row sums of alpha and Gamma.

    Verified: c and d, and the order conditions of b, b_embedded and b(theta), those for an exact Jacobian.

    Args:
        name: a name for messages.
        gamma: the diagonal coefficient.
        c, d: s nodes and s weights of df/dt.
        a, C: s rows; row i holds its i coefficients.
        b: s weights.
        order: order of b.
        b_embedded, embedded_order: the embedded method.
        dense, dense_order: rows of coefficients of theta, theta^2, ... of b_i(theta).

    Attributes:
        gamma: float.
        C: (s, s) float64.
        d: (s,) float64.

    Raises:
        ValueError: as for ``Tableau``.
    """

    is_explicit = False

    def __init__(
        self,
        name: str,
        gamma: Number,
        c: Sequence[Number],
        d: Sequence[Number],
        a: Sequence[Sequence[Number]],
        C: Sequence[Sequence[Number]],
        b: Sequence[Number],
        order: int,
        *,
        b_embedded: Sequence[Number],
        embedded_order: int,
        dense: Sequence[Sequence[Number]],
        dense_order: int,
    ) -> None:
        weights = _row(name, "b", b)
        s = len(weights)
        for what, given in (("c", c), ("d", d), ("a", a), ("C", C), ("b_embedded", b_embedded), ("dense", dense)):
            if len(given) != s:
                raise ValueError(f"tableau {name!r}: {what} has {len(given)} entries, expected {s} like b")
        for what, value in (("order", order), ("embedded_order", embedded_order), ("dense_order", dense_order)):
            _check_order(name, what, value, 2 * s)

        def lower(what: str, rows: Sequence[Sequence[Number]]) -> list[list[Fraction]]:
            given = [_row(name, f"row {i} of {what}", row) for i, row in enumerate(rows)]
            for i, row in enumerate(given):
                if len(row) != i:
                    raise ValueError(f"tableau {name!r}: row {i} of {what} has {len(row)} entries, expected {i}")
            return [row + [Fraction(0)] * (s - len(row)) for row in given]

        embedded = _row(name, "b_embedded", b_embedded)
        polynomials = [_row(name, f"row {i} of dense", row) for i, row in enumerate(dense)]
        self.name = name
        self.order = order
        self.embedded_order = embedded_order
        self.dense_order = dense_order
        self.is_fsal_native = False
        self.gamma = float(_exact(name, "gamma", gamma))
        self.c, self.d = _array(_row(name, "c", c)), _array(_row(name, "d", d))
        self.a, self.C = _array(lower("a", a)), _array(lower("C", C))
        self.b = _array(weights)
        self.e = _array([x - y for x, y in zip(weights, embedded, strict=True)])
        self.p = _array(polynomials)
        self.q = _array([_bernstein(row) for row in polynomials])
        self._verify()

    def classical(self) -> tuple[Array, Array]:
        """The matrices alpha and Gamma, (s, s)."""
        gamma: Array = np.linalg.inv(np.eye(len(self.c)) / self.gamma - self.C).astype(np.float64)
        return self.a @ gamma, gamma

    def _verify(self) -> None:
        alpha, gamma = self.classical()
        size = np.abs(self.a) @ np.abs(gamma) + np.abs(gamma) + np.abs(gamma) @ np.abs(self.C) @ np.abs(gamma)
        self._require("the row sums of alpha", alpha.sum(1), self.c, size.sum(1))
        self._require("the row sums of Gamma", gamma.sum(1), self.d, size.sum(1))
        assert self.e is not None
        self._check_weights("b", self.b, self.order)
        self._check_weights("b_embedded", self.b - self.e, int(self.embedded_order or 0))
        check_end_point(self.name, self.b, self.p)
        for power in range(1, max(self.p.shape[1], self.dense_order) + 1):
            column = self.p[:, power - 1] if power <= self.p.shape[1] else np.zeros(len(self.c))
            self._check_weights(f"b(theta), coefficient of theta^{power},", column, self.dense_order, power)

    def _check_weights(self, label: str, weights: Array, order: int, power: int | None = None) -> None:
        """The conditions of order at most ``order`` (of those of b(theta), the coefficient of one power of theta)."""
        alpha, gamma = self.classical()
        trees = rooted_trees(order)
        phi, size = rosenbrock_weights(alpha, gamma, order)
        expected = 1.0 / trees.gamma
        if power is not None:
            expected = np.where(trees.order == power, expected, 0.0)
        magnitude = size @ (np.abs(weights) @ (np.abs(gamma) + np.abs(gamma) @ np.abs(self.C) @ np.abs(gamma)))
        self._require(f"an order condition of {label}", phi @ (weights @ gamma), expected, magnitude)

    def _require(self, what: str, value: Array, expected: Array, size: Array) -> None:
        residual = np.abs(value - expected)
        limit = TOLERANCE * (size + np.abs(expected))
        wrong = np.flatnonzero(~(residual <= limit))
        if wrong.size:
            i = int(wrong[0])
            raise ValueError(
                f"tableau {self.name!r}: {what} (number {i + 1}) gives {value[i]:.17g}, expected {expected[i]:.17g} "
                f"(residual {residual[i]:.3e}, tolerance {limit[i]:.1e})"
            )

    def __repr__(self) -> str:
        return "Rosenbrock" + super().__repr__()


def rosenbrock_weights(alpha: Array, gamma: Array, max_order: int) -> tuple[Array, Array]:
    """Elementary weights (n_trees, s) of every stage, and their size before cancellation.

    A vertex with one branch counts alpha + Gamma, one with several alpha for each (Hairer and Wanner, theorem 7.4).
    """
    trees = rooted_trees(max_order)
    phi, size = np.ones((2, len(trees.children), len(alpha)))
    for i, children in enumerate(trees.children):
        if children:
            matrix = alpha + gamma if len(children) == 1 else alpha
            bound = np.abs(alpha) + np.abs(gamma) if len(children) == 1 else np.abs(alpha)
            phi[i] = np.prod([matrix @ phi[child] for child in children], axis=0)
            size[i] = np.prod([bound @ np.abs(phi[child]) for child in children], axis=0)
    return phi, size
