"""Functions and states for the comparison with torchdiffeq."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

F64 = torch.float64
ADAPTIVE = ["dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"]
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
ADAMS = ["explicit_adams", "implicit_adams", "fixed_adams"]

TOLERANCE = {"dopri8": 1e-9, "dopri5": 1e-8, "tsit5": 1e-8, "bosh3": 1e-6, "fehlberg2": 1e-5, "adaptive_heun": 1e-5}
"""For each method one at which it takes some tens of steps."""


class Field(nn.Module):
    """dy/dt = cos(t) tanh(y W + b) along the last dimension, on states of every kind; counts its evaluations.

    ``rows`` says whether rows of a state are treated apart; ``counts`` makes it a function that has no program.
    """

    def __init__(self, kind: str, rows: bool = True, counts: bool = False, dtype: torch.dtype = F64) -> None:
        super().__init__()
        torch.manual_seed(1)
        size = 1 if kind == "0-d" else 3
        self.W = nn.Parameter(torch.randn(size, size, dtype=dtype))
        self.b = nn.Parameter(torch.randn(size, dtype=dtype))
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))
        self.rows, self.counts, self.nfe = rows, counts, 0

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        if y.is_complex():
            return torch.complex(self.slope(t, y.real), self.slope(-t, y.imag))
        if y.ndim == 0:
            return torch.cos(t) * torch.tanh(y * self.W[0, 0] + self.b[0])
        value = torch.cos(t) * torch.tanh(y @ self.W + self.b)
        return value if self.rows else value / (1 + y.mean() ** 2)

    def forward(self, t: Tensor, y: Any) -> Any:
        if self.counts:
            self.nfe += 1
        if isinstance(y, tuple):
            return tuple(self.slope(t, part) for part in y)
        return self.slope(t, y)


def state(kind: str, dtype: torch.dtype = F64) -> Any:
    generator = torch.Generator().manual_seed(2)
    shapes: dict[str, Any] = {
        "0-d": (),
        "1-d": (3,),
        "rows": (5, 3),
        "n-d": (2, 4, 3),
        "tuple": ((5, 3), (5, 2, 3)),
        "uneven tuple": ((3,), (2, 4, 3), (1, 3)),
        "complex64": (4, 3),
        "complex128": (4, 3),
    }
    given = shapes[kind]
    if kind.startswith("complex"):
        return torch.randn(given, dtype=getattr(torch, kind), generator=generator)
    if "tuple" in kind:
        return tuple(torch.randn(shape, dtype=dtype, generator=generator) for shape in given)
    return torch.randn(given, dtype=dtype, generator=generator)


def some(*axes: list[Any], of: int = 3) -> list[tuple[Any, ...]]:
    """A part of all combinations, one of ``of``, such that every pair of choices still occurs together."""
    chosen = []
    for places in itertools.product(*[range(len(axis)) for axis in axes]):
        if sum(i * place for i, place in enumerate(places, start=1)) % of == 0:
            chosen.append(tuple(axis[place] for axis, place in zip(axes, places, strict=True)))
    pairs = itertools.combinations(range(len(axes)), 2)
    for i, j in pairs:
        seen = {(id(c[i]), id(c[j])) for c in chosen}
        for a, b in itertools.product(axes[i], axes[j]):
            if (id(a), id(b)) not in seen:
                seen.add((id(a), id(b)))
                extra = [axis[0] for axis in axes]
                extra[i], extra[j] = a, b
                chosen.append(tuple(extra))
    return chosen


KINDS = ["0-d", "1-d", "rows", "n-d", "tuple", "uneven tuple", "complex128"]


def field_of(kind: str, **how: Any) -> Field:
    return Field(kind, dtype=torch.float32 if kind == "complex64" else F64, **how)


def parts(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def largest_difference(a: Any, b: Any) -> float:
    pairs = list(zip(parts(a), parts(b), strict=True))
    assert all(x.shape == y.shape and x.dtype == y.dtype for x, y in pairs)
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


def largest(value: Any) -> float:
    return max(float(x.detach().abs().max()) for x in parts(value))


def with_grad(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(x.detach().clone().requires_grad_() for x in value)
    return value.detach().clone().requires_grad_()


def loss_of(solution: Any) -> Tensor:
    """A number that depends on every entry of a solution, in different ways."""
    total = torch.zeros((), dtype=F64)
    for i, part in enumerate(parts(solution)):
        weights = torch.cos(torch.arange(part.numel(), dtype=F64) + i).reshape(part.shape)
        total = total + (weights * part.abs() ** 2).sum() + (weights * (part.real if part.is_complex() else part)).sum()
    return total


def gradients(
    solve: Callable[..., Any], func: nn.Module, y0: Any, t: Tensor, **how: Any
) -> tuple[Any, list[Tensor | None]]:
    """A solution and the gradients of ``loss_of`` it by y0, t and the parameters."""
    y0, t = with_grad(y0), with_grad(t)
    solution = solve(func, y0, t, **how)
    inputs = [*parts(y0), t, *func.parameters()]
    return solution, list(torch.autograd.grad(loss_of(solution), inputs, allow_unused=True))


def relative_difference(a: list[Tensor | None], b: list[Tensor | None]) -> float:
    """The largest difference of gradients, None counting as zero, in units of the largest gradient."""
    scale = max(float(g.abs().max()) for g in b if g is not None)
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x is None and y is None:
            continue
        x, y = (torch.zeros_like(y) if x is None else x), (torch.zeros_like(x) if y is None else y)
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        worst = max(worst, float((x - y).abs().max()))
    return worst / scale
