"""The benchmarks: all libraries solve the same problem, failures are results, the report is complete. No timings."""

import csv
import time
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from click.testing import CliRunner, Result

from bench import measure, memory, plots, report
from bench.cases import CASES, FORWARD, GRADIENT, PRECISION, QUICK, TRAIN
from bench.cli import main
from bench.floor import floor_seconds
from bench.libraries import DEFAULT, LIBRARIES, DoesNotApply, Work
from bench.libraries.base import TorchLibrary
from bench.machine import Machine
from bench.measure import Settings, compare, exact_values, largest_error

MACHINE = Machine("a machine", 0.0, 1e9, 1e9)
FAST = Settings(rounds=1, shortest=0.0, memory=False)
SPANS = {"lorenz-100": 0.3, "neural-ode-1": 3.0, "neural-ode-100": 3.0, "one-stiff-in-256": 0.05, "autoencode": 1.0}
SPANS |= {"van-der-pol-1048576": 0.3, "autoencode-cifar10": 1.0, "convolution": 0.3}


def small(name: str):
    """The case with few samples, a short span and few training steps."""
    case = CASES[name]
    span = (0.0, SPANS.get(name, case.span[1]))
    return replace(case, batch=min(case.batch, 5), span=span, n_times=min(case.n_times, 4), train_steps=2)


# Cases that differ in size only are represented by one.
SIZES = ("controlled-2", "controlled-1", "controlled-4", "lorenz-1000", "lorenz-8", "neural-ode-1-", "autoencode-")
SIZES += ("spiral-4", "spiral-5", "spiral-6")
SAME = [name for name in CASES if name.startswith(SIZES) and name != "controlled-128x16"]
NAMES = [name for name in CASES if name not in SAME]

SLOW_DIFFRAX = pytest.param("diffrax", marks=pytest.mark.slow)  # compiles


def need(name: str) -> None:
    package = LIBRARIES[name].package
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize("library", ["torchdiffeq", "torchdiffeq adjoint", "torchode", SLOW_DIFFRAX, "scipy RK45"])
@pytest.mark.parametrize("name", NAMES)
def test_libraries_solve_the_same_problem(name, library):
    need(library)
    case = replace(small(name), rtol=1e-6, atol=1e-8)
    for mode in (FORWARD, GRADIENT):
        if mode not in LIBRARIES[library].modes or (library == "diffrax" and mode == FORWARD):
            continue  # diffrax compiles for seconds, and its gradient needs the forward solve too
        problem = case.problem(dtype=torch.float64)
        try:
            run = LIBRARIES[library].prepare(problem, mode)
        except DoesNotApply as reason:
            pytest.skip(str(reason))
        ours = LIBRARIES["fastode"].prepare(problem, mode)
        theirs, mine = run.values(run.call()), ours.values(ours.call())
        assert largest_error(theirs, mine, mode) < (1e-3 if library == "torchdiffeq adjoint" else 1e-4)
        steps = run.work().steps_max
        assert steps is not None
        assert steps >= 1


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_against_a_tight_solve(name):
    case = small(name)
    for mode in (FORWARD, GRADIENT):
        exact = exact_values(case, mode, torch.device("cpu"))
        finer = LIBRARIES["fastode stepped"].prepare(
            replace(case, rtol=1e-9, atol=1e-11).problem(dtype=torch.float64), mode
        )
        assert largest_error(finer.values(finer.call()), exact, mode) < 1e-6


@pytest.mark.parametrize("library", ["torchdiffeq", "torchode", SLOW_DIFFRAX])
@pytest.mark.parametrize("name", ["spiral", "autoencode"])
def test_training_is_the_same_in_all_libraries_and_leaves_no_trace(name, library):
    need(library)
    losses = []
    for who in ("fastode", library):
        problem = small(name).problem()
        before = [weight.clone() for weight in problem.weights().values()]
        try:
            run = LIBRARIES[who].prepare(problem, TRAIN)
        except DoesNotApply as reason:
            pytest.skip(str(reason))
        first, last = run.values(run.call())
        assert float(last) < float(first)
        losses.append(float(last))
        assert all(bool((a == b).all()) for a, b in zip(before, problem.weights().values(), strict=True))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_case_is_the_same_every_time_and_in_every_dtype():
    for name in NAMES:
        a, b = small(name).problem(), small(name).problem(dtype=torch.float64)
        assert b.dtype == torch.float64
        for x, y in zip(a.weights().values(), b.weights().values(), strict=True):
            assert torch.equal(x.double(), y)
        assert a.values() == b.values()


def test_lists_name_cases_that_there_are():
    assert set(QUICK) | set(PRECISION) <= set(CASES)
    assert "fastode reference" not in DEFAULT
    assert all(name == case.name for name, case in CASES.items())


class Broken(TorchLibrary):
    """Raises when it is asked for gradients, and returns half of the batch otherwise."""

    name, package = "broken", "torch"

    def solver(self, problem, mode):
        return self.solve

    def solve(self, problem, y0, controls):
        if y0.requires_grad:
            raise ValueError("no gradients\nand many lines about it")
        return y0[None, ::2]


class Missing(TorchLibrary):
    name, package = "missing", "no_such_package_of_fastode"


