"""The report of a small run: it learned, and its numbers, table and files are what they say."""

import json
from pathlib import Path

import pytest
import torch

from fastode.models import AutoencODE, load_model
from fastode.train import report
from fastode.train.callbacks import read_metrics
from fastode.train.config import TrainConfig
from fastode.train.run import last_checkpoint, train


def settings(out: Path, **changes) -> TrainConfig:
    """Small enough for seconds, on real images."""
    return TrainConfig(out=str(out), limit=400, code_size=8, width=8, batch_size=32, progress=False, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("run") / "nested" / "autoencode"
    return folder, train(settings(folder, epochs=12, lr=8e-3))


def test_loss_falls_and_beats_the_mean_image(run):
    folder, result = run
    rows = read_metrics(folder)
    assert [row["epoch"] for row in rows] == list(range(12))
    assert rows[-1]["train_loss"] < 0.75 * rows[0]["train_loss"]
    assert rows[-1]["val_loss"] < 0.8 * rows[0]["val_loss"]
    results = result["results"]
    assert results["mse"] < 0.6 * results["mean_image_mse"]
    assert results["linear_probe"] > 0.5
    assert 0.1 < results["clustering_accuracy"] <= 1.0
    assert 0.0 < results["ssim"] < 1.0


def test_report_tells_the_solvers_work(run):
    _, result = run
    solver, times = result["results"]["solver"], result["results"]["time"]
    assert solver["n_steps"]["min"] >= 1
    assert solver["n_evals"]["mean"] > solver["n_steps"]["mean"] > 1
    assert solver["n_steps"]["mean"] == pytest.approx(solver["n_accepted"]["mean"] + solver["n_rejected"]["mean"])
    for part in ("forward", "training_step"):
        assert 0.0 < times[part]["solve_share"] < 1.0
        parts = sum(times[part][name] for name in ("encoder", "solve", "decoder", "update"))
        assert times[part]["total"] == pytest.approx(parts)


def test_files_are_listed_exactly(run):
    folder, result = run
    assert json.loads((folder / "report.json").read_text()) == result
    assert {Path(f) for f in result["files"]} == {p for p in folder.rglob("*") if p.is_file()}
    names = {str(Path(f).relative_to(folder)) for f in result["files"]}
    pictures = {"reconstructions.png", "codes.png", "losses.png", "trajectories.png", "flow.png"}
    checkpoints = {"checkpoints/last.ckpt", "checkpoints/best.ckpt"}
    assert names >= {"config.json", "metrics.csv", "model.pt", "report.json"} | pictures | checkpoints
    assert any("tfevents" in name for name in names)
    assert TrainConfig.load(folder) == settings(folder, epochs=12, lr=8e-3)


def test_table_shows_the_numbers_of_the_report(run):
    _, result = run
    text = report.table(result)
    assert f"{result['results']['psnr']:.2f} dB" in text
    assert f"{result['results']['linear_probe']:.1%}" in text
    assert "of a training step" in text


def test_the_best_model_is_the_one_that_is_kept(run):
    folder, result = run
    rows = read_metrics(folder)
    best = min(rows, key=lambda row: row["val_loss"])
    assert result["best_epoch"] == best["epoch"] + 1
    kept, checkpoint = load_model(folder), load_model(folder / "checkpoints" / "best.ckpt")
    assert isinstance(kept, AutoencODE)
    for name, value in kept.state_dict().items():
        assert torch.equal(value, checkpoint.state_dict()[name])
    last = torch.load(last_checkpoint(folder), weights_only=True)
    assert last["global_step"] == rows[-1]["step"]


def test_another_run_is_not_overwritten(run):
    folder, _ = run
    with pytest.raises(FileExistsError, match="already holds a run: resume it with --resume"):
        train(settings(folder, epochs=1))


def test_numbers_that_json_does_not_have(tmp_path):
    file = report.write(tmp_path, {"results": {"psnr": float("inf"), "many": [1.0, float("nan")]}, "n": 3})
    assert json.loads(file.read_text()) == {"results": {"psnr": None, "many": [1.0, None]}, "n": 3}
    assert "Infinity" not in file.read_text()
