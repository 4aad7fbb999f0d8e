"""Fixed seeds of the fuzzers; ``make fuzz MINUTES=30`` runs others at length."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import fastode
from tests.fuzz import fields, script
from tests.fuzz.calls import Call
from tests.fuzz.failure import Failure
from tests.fuzz.kinds import KINDS, known_to_fail
from tests.fuzz.reduce import failure_of, reduce

_PARTS = 6
"""In how many tests the features are tried, so that workers share them."""


def _check(kind: str, case: Any) -> str | None:
    """Whether a case says something; one that fails is reduced and shown by a script."""
    try:
        return KINDS[kind].check(case)
    except Failure as failure:
        small, why = reduce(KINDS[kind].check, case, failure, seconds=20)
        pytest.fail(f"{small!r}\n{why}\n{KINDS[kind].script(small)}")


def _alone() -> Iterator[fields.Spec]:
    """Every feature once, with all its changes, with gradients where there are no effects to look at."""
    for i, (name, feature) in enumerate(fields.CATALOGUE.items()):
        if name not in known_to_fail():
            mode = "gradients" if feature.pure and not feature.effects else "values"
            order = tuple(range(len(feature.changes))) if feature.pure else ()
            yield fields.Spec((name,), order, ("module", "closure")[i % 2], mode=mode, steps=2)


@pytest.mark.parametrize("part", range(_PARTS))
def test_features_alone(part: int) -> None:
    said = [_check("fields", spec) for spec in list(_alone())[part::_PARTS]]
    assert said.count(None) > 0.95 * len(said), said


_RANDOM = [("fields", 0, 20), ("fields", 1, 20), ("fields", 2, 20), ("calls", 0, 10), ("solves", 0, 10)]


@pytest.mark.parametrize(("kind", "seed", "number"), _RANDOM)
def test_random_cases(kind: str, seed: int, number: int) -> None:
    rng = random.Random(seed)
    said = [_check(kind, KINDS[kind].random_spec(rng, known_to_fail())) for _ in range(number)]
    assert said.count(None) > 0.6 * len(said), said


def test_cases_under_checking() -> None:
    """Solves that compare themselves with the field give the same, and find nothing."""
    rng, chosen = random.Random(100), []
    while len(chosen) < 15:
        spec = KINDS["fields"].random_spec(rng, known_to_fail())
        if not any(fields.CATALOGUE[name].effects for name in spec.features):
            chosen.append(spec)
    with fastode.checking():
        said = [_check("fields", spec) for spec in chosen]
    assert said.count(None) > 0.6 * len(said), said


def _spoiled(**wrong: Any) -> Any:
    """``fastode.solve`` with a fault: a factor on the states, or one that the field's changes do not reach."""
    solve = fastode.solve
    first: dict[Any, Any] = {}

    def faulty(field: Any, y0: Any, *args: Any, **options: Any) -> Any:
        sol = solve(field, y0, *args, **options)
        if wrong.get("stale"):
            return first.setdefault(field, sol)
        return replace(sol, ys=sol.ys * (1 + wrong["factor"]))

    return faulty


def test_a_wrong_digit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastode, "solve", _spoiled(factor=1e-7))
    failure = failure_of(fields.check, fields.Spec(("linear", "tanh")))
    assert failure is not None
    assert failure.kind == "values"


def test_a_stale_program_is_found_and_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that the engine does not notice: what remains is the feature that changes, and its script fails, too."""
    monkeypatch.setattr(fastode, "solve", _spoiled(stale=True))
    spec = fields.Spec(("linear", "tanh", "number in dict", "sigmoid"), (1, 0), "closure", batch=5, steps=4)
    failure = failure_of(fields.check, spec)
    assert failure is not None
    small, why = reduce(fields.check, spec, failure)
    assert why.kind == failure.kind == "values"
    assert small.features == ("number in dict",)
    assert len(small.order) == 1
    text = script.script(small)
    compile(text, "script", "exec")
    assert 'cfg_0["rate"] = 0.5' in text or 'cfg_0["rate"] = 1.5' in text


def test_effects_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = fastode.solve

    def twice(field: Any, *args: Any, **options: Any) -> Any:
        solve(field, *args, **options)
        return solve(field, *args, **options)

    monkeypatch.setattr(fastode, "solve", twice)
    failure = failure_of(fields.check, fields.Spec(("counter buffer", "linear"), steps=2))
    assert failure is not None
    assert failure.kind == "effects"


def test_a_wrong_answer_of_the_drop_in_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fastode, "odeint", lambda *args, odeint=fastode.odeint, **options: odeint(*args, **options) * 1.001
    )
    failure = failure_of(KINDS["calls"].check, Call("pendulum", gradient=True))
    assert failure is not None
    assert failure.kind == "values"
