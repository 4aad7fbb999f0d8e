"""``python -m bench.gpu`` without a GPU: child processes, budget, reports; the whole command on the device "cpu"."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench import report
from bench.cases import CASES
from bench.gpu import checks, cli, plan, programs, summary, targets
from bench.gpu.budget import QUICK, SHARES, Budget
from bench.gpu.checks import Check
from bench.gpu.fields import MAKERS, example, of_the_tests
from bench.gpu.pool import ROOT, Outcome, Pool, Task
from bench.profile import Activity, activity


def task(name, limit=20.0, turn=0.0, **arguments):
    return Task(name, f"tests.gpu_tasks:{name}", arguments, limit, turn)


def soon(seconds):
    return time.monotonic() + seconds


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of torch that wait for each other cost more than small solves."""
    torch.set_num_threads(1)


# -- children


def test_one_that_fails_takes_nothing_with_it():
    tasks = [task("good", value=1), task("raises"), task("crashes"), task("hangs", 0.3), task("good", value=2)]
    seen = []
    start = time.monotonic()
    outcomes = Pool(1).run(tasks, soon(60), lambda outcome: seen.append(outcome.task.name))
    assert time.monotonic() - start < 30
    assert [outcome.kind for outcome in outcomes] == ["done", "raised", "crashed", "too long", "done"]
    assert seen == [t.name for t in tasks]
    assert outcomes[0].events == [{"event": "seen", "value": 1}]
    assert outcomes[1].reason == "ValueError: no such luck in many lines"
    assert "SIGSEGV" in outcomes[2].reason
    assert "last words" in outcomes[2].reason
    assert outcomes[3].reason == "more than 0.3 s"
    assert outcomes[4].value["value"] == 2
    assert outcomes[4].value["pid"] != outcomes[0].value["pid"]


def test_a_child_has_several_tasks_unless_each_wants_its_own():
    tasks = [task("good", value=i) for i in range(3)]
    same, fresh = ({o.value["pid"] for o in Pool(1, fresh=f).run(tasks, soon(60))} for f in (False, True))
    assert len(same) == 1
    assert len(fresh) == 3


def test_what_does_not_fit_or_is_not_wanted_is_listed():
    outcomes = Pool(1).run([task("hangs"), task("good", value=1)], soon(1.5))
    assert [(o.task.name, o.kind) for o in outcomes] == [("hangs", "no time left"), ("good", "no time left")]
    (outcome,) = Pool(1).run([task("good", value=1)], soon(60), leave_out=lambda task: "it is bad")
    assert (outcome.kind, outcome.reason) == ("left out", "it is bad")


def test_a_task_that_comes_of_an_outcome_is_done_next():
    again = [task("good", value=7)]
    outcomes = Pool(1).run([task("raises"), task("good", value=8)], soon(60), lambda o: again.pop() if again else None)
    assert [o.value["value"] for o in outcomes if o.value] == [7, 8]


def test_whose_turn_it_is_is_alone(tmp_path):
    path = tmp_path / "log"
    path.touch()
    tasks = [task("takes_turns", turn=5.0, path=str(path)) for _ in range(4)]
    tasks.insert(1, task("asks_and_hangs", turn=0.3))
    outcomes = Pool(3, fresh=True).run(tasks, soon(60))
    assert sorted(o.kind for o in outcomes) == ["done"] * 4 + ["too long"]
    alone = None
    for line in path.read_text().splitlines():
        what, who = line.split()
        assert alone in (None, who), "another one ran"
        alone = who if what == "start" else None if what == "end" else alone
    assert path.read_text().count("end") == 4