@pytest.fixture
def with_bad_ones(monkeypatch):
    monkeypatch.setitem(LIBRARIES, "broken", Broken())
    monkeypatch.setitem(LIBRARIES, "missing", Missing())
    return ["fastode stepped", "broken", "missing"]


@pytest.mark.parametrize(("mode", "why"), [(FORWARD, "returned the shape"), (GRADIENT, "ValueError: no gradients")])
def test_a_peer_that_fails_is_reported(mode, why, with_bad_ones):
    rows = {row["library"]: row for row in compare(small("controlled-128x16"), mode, with_bad_ones, FAST, MACHINE)}
    assert why in rows["broken"]["failed"]
    assert "\n" not in rows["broken"]["failed"]
    assert rows["missing"]["failed"] == "ImportError: no_such_package_of_fastode is not installed"
    good = rows["fastode stepped"]
    assert not good["failed"]
    assert good["error"] < 1e-3
    assert good["times_fastode"] == 1.0
    assert good["floor_ms"] > 0
    assert good["evals"] >= 6 * good["steps_mean"]


def test_report_and_pictures(with_bad_ones, tmp_path):
    names = [*with_bad_ones, "torchdiffeq"]
    with report.Report(tmp_path / "bench.csv", "a machine") as book:
        for mode in (FORWARD, GRADIENT):
            book.add(compare(small("controlled-128x16"), mode, names, FAST, MACHINE))
            tighter = small("controlled-128x16").with_tolerance(1e-4)
            book.add(compare(tighter, mode, names, FAST, MACHINE, kind="precision"))
    with (tmp_path / "bench.csv").open() as file:
        assert file.readline() == "# a machine\n"
        assert next(csv.reader(file)) == report.COLUMNS
    line, rows = report.read(tmp_path / "bench.csv")
    assert line == "a machine"
    assert len(rows) == 16
    assert {row["kind"] for row in rows} == {"compare", "precision"}
    table = report.table(rows)
    assert "controlled-128x16  forward" in table
    assert all(report.describe(row) for row in rows)
    pytest.importorskip("matplotlib")
    assert {path.name for path in plots.draw(rows, tmp_path)} >= {"work-precision.png"}


def test_command(tmp_path):
    options = ["--case", "closed", "--mode", "forward", "--library", "fastode stepped", "--out", tmp_path / "new"]
    result = call(*options, "--rounds", 1, "--no-precision")
    assert result.exit_code == 0, result.output
    assert "closed-loop  forward  fastode stepped" in result.output
    _, (row,) = report.read(tmp_path / "new" / "bench.csv")
    assert row["library"] == "fastode stepped"
    assert row["rounds"] == 1
    assert row["median_ms"] > 0
    assert "GFLOP/s" in (tmp_path / "new" / "bench.csv").read_text().splitlines()[0]
    again = call("--redraw", "--out", tmp_path / "new")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "lorentz"], "'lorentz' is none of controlled-128x16, "),
        (["--library", "sundials"], "'sundials' is none of fastode, "),
        (["--mode", "backward"], "'backward' is none of forward, gradient, train"),
        (["--rounds", "0"], "0 is not in the range x>=1"),
        (["--device", "abacus"], "abacus"),
        (["--redraw", "--out", "nowhere"], "no nowhere/bench.csv"),
    ],
)
def test_mistakes_are_explained(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_list():
    output = call("--list").output
    assert all(name in output for name in (*CASES, *LIBRARIES))


def test_console_script(monkeypatch, tmp_path):
    from fastode import cli

    found = CliRunner().invoke(cli.main, ["bench", "--help"])
    assert found.exit_code == 0, found.output
    assert "--precision / --no-precision" in found.output
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "fastode" / "cli.py"))
    monkeypatch.chdir(tmp_path)
    alone = CliRunner().invoke(cli.main, ["bench", "--quick"])
    assert alone.exit_code == 1
    assert "run this inside a checkout" in alone.output


def test_floor_counts_what_cannot_be_avoided():
    problem = small("controlled-128x16").problem()
    work = Work(evals_total=100.0, steps_total=16.0, accepted_total=15.0)
    seconds, bound = floor_seconds(problem, FORWARD, work, MACHINE)
    assert bound == "flops"
    assert seconds > 100 * 2 * 16 * 16 / 1e9
    slow_copy = Machine("a machine", 0.0, 1e18, 1e9)
    numbers = 5 * (16 + 16 * 16 + 16) + 5 * 16
    assert floor_seconds(problem, FORWARD, work, slow_copy) == (pytest.approx(4 * numbers / 1e9), "bytes")
    assert floor_seconds(problem, GRADIENT, work, MACHINE)[0] > 2 * seconds
    assert floor_seconds(problem, FORWARD, Work(), MACHINE) is None


def test_limits_of_a_run():
    with pytest.raises(measure.OutOfTime, match=r"longer than 0\.05 s"), measure.time_limit(0.05):
        time.sleep(30)
    with memory.limited(), pytest.raises(RuntimeError, match="alloc"):
        torch.empty(2**50, dtype=torch.uint8)
    peak = memory.peak_bytes(lambda: torch.ones(2**23), torch.device("cpu"))
    assert peak is None or 2**25 <= peak < 2**26
