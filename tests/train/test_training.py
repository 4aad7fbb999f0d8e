"""Whole runs, small: they learn, they report, and an interruption changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch

from fastode.models import AutoencODE, load_model
from fastode.train import report
from fastode.train.callbacks import read_metrics
from fastode.train.config import TrainConfig, build_model
from fastode.train.run import last_checkpoint, newest_run, train

# Small enough for seconds, on real images.
SMALL = {"limit": 400, "code_size": 8, "width": 8, "batch_size": 32, "progress": False}
TIMEOUT = 240


def small(out: Path, **changes) -> TrainConfig:
    return TrainConfig(out=str(out), **{**SMALL, **changes})


def numbers(folder: Path) -> list[dict[str, float]]:
    """The rows of a run without the times."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("run") / "nested" / "autoencode"
    return folder, train(small(folder, epochs=12, lr=8e-3))


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
    assert TrainConfig.load(folder) == small(folder, epochs=12, lr=8e-3)


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


class Interrupt(L.Callback):
    """Ends the run in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 3:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("model", ["vae", "autoencode"])
def test_a_resumed_run_is_the_uninterrupted_one(model, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(small(whole, model=model, epochs=4))
    for epoch in (1, 3):
        with pytest.raises(RuntimeError, match="power cut"):
            train(small(cut, model=model, epochs=4), resume=epoch > 1, callbacks=[Interrupt(epoch)])
        assert len(read_metrics(cut)) == epoch
    train(small(cut, model=model, epochs=4), resume=True)
    assert numbers(cut) == numbers(whole)
    a, b = load_model(whole), load_model(cut)
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name
    lasts = [torch.load(last_checkpoint(folder), weights_only=True) for folder in (whole, cut)]
    assert lasts[0]["lr_schedulers"] == lasts[1]["lr_schedulers"]


def test_a_killed_process_loses_no_completed_epoch(tmp_path):
    folder = tmp_path / "run"
    options = ["--limit", "400", "--code-size", "8", "--width", "8", "--batch-size", "32", "--epochs", "400"]
    command = [sys.executable, "-m", "fastode", "train", "--model", "ae", *options, "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    started = time.monotonic()
    while len(read_metrics(folder)) < 3 and process.poll() is None and time.monotonic() - started < TIMEOUT:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=TIMEOUT)
    told = output.count("val_mse")
    done = torch.load(last_checkpoint(folder), weights_only=True)["callbacks"]["EpochTable"]["rows"]
    assert told >= 3
    assert len(done) >= told
    result = train(TrainConfig.load(folder).changed(epochs=len(done) + 1), resume=True)
    assert result["epochs"] == len(done) + 1
    assert read_metrics(folder)[: len(done)] == [{k: float(v) for k, v in row.items()} for row in done]


@pytest.mark.skipif(os.name != "posix", reason="sends an interrupt to a process")
def test_control_c_ends_with_a_word_on_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    options = ["--limit", "400", "--width", "8", "--batch-size", "32", "--epochs", "400"]
    command = [sys.executable, "-m", "fastode", "train", "--model", "ae", *options, "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    started = time.monotonic()
    while len(read_metrics(folder)) < 1 and process.poll() is None and time.monotonic() - started < TIMEOUT:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, output
    assert "--resume" in output
    assert "Traceback" not in output
    assert last_checkpoint(folder).is_file()


def test_two_processes(tmp_path):
    """Lightning's DDP over gloo: both processes step together, one reports."""
    folder = tmp_path / "run"
    options = ["--limit", "300", "--code-size", "4", "--width", "4", "--batch-size", "32", "--epochs", "2"]
    processes = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp"]
    command = [sys.executable, "-m", "fastode", "train", *options, *processes, "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PSNR") == 1
    rows = read_metrics(folder)
    # 300 images: 60 held out, 24 for validation, 216 in batches of 32 for two processes: 4 steps, not 7.
    assert [row["step"] for row in rows] == [4, 8]
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    assert isinstance(load_model(folder), AutoencODE)


def test_early_stop(tmp_path):
    result = train(small(tmp_path / "run", model="ae", epochs=30, lr=1e-12, early_stop=2))
    assert result["epochs"] < 30


@pytest.mark.parametrize("model", ["autoencode", "vae"])
def test_mixed_precision_and_squared_error(model, tmp_path):
    result = train(small(tmp_path / "run", model=model, epochs=1, precision="bf16-mixed", loss="mse"))
    assert 0.0 < result["results"]["mse"] < 0.5
    assert all(p.dtype == torch.float32 for p in load_model(tmp_path / "run").parameters())


def test_another_run_is_not_overwritten(run):
    folder, _ = run
    with pytest.raises(FileExistsError, match="already holds a run: resume it with --resume"):
        train(small(folder, epochs=1))


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(small(tmp_path / "none"), resume=True)
    with pytest.raises(FileNotFoundError, match="no run to resume below"):
        newest_run(tmp_path)


def test_resuming_a_finished_run_reports_again_and_more_epochs_go_on(tmp_path):
    folder = tmp_path / "run"
    first = train(small(folder, model="ae", epochs=2))
    again = train(TrainConfig.load(folder), resume=True)
    assert again["epochs"] == 2
    assert again["results"]["mse"] == pytest.approx(first["results"]["mse"], rel=1e-5)
    longer = train(TrainConfig.load(folder).changed(epochs=3), resume=True)
    assert longer["epochs"] == 3
    assert [row["epoch"] for row in read_metrics(folder)] == [0, 1, 2]
    assert newest_run(tmp_path) == folder


def test_what_was_trained_cannot_change_on_resuming():
    config = TrainConfig(code_size=8)
    assert config.changed(epochs=3, devices="2").n_epochs == 3
    with pytest.raises(ValueError, match=r"has code_size = 8, not 16"):
        config.changed(code_size=16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "gan"}, "unknown model 'gan'"),
        ({"loss": "l1"}, "unknown loss 'l1'"),
        ({"precision": "8"}, "unknown precision '8'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"rtol": float("nan")}, "rtol must be positive"),
        ({"beta": -1.0}, "beta must not be negative"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_settings_in_a_damaged_file(tmp_path):
    for text in ("{", "[]", '{"depth": 3}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"cannot read the settings of a run from .*config\.json"):
            TrainConfig.load(tmp_path)


def test_options_reach_the_model():
    config = TrainConfig(
        state_dim=5, hidden=7, activation="relu", horizon=2.0, start="encoding", method="bosh3", rtol=0.1
    )
    made = build_model(config, (3, 10, 12))
    assert isinstance(made, AutoencODE)
    wanted = {"channels": 3, "image_size": [10, 12], "state_dim": 5, "hidden": 7, "activation": "relu", "horizon": 2.0}
    wanted |= {"start": "encoding", "method": "bosh3", "rtol": 0.1}
    assert {key: made.config[key] for key in wanted} == wanted
