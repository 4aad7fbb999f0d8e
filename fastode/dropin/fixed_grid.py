"""Explicit Runge-Kutta methods on fixed grids."""

from __future__ import annotations

from fastode.dropin.solvers import RungeKuttaGrid


class Euler(RungeKuttaGrid):
    """Explicit Euler method."""

    order = 1
    method = "euler"


class Midpoint(RungeKuttaGrid):
    """Explicit midpoint rule."""

    order = 2
    method = "midpoint"


class Heun2(RungeKuttaGrid):
    """Heun's method of order 2."""

    order = 2
    method = "heun2"


class Heun3(RungeKuttaGrid):
    """Heun's method of order 3."""

    order = 3
    method = "heun3"


class RK4(RungeKuttaGrid):
    """The 3/8 rule."""

    order = 4
    method = "rk4"
