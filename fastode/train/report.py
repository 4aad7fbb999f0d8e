"""The report of a finished run: numbers on the held-out images, pictures, and a table to print."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastode.models import AutoencODE, ImageModel
from fastode.train import plots
from fastode.train.callbacks import read_metrics
from fastode.train.config import TrainConfig
from fastode.train.data import ImageData, Images, as_float
from fastode.train.metrics import (
    EVAL_BATCH,
    clustering_accuracy,
    encode_all,
    linear_probe,
    reconstruction_metrics,
)
from fastode.train.timing import forward_times, training_times

REPORT_FILE = "report.json"


@torch.no_grad()
def _reconstruct_all(model: ImageModel, images: Images, device: torch.device) -> tuple[torch.Tensor, dict[str, Any]]:
    """Reconstructions on the CPU, and the solver's work over all images (empty for models without a solve)."""
    parts, counts = [], []
    for x in images.batches(EVAL_BATCH):
        output = model.outputs(x.to(device))
        parts.append(output.reconstruction.float().cpu())
        if output.stats is not None:
            counts.append(output.stats)
    work: dict[str, Any] = {}
    for name in ("n_steps", "n_accepted", "n_rejected", "n_evals") if counts else ():
        values = torch.cat([getattr(stats, name) for stats in counts]).float()
        work[name] = {"mean": float(values.mean()), "min": int(values.min()), "max": int(values.max())}
    return torch.cat(parts), work


def evaluate(model: ImageModel, data: ImageData, config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """All numbers of the report that need the trained model, as plain data."""
    model = model.to(device).eval()
    test = data.test
    images = torch.cat(list(test.batches(EVAL_BATCH)))
    reconstructions, work = _reconstruct_all(model, test, device)
    mean_image = as_float(data.train.pixels).mean(0, keepdim=True)
    numbers: dict[str, Any] = {
        "held_out_images": len(test),
        **asdict(reconstruction_metrics(images, reconstructions)),
        "mean_image_mse": float((images - mean_image).square().mean()),
        "parameters": model.n_parameters(),
    }
    if data.train.labels is not None and test.labels is not None and len(data.train.labels.unique()) > 1:
        codes = encode_all(model, test, device)
        train_codes = encode_all(model, data.train, device)
        numbers["clustering_accuracy"] = clustering_accuracy(codes, test.labels, config.seed)
        numbers["linear_probe"] = linear_probe(train_codes, data.train.labels, codes, test.labels)
    if isinstance(model, AutoencODE):
        numbers["solver"] = {"method": config.method, "rtol": config.rtol, "atol": config.atol, **work}
        numbers["time"] = _times(model, data, config, device)
    return numbers


def _times(model: AutoencODE, data: ImageData, config: TrainConfig, device: torch.device) -> dict[str, Any]:
    batch = as_float(data.train.pixels[: config.batch_size]).to(device)
    result: dict[str, Any] = {"batch_size": len(batch), "threads": torch.get_num_threads(), "device": str(device)}
    for name, times in (
        ("forward", forward_times(model, batch)),
        ("training_step", training_times(model, batch, config.loss)),
    ):
        result[name] = {**asdict(times), "total": times.total, "solve_share": times.solve_share}
    return result


def draw(folder: Path, model: ImageModel, data: ImageData, best: int | None, numbers: dict[str, Any]) -> list[Path]:
    """Write the pictures and return their paths."""
    model = model.cpu().eval()
    what = f"{plots.NAMES[model.name]} on {data.name}"
    size = f"code of {model.code_size} numbers"
    files = [
        plots.reconstructions(
            folder / "reconstructions.png",
            model,
            data.test,
            f"{what}, {size}: held-out images, PSNR {numbers['psnr']:.1f} dB",
        ),
        plots.codes(
            folder / "codes.png",
            encode_all(model, data.test),
            data.test.labels,
            data.classes,
            f"{what}: codes of {len(data.test)} held-out images",
        ),
        plots.losses(folder / "losses.png", read_metrics(folder), best, numbers["mean_image_mse"], what),
    ]
    if isinstance(model, AutoencODE):
        files += [
            plots.trajectories(folder / "trajectories.png", model, data.test, data.classes, f"{what}: the ODE's state"),
            plots.flow(folder / "flow.png", model, data.test, f"{what}: the state decoded along its trajectory"),
        ]
    return files


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(folder: Path, report: dict[str, Any]) -> Path:
    """Write ``report`` to `REPORT_FILE`; numbers that JSON does not have (a PSNR without error) become null."""
    file = folder / REPORT_FILE
    file.write_text(json.dumps(_plain(report), indent=2, allow_nan=False) + "\n")
    return file


def table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    numbers, data = report["results"], report["data"]
    rows = [
        ("data", data["source"]),
        (
            "images",
            f"{data['train']} training, {data['val']} validation, {data['test']} held out",
        ),
        ("parameters", f"{numbers['parameters']:,}"),
        ("training", f"{report['epochs']} epochs, best {report['best_epoch']}, {report['train_seconds']:.0f} s"),
        ("MSE", f"{numbers['mse']:.5f}   (always the mean image: {numbers['mean_image_mse']:.5f})"),
        ("PSNR", f"{numbers['psnr']:.2f} dB"),
        ("SSIM", f"{numbers['ssim']:.4f}   (Gaussian window, sigma {numbers['ssim_sigma']} px)"),
    ]
    if "clustering_accuracy" in numbers:
        rows += [
            ("k-means accuracy", f"{numbers['clustering_accuracy']:.1%}   (codes of the held-out images)"),
            ("linear probe", f"{numbers['linear_probe']:.1%}   (logistic regression on the codes)"),
        ]
    if "solver" in numbers:
        solver, times = numbers["solver"], numbers["time"]
        forward, step = times["forward"], times["training_step"]
        rows += [
            ("solver", f"{solver['method']}, rtol {solver['rtol']:g}, atol {solver['atol']:g}"),
            (
                "steps per image",
                f"{solver['n_steps']['mean']:.1f} mean, {solver['n_steps']['min']} to {solver['n_steps']['max']}, "
                f"{solver['n_rejected']['mean']:.2f} of them rejected",
            ),
            (
                "evaluations",
                f"{solver['n_evals']['mean']:.1f} mean, {solver['n_evals']['min']} to {solver['n_evals']['max']}",
            ),
            (
                "time in the solve",
                f"{forward['solve_share']:.0%} of a forward pass ({1e3 * forward['solve']:.1f} of "
                f"{1e3 * forward['total']:.1f} ms), {step['solve_share']:.0%} of a training step "
                f"({1e3 * step['solve']:.1f} of {1e3 * step['total']:.1f} ms), batch of {times['batch_size']}",
            ),
        ]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in rows)
