"""What the console script says about mistakes, interruptions and missing packages: a message, never a traceback."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastode._version import __version__
from fastode.cli import main
from fastode.models import Autoencoder


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    """The output of a command that must fail with a message."""
    result = invoke(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit)
    assert "Error: " in result.output
    return result.output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("info --help", ["backends"]),
        ("train -h", ["--data-dir", "fashion-mnist", "--strategy ddp", "[default: 0.006]"]),
        ("encode --help", ["CHECKPOINT IMAGES...", ".npz or .csv"]),
        ("reconstruct --help", ["CHECKPOINT IMAGES...", "PNG"]),
    ],
)
def test_help(command, words):
    result = invoke(*command.split())
    assert result.exit_code == 0
    assert not [word for word in words if word not in result.output]


def test_version():
    assert invoke("--version").output.strip() == f"fastode, version {__version__}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("learn", "No such command 'learn'"),
        ("train --model gan", "'gan' is not one of 'autoencode', 'ae', 'vae'"),
        ("train --data imagenet", "'imagenet' is not one of 'digits'"),
        ("train --precision 8", "'8' is not one of '32', 'bf16-mixed', '16-mixed'"),
        ("train --channels 2", "'2' is not one of '1', '3'"),
        ("train --epochs many", "'many' is not a valid integer"),
        ("train --state-dim 0", "state_dim must be a positive integer, got 0"),
        ("train --hidden -3", "hidden must be a positive integer, got -3"),
        ("train --data folder --data-dir .", "no images below"),
        ("train --data folder --data-dir . --image-size 4", "no images below"),
        ("train --resume nowhere", "cannot read the settings of a run from nowhere"),
        ("encode nowhere", "Missing argument 'IMAGES...'"),
        ("encode nowhere x.png", "no model at nowhere"),
    ],
)
def test_mistakes_are_explained(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(*arguments.split())


@pytest.mark.parametrize("size", ["0", "-5", "4"])
def test_image_sizes_that_cannot_be(size, tmp_path):
    from PIL import Image

    for i in range(10):
        Image.new("L", (9, 9), 25 * i).save(tmp_path / f"{i}.png")
    options = ["--data-dir", tmp_path, "--out", tmp_path / "run", "--image-size", size]
    assert "image_size must be at least" in refused("train", "--data", "folder", *options)


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interruption_says_how_to_go_on(end, monkeypatch, tmp_path):
    def interrupted(*args, **kwargs):
        raise end

    monkeypatch.setattr("fastode.train.run.train", interrupted)
    result = invoke("train", "--out", tmp_path)
    assert result.exit_code == 130
    assert "go on after the last completed epoch with --resume" in result.output


def test_a_model_without_pictures(tmp_path):
    Autoencoder(image_size=8, code_size=3, width=4).save(tmp_path / "model.pt")
    (tmp_path / "empty").mkdir()
    for command in ("encode", "reconstruct"):
        assert "no images in" in refused(command, tmp_path, tmp_path / "empty")


def test_applying_a_model_needs_pillow_only_and_info_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("fastode.train.extra.find_spec", lambda name: None)
    for command in ("encode", "reconstruct"):
        message = refused(command, tmp_path, tmp_path)
        assert "missing pillow: install with  pip install 'fastode[train]'" in message
    assert invoke("info").exit_code == 0
