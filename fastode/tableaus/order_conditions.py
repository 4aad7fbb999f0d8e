"""Rooted trees, elementary weights and the order conditions of explicit Runge-Kutta methods.

Sources: Butcher (2016), Numerical Methods for Ordinary Differential Equations, 3rd ed., chapter 3; Hairer, Norsett and
Wanner (1993), Solving Ordinary Differential Equations I, section II.2 (order conditions, Theorem 2.13) and section II.6
(the same conditions for dense output).

A tree is stored by the indices of the trees that hang from its root, so that every subtree is evaluated once. The
elementary weight of stage i is Phi_i(tree) = prod over children of sum_j a_ij Phi_j(child); a set of weights w is of
order p when sum_i w_i Phi_i(tree) = 1 / gamma(tree) for every tree of at most p vertices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import factorial

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trees:
    """All rooted trees with at most ``max_order`` vertices, by increasing number of vertices.

    Attributes:
        children: for each tree the indices (non-increasing) of the subtrees of its root; the one-vertex tree is ``()``.
        order: (n,) int64, number of vertices.
        gamma: (n,) float64, density: 1 / gamma is the right-hand side of the order condition.
        sigma: (n,) float64, symmetry: residual / sigma is the coefficient of the elementary differential in the error.
    """

    children: tuple[tuple[int, ...], ...]
    order: NDArray[np.int64]
    gamma: Array
    sigma: Array

    def condition(self, index: int, weight: str = "b") -> str:
        """The order condition of tree ``index`` in the customary notation, e.g. ``sum b_i c_i a_ij c_j``."""
        letters = (letter for letter in "jklmnopqrstuvwxyz" + "?" * int(self.order[index]))

        def factors(tree: int, stage: str) -> list[str]:
            parts = []
            for child in self.children[tree]:
                if self.children[child]:
                    below = next(letters)
                    parts += [f"a_{stage}{below}", *factors(child, below)]
                else:
                    parts.append(f"c_{stage}")
            return parts

        return " ".join([f"sum {weight}_i", *factors(index, "i")])


@cache
def rooted_trees(max_order: int) -> Trees:
    """Return every rooted tree with 1 to ``max_order`` vertices (1, 1, 2, 4, 9, 20, 48, 115, ... per order)."""
    children: list[tuple[int, ...]] = [()]
    order = [1]
    gamma = [1]
    sigma = [1]

    def forests(vertices: int, last: int) -> Iterator[tuple[int, ...]]:
        if vertices == 0:
            yield ()
        for tree in range(last, -1, -1):
            if order[tree] <= vertices:
                for rest in forests(vertices - order[tree], tree):
                    yield (tree, *rest)

    for n in range(2, max_order + 1):
        for forest in list(forests(n - 1, len(children) - 1)):
            density, symmetry = n, 1
            for tree, multiplicity in Counter(forest).items():
                density *= gamma[tree] ** multiplicity
                symmetry *= factorial(multiplicity) * sigma[tree] ** multiplicity
            children.append(forest)
            order.append(n)
            gamma.append(density)
            sigma.append(symmetry)
    return Trees(tuple(children), np.array(order), np.array(gamma, np.float64), np.array(sigma, np.float64))


@cache
def _child_table(max_order: int) -> tuple[tuple[NDArray[np.int64], slice], ...]:
    """Per order: children of its trees as a rectangular index table, padded with the index of a row of ones."""
    trees = rooted_trees(max_order)
    ones = len(trees.children)
    levels = []
    for n in range(2, max_order + 1):
        start, stop = (int(x) for x in np.searchsorted(trees.order, [n, n + 1]))
        table = np.full((stop - start, n - 1), ones)
        for row, tree in enumerate(range(start, stop)):
            table[row, : len(trees.children[tree])] = trees.children[tree]
        levels.append((table, slice(start, stop)))
    return tuple(levels)


def elementary_weights(a: Array, max_order: int) -> tuple[Array, Array]:
    """Elementary weights of every stage for every tree, and their size before cancellation.

    Args:
        a: (s, s) strictly lower triangular coefficients.
        max_order: largest number of vertices.

    Returns:
        ``phi`` (n_trees, s), and ``size`` (n_trees, s): the same products with every sum over a stage's terms replaced
        by the sum of their absolute values (one level deep), which is what rounding errors are proportional to.
    """
    n = len(rooted_trees(max_order).children)
    s = a.shape[0]
    phi = np.ones((n, s))
    size = np.ones((n, s))
    below = np.ones((n + 1, s))  # sum_j a_ij Phi_j(tree); the last row pads the child table
    below_size = np.ones((n + 1, s))
    below[0] = a.sum(axis=1)
    below_size[0] = np.abs(a).sum(axis=1)
    for table, level in _child_table(max_order):
        phi[level] = below[table].prod(axis=1)
        size[level] = below_size[table].prod(axis=1)
        below[level] = phi[level] @ a.T
        below_size[level] = np.abs(phi[level]) @ np.abs(a).T
    return phi, size
