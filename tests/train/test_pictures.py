"""Pictures: every case draws, into the file that was asked for; and the choice of what is shown."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastode.models import AutoencODE, Autoencoder
from fastode.train import plots
from fastode.train.data import Images


def some_images(n: int = 13, channels: int = 1, labelled: bool = True) -> Images:
    pixels = torch.randint(0, 256, (n, channels, 8, 8), dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % 3 if labelled else None)


def content(path) -> np.ndarray:
    """The picture as an array; it must be large enough to look at and not blank."""
    with Image.open(path) as image:
        array = np.asarray(image.convert("RGB"))
    assert min(array.shape[:2]) > 150
    assert array.std() > 5
    return array


def test_examples_take_the_classes_in_turn():
    images = Images(torch.zeros(7, 1, 8, 8, dtype=torch.uint8), torch.tensor([2, 2, 2, 0, 0, 1, 2]))
    assert plots.choose_examples(images, 5).tolist() == [3, 5, 0, 4, 1]
    assert plots.choose_examples(images, 99).sort().values.tolist() == list(range(7))
    assert plots.choose_examples(some_images(5, labelled=False), 3).tolist() == [0, 1, 2]


def test_principal_plane_holds_the_widest_directions():
    points = torch.randn(500, 3) * torch.tensor([0.1, 5.0, 1.0]) + 7.0
    mean, directions, shares = plots._principal_plane(points)
    torch.testing.assert_close(mean, points.mean(0))
    assert directions[1, 0].abs() > 0.99
    assert directions[2, 1].abs() > 0.99
    assert shares[0] == pytest.approx(25 / 26, abs=0.02)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [1, 13, 30])
def test_reconstructions(channels, n, tmp_path):
    model = Autoencoder(channels, 8, code_size=3, width=4)
    path = plots.reconstructions(tmp_path / "a.png", model, some_images(n, channels), "title")
    content(path)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("n_classes", [0, 3, 12])
def test_codes(size, n_classes, tmp_path):
    labels = torch.arange(40) % n_classes if n_classes else None
    classes = [f"class {i}" for i in range(n_classes)]
    content(plots.codes(tmp_path / "a.png", torch.randn(40, size), labels, classes, "title"))


@pytest.mark.parametrize("n", [1, 5])
def test_losses(n, tmp_path):
    rows = [{"epoch": float(i), "train_loss": 1.0 / (i + 1), "val_loss": 1.1, "val_mse": 0.1} for i in range(n)]
    content(plots.losses(tmp_path / "a.png", rows, n - 1, 0.2, "title"))
    content(plots.losses(tmp_path / "b.png", [{"epoch": 0.0, "train_loss": 1.0}], None, 0.2, "title"))


@pytest.mark.parametrize("start", ["learned", "encoding"])
@pytest.mark.parametrize("labelled", [True, False])
def test_trajectories_and_flow(start, labelled, tmp_path):
    model = AutoencODE(1, 8, code_size=3, width=4, start=start)
    classes = ["a", "b", "c"] if labelled else []
    images = some_images(labelled=labelled)
    content(plots.trajectories(tmp_path / "a.png", model, images, classes, "title"))
    content(plots.flow(tmp_path / "b.png", model, images, "title"))


def test_pictures_do_not_need_a_display_or_change_the_backend(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.delenv("DISPLAY", raising=False)
    before = matplotlib.rcParams._get("backend")
    plots.codes(tmp_path / "a.png", torch.randn(5, 2), None, [], "title")
    assert matplotlib.rcParams._get("backend") == before
