"""Implicit Runge-Kutta methods on fixed grids; the equations of a step are solved by ``fastode.solve``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastode.dropin.functions import Perturb, beside
from fastode.dropin.solvers import FixedGridODESolver
from fastode.solve import solve


class ImplicitGrid(FixedGridODESolver):
    """An implicit Runge-Kutta method on a fixed grid; subclasses name its tableau.

    Args:
        func: ``func(t, y, perturb=...)``.
        y0: the start.
        rtol: relative tolerance, also of Newton's method.
        atol: absolute tolerance, likewise.
        max_iters: accepted for compatibility; Newton's method has its own limit, and ``odeint`` warns of a smaller one.
        **kwargs: options of ``FixedGridODESolver``.
    """

    method: str

    def __init__(
        self, func: Any, y0: Tensor, rtol: Any = 1e-7, atol: Any = 1e-9, max_iters: int = 100, **kwargs: Any
    ) -> None:
        super().__init__(func, y0, rtol=rtol, atol=atol, **kwargs)
        self.rtol = rtol
        self.max_iters = max_iters

    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        is_complex = y0.is_complex()
        inside = [beside(t.to(y0.dtype.to_real()), side) for t, side in ((t0, Perturb.NEXT), (t1, Perturb.PREV))]

        first, size, last = (t.to(y0.dtype.to_real()) for t in (t0, dt, t1))

        def field(part: Tensor, rows: Tensor) -> Tensor:  # of one row, over parts of the step: exact also in dt
            state = torch.view_as_complex(rows[0].contiguous()) if is_complex else rows[0]
            t = torch.lerp(first, last, part.reshape(()))
            if self.perturb:
                t = torch.minimum(torch.maximum(t, inside[0]), inside[1])
            slope = size * func(t, state)
            return (torch.view_as_real(slope) if is_complex else slope)[None]

        start = torch.view_as_real(y0) if is_complex else y0
        times = torch.tensor([0.0, 1.0], dtype=torch.float64, device=y0.device)
        tols = [self._tolerance(tol, y0) for tol in (self.rtol, self.atol)]
        end = solve(field, start[None], times, method=self.method, rtol=tols[0], atol=tols[1]).ys[-1, 0]
        side = Perturb.NEXT if self.perturb else Perturb.NONE
        return (torch.view_as_complex(end) if is_complex else end) - y0, func(t0, y0, perturb=side)

    @staticmethod
    def _tolerance(tol: Any, y0: Tensor) -> Any:
        if not isinstance(tol, Tensor) or tol.ndim == 0:
            return float(tol)
        return tol.expand(y0.shape)[..., None].expand(*y0.shape, 2) if y0.is_complex() else tol


class ImplicitEuler(ImplicitGrid):
    """Implicit Euler method."""

    order = 1
    method = "implicit_euler"


class ImplicitMidpoint(ImplicitGrid):
    """Implicit midpoint rule."""

    order = 2
    method = "implicit_midpoint"


class Trapezoid(ImplicitGrid):
    """Implicit trapezoidal rule."""

    order = 2
    method = "trapezoid"


class RadauIIA3(ImplicitGrid):
    """Radau IIA method of two stages."""

    order = 3
    method = "radauIIA3"


class GL4(ImplicitGrid):
    """Gauss method of two stages."""

    order = 4
    method = "gl4"


class RadauIIA5(ImplicitGrid):
    """Radau IIA method of three stages."""

    order = 5
    method = "radauIIA5"


class GL6(ImplicitGrid):
    """Gauss method of three stages."""

    order = 6
    method = "gl6"


class SDIRK2(ImplicitGrid):
    """Singly diagonally implicit method of two stages."""

    order = 2
    method = "sdirk2"


class TRBDF2(ImplicitGrid):
    """Trapezoidal rule and second-order backward differences."""

    order = 2
    method = "trbdf2"


METHODS = (ImplicitEuler, ImplicitMidpoint, Trapezoid, RadauIIA3, GL4, RadauIIA5, GL6, SDIRK2, TRBDF2)
