"""Tasks in child processes: a task that crashes, hangs or breaks the device takes nothing else with it.

A child executes tasks one after another, which saves imports. It is replaced when a task killed it, ran too long, or
left the device in error (after one CUDA error every later call of the process fails). Children end when their parent
does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LEAST = 1.0
"""Seconds; with less left no task is started."""
Event = dict[str, Any]


@dataclass
class Task:
    """A function to be called in a child.

    Attributes:
        name: for people.
        call: "module:function"; the function gets a ``worker.Link`` and the arguments, and returns a JSON object.
        arguments: a JSON object.
        limit: seconds until it must have ended, or have asked for its turn.
        turn: seconds that it may then have the machine to itself; 0 if it does not ask.
    """

    name: str
    call: str
    arguments: dict[str, Any] = field(default_factory=dict)
    limit: float = 60.0
    turn: float = 0.0


@dataclass
class Outcome:
    """What became of a task.

    Attributes:
        task: it.
        kind: "done", "raised", "crashed", "too long", "no time left" or "left out".
        value: what it returned.
        reason: why it did not, with the end of what it printed if it crashed.
        events: what it sent on the way.
        seconds: how long it took.
    """

    task: Task
    kind: str
    value: Any = None
    reason: str = ""
    events: list[Event] = field(default_factory=list)
    seconds: float = 0.0


class Gate:
    """Many may prepare at a time; who has its turn is alone. Who waits for a turn keeps others from preparing."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._preparing = self._waiting = 0
        self._taken = False

    def _wait(self, ready: Callable[[], bool], until: float) -> bool:
        return self._condition.wait_for(ready, max(0.0, until - time.monotonic()))

    def prepare(self, until: float) -> bool:
        """Waits for the permission to prepare; False if it does not come in time."""
        with self._condition:
            free = self._wait(lambda: not self._taken and not self._waiting, until)
            self._preparing += free
            return free

    def prepared(self) -> None:
        """Ends what ``prepare`` began."""
        with self._condition:
            self._preparing -= 1
            self._condition.notify_all()

    def take(self, until: float) -> bool:
        """Waits for the turn; False if it does not come in time."""
        with self._condition:
            self._waiting += 1
            free = self._wait(lambda: not self._taken and not self._preparing, until)
            self._waiting -= 1
            self._taken = self._taken or free
            self._condition.notify_all()
            return free

    def give(self) -> None:
        """Ends the turn."""
        with self._condition:
            self._taken = False
            self._condition.notify_all()


class Child:
    """A process that executes tasks."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._read, write = os.pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed by `end`
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.gpu.worker", str(write)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[write],
            cwd=ROOT,
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # so that what it starts dies with it
        )
        os.close(write)
        self._rest = b""

    def send(self, message: Event) -> None:
        """Gives it a task, or its turn. That it is dead shows when it is listened to."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def listen(self, until: float) -> Event | None:
        """Its next event; None if there is none in time. Raises EOFError if the process has ended."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            data = os.read(self._read, 1 << 16)
            if not data:
                raise EOFError
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        event: Event = json.loads(line)
        return event

    def end(self) -> str:
        """Kills it with all that it started; how it ended, and the end of what it printed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)  # one that is about to end by itself tells how
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            code: int | None = self._process.wait(10)
        except subprocess.TimeoutExpired:  # the driver holds on to it; there is no time to wait
            code = None
        os.close(self._read)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 1500))
        text = self._log.read().decode(errors="replace").strip()
        self._log.close()
        how = "it does not end" if code is None else f"exit code {code}"
        if code is not None and code < 0:
            how = f"signal {signal.Signals(-code).name}"
        return f"{how}: {text}" if text else how


class Pool:
    """Runs tasks in some children at a time.

    Args:
        workers: how many.
        environment: variables for the children.
        fresh: a new child for each task.
    """

    def __init__(self, workers: int, environment: dict[str, str] | None = None, fresh: bool = False) -> None:
        self.workers, self.fresh = workers, fresh
        self.environment = environment or {}

    def run(
        self,
        tasks: Sequence[Task],
        until: float,
        record: Callable[[Outcome], Task | None] = lambda outcome: None,
        leave_out: Callable[[Task], str] = lambda task: "",
    ) -> list[Outcome]:
        """Runs the tasks in their order and returns what became of them, in the order of their ends.

        Args:
            tasks: what is to be done.
            until: when all is over, by ``time.monotonic``; tasks that were not started then are "no time left".
            record: told every outcome as it comes, one at a time; a task that it returns is done next.
            leave_out: asked before a task is started why it should not be; "" if it should.
        """
        queue, outcomes, lock = deque(tasks), list[Outcome](), threading.Lock()
        gate = Gate()

        def finish(outcome: Outcome) -> None:
            with lock:
                outcomes.append(outcome)
                follow = record(outcome)
                if follow is not None:
                    queue.appendleft(follow)

        def serve() -> None:
            child: Child | None = None
            while True:
                with lock:
                    task = queue.popleft() if queue else None
                if task is None:
                    break
                reason = leave_out(task)
                if reason:
                    finish(Outcome(task, "left out", reason=reason))
                    continue
                if until - time.monotonic() < LEAST:
                    finish(Outcome(task, "no time left"))
                    continue
                if child is None:
                    child = Child(self.environment)
                start = time.monotonic()
                outcome, alive = _execute(child, task, until, gate)
                outcome.seconds = time.monotonic() - start
                if not alive or self.fresh:
                    end = child.end()
                    child = None
                    if outcome.kind == "crashed":
                        outcome.reason = end
                finish(outcome)
            if child is not None:
                child.end()

        threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(self.workers, len(tasks)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes


def _execute(child: Child, task: Task, until: float, gate: Gate) -> tuple[Outcome, bool]:
    """What became of a task, and whether the child can have another one."""
    outcome = Outcome(task, "no time left")
    with _Place(gate, bool(task.turn)) as place:
        if not place.prepare(until):
            return outcome, True
        child.send({"call": task.call, "arguments": task.arguments})
        end, own = until, time.monotonic() + task.limit
        while True:
            try:
                event = child.listen(min(end, own))
            except EOFError:
                outcome.kind = "crashed"
                return outcome, False
            if event is None:
                if own <= end:
                    outcome.kind = "too long"
                    outcome.reason = f"more than {task.turn if place.taken else task.limit:g} s"
                return outcome, False
            if event.get("event") == "ready":
                if not place.take(until):
                    return outcome, False
                child.send({"go": True})
                own = time.monotonic() + task.turn
            elif event.get("event") == "end":
                outcome.kind, outcome.value = event["kind"], event.get("value")
                outcome.reason = event.get("reason", "")
                return outcome, not event.get("broken")
            else:
                outcome.events.append(event)


class _Place:
    """What a task holds of the gate; given back whatever happens."""

    def __init__(self, gate: Gate, used: bool) -> None:
        self._gate, self._used = gate, used
        self._preparing = self.taken = False

    def prepare(self, until: float) -> bool:
        self._preparing = not self._used or self._gate.prepare(until)
        return self._preparing

    def take(self, until: float) -> bool:
        self._leave()
        self.taken = not self._used or self._gate.take(until)
        return self.taken

    def _leave(self) -> None:
        if self._preparing and self._used:
            self._gate.prepared()
        self._preparing = False

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()
        if self.taken and self._used:
            self._gate.give()


@contextlib.contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Turns SIGTERM into KeyboardInterrupt, so that a run that is broken off from outside still writes its report."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
