"""DETEST's nonstiff problems A1 to E5 on t in [0, 20].

Hull, Enright, Fellen, Sedgwick, "Comparing numerical methods for ordinary differential equations", SIAM J. Numer.
Anal. 9 (1972); numbers of C5 as in Enright, Pryce, ACM Trans. Math. Softw. 13 (1987). Written once, for torch, for
numpy and for its long doubles: y is a sequence of components, ``xp`` has ``sqrt``, ``sin`` and ``cos``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

END = 20.0
Components = Sequence[Any]


@dataclass(frozen=True)
class Problem:
    """y' = right(xp, t, y), y(0) = start.

    Attributes:
        name: A1 to E5.
        start: the initial state.
        right: the slopes of the components.
        about: what it is.
    """

    name: str
    start: tuple[float, ...]
    right: Callable[[Any, Any, Components], list[Any]]
    about: str

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        """For fastode: t (n, 1), y (n, D)."""
        return torch.stack(self.right(torch, t[:, 0], y.unbind(1)), 1)

    def single(self, t: Tensor, y: Tensor) -> Tensor:
        """For torchdiffeq: t 0-d, y (D,)."""
        return torch.stack(self.right(torch, t, y.unbind(0)))

    def array(self, t: Any, y: Any) -> Any:
        """For numpy: y (D,) of any real type."""
        return np.array(self.right(np, t, y), dtype=y.dtype)


def _a5(xp: Any, t: Any, y: Components) -> list[Any]:
    return [(y[0] - t) / (y[0] + t)]


def _b2(xp: Any, t: Any, y: Components) -> list[Any]:
    return [-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2]]


def _b4(xp: Any, t: Any, y: Components) -> list[Any]:
    r = xp.sqrt(y[0] * y[0] + y[1] * y[1])
    return [-y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r]


def _b5(xp: Any, t: Any, y: Components) -> list[Any]:
    return [y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]]


def _c1(xp: Any, t: Any, y: Components) -> list[Any]:
    return [-y[0], *[y[i - 1] - y[i] for i in range(1, 9)], y[8]]


def _c2(xp: Any, t: Any, y: Components) -> list[Any]:
    return [-y[0], *[i * y[i - 1] - (i + 1) * y[i] for i in range(1, 9)], 9 * y[8]]


def _c3(xp: Any, t: Any, y: Components) -> list[Any]:
    inner = [y[i - 1] - 2 * y[i] + y[i + 1] for i in range(1, len(y) - 1)]
    return [-2 * y[0] + y[1], *inner, y[-2] - 2 * y[-1]]


_GRAVITY = 2.95912208286
_SUN = 1.00000597682
_PLANETS = (0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778)
_POSITIONS = (
    *(3.42947415189, 3.35386959711, 1.35494901715),
    *(6.64145542550, 5.97156957878, 2.18231499728),
    *(11.2630437207, 14.6952576794, 6.27960525067),
    *(-30.1552268759, 1.65699966404, 1.43785752721),
    *(-21.1238353380, 28.4465098142, 15.3882659679),
)
_VELOCITIES = (
    *(-0.557160570446, 0.505696783289, 0.230578543901),
    *(-0.415570776342, 0.365682722812, 0.169143213293),
    *(-0.325325669158, 0.189706021964, 0.0877265322780),
    *(-0.0240476254170, -0.287659532608, -0.117219543175),
    *(-0.176860753121, -0.216393453025, -0.0148647893090),
)


def _c5(xp: Any, t: Any, y: Components) -> list[Any]:
    places = [y[3 * j : 3 * j + 3] for j in range(5)]

    def cubed(x: Components) -> Any:
        squared = x[0] * x[0] + x[1] * x[1] + x[2] * x[2]
        return squared * xp.sqrt(squared)

    radius = [cubed(p) for p in places]
    apart = {}
    for j in range(5):
        for k in range(j):
            apart[j, k] = apart[k, j] = cubed([a - b for a, b in zip(places[j], places[k], strict=True)])
    pull = []
    for j in range(5):
        for i in range(3):
            total = -(_SUN + _PLANETS[j]) * places[j][i] / radius[j]
            for k in range(5):
                if k != j:
                    away = (places[k][i] - places[j][i]) / apart[j, k]
                    total = total + _PLANETS[k] * (away - places[k][i] / radius[k])
            pull.append(_GRAVITY * total)
    return [*y[15:], *pull]


def _d(xp: Any, t: Any, y: Components) -> list[Any]:
    squared = y[0] * y[0] + y[1] * y[1]
    cubed = squared * xp.sqrt(squared)
    return [y[2], y[3], -y[0] / cubed, -y[1] / cubed]


def _e1(xp: Any, t: Any, y: Components) -> list[Any]:
    s = t + 1
    return [y[1], -(y[1] / s + (1 - 0.25 / (s * s)) * y[0])]


def _bessel(x: float) -> tuple[float, float]:
    """J_1/2 and its derivative."""
    root = math.sqrt(2 / (math.pi * x))
    return root * math.sin(x), root * (math.cos(x) - math.sin(x) / (2 * x))


def _unit(n: int) -> tuple[float, ...]:
    return (1.0, *[0.0] * (n - 1))


def _orbit(name: str, e: float) -> Problem:
    return Problem(name, (1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))), _d, f"orbit of eccentricity {e}")


PROBLEMS: dict[str, Problem] = {
    p.name: p
    for p in (
        Problem("A1", (1.0,), lambda xp, t, y: [-y[0]], "negative exponential"),
        Problem("A2", (1.0,), lambda xp, t, y: [-(y[0] * y[0] * y[0]) / 2], "a special case of Riccati's equation"),
        Problem("A3", (1.0,), lambda xp, t, y: [y[0] * xp.cos(t)], "an oscillating problem"),
        Problem("A4", (1.0,), lambda xp, t, y: [y[0] / 4 * (1 - y[0] / 20)], "logistic curve"),
        Problem("A5", (4.0,), _a5, "spiral curve"),
        Problem(
            "B1",
            (1.0, 3.0),
            lambda xp, t, y: [2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1])],
            "two populations in conflict",
        ),
        Problem("B2", (2.0, 0.0, 1.0), _b2, "linear chemical reaction"),
        Problem(
            "B3",
            (1.0, 0.0, 0.0),
            lambda xp, t, y: [-y[0], y[0] - y[1] * y[1], y[1] * y[1]],
            "nonlinear chemical reaction",
        ),
        Problem("B4", (3.0, 0.0, 0.0), _b4, "integral surface of a torus"),
        Problem("B5", (0.0, 1.0, 1.0), _b5, "rigid body without forces"),
        Problem("C1", _unit(10), _c1, "radioactive decay chain"),
        Problem("C2", _unit(10), _c2, "another decay chain"),
        Problem("C3", _unit(10), _c3, "parabolic equation, 10 points"),
        Problem("C4", _unit(51), _c3, "parabolic equation, 51 points"),
        Problem("C5", (*_POSITIONS, *_VELOCITIES), _c5, "five outer planets"),
        _orbit("D1", 0.1),
        _orbit("D2", 0.3),
        _orbit("D3", 0.5),
        _orbit("D4", 0.7),
        _orbit("D5", 0.9),
        Problem("E1", _bessel(1.0), _e1, "Bessel's equation of order 1/2"),
        Problem("E2", (2.0, 0.0), lambda xp, t, y: [y[1], (1 - y[0] * y[0]) * y[1] - y[0]], "Van der Pol"),
        Problem(
            "E3",
            (0.0, 0.0),
            lambda xp, t, y: [y[1], y[0] * y[0] * y[0] / 6 - y[0] + 2 * xp.sin(2.78535 * t)],
            "Duffing",
        ),
        Problem("E4", (30.0, 0.0), lambda xp, t, y: [y[1], 0.032 - 0.4 * y[1] * y[1]], "falling body"),
        Problem("E5", (0.0, 0.0), lambda xp, t, y: [y[1], xp.sqrt(1 + y[1] * y[1]) / (25 - t)], "linear pursuit"),
    )
}
