"""One step size for all, or one for each sample: which is taken, and what it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor

import fastode
from fastode.dropin import programs
from fastode.dropin.arguments import check
from tests.dropin.tools import ADAPTIVE, F64, KINDS, TOLERANCE, Field, field_of, largest_difference, parts, state

T = torch.linspace(0.0, 2.0, 5, dtype=F64)


def ways(func: Any, y0: Any, t: Tensor = T, **how: Any) -> tuple[bool, bool]:
    """Whether a solve is done per sample, and whether by a program of the whole state."""
    args = check(func, y0, t, 1e-6, 1e-6, how.get("method"), how.get("options"), None)
    if not programs.can_run(args):
        return False, False
    return programs.per_sample(args) is not None, programs.whole_state(args) is not None


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_batch_takes_the_evaluations_of_torchdiffeq(method: str, kind: str, backward: bool) -> None:
    t, tol, counts = T.flip(0) if backward else T, TOLERANCE[method] * 10, {}
    solutions = {}
    for lib, options in ((fastode, {"step_control": "batch"}), (torchdiffeq, None)):
        func = field_of(kind, counts=True, rows=False)
        if lib is fastode:
            lib.odeint(func, state(kind), t, method=method, rtol=tol, atol=tol, options=options)
            func.nfe = 0
        solutions[lib] = lib.odeint(func, state(kind), t, method=method, rtol=tol, atol=tol, options=options)
        counts[lib] = func.nfe
    # The last step ends at the end instead of beyond it, and two methods get their last stage evaluated, which
    # torchdiffeq replaces by an approximation.
    stages = fastode.TABLEAUS[method].n_stages - 1
    if method in ("fehlberg2", "adaptive_heun"):
        n = (counts[torchdiffeq] - 2) / (stages - 1)
        assert counts[fastode] <= 1.1 * n * stages + 2 + 2 * stages
    elif method == "dopri8":  # here too: a fourteenth stage, for first-same-as-last
        assert counts[fastode] <= counts[torchdiffeq] * 14 / 13 + 2 * stages
    else:
        assert abs(counts[fastode] - counts[torchdiffeq]) <= stages


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("rows", (True, True)), ("n-d", (True, True)), ("tuple", (True, False)), ("1-d", (False, True))],
)
def test_what_is_recognised(kind: str, expected: tuple[bool, bool]) -> None:
    assert ways(field_of(kind), state(kind)) == expected
    assert ways(field_of(kind), state(kind), method="rk4") == (expected[0], True)


def test_rows_that_are_mixed_are_one_sample() -> None:
    assert ways(field_of("rows", rows=False), state("rows")) == (False, True)
    assert ways(lambda t, y: -(y - y.flip(0)), state("rows")) == (False, True)
    assert ways(lambda t, y: -y * (1.0 + float(y.mean())), state("rows")) == (False, False)


def test_functions_that_need_a_time_without_dimension() -> None:
    """Called with one time per sample they would fail or mean something else: rows are then called one by one."""
    y0 = state("rows")
    for func in (
        lambda t, y: y * t.reshape(1, 1),
        lambda t, y: torch.cat([y[:, :2], t.expand(y.shape[0], 1) * y[:, 2:]], 1),
        lambda t, y: y * (1.0 if t.ndim == 0 else 2.0),
    ):
        assert ways(func, y0) == (True, True)
    assert ways(lambda t, y: y * t.reshape(1, 1) * y.mean(), y0) == (False, True)
    assert ways(lambda t, y: y * t.expand(5, 1), y0) == (False, True)  # for five rows and no other number of them
    solution = fastode.odeint(lambda t, y: y * (1.0 if t.ndim == 0 else 2.0), y0, T)
    torch.testing.assert_close(solution, y0 * T.exp()[:, None, None], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"norm": lambda y: y.abs().max()}, {"step_t": T[1:2]}, {"jump_t": T[1:2]}, {"min_step": 1e-3}],
    ids=["norm", "step_t", "jump_t", "min_step"],
)
def test_options_that_refer_to_the_whole_state(options: dict[str, Any]) -> None:
    assert ways(field_of("rows"), state("rows"), method="dopri5", options=options) == (False, False)
    options = {**options, "step_control": "per_sample"}
    with pytest.raises(ValueError, match="per_sample"):
        fastode.odeint(field_of("rows"), state("rows"), T, method="dopri5", options=options)


def test_per_sample_because_the_user_says_so() -> None:
    """Also for functions that have no program: each sample then has its own steps all the same."""
    times = set()

    def func(t: Tensor, y: Tensor) -> Tensor:
        times.update(t.flatten().tolist())
        return -torch.tensor([[1.0], [30.0]], dtype=F64)[: len(y)] * y if len(y) == 2 else -y

    y0 = torch.ones(2, 1, dtype=F64)
    solution = fastode.odeint(func, y0, T, rtol=1e-6, atol=1e-8, options={"step_control": "per_sample"})
    exact = torch.exp(-T[:, None, None] * torch.tensor([[1.0], [30.0]], dtype=F64))
    torch.testing.assert_close(solution, exact, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="leading dimension"):
        fastode.odeint(lambda t, y: -y, torch.tensor(1.0), T, options={"step_control": "per_sample"})


@pytest.mark.parametrize("kind", ["rows", "tuple"])
def test_no_sample_is_less_accurate_than_with_one_step_size(kind: str) -> None:
    """Every sample's error by itself is within its tolerance, which the mean over all does not grant."""

    class Stiff(Field):
        def slope(self, t: Tensor, y: Tensor) -> Tensor:
            return super().slope(t, y) * 1.0 - y**3

    func, tol = Stiff(kind), 1e-6
    y0 = tuple(3 * x for x in parts(state(kind)))
    y0 = y0 if kind == "tuple" else y0[0]
    exact = fastode.odeint(func, y0, T, method="dopri8", rtol=1e-12, atol=1e-13)
    errors = []
    for options in ({"step_control": "per_sample"}, {"step_control": "batch"}):
        solution = fastode.odeint(func, y0, T, rtol=tol, atol=tol, options=options)
        difference = [(a - b).abs().flatten(2).amax((0, 2)) for a, b in zip(parts(solution), parts(exact), strict=True)]
        errors.append(torch.stack(difference).amax(0))
    assert bool((errors[0] <= 3 * errors[1] + 10 * tol).all())


