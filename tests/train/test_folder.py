"""Folders of images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastode.train.data import DataError, load_data
from fastode.train.data.folder import read_image

RNG = np.random.default_rng(0)


def write(path: Path, shape: tuple[int, ...] = (9, 13)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 256, shape, np.uint8)
    Image.fromarray(array).save(path)
    return array


def rows(images, *, labels: bool = True) -> set:
    names = images.labels.tolist() if labels else [0] * len(images)
    return {(x.permute(1, 2, 0).squeeze(2).numpy().tobytes(), c) for x, c in zip(images.pixels, names, strict=True)}


def test_one_folder_per_class(tmp_path):
    expected = {(write(tmp_path / name / f"{i}.png").tobytes(), c) for c, name in enumerate("ab") for i in range(8)}
    write(tmp_path / ".hidden" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    data = load_data("folder", tmp_path)
    assert data.image_shape == (1, 9, 13)
    assert data.classes == ["a", "b"]
    assert (len(data.train), len(data.val), len(data.test)) == (12, 1, 3)
    assert rows(data.train) | rows(data.val) | rows(data.test) == expected


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_train_and_test_folders(held_out, tmp_path):
    train = {
        (write(tmp_path / "train" / name / f"{i}.png", (8, 8, 3)).tobytes(), c)
        for c, name in enumerate("ab")
        for i in range(5)
    }
    test = {(write(tmp_path / held_out / "b" / f"{i}.png", (8, 8, 3)).tobytes(), 1) for i in range(3)}
    data = load_data("folder", tmp_path)
    assert data.image_shape == (3, 8, 8)
    assert rows(data.train) | rows(data.val) == train
    assert rows(data.test) == test
    write(tmp_path / held_out / "c" / "x.png", (8, 8, 3))
    with pytest.raises(DataError, match=r"has classes that .*train has not: c"):
        load_data("folder", tmp_path)


def test_images_without_classes(tmp_path):
    expected = {(write(tmp_path / f"{i}.png").tobytes(), 0) for i in range(10)}
    data = load_data("folder", tmp_path)
    assert data.classes == []
    assert data.train.labels is None
    assert rows(data.train, labels=False) | rows(data.val, labels=False) | rows(data.test, labels=False) == expected


def test_resize_and_channels(tmp_path):
    for i in range(6):
        write(tmp_path / f"{i}.png", (10 + i, 20))
        write(tmp_path / f"{i}.jpg", (10, 20, 3))
    with pytest.raises(DataError, match=r"sizes 10x20, 11x20, 12x20, .*--image-size"):
        load_data("folder", tmp_path)
    assert load_data("folder", tmp_path, image_size=12).image_shape == (3, 12, 12)
    data = load_data("folder", tmp_path, image_size=12, channels=1)
    assert data.image_shape == (1, 12, 12)
    assert "gray, resized to 12x12" in data.source


def test_large_images_need_a_size(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.png", (129, 8))
    with pytest.raises(DataError, match="sizes 129x8: give the side"):
        load_data("folder", tmp_path)


def test_limit_is_deterministic_by_seed(tmp_path):
    for i in range(30):
        write(tmp_path / f"{i % 2}" / f"{i}.png")
    first, again, other = (load_data("folder", tmp_path, limit=10, seed=seed) for seed in (0, 0, 1))
    parts = [rows(d.train) | rows(d.val) | rows(d.test) for d in (first, again, other)]
    assert len(parts[0]) == 10
    assert parts[0] == parts[1] != parts[2]
    assert rows(first.test) == rows(again.test)


def test_damaged_images_are_named(tmp_path):
    for i in range(6):
        write(tmp_path / f"{i}.png", (40, 40))
    raw = (tmp_path / "3.png").read_bytes()
    for bad in (raw[: len(raw) // 2], b"", b"GIF89a nonsense"):
        (tmp_path / "3.png").write_bytes(bad)
        with pytest.raises(DataError, match=r"cannot read the image .*3\.png"):
            load_data("folder", tmp_path)


def test_no_images(tmp_path):
    with pytest.raises(DataError, match=r"no images below .*one subfolder per class"):
        load_data("folder", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="no folder of images at"):
        load_data("folder", tmp_path / "file")
    write(tmp_path / "only.png")
    with pytest.raises(DataError, match="too few images"):
        load_data("folder", tmp_path)


def test_modes_of_images(tmp_path):
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    gray = read_image(tmp_path / "deep.png", 1, (8, 8))[0].numpy()
    np.testing.assert_allclose(gray, ramp / 65535 * 255, atol=0.51)
    clear = np.zeros((8, 8, 4), np.uint8)  # transparent black shows the white behind it
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png", 3, (8, 8)) == 255).all()
    palette = Image.fromarray(np.eye(8, dtype=np.uint8) * 255).convert("P")
    palette.save(tmp_path / "palette.png")
    assert (read_image(tmp_path / "palette.png", 1, (8, 8))[0].numpy() == np.eye(8) * 255).all()
