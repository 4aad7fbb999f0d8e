"""The targets that were set before anything had run on a GPU, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bench.cases import FORWARD, GRADIENT
from bench.measure import Row

CONTROLLED = [f"controlled-{batch}x{width}" for batch in (1024, 4096, 16384) for width in (16, 32, 64)]
NEURAL = ["neural-ode-1", "neural-ode-1-512", "neural-ode-1-4096", "spiral-64", "spiral-512", "spiral-4096"]
LORENZ, VAN_DER_POL = "lorenz-8192", "van-der-pol-1048576"
CONVOLUTION, AUTOENCODE = "convolution", "autoencode-cifar10"
CASES = [
    *("controlled-4096x32", LORENZ, "neural-ode-1", CONVOLUTION, AUTOENCODE, VAN_DER_POL, "spiral-512"),
    *("controlled-1024x16", "controlled-16384x64", "neural-ode-1-4096", "controlled-1024x64", "controlled-16384x16"),
    *("neural-ode-1-512", "spiral-64", "spiral-4096", "controlled-4096x16", "controlled-4096x64"),
    *("controlled-1024x32", "controlled-16384x32"),
]
"""What is measured, the most telling first."""
QUICK = ["controlled-4096x32", LORENZ, "neural-ode-1"]
REACHED, MISSED, UNKNOWN = "reached", "**missed**", "not measured"


@dataclass(frozen=True)
class Verdict:
    """A target and what came of it.

    Attributes:
        target: in words.
        verdict: one of the three.
        numbers: that it rests on, in words.
        device: the same with the time in kernels alone instead of the whole call; empty where that makes no sense.
    """

    target: str
    verdict: str
    numbers: str
    device: str = ""


class Table:
    """Rows by case, mode and library."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {(row["case"], row["mode"], row["library"]): row for row in rows if not row["failed"]}
        self._own = sorted({name for _, _, name in self._rows if name.startswith("fastode")})

    def times(self, case: str, mode: str, libraries: Iterable[str], column: str = "median_ms") -> dict[str, float]:
        """Milliseconds by library, of those that have them."""
        found = {name: self._rows.get((case, mode, name), {}).get(column) for name in libraries}
        return {name: value for name, value in found.items() if value}

    def ours(self, case: str, mode: str, column: str = "median_ms") -> tuple[str, float] | None:
        """Our fastest backend, and its milliseconds."""
        times = self.times(case, mode, self._own, column)
        return min(times.items(), key=lambda item: item[1]) if times else None

    def floor(self, case: str, mode: str) -> float | None:
        """Milliseconds below which nothing comes."""
        return next(iter(self.times(case, mode, self._own, "floor_ms").values()), None)


def verdicts(rows: list[Row], checks: list[dict[str, Any]], shares: dict[str, Any]) -> list[Verdict]:
    """All targets.

    Args:
        rows: of the benchmarks.
        checks: results of the checks.
        shares: parts of an AutoencODE's training step, by our backends.
    """
    table = Table(rows)
    both = [(case, mode) for case in CONTROLLED for mode in (FORWARD, GRADIENT)]
    field = "controlled field, B = 1024..16384, d = 16..64, forward and forward + gradient"
    return [
        _faster(table, f"{field}: >= 100x torchdiffeq", both, ("torchdiffeq", "torchdiffeq adjoint"), 100),
        _faster(table, f"{field}: >= 10x diffrax", both, ("diffrax",), 10),
        _near_floor(table, f"{field}: <= 2x the floor of bytes and flops plus one launch", both, 2),
        _below(table, "Lorenz, 8192 trajectories, adaptive, float32: <= 0.1 ms", LORENZ, 0.1),
        _below(table, "2^20 Van der Pol oscillators: <= 10 ms", VAN_DER_POL, 10.0),
        _faster(
            table,
            "4-32-4 and 2-50-2 neural ODEs, B = 64..4096, forward + gradient: >= 50x torchdiffeq",
            [(case, GRADIENT) for case in NEURAL],
            ("torchdiffeq", "torchdiffeq adjoint"),
            50,
        ),
        _convolution(table, checks),
        _share(shares),
    ]


