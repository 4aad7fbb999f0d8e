"""Runs on a few images: an interruption costs nothing, and settings do what they say."""

import math
import os

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from fastode.models import load_model
from fastode.train import report
from fastode.train.callbacks import read_metrics
from fastode.train.config import TrainConfig
from fastode.train.run import FOLDER_VARIABLE, _new_folder, _run_folder, last_checkpoint, newest_run, train


def settings(out, **changes) -> TrainConfig:
    small = {"limit": 100, "epochs": 4, "width": 4, "code_size": 3, "batch_size": 32, "accelerator": "cpu"}
    return TrainConfig(**{**small, "out": str(out), "progress": False, **changes})


@pytest.fixture
def quick(monkeypatch) -> None:
    """Leave out what takes the most time of a short run."""
    monkeypatch.setattr(report, "draw", lambda *args: [])
    monkeypatch.setattr(report, "_times", lambda *args: {})


class Interrupt(Callback):
    """Raises ``error`` in the middle of an epoch."""

    def __init__(self, epoch: int, error: BaseException) -> None:
        self.epoch = epoch
        self.error = error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 1):
            raise self.error


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_the_same_seed_gives_the_same_run(quick, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(settings(tmp_path / name, seed=seed, epochs=1))
    first, again, other = (without_seconds(read_metrics(tmp_path / name)) for name in "abc")
    assert first == again != other


@pytest.mark.parametrize("model", ["autoencode", "vae"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("power cut")], ids=["interrupt", "crash"])
def test_a_resumed_run_ends_like_one_that_was_not_interrupted(model, error, quick, tmp_path):
    whole = train(settings(tmp_path / "whole", model=model))
    config = settings(tmp_path / "cut", model=model)
    for epoch in (1, 3):
        with pytest.raises((KeyboardInterrupt, SystemExit, RuntimeError)):
            train(config, resume=epoch > 1, callbacks=[Interrupt(epoch, error)])
        assert len(read_metrics(tmp_path / "cut")) == epoch  # no completed epoch is lost
    resumed = train(config, resume=True)
    assert without_seconds(read_metrics(tmp_path / "cut")) == without_seconds(read_metrics(tmp_path / "whole"))
    assert resumed["epochs"] == whole["epochs"] == 4
    assert resumed["best_epoch"] == whole["best_epoch"]
    assert resumed["results"]["mse"] == whole["results"]["mse"]
    expected = load_model(tmp_path / "whole").state_dict()
    for name, value in load_model(tmp_path / "cut").state_dict().items():
        assert torch.equal(value, expected[name]), name
    lasts = [torch.load(last_checkpoint(tmp_path / name), weights_only=True) for name in ("whole", "cut")]
    assert lasts[0]["lr_schedulers"] == lasts[1]["lr_schedulers"]


def test_a_finished_run_reports_again_and_can_go_on_for_more_epochs(quick, tmp_path):
    first = train(settings(tmp_path, model="ae", epochs=1))
    again = train(TrainConfig.load(tmp_path), resume=True)
    assert again["epochs"] == 1
    assert again["results"]["mse"] == pytest.approx(first["results"]["mse"], rel=1e-5)
    longer = train(TrainConfig.load(tmp_path).changed(epochs=3), resume=True)
    assert longer["epochs"] == 3
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0, 1, 2]


def test_interrupted_before_the_first_epoch_ends(quick, tmp_path):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(settings(tmp_path), callbacks=[Interrupt(0, KeyboardInterrupt())])
    assert read_metrics(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: .*last\.ckpt does not exist"):
        train(settings(tmp_path), resume=True)
    assert train(settings(tmp_path, epochs=1))["epochs"] == 1  # so it may start again in the same folder


def test_early_stop(quick, tmp_path):
    # A learning rate too small to change any weight: nothing gets better after the first epoch.
    result = train(settings(tmp_path, model="ae", epochs=9, early_stop=2, lr=1e-12, weight_decay=0.0))
    assert result["epochs"] == 3
    assert result["best_epoch"] == 1


@pytest.mark.parametrize("model", ["autoencode", "ae", "vae"])
def test_mixed_precision(model, quick, tmp_path):
    result = train(settings(tmp_path, model=model, epochs=2, precision="bf16-mixed"))
    assert math.isfinite(result["results"]["mse"])
    rows = read_metrics(tmp_path)
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    assert all(p.dtype == torch.float32 for p in load_model(tmp_path).parameters())


@pytest.mark.parametrize("changes", [{"loss": "mse"}, {"start": "encoding"}, {"model": "vae", "loss": "mse"}])
def test_other_settings_train(changes, quick, tmp_path):
    result = train(settings(tmp_path, **changes))
    rows = read_metrics(tmp_path)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert result["model"] == changes.get("model", "autoencode")
    assert ("solver" in result["results"]) == (result["model"] == "autoencode")


def test_images_without_classes_have_no_clustering(quick, tmp_path):
    from PIL import Image

    for i in range(12):
        Image.new("RGB", (9, 13), (20 * i, 0, 255 - 20 * i)).save(tmp_path / f"{i}.png")
    result = train(settings(tmp_path / "run", data="folder", data_dir=str(tmp_path), limit=None, epochs=1))
    assert result["data"]["image_shape"] == [3, 13, 9]
    assert not {"clustering_accuracy", "linear_probe"} & set(result["results"])


def test_newest_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to resume below"):
        newest_run(tmp_path / "runs")
    for age, name in enumerate(("c", "a", "b")):
        file = last_checkpoint(tmp_path / name)
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    (tmp_path / "d").mkdir()
    assert newest_run(tmp_path).name == "c"


def test_only_the_further_processes_of_a_run_take_its_folder_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, "the/run/before")
    for rank in (None, "0"):
        if rank is None:
            monkeypatch.delenv("LOCAL_RANK", raising=False)
        else:
            monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv(FOLDER_VARIABLE, "the/run/before")
        folder = _run_folder(TrainConfig(model="vae"))
        assert folder.match("runs/*-digits-vae*")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _run_folder(TrainConfig(model="vae")) == folder
    assert str(_run_folder(TrainConfig(out="here"))) == "here"


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path):
    wanted = tmp_path / "runs" / "20250101-120000-digits-ae"
    names = [_new_folder(wanted).name for _ in range(3)]
    assert names == [wanted.name, f"{wanted.name}-2", f"{wanted.name}-3"]
