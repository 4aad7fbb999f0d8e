"""DETEST: the reference solutions, and the accuracy of solves against what was asked for."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fastode
from bench.detest.__main__ import COLUMNS, main
from bench.detest.measure import Answer, errors, ours
from bench.detest.problems import END, PROBLEMS
from bench.detest.reference import solution, times


def _pursuit(t: float) -> list[float]:
    """y'' = sqrt(1 + y'^2) / (25 - t): y' = sinh(log(25 / (25 - t)))."""
    s = 25 - t
    return [(25 * math.log(25 / s) - (25**2 - s**2) / 50) / 2, math.sinh(math.log(25 / s))]


CLOSED = {
    "A1": lambda t: [math.exp(-t)],
    "A2": lambda t: [1 / math.sqrt(1 + t)],
    "A3": lambda t: [math.exp(math.sin(t))],
    "A4": lambda t: [20 / (1 + 19 * math.exp(-t / 4))],
    "E1": lambda t: [math.sqrt(2 / (math.pi * (t + 1))) * math.sin(t + 1)],
    "E5": _pursuit,
}


@pytest.mark.parametrize("name", CLOSED)
def test_reference_is_the_closed_solution(name: str) -> None:
    at = times(7)
    true = np.array([CLOSED[name](t) for t in at])
    found = solution(PROBLEMS[name], at)[:, : true.shape[1]]
    assert np.abs(found - true).max() <= 8 * np.finfo(np.float64).eps * np.abs(true).max()


@pytest.mark.parametrize("e", [1, 3, 5, 7, 9])
def test_reference_of_the_orbits(e: int) -> None:
    """Kepler's equation for the place at the end."""
    name, e = {1: "D1", 3: "D2", 5: "D3", 7: "D4", 9: "D5"}[e], e / 10
    end = solution(PROBLEMS[name], np.array([0.0, END]))[-1]
    anomaly = mpmath.findroot(lambda x: x - e * mpmath.sin(x) - END, END + e * math.sin(END))
    place = [mpmath.cos(anomaly) - e, mpmath.sqrt(1 - mpmath.mpf(e) ** 2) * mpmath.sin(anomaly)]
    # the start is rounded: sqrt((1 + e) / (1 - e)) in float64 moves the period a little
    assert abs(end[0] - float(place[0])) < 2e-13
    assert abs(end[1] - float(place[1])) < 2e-13


def test_invariants_of_the_reference() -> None:
    at = times(5)
    chains = {"C1": 1.0, "C2": 1.0, "B2": 3.0, "B3": 1.0}  # sums that are kept
    for name, total in chains.items():
        assert np.abs(solution(PROBLEMS[name], at).sum(1) - total).max() < 1e-14
    body = solution(PROBLEMS["B5"], at)
    assert np.abs((body[:, 0] ** 2 + body[:, 1] ** 2) - 1).max() < 1e-14


def test_slopes_are_the_same_in_torch_and_numpy() -> None:
    for problem in PROBLEMS.values():
        y = np.array(problem.start) + 0.01 * np.arange(1, len(problem.start) + 1)
        right = problem.array(0.7, y)
        t = torch.tensor([[0.7]], dtype=torch.float64)
        np.testing.assert_allclose(problem.field(t, torch.from_numpy(y)[None])[0].numpy(), right, rtol=1e-13)
        np.testing.assert_allclose(problem.single(t[0, 0], torch.from_numpy(y)).numpy(), right, rtol=1e-13)


TOLERANCES = (1e-3, 1e-6, 1e-9, 1e-12)
# Median and largest multiple of the tolerance, at the end and between, over all problems: measured, doubled.
LIMITS = {
    "dopri5": (10, 1e4, 15, 3e4),
    "tsit5": (5, 2e3, 10, 8e3),
    "dopri8": (1, 200, 10, 3e3),
    "bosh3": (20, 2e3, 25, 1e4),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", LIMITS)
def test_accuracy_follows_the_tolerance(method: str) -> None:
    at, ends, between = times(20), [], []
    for problem in PROBLEMS.values():
        true = solution(problem, at)
        for tolerance in TOLERANCES:
            end, inside = errors(ours(method)(problem, at, tolerance), true)
            rounding = 1e-13 if tolerance < 1e-11 else 0.0
            ends.append((end - rounding) / tolerance)
            between.append((inside - rounding) / tolerance)
    limits = LIMITS[method]
    assert np.isfinite(ends).all()
    assert np.isfinite(between).all()
    assert np.median(ends) < limits[0]
    assert max(ends) < limits[1]
    assert np.median(between) < limits[2]
    assert max(between) < limits[3]


@pytest.mark.parametrize("name", ["A3", "B4", "D3", "E2"])
def test_as_accurate_as_scipy(name: str) -> None:
    """The same pair at the same tolerance: an error of the same size, at the end and between."""
    from scipy.integrate import solve_ivp

    problem, at = PROBLEMS[name], times(20)
    true = solution(problem, at)
    for tolerance in (1e-4, 1e-8, 1e-11):
        found = solve_ivp(problem.array, (0, END), np.array(problem.start), t_eval=at, rtol=tolerance, atol=tolerance)
        theirs = errors(Answer(found.y.T, found.nfev), true)
        mine = errors(ours("dopri5")(problem, at, tolerance), true)
        assert mine[0] < 10 * theirs[0] + tolerance
        assert mine[1] < 10 * theirs[1] + tolerance


def test_float32_reaches_its_resolution() -> None:
    """At 1e-7 float32's own rounding is what remains: tens of units in the last place after hundreds of steps."""
    at = times(10)
    for name in ("A1", "A3", "A4", "B5", "E1"):
        end, between = errors(ours("dopri5", torch.float32)(PROBLEMS[name], at, 1e-7), solution(PROBLEMS[name], at))
        assert end < 300 * np.finfo(np.float32).eps, name
        assert between < 300 * np.finfo(np.float32).eps, name


def test_a_wrong_solution_has_an_error() -> None:
    at = times(5)
    true = solution(PROBLEMS["B1"], at)
    assert errors(Answer(true + 1e-5, 1), true)[0] > 1e-6
    assert math.isnan(errors(Answer(true[:-1], 1), true)[0])


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "new"
    done = CliRunner().invoke(main, ["--problems", "B1", "--only", "dopri5", "--tolerances", "3,6", "--out", str(out)])
    assert done.exit_code == 0, done.output
    rows = _rows(out / "detest.csv")
    assert list(rows[0]) == COLUMNS
    assert {row["solver"] for row in rows} == {"fastode dopri5", "fastode dopri5 float32", "torchdiffeq dopri5"}
    for row in rows:
        assert 0 < float(row["error_end"]) < 1000 * float(row["tolerance"])
    assert (out / "detest.png").stat().st_size > 10_000
    again = CliRunner().invoke(main, ["--problems", "A1", "--only", "float32", "--tolerances", "3", "--out", str(out)])
    assert again.exit_code == 0, again.output
    now = _rows(out / "detest.csv")
    assert [row for row in now if "float32" not in row["solver"]] == [r for r in rows if "float32" not in r["solver"]]
    assert [row["problem"] for row in now if "float32" in row["solver"]] == ["A1"]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        assert file.readline().startswith("# ")
        return list(csv.DictReader(file))


def test_unknown_problem() -> None:
    done = CliRunner().invoke(main, ["--problems", "Z"])
    assert done.exit_code == 2
    assert "problem" in done.output


def test_a_million_steps_keep_their_clock() -> None:
    """y'' = -y with 10^6 steps of 0.1, which float64 cannot hold: the state is the power of the step's polynomial."""
    n, span = 10**6, 1e5
    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    with torch.no_grad():
        sol = fastode.solve(
            lambda t, y: torch.stack([y[:, 1], -y[:, 0]], 1),
            y0,
            [0.0, span],
            method="rk4_classic",
            step_size=span / n,
            max_steps=2 * n,
        )
    assert sol.stats.n_accepted.tolist() == [n]
    with mpmath.workdps(40):
        z = mpmath.mpc(0, -1) * mpmath.mpf(span) / n
        right = (1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24) ** n
    assert abs(sol.ys[-1, 0, 0].item() - float(right.real)) < 1e-9
    assert abs(sol.ys[-1, 0, 1].item() - float(right.imag)) < 1e-9
    energy = math.hypot(*sol.ys[-1, 0].tolist())
    assert abs(energy - float(abs(right))) < 1e-11  # that of the method, to rounding
