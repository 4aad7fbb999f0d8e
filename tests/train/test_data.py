"""Splits, digits and idx files: what is read, and what is said about files that are missing or damaged."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fastode.train.data import DATA_SETS, DataError, Images, as_float, load_data
from fastode.train.data.images import pick, sizes

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist_like(folder: Path, part: str, n: int, zipped: bool, dot: str = "-") -> tuple[np.ndarray, np.ndarray]:
    """Write the two idx files of one part; their pixels and labels."""
    pixels, labels = RNG.integers(0, 256, (n, 28, 28)), RNG.integers(0, 10, n)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images", pixels), ("labels", labels)):
        name = f"{part}-{kind}{dot}idx{array.ndim}-ubyte"
        raw = idx(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)
    return pixels, labels


def as_set(images: Images) -> set[tuple[bytes, int]]:
    return {(x.numpy().tobytes(), int(c)) for x, c in zip(images.pixels, images.labels, strict=True)}


def test_digits():
    from sklearn.datasets import load_digits

    data = load_data("digits")
    assert data.image_shape == (1, 8, 8)
    assert (len(data.train), len(data.val), len(data.test)) == (1294, 144, 359)
    assert data.classes == [str(i) for i in range(10)]
    digits = load_digits()
    original = {
        (np.rint(x / 16 * 255).astype(np.uint8).tobytes(), int(c))
        for x, c in zip(digits.images, digits.target, strict=True)
    }
    assert as_set(data.train) | as_set(data.val) | as_set(data.test) == original
    assert "held out 359 at random (seed 0)" in data.source


def test_the_split_is_the_same_for_the_same_seed_and_its_parts_are_disjoint():
    first, again, other = (load_data("digits", seed=seed, limit=300) for seed in (1, 1, 2))
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(first, part).pixels, getattr(again, part).pixels)
        assert torch.equal(getattr(first, part).labels, getattr(again, part).labels)
        assert not torch.equal(getattr(first, part).pixels, getattr(other, part).pixels)
    assert len(first.train) + len(first.val) + len(first.test) == 300
    parts = [as_set(getattr(first, part)) for part in ("train", "val", "test")]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]


def test_sizes_under_a_limit():
    assert sizes(100, 0, None) == (100, 0)
    assert sizes(100, 20, 120) == (100, 20)
    assert sizes(100, 20, 50) == (40, 10)
    assert sizes(100, 2, 50) == (48, 2)
    assert sorted(pick(10, 10, seed=3).tolist()) == list(range(10))


def test_limit_below_ten_is_refused():
    with pytest.raises(ValueError, match="limit must be at least 10, got 9"):
        load_data("digits", limit=9)
    assert len(load_data("digits", limit=10).train) >= 1


def test_names_and_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data set 'imagenet'.*digits, .*folder"):
        load_data("imagenet")
    with pytest.raises(ValueError, match="--image-size and --channels are for --data folder"):
        load_data("digits", image_size=16)
    for name in DATA_SETS[1:]:
        with pytest.raises(DataError, match=f"--data {name} needs --data-dir"):
            load_data(name)
        with pytest.raises(DataError, match="nowhere does not exist"):
            load_data(name, tmp_path / "nowhere")


def test_images_are_checked():
    with pytest.raises(ValueError, match="uint8"):
        Images(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="2 images but labels"):
        Images(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


def test_pixels_become_floats_from_0_to_1():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    images = Images(pixels)
    assert torch.equal(as_float(pixels), torch.arange(256).reshape(4, 1, 8, 8).float() / 255)
    assert [len(part) for part in images.batches(3)] == [3, 1]
    assert torch.equal(torch.cat(list(images.batches(3))), as_float(pixels))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("sub", "dot"), [("", "-"), ("raw", "-"), ("MNIST/raw", ".")])
def test_idx_files(name, zipped, sub, dot, tmp_path):
    train_pixels, train_labels = mnist_like(tmp_path / sub, "train", 30, zipped, dot)
    test_pixels, test_labels = mnist_like(tmp_path / sub, "t10k", 12, zipped, dot)
    data = load_data(name, tmp_path)
    assert data.image_shape == (1, 28, 28)
    assert (len(data.train), len(data.val), len(data.test)) == (27, 3, 12)
    assert len(data.classes) == 10

    def expected(pixels, labels):
        return {(x.astype(np.uint8).tobytes(), int(c)) for x, c in zip(pixels, labels, strict=True)}

    assert as_set(data.train) | as_set(data.val) == expected(train_pixels, train_labels)
    assert as_set(data.test) == expected(test_pixels, test_labels)
    assert "its own test part held out (12 images)" in data.source


def test_only_the_t10k_files(tmp_path):
    mnist_like(tmp_path, "t10k", 40, zipped=True)
    data = load_data("mnist", str(tmp_path), limit=20)
    assert (len(data.train), len(data.val), len(data.test)) == (14, 2, 4)
    assert "only the t10k files are there" in data.source
    assert "held out 4 at random" in data.source


def test_limit_with_a_test_part(tmp_path):
    mnist_like(tmp_path, "train", 60, zipped=False)
    mnist_like(tmp_path, "t10k", 20, zipped=False)
    data = load_data("mnist", tmp_path, limit=50)
    assert (len(data.train) + len(data.val), len(data.test)) == (40, 10)


WHERE = {"mnist": "yann.lecun.com", "fashion-mnist": "github.com/zalandoresearch"}


@pytest.mark.parametrize("name", WHERE)
def test_missing_idx_files_are_named_with_where_to_get_them(name, tmp_path):
    with pytest.raises(DataError, match=rf"no {name} in .*train-images-idx3-ubyte\.gz.*{WHERE[name]}"):
        load_data(name, tmp_path)
    mnist_like(tmp_path, "train", 20, zipped=False)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=rf"train-labels-idx1-ubyte\.gz is missing; get it from .*{WHERE[name]}"):
        load_data(name, tmp_path)


def _spoil(file: Path, how: str) -> None:
    raw = file.read_bytes()
    whole = gzip.decompress(raw) if file.suffix == ".gz" else raw
    changed = {
        "truncated": raw[:-100],
        "cut in the header": whole[:6],
        "empty": b"",
        "text": b"<html>404 not found</html>",
        "too long": whole + b"x",
        "labels": idx(np.zeros(20)),
        "sizes beyond 64 bits": struct.pack(">4I", 0x803, 2**22, 2**21, 2**21),
    }[how]
    file.write_bytes(gzip.compress(changed) if file.suffix == ".gz" and how != "truncated" else changed)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "how", ["truncated", "cut in the header", "empty", "text", "too long", "labels", "sizes beyond 64 bits"]
)
def test_damaged_idx_files_are_named_with_where_to_get_them(how, zipped, tmp_path):
    mnist_like(tmp_path, "train", 20, zipped)
    file = tmp_path / ("train-images-idx3-ubyte" + ".gz" * zipped)
    _spoil(file, how)
    with pytest.raises(DataError, match=rf"{file.name}.*get it again from .*yann\.lecun\.com"):
        load_data("mnist", tmp_path)


def test_a_gz_file_that_is_not_gzipped(tmp_path):
    mnist_like(tmp_path, "train", 20, zipped=False)
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=r"cannot read .*train-images-idx3-ubyte\.gz"):
        load_data("mnist", tmp_path)


def test_images_and_labels_that_do_not_go_together(tmp_path):
    mnist_like(tmp_path, "train", 20, zipped=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(19)))
    with pytest.raises(DataError, match=r"holds 20 images but .* 19 labels"):
        load_data("mnist", tmp_path)
    labels.write_bytes(idx(np.full(20, 11)))
    with pytest.raises(DataError, match="holds the label 11, expected 0 to 9"):
        load_data("mnist", tmp_path)


def test_too_few_images_to_split(tmp_path):
    for part in ("train", "t10k"):
        mnist_like(tmp_path, part, 0, zipped=False)
    with pytest.raises(DataError, match="mnist: too few images to split"):
        load_data("mnist", tmp_path)
