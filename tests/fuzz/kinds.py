"""The kinds of cases, by name."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.fuzz import calls, fields, script, solves
from tests.fuzz.open import OPEN


@dataclass(frozen=True)
class Kind:
    """How cases of one kind are made and checked.

    Attributes:
        random_spec: a random case, without some features.
        check: raises ``Failure``.
        script: text that shows a case by itself.
        systematic: cases that are tried first.
        weight: how often it is taken.
        always: members of ``kinds`` that every case has.
    """

    random_spec: Callable[[random.Random, frozenset[str]], Any]
    check: Callable[[Any], object]
    script: Callable[[Any], str]
    systematic: Callable[[frozenset[str]], Iterable[Any]] = lambda without: ()
    weight: float = 1.0
    always: int = 0


KINDS = {
    "fields": Kind(fields.random_spec, fields.check, script.script, fields.alone, weight=3.0),
    "calls": Kind(calls.random_spec, calls.check, calls.script, always=1),
    "solves": Kind(solves.random_spec, solves.check, solves.script, always=1),
}


def known_to_fail() -> frozenset[str]:
    """Features whose faults are open, listed in docs/reliability.md; ``--open`` tries them too."""
    return OPEN
