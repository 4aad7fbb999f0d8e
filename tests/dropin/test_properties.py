"""Random problems against torchdiffeq: shapes, tuples, dtypes, directions, methods, with gradients."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import hypothesis.strategies as st
import torch
import torchdiffeq
from hypothesis import given, settings
from torch import Tensor, nn

import fastode
from tests.dropin.tools import F64, TOLERANCE, gradients, largest, largest_difference, relative_difference

FLOAT32 = 1e-5
"""Tolerance, and rounding in results, where anything is float32."""


class Field(nn.Module):
    """dy/dt = cos(t) tanh(y W + b) - y / 5 for each part; W is cut to the last dimension.

    ``coupled`` mixes the rows, ``counts`` makes it a function without program.
    """

    def __init__(self, coupled: bool, counts: bool, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.W = nn.Parameter(torch.randn(4, 4, generator=generator).to(dtype))
        self.b = nn.Parameter(torch.randn(4, generator=generator).to(dtype))
        self.coupled, self.counts, self.nfe = coupled, counts, 0

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        n = y.shape[-1] if y.ndim else 1
        inner = y @ self.W[:n, :n] + self.b[:n] if y.ndim else y * self.W[0, 0] + self.b[0]
        value = torch.cos(t) * torch.tanh(inner) - y / 5
        return value / (1 + y.square().mean()) if self.coupled else value

    def forward(self, t: Tensor, y: Any) -> Any:
        if self.counts:
            self.nfe += 1
        return tuple(self.slope(t, part) for part in y) if isinstance(y, tuple) else self.slope(t, y)


@dataclass
class Problem:
    field: Field
    y0: Any
    t: Tensor
    method: str

    @property
    def tol(self) -> float:
        single = torch.float32 in (self.field.W.dtype, self.t.dtype)
        return max(TOLERANCE[self.method], FLOAT32 if single else 0.0)

    def solve(self, odeint: Any) -> tuple[Any, list[Any]]:
        return gradients(odeint, self.field, self.y0, self.t, rtol=self.tol, atol=self.tol, method=self.method)

    def exact(self) -> tuple[Any, list[Any]]:
        field = copy.deepcopy(self.field).double()
        y0 = tuple(part.double() for part in self.y0) if isinstance(self.y0, tuple) else self.y0.double()
        how = {"rtol": 1e-11, "atol": 1e-12, "method": "dopri8"}
        return gradients(torchdiffeq.odeint, field, y0, self.t.double(), **how)


shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, F64])


@st.composite
def problems(draw: Any) -> Problem:
    dtype, t_dtype = draw(dtypes), draw(dtypes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))

    def part(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    if draw(st.booleans()):
        y0: Any = part(draw(shapes))
    else:
        common = draw(st.sampled_from([(), (3,)]))  # a leading dimension that the parts share, or none
        y0 = tuple(part(common + shape) for shape in draw(st.lists(shapes, min_size=1, max_size=3)))
    gaps = draw(st.lists(st.floats(0.05, 0.8), min_size=1, max_size=4))
    sign, start = draw(st.sampled_from([1.0, -1.0])), draw(st.floats(-1.0, 1.0))
    t = torch.tensor([start + sign * gap for gap in accumulate([0.0, *gaps])], dtype=t_dtype)
    method = draw(st.sampled_from(sorted(set(TOLERANCE) - {"tsit5"})))  # which this torchdiffeq has not
    return Problem(Field(draw(st.booleans()), draw(st.booleans()), dtype), y0, t, method)


def cast(value: Any) -> Any:
    return tuple(part.double() for part in value) if isinstance(value, tuple) else value.double()


def check(problem: Problem, mine: Any, theirs: Any) -> None:
    """Shapes and dtypes are the same; errors at most three times torchdiffeq's, or what the tolerance allows."""
    (ys, grads), (their_ys, their_grads), (true_ys, true_grads) = mine, theirs, problem.exact()
    largest_difference(ys, their_ys)  # holds shapes and dtypes against each other
    relative_difference(grads, their_grads)
    baseline = largest_difference(cast(their_ys), true_ys)
    assert largest_difference(cast(ys), true_ys) <= 3 * baseline + 30 * problem.tol * largest(true_ys)
    baseline = relative_difference(in_double(their_grads), true_grads)
    assert relative_difference(in_double(grads), true_grads) <= 3 * baseline + 100 * problem.tol


def in_double(grads: list[Any]) -> list[Any]:
    return [None if grad is None else grad.double() for grad in grads]


@given(problems())
@settings(deadline=None, max_examples=40, derandomize=True)
def test_odeint(problem: Problem) -> None:
    check(problem, problem.solve(fastode.odeint), problem.solve(torchdiffeq.odeint))


@given(problems())
@settings(deadline=None, max_examples=25, derandomize=True)
def test_odeint_adjoint(problem: Problem) -> None:
    check(problem, problem.solve(fastode.odeint_adjoint), problem.solve(torchdiffeq.odeint_adjoint))


@given(problems())
@settings(deadline=None, max_examples=15, derandomize=True)
def test_one_step_size_for_all(problem: Problem) -> None:
    def odeint(*args: Any, **how: Any) -> Any:
        return fastode.odeint(*args, options={"step_control": "batch"}, **how)

    check(problem, problem.solve(odeint), problem.solve(torchdiffeq.odeint))
