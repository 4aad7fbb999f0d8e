"""The console script, as a user calls it."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from fastode.cli import main
from fastode.models import AutoencODE, load_model

SMALL = ["--limit", "200", "--code-size", "4", "--width", "4", "--batch-size", "50", "--no-progress"]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    result = call("train", *SMALL, "--epochs", "2", "--out", folder)
    assert result.exit_code == 0, result.output
    assert "PSNR" in result.output
    assert f"{folder / 'reconstructions.png'}" in result.output
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """Images of several sizes and modes, one of them in a subfolder under the name of another."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "b.png")
    Image.fromarray(rng.integers(0, 256, (9, 9, 4), dtype=np.uint8)).save(folder / "more" / "a.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_help_names_every_command_and_default():
    text = call("--help").output
    assert all(name in text for name in ("train", "encode", "reconstruct", "info"))
    text = call("train", "--help").output
    for part in (
        "--resume [RUN]",
        "--early-stop PATIENCE",
        "[default: autoencode]",
        "bf16-mixed",
        "fastode train --model",
    ):
        assert part in text, part


def test_defaults_of_the_options_are_those_of_the_settings():
    from fastode.train.config import DEFAULT_EPOCHS, MODELS, PRECISIONS, TrainConfig
    from fastode.train.data import DATA_SETS

    options = {option.name: option for option in main.commands["train"].params}
    for name, value in TrainConfig().__dict__.items():
        if name != "progress":
            assert options[name].default in (value, None) or not value, name
            if value is not None:
                assert options[name].default == value, name
    assert tuple(options["model"].type.choices) == MODELS
    assert tuple(options["data"].type.choices) == DATA_SETS
    assert tuple(options["precision"].type.choices) == PRECISIONS
    assert f"{DEFAULT_EPOCHS['digits']} for the digits" in options["epochs"].help


def test_info():
    result = call("info")
    assert result.exit_code == 0
    assert "fastode" in result.output
    assert torch.__version__ in result.output


def test_module_is_the_console_script():
    done = subprocess.run([sys.executable, "-m", "fastode", "--version"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fastode, version ")


def test_resume_takes_the_settings_of_the_run(run_folder):
    result = call("train", "--resume", run_folder, "--epochs", "3", "--no-progress")
    assert result.exit_code == 0, result.output
    assert "epoch 3/3" in result.output
    assert "epoch 2/3" not in result.output
    assert load_model(run_folder).code_size == 4
    by_out = call("train", "--out", run_folder, "--resume")
    assert by_out.exit_code == 0, by_out.output
    assert "epoch" in by_out.output


def test_resume_alone_takes_the_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTODE_RUN_FOLDER", raising=False)
    nothing = call("train", "--resume")
    assert nothing.exit_code == 1
    assert "no run to resume below runs" in nothing.output
    first = call("train", "--model", "ae", *SMALL, "--epochs", "1")
    assert first.exit_code == 0, first.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-digits-ae")
    result = call("train", "--resume", "--epochs", "2")
    assert result.exit_code == 0, result.output
    assert f"into runs/{folder.name}" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnist"], "--data mnist needs --data-dir PATH; get the files from http"),
        (["--data", "cifar10", "--data-dir", "nowhere"], "--data-dir nowhere does not exist"),
        (["--image-size", "16"], "the size and channels of digits are fixed"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--activation", "step"], "unknown activation 'step'"),
        (["--method", "rk99"], "rk99"),
        (["--accelerator", "abacus"], "abacus"),
        (["--limit", "3"], "limit must be at least 10"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, tmp_path):
    result = call("train", *arguments, "--out", tmp_path / "run", "--no-progress")
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_contradictions_on_resuming(run_folder):
    result = call("train", "--resume", run_folder, "--code-size", "5")
    assert result.exit_code == 1
    assert "has code_size = 4, not 5" in result.output
    result = call("train", "--out", run_folder)
    assert result.exit_code == 1
    assert "already holds a run" in result.output


@pytest.mark.parametrize("missing", [{"lightning"}, {"torchmetrics", "sklearn"}])
def test_missing_extra_is_named(missing, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("fastode.train.extra.find_spec", lambda name: None if name in missing else find(name))
    result = call("train")
    assert result.exit_code == 1
    assert "pip install 'fastode[train]'" in result.output
    assert all({"sklearn": "scikit-learn"}.get(name, name) in result.output for name in missing)


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
@pytest.mark.parametrize("checkpoint", ["", "model.pt", "checkpoints/best.ckpt"])
def test_encode(suffix, checkpoint, run_folder, photos, tmp_path):
    out = tmp_path / f"codes{suffix}"
    result = call("encode", run_folder / checkpoint, photos, "--out", out)
    assert result.exit_code == 0, result.output
    assert "3 images, converted to gray and resized to 8x8, the model's input" in result.output
    files = [str(photos / "a.png"), str(photos / "b.png"), str(photos / "more" / "a.png")]
    if suffix == ".npz":
        with np.load(out) as content:
            codes, names = content["codes"], content["files"].tolist()
    else:
        with out.open(newline="") as stream:
            rows = list(csv.reader(stream))
        assert rows[0] == ["file", "z0", "z1", "z2", "z3"]
        names, codes = [row[0] for row in rows[1:]], np.array([row[1:] for row in rows[1:]], np.float32)
    assert names == files
    with Image.open(photos / "b.png") as image:
        x = torch.from_numpy(np.array(image)).float()[None, None] / 255
    with torch.no_grad():
        expected = AutoencODE.load(run_folder).encode(x)[0]
    np.testing.assert_allclose(codes[1], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_reconstruct(run_folder, photos, tmp_path):
    out = tmp_path / "new" / "folder"
    result = call("reconstruct", run_folder, photos / "b.png", photos, "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == ["a-2.png", "a.png", "b-2.png", "b.png"]
    with Image.open(out / "b.png") as image:
        assert (image.mode, image.size) == ("L", (8, 8))
        array = np.array(image)
    with Image.open(photos / "b.png") as image:
        x = torch.from_numpy(np.array(image)).float()[None, None] / 255
    with torch.no_grad():
        expected = AutoencODE.load(run_folder)(x)[0, 0] * 255
    assert np.abs(array - expected.numpy()).max() <= 1.0


def test_mistakes_of_encode_and_reconstruct(run_folder, photos, tmp_path):
    for arguments, message in [
        (["encode", tmp_path / "none.pt", photos], "no model at"),
        (["encode", run_folder, tmp_path / "none.png"], "no such file or folder"),
        (["encode", run_folder, photos / "notes.txt"], "cannot read the image"),
        (["encode", run_folder, photos, "--out", tmp_path / "codes.txt"], "must end in .npz or .csv"),
        (["reconstruct", photos / "a.png", photos], "damaged or not a fastode model"),
        (["reconstruct", run_folder, tmp_path / "empty"], "no images in"),
    ]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        result = call(*arguments)
        assert result.exit_code == 1, arguments
        assert message in result.output
