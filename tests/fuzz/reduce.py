"""Makes a failing case small: the first simpler neighbour that fails in the same way, until there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from tests.fuzz.failure import Failure


class Case(Protocol):
    """A case of any kind."""

    def simpler(self) -> Iterator[Any]:
        """Neighbours that are simpler, the simplest first."""


AnyCase = TypeVar("AnyCase", bound=Case)


def failure_of(check: Callable[[Any], object], case: Any) -> Failure | None:
    """How a case fails, None if it does not."""
    try:
        check(case)
    except Failure as failure:
        return failure
    return None


def reduce(
    check: Callable[[AnyCase], object], case: AnyCase, failure: Failure, seconds: float = 60.0
) -> tuple[AnyCase, Failure]:
    """The smallest case found that fails with the same kind of failure, and its failure."""
    end = time.monotonic() + seconds
    found = True
    while found and time.monotonic() < end:
        found = False
        for simpler in case.simpler():
            other = failure_of(check, simpler)
            if other is not None and other.kind == failure.kind:
                case, failure, found = simpler, other, True
                break
    return case, failure
