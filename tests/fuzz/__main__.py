"""``python -m tests.fuzz``: fuzzing at length, in a child process that may crash.

First every feature of a field alone, in every style; then random cases of all kinds. A failing case is reduced and
printed with a script that shows it; combinations of features that are known to fail are not tried again.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tests.fuzz.failure import Failure
from tests.fuzz.kinds import KINDS, known_to_fail
from tests.fuzz.reduce import failure_of, reduce

_LIMIT, _HANGS = 60, 900
"""Seconds of the processor, and seconds, of one case."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--minutes", default=10.0, help="How long.")
@click.option("--kinds", default=",".join(KINDS), help="Which kinds of cases.")
@click.option("--seed", default=0, help="Of the first case; the others follow.")
@click.option("--open/--no-open", "with_open", default=False, help="With features whose faults are known and open.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON lines of failures.")
@click.option("--start", type=int, hidden=True, help="Makes this process a child that begins with this case.")
def main(minutes: float, kinds: str, seed: int, with_open: bool, out: Path | None, start: int | None) -> None:
    """Random fields and calls against torch and torchdiffeq; exit code 1 if something failed."""
    unknown = set(kinds.split(",")) - set(KINDS)
    if unknown:
        raise click.BadParameter(f"{sorted(unknown)} not in {list(KINDS)}", param_hint="--kinds")
    if start is not None:
        _child(kinds.split(","), seed, with_open, start)
        return
    end = time.monotonic() + 60 * minutes
    counts: Counter[str] = Counter()
    failed, start = [], 0
    while time.monotonic() < end:
        options = ["--kinds", kinds, "--seed", str(seed), "--start", str(start), "--open" if with_open else "--no-open"]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for line in _lines(process, end):
            row = json.loads(line)
            start = row["case"] + 1
            counts[row["kind"] + (" skipped" if row["result"] == "skipped" else "")] += 1
            if row["result"] == "failed":
                failed.append(row)
                _report(row, out)
        if time.monotonic() < end and process.returncode:
            row = {"kind": "crash", "case": start, "seed": seed, "result": "failed", "reduced": f"case {start}"}
            said = process.stderr.read() if process.stderr else ""
            row |= {"failure": f"exit code {process.returncode}\n{said[-3000:]}"}
            row |= {"script": f"python -m tests.fuzz --seed {seed} --start {start}"}
            failed.append(row)
            _report(row, out)
            start += 1
    click.echo(f"seed {seed}: {sum(counts.values())} cases, {len(failed)} failures; {dict(counts)}")
    sys.exit(bool(failed))


def _lines(process: subprocess.Popen[str], end: float) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if time.monotonic() > end:
            process.kill()
            break
    process.wait()


def _report(row: dict[str, Any], out: Path | None) -> None:
    click.echo(
        f"\n== case {row['case']} of seed {row['seed']}: {row['reduced']}\n{row['failure']}\n{row['script']}", err=False
    )
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def cases(kinds: list[str], seed: int, with_open: bool) -> Iterator[tuple[int, str, Any]]:
    """(number, kind, case): systematic ones first, then random ones without end."""
    number = itertools.count()
    without = frozenset() if with_open else known_to_fail()
    for kind in kinds:
        for case in KINDS[kind].systematic(without):
            yield next(number), kind, case
    while True:
        n = next(number)
        rng = random.Random(f"{seed} {n}")
        kind = rng.choices(kinds, [KINDS[k].weight for k in kinds])[0]
        yield n, kind, KINDS[kind].random_spec(rng, without)


def _child(kinds: list[str], seed: int, with_open: bool, start: int) -> None:
    faulthandler.enable()
    os.environ["FASTODE_FUZZ"] = "1"
    known: list[frozenset[str]] = []
    for number, kind, case in cases(kinds, seed, with_open):
        row: dict[str, Any] = {"kind": kind, "case": number, "seed": seed, "result": "passed"}
        if number < start or any(k <= case.kinds for k in known):
            if number < start:
                continue
            row["result"] = "skipped"
        else:
            check = KINDS[kind].check

            def limited(case: Any, check: Any = check) -> object:
                signal.signal(signal.SIGPROF, _late)
                signal.signal(signal.SIGALRM, _late)
                signal.setitimer(signal.ITIMER_PROF, _LIMIT)
                signal.alarm(_HANGS)
                try:
                    return check(case)
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    signal.alarm(0)

            failure = failure_of(limited, case)
            if failure is not None:
                case, failure = reduce(limited, case, failure)
                if len(case.kinds) > KINDS[kind].always:
                    known.append(case.kinds)
                row |= {"result": "failed", "reduced": repr(case), "failure": str(failure)}
                row["script"] = KINDS[kind].script(case)
        print(json.dumps(row), flush=True)


def _late(number: int, frame: object) -> None:
    raise Failure("time", f"not done after {_LIMIT} s of the processor, or {_HANGS} s")


if __name__ == "__main__":
    main()