def test_children_end_with_their_parent(tmp_path):
    script = (
        "from bench.gpu.pool import *; "
        "Pool(1).run([Task('hangs', 'tests.gpu_tasks:announces_and_hangs', {'path': %r})], time.monotonic() + 60)"
    )
    path = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", script % str(path)], cwd=ROOT)
    end = soon(30)
    while not (path.exists() and path.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    child = int(path.read_text())
    parent.kill()
    parent.wait()
    while time.monotonic() < end:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if "State:\tZ" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


# -- checks


def test_every_field_has_an_example_and_every_check_a_way():
    names = set(MAKERS) | set(of_the_tests())
    assert len(of_the_tests()) > 20
    for backend in cli.BACKENDS:
        found = [*plan.first(backend, "cuda"), *plan.rest(backend, "cuda"), *plan.sample(backend, "cuda")]
        assert {check.field for check in found if check.field} <= names
        assert {check.kind for check in found} == set(checks.KINDS)
        assert len(set(plan.rest(backend, "cuda"))) == len(plan.rest(backend, "cuda"))
        json.dumps([asdict(check) for check in found])
    for name in names:
        given = example(name, 3, 4).to("cpu", torch.float32)
        assert all(x.requires_grad and x.dtype == torch.float32 for x in given.sources())


CPU = [
    Check("solve", "cpu", "controlled tanh", 3, 5),
    Check("solve", "stepped", "convolution", 2, 4, "float32", "fixed steps"),
    Check("solve", "cpu", "ffjord", 3, 2, "float32"),
    Check("solve", "cpu", "van der pol, stiff", 5, 2, what="stiff"),
    Check("solve", "cpu", "van der pol", 3, 2, what="many steps"),
    Check("solve", "stepped", "tests: attention", 3, 1),
    Check("status", "stepped", dtype="float32"),
    Check("checkpoint", "cpu", what="few bytes"),
    Check("method", "cpu", what="PID"),
    Check("dense", "cpu"),
    Check("solve", "cpu", batch=3, dim=4, dtype="float32", what="half weights"),
    Check("solve", "stepped", "mlp", 3, 4, what="graphs"),
    *(Check("times", "cpu", "mlp deep, time", 3, 4, what=what) for what in plan.TIMES),
]


@pytest.mark.parametrize("check", CPU, ids=lambda check: check.name)
def test_checks_pass_on_backends_that_are_right(check):
    result = checks.run(None, **asdict(replace(check, device="cpu")))
    assert result["outcome"] == "passed", result["reason"]
    assert result["numbers"]


def test_refusals_and_errors_are_told_apart():
    refused = checks.run(None, **asdict(Check("solve", "cpu", "convolution", 3, 4, device="cpu")))
    assert refused["outcome"] == "refused"
    assert "convolution" in refused["reason"]
    error = checks.run(None, **asdict(Check("solve", "no backend", "mlp", 3, 4, device="cpu")))
    assert error["outcome"] == "error"


WRONG = {
    "a gradient": ("solve", "gradient"),
    "ys": ("solve", "ys"),
    "steps": ("solve", "numbers of steps"),
    "unwritten": ("solve", "unwritten"),
    "noise": ("solve", "repeated"),
    "neighbours": ("status", "states of others"),
    "status": ("status", "status"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_faults_are_found(fault, monkeypatch):
    right, calls = checks.solved, [0]

    def faulty(given, t, backend, device, dtype, **options):
        found = right(given, t, backend, device, dtype, **options)
        if backend == "reference":
            return found
        calls[0] += 1
        if fault == "a gradient":
            found.grads[-1].view(-1)[-1] += 1e-5
        elif fault == "ys":
            found.ys[0].view(-1)[-1] += 1e-7
        elif fault == "steps":
            found.counts[0, -1] += 1
        elif fault == "unwritten" and torch.utils.deterministic.fill_uninitialized_memory:
            found.ys[0][-1] = torch.nan
        elif fault == "noise":
            found.ys[0][-1] += 1e-15 * calls[0]
        elif fault == "neighbours" and bool(found.status.any()):
            found.ys[0][-1, 0] *= 1 + 1e-6
        elif fault == "status":
            found.status[2] = 0
        return found

    monkeypatch.setattr(checks, "solved", faulty)
    kind, words = WRONG[fault]
    result = checks.run(None, **asdict(Check(kind, "cpu", "mlp" if kind == "solve" else "", 33, 3, device="cpu")))
    assert result["outcome"] == "failed"
    assert words in result["reason"]


def test_float32_is_held_to_the_accuracy_of_torch():
    truth = [torch.linspace(1.0, 2.0, 9, dtype=torch.float64)]
    plain = [truth[0].float()]
    assert checks.as_accurate(plain, plain, truth, "ys") <= 1
    with pytest.raises(checks.Wrong, match=r"ys: error 1\.0\de-04"):
        checks.as_accurate([plain[0] + 1e-4], plain, truth, "ys")
    with pytest.raises(checks.Wrong, match="NaN"):
        checks.as_accurate([plain[0] * torch.nan], plain, truth, "ys")


# -- other programs


@pytest.mark.parametrize(
    ("text", "code", "outcome"),
    [
        ("========= COMPUTE-SANITIZER\nsolved\n========= ERROR SUMMARY: 0 errors", 0, "passed"),
        ("solved\n========= Invalid __global__ read of size 4\n========= ERROR SUMMARY: 3 errors", 99, "failed"),
        ("solved\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)", 99, "failed"),
        ("solved\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", 0, "passed"),
        ("RuntimeError: backend 'cuda' cannot run this solve: cuda: no", 1, "refused"),
        ("Device not supported", 1, "skipped"),
        ("ERROR SUMMARY: 0 errors", 0, "skipped"),
    ],
)
def test_what_compute_sanitizer_says(text, code, outcome):
    assert programs.judge_sanitizer(text, code)["outcome"] == outcome


def test_results_of_tests():
    text = (
        '<testsuites><testsuite><testcase classname="tests.a" name="b" time="0.5"/>'
        '<testcase classname="tests.a" name="c"><failure message="no\n way"/></testcase>'
        '<testcase classname="tests.a" name="d"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    results = programs.read_junit(text)
    assert [(r["field"], r["outcome"], r["reason"]) for r in results] == [
        ("tests.a::b", "passed", ""),
        ("tests.a::c", "failed", "no way"),
        ("tests.a::d", "skipped", "no GPU"),
    ]


def test_activity_of_a_trace():
    def event(cat, name, ts, dur=1.0, correlation=None):
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": {"correlation": correlation}}

    events = [
        event("user_annotation", "fastode: the call", 10.0, 100.0),
        event("cuda_runtime", "cudaLaunchKernel", 11.0, correlation=1),
        event("cuda_driver", "cuLaunchKernelEx", 12.0, correlation=2),
        event("cuda_runtime", "cudaStreamSynchronize", 20.0),
        event("cuda_runtime", "cudaDeviceSynchronize", 120.0),  # the profiler's
        event("kernel", "short", 14.0, 2.0, 1),
        event("kernel", "long", 16.0, 30.0, 2),
        event("kernel", "long", 50.0, 30.0, 2),  # of the same graph
        event("gpu_memcpy", "Memcpy DtoH", 90.0, 3.0, 4),
        {"ph": "M", "name": "process_name"},
    ]
    assert activity(events) == Activity(2, 1, pytest.approx(65e-6), "long")
    assert activity(events[1:]) is None
    assert activity(events[:5]) is None


# -- what is left of a run


def row(case, mode, library, ms, **more):
    return {"kind": "compare", "case": case, "mode": mode, "library": library, "failed": "", "median_ms": ms, **more}


def verdict_of(rows, word, checks=(), shares=None):
    (found,) = [v for v in targets.verdicts(rows, list(checks), shares or {}) if word in v.target]
    return found


def test_targets():
    assert {v.verdict for v in targets.verdicts([], [], {})} == {targets.UNKNOWN}
    lorenz = row("lorenz-8192", "forward", "fastode triton", 0.2, device_ms=0.05)
    assert verdict_of([lorenz], "Lorenz").verdict == targets.MISSED
    assert verdict_of([lorenz], "Lorenz").device.startswith("reached")
    faster = row("lorenz-8192", "forward", "fastode cuda", 0.08)
    assert verdict_of([lorenz, faster], "Lorenz").verdict == targets.REACHED
    cells = [
        row(case, "gradient", library, ms)
        for case in targets.NEURAL
        for library, ms in (("fastode triton", 1.0), ("torchdiffeq", 90.0), ("torchdiffeq adjoint", 60.0))
    ]
    assert verdict_of(cells, "50x").verdict == targets.REACHED
    assert "60x" in verdict_of(cells, "50x").numbers
    assert verdict_of(cells[3:], "50x").verdict == targets.UNKNOWN  # one was not measured
    cells[2]["median_ms"] = 49.0
    assert verdict_of(cells, "50x").verdict == targets.MISSED
    conv = [
        row("convolution", mode, n, ms)
        for mode in ("forward", "gradient")
        for n, ms in (("fastode", 1.0), ("torchdiffeq", 3.0))
    ]
    exact = {"field": "convolution", "outcome": "passed"}
    assert verdict_of(conv, "ConvNet", [exact]).verdict == targets.REACHED
    assert verdict_of(conv, "ConvNet").verdict == targets.UNKNOWN
    assert verdict_of(conv, "ConvNet", [exact, {**exact, "outcome": "failed"}]).verdict == targets.MISSED
    assert verdict_of([], "training step", shares={"fastode": {"share": 0.1}}).verdict == targets.REACHED
    assert verdict_of([], "training step", shares={"fastode": {"share": 0.3}}).verdict == targets.MISSED
    assert set(targets.CASES) | set(targets.QUICK) <= set(CASES)
    needed = {*targets.CONTROLLED, *targets.NEURAL, targets.LORENZ, targets.VAN_DER_POL, targets.CONVOLUTION}
    assert needed | {targets.AUTOENCODE} == set(targets.CASES)


def test_shares_of_the_budget_grow_and_leave_time_for_the_report():
    for shares in (SHARES, QUICK):
        assert all(a <= b for a, b in pairwise(shares.values()))
        assert (1 - shares["benchmarks"]) * cli.QUICK_SECONDS > 5
    assert Budget(100.0).until("checks") - time.monotonic() == pytest.approx(45.0, abs=1.0)
    assert cli.SECONDS + 10 < 600


@pytest.fixture
def a_run(tmp_path):
    lines = []
    run = cli.Run(tmp_path, Budget(60.0), False, "cpu", ["lorenz-100"], ["fastode", "bad", "torchdiffeq"], lines.append)
    run.facts = {"line": "a machine", "machine": {}, "backends": [["stepped", None], ["triton", "no GPU"]]}
    return run


HOW = {"crashes": "crashed: signal SIGSEGV", "hangs": "too long", "raises": "raised: ValueError: no such luck"}


@pytest.mark.parametrize("how", HOW)
def test_a_case_goes_on_without_the_library_that_broke_it(how, a_run, monkeypatch):
    def changed(name, call, arguments, limit, turn=0.0):
        return Task(name, "tests.gpu_tasks:contest", {**arguments, "how": how}, 3.0, turn)

    monkeypatch.setattr(cli, "Task", changed)
    a_run.benchmark()
    assert not a_run.skipped
    assert {(r["mode"], r["library"]) for r in a_run.rows if not r["failed"]} == {
        (mode, library) for mode in ("forward", "gradient") for library in ("fastode", "torchdiffeq")
    }
    bad = [r for r in a_run.rows if r["failed"]]
    assert [(r["mode"], r["library"]) for r in bad] == [("forward", "bad"), ("gradient", "bad")]
    assert all(HOW[how] in r["failed"] for r in bad)
    _, rows = report.read(a_run.out / "bench.csv")
    assert len(rows) == 6


def test_a_case_that_fails_by_itself_is_listed(a_run, monkeypatch):
    monkeypatch.setattr(cli, "Task", lambda name, *rest: task("raises"))
    a_run.benchmark()
    assert a_run.skipped == ["case raises: raised: ValueError: no such luck in many lines"]


def test_a_backend_that_crashes_again_and_again_is_left_alone(a_run, monkeypatch):
    monkeypatch.setattr(cli, "Task", lambda name, call, arguments, limit: Task(name, "tests.gpu_tasks:dies", arguments))
    many = [Check("solve", "stepped", "mlp", batch) for batch in range(1, 13)]
    a_run._check([many, []], [], "benchmarks")
    outcomes = [check["outcome"] for check in a_run.checks]
    assert outcomes.count("crashed") >= cli.ENOUGH
    assert outcomes.count("skipped") >= 12 - cli.ENOUGH - 2  # some were under way
    assert all(check["backend"] == "stepped" for check in a_run.checks)


def test_backends_that_cannot_run_have_their_line(a_run):
    assert a_run.usable() == ["stepped"]
    assert [(c["backend"], c["outcome"], c["reason"]) for c in a_run.checks] == [
        ("triton", "skipped", "no GPU"),
        ("cuda", "skipped", cli.UNKNOWN),
    ]


def test_a_failed_check_is_the_exit_code(a_run):
    passed = {"kind": "solve", "backend": "cuda", "outcome": "passed", "reason": "", "numbers": {"ratio": 0.5}}
    a_run._checked(passed)
    assert a_run.write() == 0
    for outcome in targets.FAILURES:
        a_run.checks = [passed, {**passed, "outcome": outcome, "reason": "why | not"}]
        assert a_run.write() == 1
    assert "why | not" in (a_run.out / "README.md").read_text()
    with (a_run.out / "checks.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["outcome"] for line in lines] == ["passed", targets.FAILURES[-1]]
    assert lines[0]["ratio"] == "0.5"


def test_outcomes_of_children_as_results_of_checks():
    made = Task("name", "module:function", asdict(Check("solve", "cuda", "mlp")))
    kinds = {"raised": "error", "crashed": "crashed", "too long": "too long", "no time left": "skipped"}
    for kind, expected in kinds.items():
        (result,) = cli._results(Outcome(made, kind, reason="so"))
        assert (result["outcome"], result["backend"], result["field"]) == (expected, "cuda", "mlp")
    assert summary.name_of(result) == "cuda, solve, mlp, B=33, d=7, float64"


# -- the command


def command(*arguments):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path):
    result = command("--out", tmp_path / "new", "--quick")
    assert result.exit_code == 2
    assert "no usable GPU: torch" in result.output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments", [[], ["--out", "x", "--budget", "1"], ["--out", "x", "--case", "nothing"]])
def test_mistakes_are_explained(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(*arguments).exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    case = ["--case", "lorenz-8192", "--case", "convolution"]
    libraries = ["--library", "fastode stepped,torchdiffeq"]
    result = command("--out", tmp_path, "--device", "cpu", "--budget", 150, *case, *libraries)
    assert result.exit_code == 0, result.output
    found = {path.name for path in tmp_path.iterdir()}
    assert {"README.md", "bench.csv", "checks.csv", "report.json"} <= found
    assert len(found) <= 7
    content = json.loads((tmp_path / "report.json").read_text())
    outcomes = [check["outcome"] for check in content["checks"] if check["backend"] == "stepped"]
    assert outcomes == ["passed"] * len(plan.sample("stepped", "cpu"))
    assert {check["backend"] for check in content["checks"] if check["outcome"] == "skipped"} == {"triton", "cuda"}
    _, rows = report.read(tmp_path / "bench.csv")
    assert {(r["case"], r["mode"], r["library"]) for r in rows if not r["failed"]} == {
        (case, mode, library)
        for case in ("lorenz-8192", "convolution")
        for mode in ("forward", "gradient")
        for library in ("fastode stepped", "torchdiffeq")
    }
    assert all(r["error"] < 1e-2 for r in rows)
    assert any("left out on request" in line for line in content["skipped"])
    text = (tmp_path / "README.md").read_text()
    assert all(verdict["target"] in text for verdict in content["targets"])
    assert result.output.rstrip().splitlines()[-1].startswith(str(tmp_path))