def _all(target: str, values: list[tuple[str, float]], of: int, good: Callable[[float], bool], unit: str) -> Verdict:
    """The verdict on cells that must all be good."""
    if not values:
        return Verdict(target, UNKNOWN, f"0 of {of} cells")
    reached = sum(good(value) for _, value in values)
    low, high = min(values, key=lambda v: v[1]), max(values, key=lambda v: v[1])
    numbers = f"{reached} of {len(values)} cells"
    numbers += f"; {low[1]:.3g}{unit} ({low[0]}) to {high[1]:.3g}{unit} ({high[0]})" if len(values) > 1 else ""
    if len(values) == 1:
        numbers += f"; {low[1]:.3g}{unit} ({low[0]})"
    if len(values) < of:
        numbers += f"; {of - len(values)} not measured"
    complete = len(values) == of
    return Verdict(target, (REACHED if complete else UNKNOWN) if reached == len(values) else MISSED, numbers)


def _faster(table: Table, target: str, cells: list[tuple[str, str]], peers: tuple[str, ...], factor: float) -> Verdict:
    """Times faster than the fastest of some peers."""

    def found(column: str) -> Verdict:
        values = []
        for case, mode in cells:
            ours, theirs = table.ours(case, mode, column), table.times(case, mode, peers)
            if ours and theirs:
                values.append((f"{case} {mode}, {ours[0]}", min(theirs.values()) / ours[1]))
        return _all(target, values, len(cells), lambda value: value >= factor, "x")

    return _with_device(found)


def _near_floor(table: Table, target: str, cells: list[tuple[str, str]], factor: float) -> Verdict:
    def found(column: str) -> Verdict:
        values = []
        for case, mode in cells:
            ours, floor = table.ours(case, mode, column), table.floor(case, mode)
            if ours and floor:
                values.append((f"{case} {mode}, {ours[0]}", ours[1] / floor))
        return _all(target, values, len(cells), lambda value: value <= factor, "x")

    return _with_device(found)


def _below(table: Table, target: str, case: str, most: float) -> Verdict:
    def found(column: str) -> Verdict:
        ours = table.ours(case, FORWARD, column)
        return _all(target, [(ours[0], ours[1])] if ours else [], 1, lambda value: value <= most, " ms")

    return _with_device(found)


def _with_device(found: Callable[[str], Verdict]) -> Verdict:
    """The verdict by whole calls, and beside it that by the time in kernels."""
    whole, kernels = found("median_ms"), found("device_ms")
    return Verdict(whole.target, whole.verdict, whole.numbers, f"{kernels.verdict}: {kernels.numbers}")


def _convolution(table: Table, checks: list[dict[str, Any]]) -> Verdict:
    target = "ConvNet field of an ODE-Net for MNIST: >= 2x torchdiffeq, gradients exact"
    cells = [(CONVOLUTION, mode) for mode in (FORWARD, GRADIENT)]
    speed = _faster(table, target, cells, ("torchdiffeq", "torchdiffeq adjoint"), 2)
    own = [check for check in checks if check.get("field") == "convolution"]
    bad = [check for check in own if check["outcome"] in FAILURES]
    passed = sum(check["outcome"] == "passed" for check in own)
    exact = f"{passed} of {len(own)} checks of the gradients passed"
    if bad:
        return Verdict(target, MISSED, f"{speed.numbers}; {exact}")
    verdict = speed.verdict if passed or speed.verdict == MISSED else UNKNOWN
    return Verdict(target, verdict, f"{speed.numbers}; {exact}")


def _share(shares: dict[str, Any]) -> Verdict:
    target = "AutoencODE training step, CIFAR-10 shapes, batch 512: the solve takes < 20% of the step"
    found = {name: parts["share"] for name, parts in shares.items() if isinstance(parts, dict)}
    if not found:
        return Verdict(target, UNKNOWN, "; ".join(f"{name}: {why}" for name, why in shares.items()) or "nothing")
    numbers = ", ".join(f"{name} {share:.1%}" for name, share in found.items())
    return Verdict(target, REACHED if min(found.values()) < 0.2 else MISSED, numbers)


FAILURES = ("failed", "error", "crashed", "too long")
"""Outcomes of a check that make the command fail."""

__all__ = ["CASES", "FAILURES", "QUICK", "Table", "Verdict", "verdicts"]
