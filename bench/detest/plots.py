"""Error reached against tolerance asked for."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

PANELS = {
    "order 5: dopri5, RK45": ("fastode dopri5", "scipy RK45", "torchdiffeq dopri5"),
    "order 8: dopri8, DOP853": ("fastode dopri8", "scipy DOP853", "torchdiffeq dopri8"),
    "fastode's others": ("fastode tsit5", "fastode bosh3", "fastode dopri5 float32"),
}
COLORS = ("#0077b6", "#8d96a3", "#d1495b")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the figure: dots are problems, lines their medians; below the diagonal is more accurate than asked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, len(PANELS), figsize=(11, 7), sharex=True, sharey=True)
    for i, (column, where) in enumerate((("error_end", "at the end"), ("error_between", "at outputs between steps"))):
        for j, (title, solvers) in enumerate(PANELS.items()):
            ax = axes[i][j]
            for k, (solver, color) in enumerate(zip(solvers, COLORS, strict=True)):
                points: dict[float, list[float]] = defaultdict(list)
                for row in rows:
                    if row["solver"] == solver and row[column] == row[column]:
                        points[row["tolerance"]].append(max(row[column], 1e-17))
                if not points:
                    continue
                shift = 10 ** (0.12 * (k - 1))
                flat = [(x * shift, y) for x, ys in points.items() for y in ys]
                ax.scatter(*zip(*flat, strict=True), s=5, alpha=0.4, color=color, linewidths=0)
                ax.plot(list(points), [median(ys) for ys in points.values()], color=color, label=solver, linewidth=1.5)
            ax.plot([1e-3, 1e-12], [1e-3, 1e-12], color="black", linewidth=0.8, linestyle=":")
            ax.set(xscale="log", yscale="log", title=title if i == 0 else None)
            if i == 1:
                ax.set_xlabel("tolerance asked for, rtol = atol")
            if j == 0:
                ax.set_ylabel(f"error / (1 + |y|), {where}")
            if ax.lines[:-1]:
                ax.legend(frameon=False, fontsize=8)
    axes[0][0].invert_xaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
    plt.close(figure)
