"""Pictures from the rows: how many times faster, and work against precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.cases import FORWARD, GRADIENT, TRAIN
from bench.measure import Row

COLORS = {
    "torchdiffeq": "#d1495b",
    "torchdiffeq adjoint": "#edae49",
    "torchode": "#66a182",
    "diffrax": "#2e4057",
    "scipy RK45": "#8d96a3",
}
OURS = ["#0077b6", "#00b4d8", "#90e0ef"]
TITLES = {FORWARD: "forward", GRADIENT: "forward and gradient", TRAIN: "training"}


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Writes what there are rows for, and says which files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    written = []
    for name, modes in {"speedup-forward": [FORWARD], "speedup-gradient": [GRADIENT, TRAIN]}.items():
        figure = _speedups([row for row in rows if row["mode"] in modes], plt)
        if figure is not None:
            written.append(_save(figure, folder / f"{name}.png", plt))
    figure = _precision([row for row in rows if row["kind"] == "precision" and not row["failed"]], plt)
    if figure is not None:
        written.append(_save(figure, folder / "work-precision.png", plt))
    return written


def _save(figure: Any, path: Path, plt: Any) -> Path:
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return path


def _color(library: str, others: list[str]) -> str:
    """A peer's own colour; fastode's blues in the order of its backends."""
    if library in COLORS:
        return COLORS[library]
    ours = [name for name in others if name not in COLORS]
    return OURS[ours.index(library) % len(OURS)]


def _speedups(rows: list[Row], plt: Any) -> Any:
    """Horizontal bars: each peer's time over fastode's, a group for each case."""
    bars = [
        row
        for row in rows
        if row["kind"] == "compare" and row.get("times_fastode") is not None and row["library"] in COLORS
    ]
    if not bars:
        return None
    groups = list(dict.fromkeys((row["case"], row["mode"]) for row in bars))
    peers = [name for name in COLORS if any(row["library"] == name for row in bars)]
    lines: list[tuple[float, float, str]] = []
    ticks, labels, y = [], [], 0.0
    for case, mode in groups:
        members = {row["library"]: row for row in bars if (row["case"], row["mode"]) == (case, mode)}
        there = [name for name in peers if name in members]
        ticks.append(y + (len(there) - 1) / 2)
        labels.append(case if mode != TRAIN else f"{case}\n({members[there[0]]['train_steps']:g} training steps)")
        for name in there:
            lines.append((y, members[name]["times_fastode"], name))
            y += 1
        y += 0.7
    figure, axes = plt.subplots(figsize=(7.5, 0.19 * y + 1.1), layout="constrained")
    for name in peers:
        own = [(position, value) for position, value, library in lines if library == name]
        widths = [value - 1 for _, value in own]  # from 1, where both take the same time: to the right is faster
        axes.barh([p for p, _ in own], widths, left=1.0, height=0.9, color=COLORS[name], label=name)
    for position, value, _ in lines:
        text = f"{value:.0f}" if value >= 9.5 else f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"
        axes.annotate(text, (max(value, 1.0), position), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(
        min(0.5, 0.7 * min(value for _, value, _ in lines)), 2.0 * max(2.0, *(value for _, value, _ in lines))
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.spines["left"].set_visible(False)
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("time of the other library over time of fastode, same method and tolerance")
    modes = list(dict.fromkeys(mode for _, mode in groups))
    axes.set_title(f"How many times faster fastode is: {TITLES[modes[0]]}", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=len(peers), frameon=False, fontsize=9)
    return figure


def _precision(rows: list[Row], plt: Any) -> Any:
    """Error against time over the tolerances, a panel for each case (columns) and mode (rows)."""
    rows = [row for row in rows if row.get("error")]
    if not rows:
        return None
    from matplotlib.ticker import LogLocator, NullFormatter

    cases = list(dict.fromkeys(row["case"] for row in rows))
    modes = [mode for mode in TITLES if any(row["mode"] == mode for row in rows)]
    names = list(dict.fromkeys(row["library"] for row in rows))
    size = (3.4 * len(cases) + 0.4, 2.9 * len(modes) + 0.6)
    figure, panels = plt.subplots(len(modes), len(cases), figsize=size, squeeze=False, layout="constrained")
    for i, mode in enumerate(modes):
        for j, case in enumerate(cases):
            axes = panels[i][j]
            for name in names:
                own = [r for r in rows if (r["case"], r["mode"], r["library"]) == (case, mode, name)]
                own.sort(key=lambda row: -row["rtol"])
                ours = name not in COLORS
                axes.plot(
                    [row["error"] for row in own],
                    [row["median_ms"] for row in own],
                    marker="o",
                    markersize=4,
                    linewidth=2.2 if ours else 1.3,
                    color=_color(name, names),
                    label=name,
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.invert_xaxis()
            axes.grid(True, which="major", linewidth=0.4, alpha=0.6)
            if i == 0:
                axes.set_title(case, fontsize=10)
            if i == len(modes) - 1:
                axes.set_xlabel("error reached (smaller to the right)")
            if j == 0:
                axes.set_ylabel(f"{TITLES[mode]}: ms")
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(6, len(handles)),
        frameon=False,
        fontsize=9,
    )
    return figure
