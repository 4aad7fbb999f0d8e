"""Our own times, for pytest-benchmark: ``make bench``. Compare runs with ``ARGS="--benchmark-compare"``."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cases import CASES
from bench.libraries import LIBRARIES, forward, gradient


@pytest.mark.parametrize("direction", [forward, gradient], ids=["forward", "gradient"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_stepped(benchmark: Any, name: str, direction: Any) -> None:
    case = CASES[name]()
    result = benchmark(direction, LIBRARIES["fastode stepped"], case)
    assert all(bool(part.isfinite().all()) for part in (result if isinstance(result, list) else [result]))
