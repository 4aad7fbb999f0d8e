"""The command: environment, checks, benchmarks, report, in a fixed time, whatever fails on the way."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import click

from bench import report
from bench.cases import CASES
from bench.cli import Names
from bench.gpu import budget as budgets
from bench.gpu import plan, summary, targets
from bench.gpu.checks import Check
from bench.gpu.pool import Event, Outcome, Pool, Task, terminated_as_interrupt
from bench.libraries import LIBRARIES
from bench.measure import Row

BACKENDS = ("triton", "cuda", "stepped")
SECONDS, QUICK_SECONDS = 540.0, 120.0
ENOUGH = 6
"""Crashes and hangs of a backend after which its other checks are left out: each costs a process."""
ATTEMPTS = 4
"""How often a case is begun anew without the library that brought the process down."""
SETTINGS = {"rounds": 7, "budget": 1.0, "limit": 30.0}
"""The limit is for a first run, too, which may compile."""
NOT_HERE = {"fastode cpu", "fastode reference", "scipy RK45"}
UNKNOWN = "there is no such backend in this version"


def libraries_of(device: str) -> list[str]:
    """What is compared on a device by default."""
    if device == "cpu":
        return ["fastode", "fastode stepped", "torchdiffeq"]
    return [name for name in LIBRARIES if name not in NOT_HERE and not name.startswith("fastode implicit")]


class Interrupted(Exception):  # noqa: N818
    """Nothing more can be done."""


class Run:
    """One run of the command.

    Args:
        out: folder of the report.
        budget: the time that there is.
        quick: a handful of checks and three cases.
        device: "cuda", or "cpu" for a rehearsal with tiny sizes.
        cases, libraries: what is compared.
        echo: prints a line.
    """

    def __init__(
        self,
        out: Path,
        budget: budgets.Budget,
        quick: bool,
        device: str,
        cases: list[str],
        libraries: list[str],
        echo: Callable[[str], None],
    ) -> None:
        self.out, self.budget, self.quick, self.device = out, budget, quick, device
        self.cases, self.libraries, self.echo = cases, libraries, echo
        self.facts: dict[str, Any] = {}
        self.checks: list[dict[str, Any]] = []
        self.rows: list[Row] = []
        self.shares: dict[str, Any] = {}
        self.skipped: list[str] = []
        self.stages: dict[str, float] = {}
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    # -- environment

    def environment(self) -> str:
        """Fills ``facts``; why nothing else can be done, or ""."""
        tasks = [
            Task("environment", "bench.gpu.environment:measure", {"device": self.device}, 60.0),
            Task("jax", "bench.gpu.environment:jax_devices", {}, 40.0),
        ]
        variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        done = {o.task.name: o for o in self._pool(2, variables).run(tasks, self.budget.until("environment"))}
        found = done["environment"]
        self.facts = found.value or {"reason": f"looking at it ended so: {_why(found)}"}
        self.facts["jax"] = done["jax"].value or f"jax: {_why(done['jax'])}"
        self._stage("environment")
        return str(self.facts["reason"])

    # -- checks

    def usable(self) -> list[str]:
        """Backends that there are; the others get a line among the checks."""
        known = dict(self.facts["backends"])
        for backend in BACKENDS:
            reason = known.get(backend, UNKNOWN)
            if reason is not None:
                self._checked({"kind": "all", "backend": backend, "outcome": "skipped", "reason": reason})
        return [backend for backend in BACKENDS if known.get(backend, UNKNOWN) is None]

    def check(self, usable: list[str]) -> None:
        """The first checks of every backend, then the others with the programs that check."""
        make = plan.first if self.device == "cuda" else plan.sample
        self._check([make(backend, self.device) for backend in usable], [], "first checks")
        if self.quick or self.device != "cuda":
            self.skipped.append("the other checks, the tests for a GPU, compute-sanitizer: left out on request")
            return
        others = [_sanitize(backend, "memcheck") for backend in usable]
        others += [Task("pytest", "bench.gpu.programs:pytests", {"seconds": 100.0, "workers": 4}, 110.0)]
        others += [_sanitize(backend, "racecheck") for backend in usable]
        self._check([plan.rest(backend, self.device) for backend in usable], others, "checks")

    def _check(self, lists: list[list[Check]], others: list[Task], stage: str) -> None:
        mixed = [check for check in chain(*zip_longest(*lists)) if check is not None]
        tasks = [Task(check.name, "bench.gpu.checks:run", asdict(check), 75.0) for check in mixed]
        # Slow ones early enough to be done, but not all at once.
        first, second = others[: len(others) // 2 + 1], others[len(others) // 2 + 1 :]
        tasks = [*first, *tasks[:30], *second, *tasks[30:]]
        crashes: Counter[str] = Counter()

        def record(outcome: Outcome) -> None:
            backend = outcome.task.arguments.get("backend", "")
            crashes[backend] += outcome.kind in ("crashed", "too long", "raised")
            for result in _results(outcome):
                self._checked(result)

        def leave_out(task: Task) -> str:
            backend = task.arguments.get("backend", "")
            return f"{ENOUGH} checks of this backend crashed or hung before" if crashes[backend] >= ENOUGH else ""

        workers = max(1, min(10, (self.cores * 5) // 8))
        variables = {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        self._pool(workers, variables).run(tasks, self.budget.until(stage), record, leave_out)
        self._stage(stage)

    def _checked(self, result: dict[str, Any]) -> None:
        self.checks.append(result)
        self._stream({"check": result})
        if result["outcome"] in targets.FAILURES:
            self.echo(f"{summary.name_of(result)}: {result['outcome']}: {result['reason'][:300]}")

    # -- benchmarks

    def benchmark(self) -> None:
        """All cases; rows go to bench.csv as they come."""
        settings = {**SETTINGS, "rounds": 3} if self.quick else SETTINGS
        fixed = {"libraries": self.libraries, "machine": self.facts["machine"], "device": self.device}
        fixed |= {**settings, "small": self.device == "cpu"}
        tasks = [
            Task(case, "bench.gpu.contest:run", {"case": case, "without": [], **fixed}, 90.0, 45.0)
            for case in self.cases
        ]
        attempts: Counter[str] = Counter()
        with report.Report(self.out / "bench.csv", self.facts["line"]) as book, tempfile.TemporaryDirectory() as cache:

            def record(outcome: Outcome) -> Task | None:
                new = [row for event in _named(outcome, "rows") for row in event["rows"]]
                for event in _named(outcome, "shares"):
                    self.shares |= event["shares"]
                follow = None
                if outcome.kind != "done":
                    follow, broken = _without_culprit(outcome)
                    new += broken
                    attempts[outcome.task.name] += 1
                    if follow is None or attempts[outcome.task.name] >= ATTEMPTS:
                        follow = None
                        self.skipped.append(f"case {outcome.task.name}: {_why(outcome)}")
                self.rows += new
                book.add(new)
                self._stream({"case": outcome.task.name, "kind": outcome.kind, "rows": new, "seconds": outcome.seconds})
                for row in new:
                    self.echo(report.describe(row))
                return follow

            variables = {
                "OMP_NUM_THREADS": "4" if self.device == "cuda" else "1",
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                "TF_CPP_MIN_LOG_LEVEL": "2",
                "JAX_COMPILATION_CACHE_DIR": cache,
            }
            workers = max(1, min(6, self.cores // 2))
            self._pool(workers, variables, fresh=True).run(tasks, self.budget.until("benchmarks"), record)
        self._stage("benchmarks")

    # -- the report

    def write(self) -> int:
        """Writes what there is; the exit code."""
        verdicts = targets.verdicts(self.rows, self.checks, self.shares)
        self.skipped += [f"check: {reason}" for reason in summary.reasons(self.checks, "skipped")]
        summary.write_checks(self.out / "checks.csv", self.checks)
        content = {
            "facts": self.facts,
            "targets": [asdict(verdict) for verdict in verdicts],
            "checks": self.checks,
            "rows": self.rows,
            "training step of an AutoencODE, ms": self.shares,
            "skipped": self.skipped,
            "seconds": {**self.stages, "all": self.budget.used},
        }
        summary.write_json(self.out / "report.json", content)  # before the pictures: it must not be lost with them
        try:
            pictures = summary.draw(self.rows, self.out)
        except Exception as error:
            pictures = []
            self.skipped.append(f"pictures: {type(error).__name__}: {error}")
        text = summary.readme(self.facts, self.checks, self.rows, verdicts, self.skipped, self.budget.used, pictures)
        (self.out / "README.md").write_text(text + "\n", encoding="utf-8")
        (self.out / "records.jsonl").unlink(missing_ok=True)  # all of it is in report.json
        self.echo(f"\n{summary.last_words(self.checks, self.rows, verdicts, self.skipped)}")
        self.echo(f"\n{self.out}: {', '.join(sorted(p.name for p in self.out.iterdir()))}; {self.budget.used:.0f} s")
        return 1 if summary.failures(self.checks) else 0

    def _pool(self, workers: int, variables: dict[str, str], fresh: bool = False) -> Pool:
        return Pool(workers, variables, fresh)

    def _stage(self, name: str) -> None:
        self.stages[name] = self.budget.used
        self.echo(f"-- {name} done after {self.budget.used:.0f} s")

    def _stream(self, record: dict[str, Any]) -> None:
        """So that a run that is killed keeps what it has."""
        with (self.out / "records.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _why(outcome: Outcome) -> str:
    return f"{outcome.kind}: {outcome.reason}" if outcome.reason else outcome.kind


def _named(outcome: Outcome, name: str) -> list[Event]:
    return [event for event in outcome.events if event["event"] == name]


def _sanitize(backend: str, kind: str) -> Task:
    arguments = {"backend": backend, "kind": kind, "seconds": 80.0}
    return Task(f"{kind} of {backend}", "bench.gpu.programs:sanitize", arguments, 90.0)


def _results(outcome: Outcome) -> list[dict[str, Any]]:
    """Results of checks, whatever became of the child."""
    if outcome.kind == "done":
        found = outcome.value if isinstance(outcome.value, list) else [outcome.value]
        return [{"seconds": outcome.seconds, **result} for result in found]
    kinds = {"raised": "error", "no time left": "skipped", "left out": "skipped"}
    about = {"kind": outcome.task.name, "backend": "", **outcome.task.arguments}
    reason = outcome.reason or outcome.kind
    if isinstance(outcome.value, dict) and outcome.value.get("reason"):  # it was told before the device was looked at
        reason = f"{outcome.value['reason']}; {reason}"
    return [{**about, "outcome": kinds.get(outcome.kind, outcome.kind), "reason": reason, "seconds": outcome.seconds}]


def _without_culprit(outcome: Outcome) -> tuple[Task | None, list[Row]]:
    """The same case without what was running when the child died, and rows that say so. None if it was nobody."""
    task, last = outcome.task, next(reversed(_named(outcome, "at")), None)
    if outcome.kind == "no time left" or last is None or not last["library"]:
        return None, []
    done = [[event["mode"], name] for event in _named(outcome, "rows") for name in task.arguments["libraries"]]
    without = [*task.arguments["without"], *done, [last["mode"], last["library"]]]
    case = CASES[task.arguments["case"]]
    row = {"kind": "compare", "case": case.name, "mode": last["mode"], "library": last["library"]}
    row |= {"rtol": case.rtol, "atol": case.atol, "failed": _why(outcome)[:300].replace("\n", " ")}
    again = Task(task.name, task.call, {**task.arguments, "without": without}, task.limit, task.turn)
    return again, [row]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110})
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the report.")
@click.option("--quick", is_flag=True, help="A handful of checks and three cases, in two minutes.")
@click.option(
    "--budget",
    type=click.FloatRange(10),
    help=f"Seconds for everything  [default: {SECONDS:g}; quick: {QUICK_SECONDS:g}].",
)
@click.option("--case", "cases", multiple=True, type=Names(list(CASES)), help="Only these cases.")
@click.option("--library", "libraries", multiple=True, type=Names(list(LIBRARIES)), help="Only these libraries.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", hidden=True)
@click.pass_context
def main(
    ctx: click.Context,
    out: Path,
    quick: bool,
    budget: float | None,
    cases: tuple[list[str], ...],
    libraries: tuple[list[str], ...],
    device: str,
) -> None:
    """Check fastode's backends on a GPU and compare their speed with other libraries, in under ten minutes.

    Ends with exit code 0; 1 if a check failed; 2 without a usable GPU. See docs/benchmarks.md.
    """
    seconds = budget or (QUICK_SECONDS if quick else SECONDS)
    few = quick or device == "cpu"
    chosen = list(dict.fromkeys(chain(*cases))) or (targets.QUICK if few else targets.CASES)
    names = list(dict.fromkeys(chain(*libraries))) or libraries_of(device)
    run = Run(
        out, budgets.Budget(seconds, budgets.QUICK if few else budgets.SHARES), quick, device, chosen, names, click.echo
    )
    try:
        with terminated_as_interrupt():
            reason = run.environment()
            if reason:
                click.echo(f"no usable GPU: {reason}", err=True)
                ctx.exit(2)
            out.mkdir(parents=True, exist_ok=True)
            click.echo(run.facts["line"])
            run.check(run.usable())
            run.benchmark()
    except KeyboardInterrupt:
        if not run.facts.get("line"):
            raise
        run.skipped.append("the rest: broken off from outside")
    started = {row["case"] for row in run.rows}
    run.skipped += [f"case {name}: never begun" for name in chosen if name not in started and not _told(run, name)]
    ctx.exit(run.write())


def _told(run: Run, name: str) -> bool:
    return any(text.startswith(f"case {name}:") for text in run.skipped)
