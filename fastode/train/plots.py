"""The pictures that a run leaves behind. All functions write one PNG and return its path."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastode.models import AutoencODE, ImageModel
from fastode.train.data import Images, as_float

DPI = 100
NAMES = {"autoencode": "AutoencODE", "ae": "Autoencoder", "vae": "VAE"}


def _figure(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    # A Figure by itself draws with Agg: no display, no pyplot, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=kwargs.pop("figsize"), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(*args, **kwargs)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, facecolor="white")
    return path


def _colours(n: int) -> list[Any]:
    import matplotlib

    if n <= 10:
        return [matplotlib.colormaps["tab10"](i) for i in range(n)]
    return [matplotlib.colormaps["turbo"](x) for x in np.linspace(0.02, 0.98, n)]


def _show(axis: Any, image: Tensor) -> None:
    array = image.clamp(0, 1).permute(1, 2, 0).numpy()
    if array.shape[2] == 1:
        axis.imshow(array[:, :, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axis.imshow(array, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _principal_plane(points: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """(mean, directions (d, 2), shares of the variance) of the first two principal components of ``points`` (n, d)."""
    mean = points.mean(0)
    _, singular, vt = torch.linalg.svd(points - mean, full_matrices=False)
    shares = (singular.square() / singular.square().sum().clamp_min(1e-30))[:2].tolist()
    directions = vt[:2].T
    if directions.shape[1] < 2:  # codes of length 1
        directions, shares = torch.cat([directions, torch.zeros_like(directions)], dim=1), [*shares, 0.0]
    return mean, directions, shares


def choose_examples(images: Images, n: int) -> Tensor:
    """Indices of up to ``n`` images: the classes in turn, so that each is shown about as often."""
    if images.labels is None:
        return torch.arange(min(n, len(images)))
    seen: dict[int, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for i, label in enumerate(images.labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        ranked.append((seen[label], label, i))
    order = [i for _, _, i in sorted(ranked)]
    return torch.tensor(order[:n])


@torch.no_grad()
def reconstructions(path: Path, model: ImageModel, images: Images, title: str, columns: int = 10) -> Path:
    """Originals above their reconstructions, two blocks of ``columns`` images."""
    x = as_float(images.pixels[choose_examples(images, 2 * columns)])
    y = model(x).float()
    columns = min(columns, len(x))
    blocks = -(-len(x) // columns)
    figure, axes = _figure(2 * blocks, columns, figsize=(0.85 * columns + 0.9, 1.75 * blocks + 0.5), squeeze=False)
    for row in range(2 * blocks):
        source = x if row % 2 == 0 else y
        for column in range(columns):
            axis, i = axes[row, column], row // 2 * columns + column
            if i < len(x):
                _show(axis, source[i])
            else:
                axis.set_axis_off()
        axes[row, 0].set_ylabel(
            "original" if row % 2 == 0 else "recon-\nstruction", rotation=0, ha="right", va="center", fontsize=9
        )
    figure.suptitle(title, fontsize=11)
    return _save(figure, path)


def codes(path: Path, values: Tensor, labels: Tensor | None, classes: Sequence[str], title: str) -> Path:
    """The codes (n, code_size) in the plane of their first two principal components, coloured by class."""
    mean, directions, shares = _principal_plane(values)
    plane = (values - mean) @ directions
    figure, axis = _figure(figsize=(6.4, 5.4))
    if labels is None or not classes:
        axis.scatter(plane[:, 0], plane[:, 1], s=8, alpha=0.6, linewidths=0)
    else:
        for label, (name, colour) in enumerate(zip(classes, _colours(len(classes)), strict=True)):
            points = plane[labels == label]
            axis.scatter(points[:, 0], points[:, 1], s=16, alpha=0.7, color=colour, linewidths=0, label=name)
        axis.legend(title="class", fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axis.set_ylabel(f"second principal component ({shares[1]:.0%})")
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.25)
    return _save(figure, path)


def losses(path: Path, rows: Sequence[dict[str, float]], best: int | None, mean_image_mse: float, title: str) -> Path:
    """Training and validation loss, and the validation error beside that of always showing the mean image."""
    figure, (left, right) = _figure(1, 2, figsize=(9.5, 3.8))
    epochs = [row["epoch"] + 1 for row in rows]
    marker = "o" if len(rows) < 3 else None
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        left.plot(epochs, [row.get(name, np.nan) for row in rows], label=label, marker=marker)
    left.set_ylabel("loss per pixel")
    right.semilogy(epochs, [row.get("val_mse", np.nan) for row in rows], color="C1", label="validation", marker=marker)
    right.axhline(mean_image_mse, color="0.5", linestyle="--", label="mean image")
    right.set_ylabel("mean squared error")
    for axis in (left, right):
        if best is not None:
            axis.axvline(best + 1, color="0.7", linestyle=":", label=f"best epoch ({best + 1})")
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25, which="both")
        axis.legend(fontsize=9)
    figure.suptitle(title, fontsize=11)
    return _save(figure, path)


@torch.no_grad()
def trajectories(path: Path, model: AutoencODE, images: Images, classes: Sequence[str], title: str) -> Path:
    """States from time 0 to the horizon: many images in a principal plane, and all components for one image."""
    chosen = images[choose_examples(images, 12 * max(1, min(len(classes), 10)))]
    t = torch.linspace(0.0, model.horizon, 41)
    ys = model.trajectory(as_float(chosen.pixels), t).float()
    mean, directions, shares = _principal_plane(ys.flatten(0, 1))
    plane = (ys - mean) @ directions
    figure, (left, right) = _figure(1, 2, figsize=(11.0, 4.8), width_ratios=(1.25, 1.0))
    palette = _colours(max(len(classes), 1))
    labels = torch.zeros(len(chosen), dtype=torch.int64) if chosen.labels is None else chosen.labels
    shown: set[int] = set()
    for i in range(len(chosen)):
        label = int(labels[i])
        name = classes[label] if classes and label not in shown else None
        shown.add(label)
        left.plot(plane[:, i, 0], plane[:, i, 1], color=palette[label], alpha=0.45, linewidth=0.9)
        left.plot(*plane[-1, i].tolist(), "o", color=palette[label], markersize=4, label=name)
    if model.config["start"] == "learned":
        left.plot(*plane[0, 0].tolist(), "*", color="black", markersize=14, label="start", zorder=3)
    left.set_xlabel(f"first principal component of the states ({shares[0]:.0%} of the variance)")
    left.set_ylabel(f"second principal component ({shares[1]:.0%})")
    left.set_title(f"states of {len(chosen)} held-out images, end points marked", fontsize=10)
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for k in range(ys.shape[2]):
        right.plot(t, ys[:, 0, k], linewidth=1.1)
    name = f" (class {classes[int(labels[0])]})" if classes else ""
    right.set_title(f"the {ys.shape[2]} state components for one image{name}", fontsize=10)
    right.set_xlabel("time of the ODE")
    right.set_ylabel("state")
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    return _save(figure, path)


@torch.no_grad()
def flow(path: Path, model: AutoencODE, images: Images, title: str, rows: int = 6, columns: int = 9) -> Path:
    """What the decoder shows if the solve is stopped on the way: an image forming along its trajectory."""
    x = as_float(images.pixels[choose_examples(images, rows)])
    t = torch.linspace(0.0, model.horizon, columns)
    ys = model.trajectory(x, t)
    figure, axes = _figure(
        len(x), columns + 1, figsize=(0.85 * (columns + 1) + 0.3, 0.88 * len(x) + 0.8), squeeze=False
    )
    for row in range(len(x)):
        stages = model.decode_state(ys[:, row]).float()
        for column in range(columns):
            _show(axes[row, column], stages[column])
            if row == 0:
                axes[row, column].set_title(f"t = {t[column]:.2g}", fontsize=8)
        _show(axes[row, columns], x[row])
    axes[0, columns].set_title("original", fontsize=8)
    figure.suptitle(title, fontsize=11)
    return _save(figure, path)
