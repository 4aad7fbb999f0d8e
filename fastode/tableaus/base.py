"""``Tableau``: the coefficients of an explicit Runge-Kutta method, verified when they are put together."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from math import comb, isfinite
from typing import Any, ClassVar, SupportsFloat

import numpy as np

from fastode.tableaus.checks import OrderConditions, check_end_point, check_error_weights, check_nodes
from fastode.tableaus.dense import hermite_interpolant
from fastode.tableaus.order_conditions import Array

Number = int | float | Fraction | str | SupportsFloat
Row = list[Fraction]


class Tableau:
    """An explicit Runge-Kutta method with s stages, in first-same-as-last (FSAL) form.

        k_i = f(t + c_i h, y + h sum_{j<i} a_ij k_j)
        y(t + h) = y + h sum_i b_i k_i                    error = h sum_i e_i k_i
        y(t + theta h) = y + h sum_i b_i(theta) k_i       b_i(theta) = sum_{m=1..degree} p[i, m-1] theta^m

    The last stage is always f(t + h, y(t + h)), the first stage of the next step. A method without this property gets
    such a stage appended (a row equal to b, zero in b), which costs nothing on an accepted step.

    Every number may be an int, a float, a Fraction or a string such as ``"44/45"`` or ``"0.161"``; sums and
    differences are formed exactly and rounded to float64 once. Decimals need at least 16 digits to pass the check.

    The coefficients are verified: row sums of a equal c, the order conditions of b, b_embedded and b(theta) by rooted
    trees (Hairer, Norsett and Wanner 1993, sections II.2 and II.6), error weights that sum to zero, b(1) = b.

    Args:
        name: a name for messages.
        c: n nodes, the first 0.
        a: n rows; row i holds its i coefficients (row 0 is empty), or n with zeros on and above the diagonal.
        b: n weights.
        order: order of b, at most n.
        b_embedded: weights of the embedded approximation that the error is measured against: n, or n + 1 when the
            appended stage takes part. None (default): no error estimate, fixed steps only.
        embedded_order: order of ``b_embedded``; required with it.
        dense: rows of coefficients of theta, theta^2, ... of b_i(theta), n of them, or n + 1 when the appended stage
            takes part. None (default): cubic Hermite interpolation, with ``dense_order`` = min(order, 3).
        dense_order: order of ``dense``; required with it.

    Attributes:
        name, order: as given.
        embedded_order: as given, or None.
        dense_order: as given, or min(order, 3).
        c: (s,) float64, read-only like all the arrays.
        a: (s, s) float64.
        b: (s,) float64.
        e: (s,) float64, b - b_embedded; None without an embedded method.
        p: (s, degree) float64.
        q: (s, degree) float64, b_i(theta) in the Bernstein basis, where its coefficients are moderate and rounding of
            them harmless: b_i(theta) = sum_{m=1..degree} q[i, m-1] comb(degree, m) theta^m (1 - theta)^(degree-m).
        n_stages: s, in FSAL form.
        degree: degree of b_i(theta).
        is_adaptive: whether there is an error estimate.
        is_fsal_native: whether the method came in FSAL form.

    Raises:
        ValueError: for wrong shapes, unreadable numbers, and for coefficients that violate a condition; the message
            names the condition and its residual.
    """

    is_explicit: ClassVar[bool] = True

    name: str
    order: int
    embedded_order: int | None
    dense_order: int
    c: Array
    a: Array
    b: Array
    e: Array | None
    p: Array
    q: Array
    is_fsal_native: bool

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
        if n == 0 or len(weights) != n:
            raise ValueError(
                f"tableau {name!r}: c has {n} entries and b has {len(weights)}; expected equal, at least 1"
            )
        rows = _lower_triangular(name, a, n)
        _check_order(name, "order", order, n)

        native = n > 1 and nodes[-1] == 1 and weights[-1] == 0 and rows[-1] == weights
        if not native:
            nodes.append(Fraction(1))
            rows = [*([*row, Fraction(0)] for row in rows), [*weights, Fraction(0)]]
            weights = [*weights, Fraction(0)]
        s = len(nodes)

        error: Row | None = None
        if (b_embedded is None) != (embedded_order is None):
            raise ValueError(f"tableau {name!r}: b_embedded and embedded_order must be given together")
        if b_embedded is not None:
            _check_order(name, "embedded_order", embedded_order, s)
            embedded = _row(name, "b_embedded", b_embedded)
            if len(embedded) not in (n, s):
                raise ValueError(f"tableau {name!r}: b_embedded has {len(embedded)} entries, expected {n}")
            embedded += [Fraction(0)] * (s - len(embedded))
            error = [x - y for x, y in zip(weights, embedded, strict=True)]

        if (dense is None) != (dense_order is None):
            raise ValueError(f"tableau {name!r}: dense and dense_order must be given together")
        if dense is None:
            polynomials = hermite_interpolant(weights)
            dense_order = min(order, 3)
        else:
            _check_order(name, "dense_order", dense_order, s)
            polynomials = _polynomials(name, dense, n, s)

        self.name = name
        self.order = order
        self.embedded_order = embedded_order
        self.dense_order = int(dense_order or 0)
        self.is_fsal_native = native
        self.c, self.a, self.b = _array(nodes), _array(rows), _array(weights)
        self.e = None if error is None else _array(error)
        self.p = _array(polynomials)
        self.q = _array([_bernstein(row) for row in polynomials])
        self._verify()

    def _verify(self) -> None:
        check_nodes(self.name, self.c, self.a)
        conditions = OrderConditions(self.name, self.a, max(self.order, self.embedded_order or 0, self.dense_order))
        conditions.check_weights("b", self.b, self.order)
        if self.e is not None and self.embedded_order is not None:
            check_error_weights(self.name, self.e)
            conditions.check_weights("b_embedded", self.b - self.e, self.embedded_order)
        check_end_point(self.name, self.b, self.p)
        conditions.check_dense(self.p, self.dense_order)

    @property
    def n_stages(self) -> int:
        """Number of stages s in FSAL form."""
        return len(self.c)

    @property
    def degree(self) -> int:
        """Degree of the dense output's polynomials."""
        return len(self.p[0])

    @property
    def is_adaptive(self) -> bool:
        """Whether the method has an error estimate."""
        # Not by e: torch's compiler, which reads this, makes arrays that it looks at writeable.
        return self.embedded_order is not None

    @property
    def error_exponent(self) -> float:
        """1 / (q + 1), q the lower of the two orders: the error estimate of a step of size h behaves as h^(q + 1).

        Without an embedded method q is the order of the method itself.
        """
        return 1.0 / (min(self.order, self.embedded_order or self.order) + 1)

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        arrays = (self.c, self.a, self.b, self.p) + (() if self.e is None else (self.e,))
        numbers = (self.order, self.embedded_order, self.dense_order, self.is_fsal_native)
        return (self.name, *numbers, *(x.tobytes() for x in arrays))

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Tableau) else NotImplemented

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __setstate__(self, state: dict[str, Any]) -> None:
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)  # pickle and deepcopy give writeable arrays
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return (
            f"Tableau({self.name!r}, order={self.order}, embedded_order={self.embedded_order}, "
            f"dense_order={self.dense_order}, n_stages={self.n_stages})"
        )


