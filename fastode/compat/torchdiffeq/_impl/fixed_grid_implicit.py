"""Implicit methods on fixed grids."""

from fastode.dropin.implicit import (
    GL4,
    GL6,
    SDIRK2,
    TRBDF2,
    ImplicitEuler,
    ImplicitMidpoint,
    RadauIIA3,
    RadauIIA5,
    Trapezoid,
)

GaussLegendre4, GaussLegendre6 = GL4, GL6

__all__ = [
    "GL4",
    "GL6",
    "SDIRK2",
    "TRBDF2",
    "GaussLegendre4",
    "GaussLegendre6",
    "ImplicitEuler",
    "ImplicitMidpoint",
    "RadauIIA3",
    "RadauIIA5",
    "Trapezoid",
]
