"""Our own times, for pytest-benchmark: ``make bench``. Compare runs with ``ARGS="--benchmark-compare"``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.cases import CASES, GRADIENT, QUICK
from bench.libraries import OURS

SMALL = (*QUICK, "one-stiff-in-256", "ffjord", "autoencode")
SHORTER = {"neural-ode-1": 10.0}
"""Spans of solves that would take long."""


@pytest.mark.parametrize("library", [library for library in OURS if library.name != "fastode reference"], ids=str)
@pytest.mark.parametrize("mode", ["forward", "gradient"])
@pytest.mark.parametrize("name", SMALL)
def test_ours(benchmark: Any, name: str, mode: str, library: Any) -> None:
    case = CASES[name]
    problem = replace(case, span=(0.0, SHORTER.get(name, case.span[1]))).problem()
    run = library.prepare(problem, mode)
    try:
        run.call()
    except RuntimeError as reason:
        if "cannot run this solve" not in str(reason):
            raise
        pytest.skip(str(reason))
    values = run.values(benchmark(run.call))
    assert values
    assert all(bool(value.isfinite().all()) for value in values)
    if mode == GRADIENT:
        assert any(bool(value.any()) for value in values)
