"""What is left of a run: report.json, checks.csv, README.md with the targets, pictures, and the table printed last."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from bench import plots
from bench.gpu.targets import FAILURES, Verdict
from bench.measure import Row

CHECK_COLUMNS = [
    *("outcome", "backend", "kind", "what", "field", "batch", "dim", "dtype", "ratio", "steps", "seconds", "reason"),
]


def write_checks(path: Path, checks: list[dict[str, Any]]) -> None:
    """One line for each check."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CHECK_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for check in checks:
            numbers = {name: f"{value:.3g}" for name, value in (check.get("numbers") or {}).items()}
            seconds = check.get("seconds")
            writer.writerow({**check, **numbers, "seconds": None if seconds is None else f"{seconds:.2f}"})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON proper: what is no number is null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): clean(part) for key, part in value.items()}
        if isinstance(value, list):
            return [clean(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(clean(content), indent=1) + "\n", encoding="utf-8")


def failures(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The checks that failed."""
    return [check for check in checks if check["outcome"] in FAILURES]


def counts(checks: list[dict[str, Any]]) -> list[list[str]]:
    """Backend, and how many checks had which outcome."""
    lines = []
    for backend in dict.fromkeys(check.get("backend") or check["kind"] for check in checks):
        own = Counter(check["outcome"] for check in checks if (check.get("backend") or check["kind"]) == backend)
        bad = sum(own[name] for name in FAILURES)
        lines.append([backend, *(str(n) for n in (own["passed"], bad, own["refused"], own["skipped"]))])
    return lines


def name_of(check: dict[str, Any]) -> str:
    """A check in words."""
    parts = [check.get("backend"), check["kind"], check.get("what"), check.get("field")]
    if check.get("batch"):
        parts.append(f"B={check['batch']}, d={check['dim']}, {check['dtype']}")
    return ", ".join(part for part in parts if part)


def reasons(checks: list[dict[str, Any]], outcome: str) -> list[str]:
    """Why checks were refused or skipped, with how many for each reason."""
    found = Counter(
        (check.get("backend") or check["kind"], check["reason"]) for check in checks if check["outcome"] == outcome
    )
    return [f"{backend}: {reason} ({number})" for (backend, reason), number in found.most_common(40)]


def table_of_rows(rows: list[Row]) -> list[list[str]]:
    """Case by case: our fastest backend, its times, and how many times as long each peer took."""
    lines = []
    for case, mode in dict.fromkeys((row["case"], row["mode"]) for row in rows):
        group = [row for row in rows if (row["case"], row["mode"]) == (case, mode)]
        fine = [row for row in group if not row["failed"] and row.get("median_ms")]
        ours = [row for row in fine if row["library"].startswith("fastode")]
        if not ours:
            lines.append([case, mode, "none ran", *[""] * 8])
            continue
        best = min(ours, key=lambda row: row["median_ms"])
        peers = []
        for name in ("torchdiffeq", "torchdiffeq adjoint", "torchode", "diffrax"):
            row = next((row for row in group if row["library"] == name), None)
            ratio = None if row is None or row["failed"] else row["median_ms"] / best["median_ms"]
            peers.append("" if row is None else "failed" if ratio is None else f"{ratio:.3g}x")
        numbers = [_number(best.get(key)) for key in ("median_ms", "device_ms", "times_floor", "launches")]
        lines.append([case, mode, best["library"], *numbers, *peers])
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table."""
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in cells
    )


def plain(head: list[str], lines: list[list[str]]) -> str:
    """The same for a terminal."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in [head, *lines]
    )


BENCH_HEAD = [
    *("case", "mode", "backend", "ms", "in kernels", "x floor", "launches"),
    *("torchdiffeq", "adjoint", "torchode", "diffrax"),
]
CHECK_HEAD = ["backend", "passed", "failed", "refused", "skipped"]


def readme(
    facts: dict[str, Any],
    checks: list[dict[str, Any]],
    rows: list[Row],
    targets: list[Verdict],
    skipped: list[str],
    seconds: float,
    pictures: list[str],
) -> str:
    """The summary of a run, in Markdown."""
    rates = facts.get("rates", {})
    lines = [
        f"# {facts.get('name', 'no device')}",
        "",
        f"`python -m bench.gpu` on fastode {facts.get('fastode')}, commit {facts.get('commit')}; {seconds:.0f} s.",
        "",
        markdown(
            ["what", "value"],
            [[name, str(facts[name])] for name in FACTS if facts.get(name)]
            + [[name, f"{value:.4g}"] for name, value in rates.items()]
            + [[name, str(version)] for name, version in facts.get("libraries", {}).items()]
            + [[f"backend {name}", reason or "can run"] for name, reason in facts.get("backends", [])],
        ),
        *("", "## Targets", ""),
        "By the time of a whole call, with all of Python in it; beside it by the time in kernels alone.",
        "",
        markdown(
            ["target", "", "numbers", "in kernels"], [[t.target, t.verdict, t.numbers, t.device] for t in targets]
        ),
        *("", "## Checks", "", markdown(CHECK_HEAD, counts(checks)), ""),
    ]
    bad = failures(checks)
    if bad:
        lines += [f"{len(bad)} failed:", "", *(f"* {name_of(c)}: {c['outcome']}: {c['reason']}" for c in bad[:100]), ""]
    for outcome, title in (("refused", "Refused by the backend"), ("skipped", "Skipped")):
        some = reasons(checks, outcome)
        if some:
            lines += [f"{title}:", "", *(f"* {reason}" for reason in some), ""]
    lines += ["## Times", "", "Our fastest backend, and how many times as long each of the others took.", ""]
    lines += [markdown(BENCH_HEAD, table_of_rows(rows)), "", *(f"![{name}]({name})" for name in pictures), ""]
    failed = [f"* {row['case']}, {row['mode']}, {row['library']}: {row['failed']}" for row in rows if row["failed"]]
    if failed:
        lines += ["Rows without a time:", "", *failed, ""]
    if skipped:
        lines += ["## Not done", "", *(f"* {what}" for what in skipped), ""]
    return "\n".join(lines)


FACTS = [
    *("driver", "architecture", "multiprocessors", "memory, GiB", "cpu", "python", "torch", "cuda of torch", "triton"),
    *("nvcc", "extension", "compute-sanitizer", "jax"),
]


def draw(rows: list[Row], folder: Path) -> list[str]:
    """Pictures, where matplotlib is there: times faster, and time over floor."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return []
    paths = plots.draw(rows, folder)
    path = _floors(rows, folder, plt)
    return [p.name for p in [*paths, *([path] if path else [])]]


def _floors(rows: list[Row], folder: Path, plt: Any) -> Path | None:
    """Time over floor for each of our backends: the whole call, and a line where the time in kernels is."""
    bars = [row for row in rows if row["library"].startswith("fastode ") and row.get("times_floor")]
    if not bars:
        return None
    groups = list(dict.fromkeys((row["case"], row["mode"]) for row in bars))
    names = list(dict.fromkeys(row["library"] for row in bars))
    height = 0.8 / len(names)
    figure, axes = plt.subplots(figsize=(7.5, 0.3 * len(groups) * max(1, len(names) / 2) + 1.1), layout="constrained")
    for i, name in enumerate(names):
        own = [row for row in bars if row["library"] == name]
        at = [groups.index((row["case"], row["mode"])) + (i - (len(names) - 1) / 2) * height for row in own]
        axes.barh(at, [row["times_floor"] for row in own], height=0.9 * height, color=plots.OURS[i % 3], label=name)
        marks = [
            (y, row["device_ms"] / row["floor_ms"]) for y, row in zip(at, own, strict=True) if row.get("device_ms")
        ]
        label = "in kernels" if i == 0 else None
        axes.plot([x for _, x in marks], [y for y, _ in marks], "|", color="black", markersize=8, label=label)
    axes.axvline(2.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yticks(range(len(groups)), [f"{case} {mode}" for case, mode in groups], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time over the floor of bytes, arithmetic and one launch; dotted: twice the floor")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return plots._save(figure, folder / "floor.png", plt)


def last_words(checks: list[dict[str, Any]], rows: list[Row], targets: list[Verdict], skipped: list[str]) -> str:
    """What is printed last."""
    parts = [plain(CHECK_HEAD, counts(checks))]
    bad = failures(checks)
    parts += ["\n".join(f"{name_of(c)}: {c['outcome']}: {c['reason'][:160]}" for c in bad[:12])] if bad else []
    if rows:
        parts.append(plain(BENCH_HEAD, table_of_rows(rows)))
    parts.append("\n".join(f"{t.verdict.strip('*'):<12}  {t.target}: {t.numbers}" for t in targets))
    if skipped:
        parts.append(f"not done: {len(skipped)}, listed in README.md")
    return "\n\n".join(parts)
