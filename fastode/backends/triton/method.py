"""A Runge-Kutta method as numbers in generated source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb

from fastode.tableaus import Tableau

Row = tuple[float, ...]


@dataclass(frozen=True)
class Method:
    """Coefficients of ``Tableau``, hashable, and whether steps are controlled.

    Attributes:
        c, b: s numbers.
        a: s rows of s numbers.
        e: s numbers, empty for fixed steps.
        q: s rows of ``degree`` numbers.
    """

    c: Row
    a: tuple[Row, ...]
    b: Row
    e: Row
    q: tuple[Row, ...]

    @property
    def stages(self) -> int:
        """Their number, s."""
        return len(self.c)

    @property
    def degree(self) -> int:
        """Of the dense output."""
        return len(self.q[0])

    def basis(self, theta: str, rest: str) -> list[str]:
        """The Bernstein polynomials 1..degree of ``fastode.interpolant`` as expressions of theta and 1 - theta."""
        made = []
        for m in range(1, self.degree + 1):
            factors = [theta] * m + [rest] * (self.degree - m)
            number = comb(self.degree, m)
            made.append(" * ".join(([f"{float(number)}"] if number != 1 else []) + factors))
        return made


@lru_cache(maxsize=256)
def method_of(tableau: Tableau, adaptive: bool) -> Method:
    """The method of a tableau."""
    e = tableau.e.tolist() if adaptive and tableau.e is not None else []
    return Method(
        tuple(tableau.c.tolist()),
        tuple(map(tuple, tableau.a.tolist())),
        tuple(tableau.b.tolist()),
        tuple(e),
        tuple(map(tuple, tableau.q.tolist())),
    )
