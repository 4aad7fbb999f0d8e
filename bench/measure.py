"""One case and mode with all libraries: interleaved timed rounds, errors, memory, work, floor."""

from __future__ import annotations

import contextlib
import gc
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.cases import FORWARD, TRAIN, Case, Problem
from bench.floor import floor_seconds
from bench.libraries import LIBRARIES, DoesNotApply, Library, Run, Work
from bench.libraries.ours import OURS, truth
from bench.machine import Machine, sync
from bench.memory import peak_bytes, release
from bench.profile import Activity, profile

Row = dict[str, Any]
LONG = 20.0
"""Seconds."""
TRACED = 0.3
"""Seconds; the trace of a longer call takes longer to write and read than all the rest."""


@dataclass(frozen=True)
class Settings:
    """How thoroughly to measure.

    Attributes:
        rounds: timed rounds; in each, every library runs once (short runs several times).
        budget: seconds of timing for one library, case and mode, after which it sits out the remaining rounds.
        limit: seconds after which a single run is broken off.
        shortest: runs shorter than this are repeated within a round.
        memory: also measure peak memory.
        activity: also count launches and waits, and time in kernels; on a GPU only.
        device, dtype: of the problems.
    """

    rounds: int = 7
    budget: float = 60.0
    limit: float = 600.0
    shortest: float = 0.05
    memory: bool = True
    activity: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32


class OutOfTime(Exception):  # noqa: N818
    """A single run took longer than the limit."""


@dataclass
class Contestant:
    """One library on one case and mode."""

    library: Library
    run: Run | None = None
    failed: str = ""
    first: float = math.nan
    repeats: int = 1
    error: float | None = None
    loss: float | None = None
    peak: int | None = None
    activity: Activity | None = None
    work: Work = field(default_factory=Work)
    seconds: list[float] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @property
    def in_torch(self) -> bool:
        """Whether its work and its memory are torch's."""
        return self.library.package != "diffrax"

    def fail(self, reason: BaseException) -> None:
        """Takes the library out and keeps why, in one line."""
        lines = str(reason).strip().splitlines() or [""]
        kind = "does not apply" if isinstance(reason, DoesNotApply) else type(reason).__name__
        self.failed = f"{kind}: {lines[0]}"[:300]
        self.run = None
        self.values = []


def compare(
    case: Case, mode: str, names: Sequence[str], settings: Settings, machine: Machine, kind: str = "compare"
) -> list[Row]:
    """One row per library that has the mode. What a library raises ends in its row."""
    contest = Contest(case, mode, names, settings)
    contest.prepare()
    return contest.measure(machine, kind)


