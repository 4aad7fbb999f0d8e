"""``ImplicitTableau``: the coefficients of an implicit Runge-Kutta method, verified when they are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fastode.tableaus.base import Number, Row, Tableau, _array, _bernstein, _check_order, _row
from fastode.tableaus.dense import hermite_interpolant


@dataclass(frozen=True)
class Block:
    """Stages ``start`` to ``stop`` - 1, which are found together.

    ``kind`` is ``"explicit"`` (one evaluation), ``"diagonal"`` (one stage that depends on itself) or ``"coupled"``.
    """

    start: int
    stop: int
    kind: str


class ImplicitTableau(Tableau):
    """An implicit Runge-Kutta method with s stages in first-same-as-last form.

        k_i = f(t + c_i h, y + h sum_j a_ij k_j)
        y(t + h) = y + h sum_i b_i k_i                    error = h sum_i e_i k_i
        y(t + theta h) = y + h sum_i b_i(theta) k_i       b_i(theta) = sum_{m=1..degree} p[i, m-1] theta^m

    The first stage is always f(t, y) and the last one f(t + h, y(t + h)), the first of the next step: a method without
    them gets them added (zero in b), the last one only where its last stage is not the end of the step already (not
    stiffly accurate). The first predicts the others, and both may take part in dense output.

    Numbers and checks are those of ``Tableau``.

    Args:
        name: a name for messages.
        c: n nodes.
        a: n rows of n coefficients; a row may end early, what is left is zero.
        b: n weights.
        order: order of b.
        b_embedded: n weights, or s, of the embedded approximation; None: no error estimate.
        embedded_order: order of ``b_embedded``; required with it.
        dense: n rows, or s, of coefficients of theta, theta^2, ... of b_i(theta). None: cubic Hermite interpolation.
        dense_order: order of ``dense``; required with it.

    Attributes:
        is_stiffly_accurate: whether the method came with y(t + h) as its last stage.
        blocks: the stages after the first in the order in which they can be found.

    Raises:
        ValueError: as for ``Tableau``.
    """

    is_explicit = False

    def __init__(
        self,
        name: str,
        c: Sequence[Number],
        a: Sequence[Sequence[Number]],
        b: Sequence[Number],
        order: int,
        *,
        b_embedded: Sequence[Number] | None = None,
        embedded_order: int | None = None,
        dense: Sequence[Sequence[Number]] | None = None,
        dense_order: int | None = None,
    ) -> None:
        nodes, weights = _row(name, "c", c), _row(name, "b", b)
        n = len(nodes)
        if n == 0 or len(weights) != n or len(a) != n:
            raise ValueError(
                f"tableau {name!r}: c has {n} entries, a {len(a)} rows and b {len(weights)} entries; expected equal, "
                "at least 1"
            )
        rows = [_row(name, f"row {i} of a", row) for i, row in enumerate(a)]
        for i, row in enumerate(rows):
            if len(row) > n:
                raise ValueError(f"tableau {name!r}: row {i} of a has {len(row)} entries, expected at most {n}")
            row += [Fraction(0)] * (n - len(row))
        _check_order(name, "order", order, 2 * n)

        before = 0 if nodes[0] == 0 and not any(rows[0]) else 1
        stiffly_accurate = nodes[-1] == 1 and rows[-1] == weights
        after = 0 if stiffly_accurate else 1
        s = before + n + after

        def padded(row: Row) -> Row:
            return row if len(row) == s else [Fraction(0)] * before + row + [Fraction(0)] * after

        nodes = [Fraction(0)] * before + nodes + [Fraction(1)] * after
        rows = [padded(row) for row in [[Fraction(0)] * n] * before + rows + [weights] * after]
        weights = padded(weights)

        error: Row | None = None
        if (b_embedded is None) != (embedded_order is None):
            raise ValueError(f"tableau {name!r}: b_embedded and embedded_order must be given together")
        if b_embedded is not None:
            _check_order(name, "embedded_order", embedded_order, 2 * s)
            embedded = _row(name, "b_embedded", b_embedded)
            if len(embedded) not in (n, s):
                raise ValueError(f"tableau {name!r}: b_embedded has {len(embedded)} entries, expected {n} or {s}")
            error = [x - y for x, y in zip(weights, padded(embedded), strict=True)]

        if (dense is None) != (dense_order is None):
            raise ValueError(f"tableau {name!r}: dense and dense_order must be given together")
        if dense is None:
            polynomials, dense_order = hermite_interpolant(weights), min(order, 3)
        else:
            _check_order(name, "dense_order", dense_order, 2 * s)
            polynomials = [_row(name, f"row {i} of dense", row) for i, row in enumerate(dense)]
            degrees = {len(row) for row in polynomials}
            if len(polynomials) not in (n, s) or len(degrees) != 1 or 0 in degrees:
                raise ValueError(
                    f"tableau {name!r}: dense has {len(polynomials)} rows with {sorted(degrees)} entries, expected {n} "
                    f"or {s} rows of equal length, at least 1"
                )
            if len(polynomials) != s:
                zero = [Fraction(0)] * degrees.pop()
                polynomials = [zero] * before + polynomials + [zero] * after

        self.name = name
        self.order = order
        self.embedded_order = embedded_order
        self.dense_order = int(dense_order or 0)
        self.is_stiffly_accurate = stiffly_accurate
        self.is_fsal_native = stiffly_accurate and before == 0
        self.c, self.a, self.b = _array(nodes), _array(rows), _array(weights)
        self.e = None if error is None else _array(error)
        self.p = _array(polynomials)
        self.q = _array([_bernstein(row) for row in polynomials])
        self.blocks = _blocks(self.a)
        self._verify()

    def __repr__(self) -> str:
        return "Implicit" + super().__repr__()


def _blocks(a: np.ndarray) -> tuple[Block, ...]:
    """The finest order in which the stages after the first can be found one group after the other."""
    s = len(a)
    blocks = []
    start = 1
    while start < s:
        stop = start + 1
        while bool((a[start:stop, stop:] != 0).any()):
            stop += 1
        kind = "coupled" if stop > start + 1 else "diagonal" if a[start, start] != 0 else "explicit"
        blocks.append(Block(start, stop, kind))
        start = stop
    return tuple(blocks)
