"""The CSV with its machine line, and the short table that is printed last."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.libraries import PEERS
from bench.measure import Row

COLUMNS = [
    *("kind", "case", "mode", "library", "rtol", "atol", "median_ms", "best_ms", "rounds", "error", "loss"),
    *("times_fastode", "fastode", "floor_ms", "floor_bound", "times_floor", "peak_mib"),
    *("steps_mean", "steps_max", "evals", "train_steps", "first_ms", "device_ms", "launches", "waits", "failed"),
]


class Report:
    """A CSV that is complete after every case, so that an interrupted run keeps what it has."""

    def __init__(self, path: Path, machine: str) -> None:
        self.rows: list[Row] = []
        self._file = path.open("w", newline="", encoding="utf-8")
        self._file.write(f"# {machine}\n")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._writer.writeheader()
        self._file.flush()

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        self._file.close()

    def add(self, rows: Iterable[Row]) -> None:
        """Writes rows."""
        for row in rows:
            self.rows.append(row)
            self._writer.writerow(row)
        self._file.flush()


def read(path: Path) -> tuple[str, list[Row]]:
    """(machine line, rows) of a CSV; numbers as float, None where there is none."""
    with path.open(newline="", encoding="utf-8") as file:
        machine = file.readline().removeprefix("# ").strip()
        return machine, [{name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


_TEXT = ("kind", "case", "mode", "library", "fastode", "floor_bound", "failed")


def _value(name: str, text: str) -> Any:
    return text if name in _TEXT else float(text) if text else None


def describe(row: Row) -> str:
    """One row in one line of the running account."""
    start = f"{row['case']:<20} {row['mode']:<9} {row['library']:<20}"
    if row["failed"]:
        return f"{start} {row['failed']}"
    parts = [f"{row['median_ms']:>10.4g} ms"]
    if row.get("error") is not None:
        parts.append(f"error {row['error']:.1e}")
    if row.get("loss") is not None:
        parts.append(f"loss {row['loss']:.3g}")
    if row.get("times_fastode") is not None:
        parts.append(f"{row['times_fastode']:.3g} x {row['fastode']}")
    return f"{start} {'   '.join(parts)}"


def table(rows: list[Row]) -> str:
    """Case by case: fastode's time, error and multiple of the floor, and how many times longer each peer took."""
    rows = [row for row in rows if row["kind"] == "compare"]
    names = [library.name for library in PEERS if any(row["library"] == library.name for row in rows)]
    head = ["case", "mode", "fastode", "ms", "error", "x floor", *names]
    lines = []
    for case, mode in dict.fromkeys((row["case"], row["mode"]) for row in rows):
        group = {row["library"]: row for row in rows if (row["case"], row["mode"]) == (case, mode)}
        base = next((row["fastode"] for row in group.values() if row.get("fastode")), None)
        ours = group.get(base or "", {})
        lines.append(
            [
                case,
                mode,
                base or "-",
                _text(ours.get("median_ms"), ".4g"),
                _text(ours.get("error"), ".0e"),
                _text(ours.get("times_floor"), ".3g"),
                *(_peer(group.get(name)) for name in names),
            ]
        )
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    texts = [
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *lines]
    ]
    return "\n".join(text.rstrip() for text in texts)


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _peer(row: Row | None) -> str:
    """How many times fastode's time a peer took, or what became of it."""
    if row is None:
        return ""
    if row["failed"]:
        return "n/a" if row["failed"].startswith(("does not apply", "ImportError")) else "failed"
    if row.get("times_fastode") is None:
        return f"{row['median_ms']:.4g} ms"
    return f"{row['times_fastode']:.3g}x"
