"""The search for the time of an event within a step."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from fastode.dropin.roots import find_root


def jump(root: float) -> Callable[[float], float]:
    return lambda x: -1.0 if x < root else 1e-3


FUNCTIONS: dict[str, Callable[[float], Callable[[float], float]]] = {
    "line": lambda root: lambda x: x - root,
    "steep": lambda root: lambda x: math.expm1(30 * (x - root)),
    "flat": lambda root: lambda x: (x - root) ** 9,
    "root of infinite slope": lambda root: lambda x: math.copysign(abs(x - root) ** 0.2, x - root),
    "jump": jump,
    "zero beyond": lambda root: lambda x: min(x - root, 0.0),
    "undefined beyond": lambda root: lambda x: x - root if x < root else math.nan,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@given(st.floats(0.0, 1.0), st.sampled_from([1e-3, 1e-9, 1e-15]))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_where_the_sign_is_lost(name: str, sign: float, root: float, tol: float) -> None:
    calls = 0

    def fn(x: float) -> float:
        nonlocal calls
        calls += 1
        return -sign * FUNCTIONS[name](root)(x)

    found = find_root(fn, 0.0, 1.0, sign, tol)
    flat = 1e-35 ** (1 / 9) if name == "flat" else 0.0  # where its values are rounded to zero
    assert abs(found - root) <= tol + flat
    assert calls <= 2 + 40 + math.ceil(math.log2(1 / tol))


def test_few_evaluations_of_smooth_functions() -> None:
    calls = []

    def fall(x: float) -> float:
        calls.append(x)
        return 1.0 - 4.9 * x * x

    assert find_root(fall, 0.0, 1.0, 1.0, 1e-12) == pytest.approx(math.sqrt(1 / 4.9), abs=1e-12)
    assert len(calls) < 15  # bisection needs 42