def _exact(name: str, where: str, value: Any) -> Fraction:
    try:
        if isinstance(value, (str, int, Fraction)):
            return Fraction(value)
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"tableau {name!r}: {where} has {value!r}, expected a number or a string like '1/3'"
        ) from error
    if not isfinite(number):
        raise ValueError(f"tableau {name!r}: {where} has {value!r}, expected a finite number")
    return Fraction(number)


def _row(name: str, where: str, values: Sequence[Number]) -> Row:
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise ValueError(f"tableau {name!r}: {where} is {values!r}, expected a sequence of numbers")
    return [_exact(name, where, value) for value in values]


def _lower_triangular(name: str, a: Sequence[Sequence[Number]], n: int) -> list[Row]:
    if len(a) != n:
        raise ValueError(f"tableau {name!r}: a has {len(a)} rows, expected {n} (row i has i entries, row 0 none)")
    rows = []
    for i, given in enumerate(a):
        row = _row(name, f"row {i} of a", given)
        if len(row) not in (i, n):
            raise ValueError(f"tableau {name!r}: row {i} of a has {len(row)} entries, expected {i} (or {n})")
        if any(row[i:]):
            raise ValueError(f"tableau {name!r}: row {i} of a is nonzero on or above the diagonal: not explicit")
        rows.append(row[:i] + [Fraction(0)] * (n - i))
    return rows


def _polynomials(name: str, dense: Sequence[Sequence[Number]], n: int, s: int) -> list[Row]:
    rows = [_row(name, f"row {i} of dense", row) for i, row in enumerate(dense)]
    lengths = {len(row) for row in rows}
    if len(rows) not in (n, s) or len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"tableau {name!r}: dense has {len(rows)} rows with {sorted(lengths)} entries, expected {n} rows of equal "
            "length, at least 1"
        )
    return rows + [[Fraction(0)] * len(rows[0])] * (s - len(rows))


def _bernstein(powers: Row) -> Row:
    """Coefficients of theta, theta^2, ... to those of the Bernstein basis, exactly; that of (1 - theta)^n is 0."""
    n = len(powers)
    return [
        sum((Fraction(comb(m, k), comb(n, k)) * powers[k - 1] for k in range(1, m + 1)), Fraction(0))
        for m in range(1, n + 1)
    ]


def _check_order(name: str, what: str, order: int | None, stages: int) -> None:
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= stages:
        raise ValueError(
            f"tableau {name!r}: {what} is {order!r}, expected an integer from 1 to the number of stages, {stages}"
        )


def _array(values: Sequence[Any]) -> Array:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array
