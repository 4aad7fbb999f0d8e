"""Pictures: each function writes one PNG of a size that a person can look at, with something in it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastode.models import AutoencODE
from fastode.train import plots
from fastode.train.data import Images


def images(n: int, shape: tuple[int, ...] = (1, 8, 8), classes: int | None = 3) -> Images:
    pixels = torch.randint(0, 256, (n, *shape), dtype=torch.uint8)
    return Images(pixels, None if classes is None else torch.arange(n) % classes)


def check(path: Path, expected: Path) -> np.ndarray:
    assert path == expected
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 150 <= image.height <= 2000
        assert 150 <= image.width <= 2000
        array = np.array(image.convert("RGB"))
    assert len(np.unique(array.reshape(-1, 3), axis=0)) > 20  # axes, texts and data, not a blank page
    return array


def model(channels: int = 1, **options) -> AutoencODE:
    return AutoencODE(channels=channels, image_size=8, width=4, **{"code_size": 3, **options}).eval()


@pytest.mark.parametrize(("n", "channels"), [(3, 1), (30, 3)])
def test_reconstructions(n, channels, tmp_path):
    file = tmp_path / "a.png"
    check(plots.reconstructions(file, model(channels), images(n, (channels, 8, 8)), "a title"), file)


def test_originals_are_shown_as_they_are(tmp_path):
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    pixels[:, 0] = 250  # a red image
    file = tmp_path / "a.png"
    array = check(plots.reconstructions(file, model(3), Images(pixels), "a title"), file)
    red = (array == [250, 0, 0]).all(2)
    assert 40 * 40 < red.sum() < 100 * 100


@pytest.mark.parametrize(("classes", "code_size"), [(None, 5), (1, 1), (12, 2)])
def test_codes(classes, code_size, tmp_path):
    file = tmp_path / "a.png"
    labels = None if classes is None else torch.arange(40) % classes
    names = [] if classes is None else [f"class {i}" for i in range(classes)]
    check(plots.codes(file, torch.randn(40, code_size), labels, names, "a title"), file)


@pytest.mark.parametrize(("n", "best"), [(1, None), (20, 3)])
def test_losses(n, best, tmp_path):
    rows = [{"epoch": i, "train_loss": 1 / (i + 1), "val_loss": 1.1 / (i + 1), "val_mse": 0.1} for i in range(n)]
    check(plots.losses(tmp_path / "a.png", rows, best, 0.2, "a title"), tmp_path / "a.png")


def test_losses_with_missing_entries(tmp_path):
    rows = [{"epoch": 0.0, "train_loss": 1.0}, {"epoch": 1.0, "val_loss": 0.5, "val_mse": 0.1}]
    check(plots.losses(tmp_path / "a.png", rows, 1, 0.2, "a title"), tmp_path / "a.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("classes", "options"), [(None, {"start": "encoding"}), (3, {"state_dim": 1})])
def test_trajectories(classes, options, tmp_path):
    names = [] if classes is None else [f"class {i}" for i in range(classes)]
    file = tmp_path / "a.png"
    check(plots.trajectories(file, model(**options), images(5, classes=classes), names, "a title"), file)


def test_flow(tmp_path):
    check(
        plots.flow(tmp_path / "a.png", model(3), images(8, (3, 8, 8)), "a title", rows=2, columns=4), tmp_path / "a.png"
    )


def test_examples_take_the_classes_in_turn():
    labels = torch.tensor([0, 0, 0, 1, 2, 1])
    data = Images(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), labels)
    assert plots.choose_examples(data, 4).tolist() == [0, 3, 4, 1]
    assert plots.choose_examples(data, 99).tolist() == [0, 3, 4, 1, 5, 2]
    assert plots.choose_examples(Images(data.pixels), 4).tolist() == [0, 1, 2, 3]
