"""Stiff test problems with reference solutions.

Equations and constants: Hairer and Wanner (1996), Solving Ordinary Differential Equations II, section IV.10, and the
Test Set for Initial Value Problem Solvers (Mazzia and Magherini 2008). Reference values: scipy's Radau with rtol 1e-12
and atol 1e-16 (Van der Pol: 1e-14), by ``python tests/stiff_problems.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stiff:
    """y' = field(t, y, rates) from y0 at times[0]; ``truth`` holds the solution at the later times."""

    field: Callable[[Tensor, Tensor, Tensor], Tensor]
    y0: list[float]
    rates: list[float]
    times: list[float]
    atol: float
    truth: list[list[float]]

    def batch(self, size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """y0 (size, D), rates (size, R), all the same, and t (T,)."""
        rows = [torch.tensor([x], dtype=dtype).repeat(size, 1) for x in (self.y0, self.rates)]
        return rows[0], rows[1], torch.tensor(self.times, dtype=torch.float64)

    def error(self, ys: Tensor, rtol: float) -> float:
        """Largest error of a sample's ys (T - 1, D) in units of the tolerance."""
        truth = torch.tensor(self.truth, dtype=torch.float64)
        return float(((ys.double() - truth).abs() / (self.atol * rtol + rtol * truth.abs())).max())


def robertson(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    """Robertson (1966)."""
    a, b, c = y.unbind(1)
    first, second, third = k[:, 0] * a, k[:, 1] * b * b, k[:, 2] * b * c
    return torch.stack([third - first, first - third - second, second], 1)


def van_der_pol(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
    """x'' = mu (1 - x^2) x' - x."""
    x, v = y.unbind(1)
    return torch.stack([v, mu[:, 0] * (1 - x * x) * v - x], 1)


def hires(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    """High irradiance responses of photomorphogenesis, Schaefer (1975)."""
    a, b, c, d, e, f, g, h = y.unbind(1)
    product = k[:, 0] * f * h
    return torch.stack(
        [
            -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
            1.71 * a - 8.75 * b,
            -10.03 * c + 0.43 * d + 0.035 * e,
            8.32 * b + 1.71 * c - 1.12 * d,
            -1.745 * e + 0.43 * f + 0.43 * g,
            -product + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
            product - 1.81 * g,
            -product + 1.81 * g,
        ],
        1,
    )


def oregonator(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    """Belousov-Zhabotinskii reaction, Field and Noyes (1974)."""
    a, b, c = y.unbind(1)
    s, q, w = k.unbind(1)
    return torch.stack([s * (b + a * (1 - q * a - b)), (c - (1 + a) * b) / s, w * (a - c)], 1)


TRUTH: dict[str, list[list[float]]] = {
    "robertson": [
        [0.9851721138609888, 3.386395378974875e-05, 0.014794022185221493],
        [0.715827068719414, 9.185534764558694e-06, 0.28416374574582076],
        [0.18320225777694976, 8.942371252777499e-07, 0.8167968479859259],
        [0.004938274520998181, 1.9849940879617904e-08, 0.9950617056290626],
    ],
    "van der pol": [
        [1.6932094268310045, -0.0009069343138545646],
        [-1.8636462548079242, 0.0007535430865438256],
        [1.7061677321704996, -0.0008928097010247796],
    ],
    "hires": [
        [
            0.03165167570457236,
            0.006481549531058825,
            0.004583451064747631,
            0.08974323273518839,
            0.1624514537526524,
            0.6850438961444204,
            0.005646700341920523,
            5.3299658079454454e-05,
        ],
        [
            0.0007371312573325715,
            0.00014424857263161935,
            5.888729740967687e-05,
            0.0011756513432831545,
            0.0023863561988315936,
            0.006238968252744201,
            0.0028499983951855387,
            0.0028500016048144407,
        ],
        [
            0.0006703055035818637,
            0.00013099684698634692,
            4.686223159773261e-05,
            0.001044668020551705,
            0.0005948838309514891,
            0.0013996288339427861,
            0.0010144927577184829,
            0.004685507242281493,
        ],
    ],
    "oregonator": [
        [1.000661467180494, 1512.778937348336, 10358.543127671639],
        [1.0197634725372862, 51.59761322947664, 1.0169857789563712],
    ],
}

STIFF = {
    "robertson": Stiff(
        robertson, [1.0, 0.0, 0.0], [0.04, 3e7, 1e4], [0.0, 0.4, 40.0, 4e3, 4e5], 1e-6, TRUTH["robertson"]
    ),
    "van der pol": Stiff(van_der_pol, [2.0, 0.0], [1000.0], [0.0, 400.0, 1000.0, 2000.0], 1e-2, TRUTH["van der pol"]),
    "hires": Stiff(
        hires, [1.0, 0, 0, 0, 0, 0, 0, 0.0057], [280.0], [0.0, 5.0, 321.8122, 421.8122], 1e-4, TRUTH["hires"]
    ),
    "oregonator": Stiff(
        oregonator, [1.0, 2.0, 3.0], [77.27, 8.375e-6, 0.161], [0.0, 30.0, 180.0], 1e-4, TRUTH["oregonator"]
    ),
}


def by_scipy(name: str, method: str, rtol: float, atol: float | None = None) -> Any:
    """The states at ``times[1:]`` by a solver of ``scipy.integrate.solve_ivp``."""
    from scipy.integrate import solve_ivp

    problem = STIFF[name]
    _, rates, _ = problem.batch(1)

    def field(t: float, y: Any) -> Any:
        return problem.field(torch.tensor([[t]]), torch.as_tensor(y)[None], rates)[0].numpy()

    atol = problem.atol * rtol if atol is None else atol
    span = (problem.times[0], problem.times[-1])
    return solve_ivp(field, span, problem.y0, method=method, rtol=rtol, atol=atol, t_eval=problem.times[1:]).y.T


if __name__ == "__main__":
    for key in STIFF:
        values = by_scipy(key, "Radau", 1e-12, 1e-14 if key == "van der pol" else 1e-16)
        print(f"    {key!r}: {[[float(x) for x in row] for row in values]},")