class Contest:
    """One case and mode with some libraries, in two parts: only the second needs a machine where nothing else runs.

    Args:
        case: the workload.
        mode: what is done with it.
        names: of the libraries; those that lack the mode are left out.
        settings: how thoroughly.
        notify: told the name of the library whose turn it is, so that a watcher knows who brought the process down.
    """

    def __init__(
        self,
        case: Case,
        mode: str,
        names: Sequence[str],
        settings: Settings,
        notify: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.mode, self.settings, self.notify = mode, settings, notify
        self.problem = case.problem(settings.device, settings.dtype)
        libraries = [LIBRARIES[name] for name in names]
        self.entrants = [Contestant(library) for library in libraries if mode in library.modes]

    def prepare(self) -> None:
        """Compiles, warms up and compares the results with a far more precise solve."""
        for entrant in self.entrants:
            self.notify(entrant.library.name)
            _warm_up(entrant, self.problem, self.mode, self.settings)
        self.notify("")
        _check(self.entrants, self.problem, self.mode, self.settings)

    def measure(self, machine: Machine, kind: str = "compare") -> list[Row]:
        """Interleaved rounds, then memory and work; one row for each library."""
        for number in range(self.settings.rounds):
            gc.collect()
            shift = number % max(1, len(self.entrants))  # nobody always runs after the same one
            for entrant in self.entrants[shift:] + self.entrants[:shift]:
                self.notify(entrant.library.name)
                _timed_round(entrant, number, self.settings)
        for entrant in self.entrants:
            self.notify(entrant.library.name)
            _look_inside(entrant, self.settings)
        self.notify("")
        return _rows(self.entrants, self.problem, self.mode, machine, kind)


def _warm_up(entrant: Contestant, problem: Problem, mode: str, settings: Settings) -> None:
    """Prepares, runs once, and once more where that is cheap; keeps the values in ``entrant.values``."""
    release()  # what an earlier one left, should it have run out of memory
    try:
        with time_limit(settings.limit):
            entrant.run = entrant.library.prepare(problem, mode)
        result, estimate = _timed(entrant, 1, settings)
        entrant.first = estimate
        entrant.values = entrant.run.values(result)
        del result
        if estimate > max(settings.budget, LONG):  # this one has to do: warm or not makes no difference to it
            entrant.seconds.append(estimate)
            return
        if estimate < 1.0:
            estimate = min(_timed(entrant, 1, settings)[1] for _ in range(2))
        entrant.repeats = max(1, min(1000, math.ceil(settings.shortest / max(estimate, 1e-7))))
    except Exception as reason:  # a peer's failure is a result, not ours
        entrant.fail(reason)


def _timed(entrant: Contestant, repeats: int, settings: Settings) -> tuple[Any, float]:
    """Result and mean seconds of some calls in a row, without garbage collection.

    By the clock of the device where the work is on a stream of torch's, otherwise by that of the host, which then waits
    for the device before it reads it.
    """
    run, device = entrant.run, settings.device
    assert run is not None
    by_device = device.type == "cuda" and entrant.in_torch
    enabled = gc.isenabled()
    gc.disable()
    try:
        with time_limit(settings.limit):
            sync(device)
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if by_device else []
            start = time.perf_counter()
            if by_device:
                marks[0].record()
            for _ in range(repeats):
                result = run.call()
            if by_device:
                marks[1].record()
            sync(device)
            seconds = marks[0].elapsed_time(marks[1]) * 1e-3 if by_device else time.perf_counter() - start
            return result, seconds / repeats
    finally:
        if enabled:
            gc.enable()


def _timed_round(entrant: Contestant, number: int, settings: Settings) -> None:
    over = sum(entrant.seconds) * entrant.repeats + entrant.first > settings.budget
    if entrant.run is None or len(entrant.seconds) != number or (over and number > 0):
        return
    try:
        entrant.seconds.append(_timed(entrant, entrant.repeats, settings)[1])
    except Exception as reason:
        entrant.fail(reason)


def _look_inside(entrant: Contestant, settings: Settings) -> None:
    """Work, peak memory in one more call, and what happens on the device in another."""
    if entrant.run is None:
        return
    try:
        with time_limit(settings.limit):
            entrant.work = entrant.run.work()
            if settings.memory and entrant.first <= max(settings.budget, LONG):
                entrant.peak = peak_bytes(entrant.run.call, settings.device, entrant.in_torch)
            if settings.activity and entrant.seconds and min(entrant.seconds) < TRACED:
                with contextlib.suppress(Exception):  # of the profiler's; times are not to be lost with it
                    entrant.activity = profile(entrant.run.call, settings.device)
    except Exception as reason:
        entrant.fail(reason)


def _check(entrants: list[Contestant], problem: Problem, mode: str, settings: Settings) -> None:
    """Errors of all against one solve in float64; of training the last loss, which has no exact value."""
    alive = [entrant for entrant in entrants if entrant.run is not None]
    exact = exact_values(problem.case, mode, settings.device) if alive and mode != TRAIN else []
    for entrant in alive:
        values, entrant.values = entrant.values, []
        if mode == TRAIN:
            entrant.loss = float(values[-1])
        else:
            try:
                entrant.error = largest_error(values, exact, mode, problem.checked())
            except Exception as reason:
                entrant.fail(reason)


_EXACT: dict[tuple[Any, ...], list[Tensor]] = {}


def exact_values(case: Case, mode: str, device: torch.device) -> list[Tensor]:
    """What ``Problem.forward`` or ``gradient`` give at a far tighter tolerance in float64; on some samples if many."""
    key = (case.name, case.batch, case.span, case.n_times, mode, str(device))
    if key not in _EXACT:
        problem = case.problem(device, torch.float64)
        index = problem.checked()
        if index is not None:
            problem = problem.rows(index)
        _EXACT.clear()  # only tolerances and libraries change from one call to the next
        _EXACT[key] = [value.cpu() for value in getattr(problem, mode)(truth(device.type))]
    return _EXACT[key]


def largest_error(values: list[Tensor], exact: list[Tensor], mode: str, index: Tensor | None = None) -> float:
    """Greatest deviation over greatest magnitude, worst of the tensors; ``exact`` has the samples of ``index`` only."""
    worst = 0.0
    for value, right in zip(values, exact, strict=True):
        value = value.detach().double().cpu()
        if index is not None:
            value = value.index_select(1 if mode == FORWARD else 0, index)
        if value.shape != right.shape:
            raise RuntimeError(f"returned the shape {tuple(value.shape)} where {tuple(right.shape)} is right")
        deviation = float((value - right).abs().max() / right.abs().max().clamp_min(1e-30))
        if math.isnan(deviation):
            raise RuntimeError("returned NaN")
        worst = max(worst, deviation)
    return worst


def _rows(entrants: list[Contestant], problem: Problem, mode: str, machine: Machine, kind: str) -> list[Row]:
    ours = [library.name for library in OURS]
    able = [entrant for entrant in entrants if entrant.seconds and not entrant.failed]
    base = next((entrant for name in ours for entrant in able if entrant.library.name == name), None)
    floor = None if base is None else floor_seconds(problem, mode, base.work, machine)
    case = problem.case
    rows = []
    for entrant in entrants:
        row: Row = {
            "kind": kind,
            "case": case.name,
            "mode": mode,
            "library": entrant.library.name,
            "rtol": case.rtol,
            "atol": case.atol,
            "failed": entrant.failed,
        }
        rows.append(row)
        if entrant.failed or not entrant.seconds:
            continue
        median = statistics.median(entrant.seconds)
        row.update(
            median_ms=_digits(1e3 * median),
            best_ms=_digits(1e3 * min(entrant.seconds)),
            rounds=len(entrant.seconds),
            error=_digits(entrant.error, 3),
            loss=_digits(entrant.loss),
            times_fastode=None if base is None else _digits(_ratio(entrant.seconds, base.seconds)),
            fastode="" if base is None else base.library.name,
            peak_mib=None if entrant.peak is None else _digits(entrant.peak / 2**20),
            steps_mean=_digits(entrant.work.steps_mean),
            steps_max=_digits(entrant.work.steps_max),
            evals=_digits(entrant.work.evals),
            train_steps=case.train_steps if mode == TRAIN else None,
            first_ms=_digits(1e3 * entrant.first),
        )
        if entrant.activity is not None:
            done = entrant.activity
            row.update(device_ms=_digits(1e3 * done.seconds), launches=done.launches, waits=done.waits)
        if floor is not None:
            row.update(floor_ms=_digits(1e3 * floor[0]), floor_bound=floor[1], times_floor=_digits(median / floor[0]))
    return rows


def _ratio(theirs: list[float], ours: list[float]) -> float:
    """Median over the rounds that both took part in of their time over ours."""
    return statistics.median(a / b for a, b in zip(theirs, ours))  # noqa: B905


def _digits(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises ``OutOfTime`` in Python code that runs longer. On the main thread of Unix only."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread() or seconds <= 0:
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise OutOfTime(f"longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