def test_a_stiff_sample_does_not_change_the_others() -> None:
    k = torch.ones(6, 1, dtype=F64)
    calm = fastode.odeint(lambda t, y: -y, torch.ones(6, 1, dtype=F64), T)
    y0 = torch.cat([torch.ones(6, 2, dtype=F64), k], 1)
    y0[3, 2] = 300.0
    func = lambda t, y: torch.cat([-y[:, :1], y[:, 2:] * (1 - y[:, 1:2]), 0 * y[:, 2:]], 1)  # noqa: E731
    assert ways(func, y0)[0]
    solution = fastode.odeint(func, y0, T)
    torch.testing.assert_close(solution[:, 0, :1], calm[:, 0], rtol=1e-6, atol=1e-8)
    alone = fastode.odeint(func, y0[:1], T)
    assert torch.equal(solution[:, 0], alone[:, 0])  # bit for bit, whoever else is in the batch


@pytest.mark.parametrize("kind", ["1-d", "0-d", "rows"])
def test_states_of_one_sample_by_program_as_by_single_steps(kind: str) -> None:
    func = field_of(kind, rows=kind != "rows")
    assert ways(func, state(kind)) == (kind == "0-d" and False, True)
    program = fastode.odeint(func, state(kind), T)
    steps = fastode.odeint(func, state(kind), T, options={"step_control": "batch"})
    assert largest_difference(program, steps) < 1e-6
    assert not torch.equal(program, steps)
