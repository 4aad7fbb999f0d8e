"""Runge-Kutta methods as verified tables of coefficients: ``Tableau``, ``TABLEAUS`` and ``get_tableau``.

    name            order  embedded  dense output
    euler           1      -         1
    midpoint        2      -         2
    heun2           2      -         2
    heun3           3      -         3
    rk4             4      -         3      3/8 rule, as torchdiffeq's rk4
    rk4_classic     4      -         3
    bosh3           3      2         3
    fehlberg2       2      1         2
    adaptive_heun   2      1         2
    dopri5          5      4         4
    tsit5           5      4         4
    dopri8          8      7         5

    Fixed steps, implicit: implicit_euler 1, implicit_midpoint 2, trapezoid 2, sdirk2 2, trbdf2 2, radauIIA3 3, gl4 4,
    radauIIA5 5, gl6 6. Adaptive, implicit: kvaerno3 3(2), kvaerno4 4(3), kvaerno5 5(4), and the Rosenbrock method
    rodas5p 5(4).

Dense output of order q has a local error of h^(q + 1), so a solution read inside steps has order min(order, q + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from fastode.tableaus import implicit_methods, methods
from fastode.tableaus.base import Tableau
from fastode.tableaus.implicit import ImplicitTableau
from fastode.tableaus.rosenbrock import RosenbrockTableau

__all__ = ["IMPLICIT_TABLEAUS", "TABLEAUS", "ImplicitTableau", "RosenbrockTableau", "Tableau", "get_tableau"]


class _Tableaus(Mapping[str, Tableau]):
    """The methods by name, each put together and verified when it is first asked for."""

    def __init__(self, makers: tuple[Callable[[], Tableau], ...]) -> None:
        self._makers = {maker.__name__.replace("radau_iia", "radauIIA"): maker for maker in makers}
        self._made: dict[str, Tableau] = {}

    def __getitem__(self, name: str) -> Tableau:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __repr__(self) -> str:
        return f"TABLEAUS({', '.join(self)})"


TABLEAUS: Mapping[str, Tableau] = _Tableaus(
    (
        methods.euler,
        methods.midpoint,
        methods.heun2,
        methods.heun3,
        methods.rk4,
        methods.rk4_classic,
        methods.bosh3,
        methods.fehlberg2,
        methods.adaptive_heun,
        methods.dopri5,
        methods.tsit5,
        methods.dopri8,
    )
)


IMPLICIT_TABLEAUS: Mapping[str, Tableau] = _Tableaus(
    (
        implicit_methods.implicit_euler,
        implicit_methods.implicit_midpoint,
        implicit_methods.trapezoid,
        implicit_methods.radau_iia3,
        implicit_methods.gl4,
        implicit_methods.radau_iia5,
        implicit_methods.gl6,
        implicit_methods.sdirk2,
        implicit_methods.trbdf2,
        implicit_methods.kvaerno3,
        implicit_methods.kvaerno4,
        implicit_methods.kvaerno5,
        implicit_methods.rodas5p,
    )
)


def get_tableau(method: str | Tableau) -> Tableau:
    """Return the tableau of a method given by name, or ``method`` itself if it is a ``Tableau``.

    Raises:
        ValueError: no method has this name; the message lists those that exist.
        TypeError: ``method`` is neither a name nor a ``Tableau``.
    """
    if isinstance(method, Tableau):
        return method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name or a fastode Tableau, got {type(method).__name__}")
    for tableaus in (TABLEAUS, IMPLICIT_TABLEAUS):
        if method in tableaus:
            return tableaus[method]
    raise ValueError(f"unknown method {method!r}, expected one of {', '.join([*TABLEAUS, *IMPLICIT_TABLEAUS])}")
