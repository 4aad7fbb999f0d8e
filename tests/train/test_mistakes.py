"""Mistakes and hostile files are answered in one clear sentence; nothing in a file is ever run."""

import gzip
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from fastode.models import Autoencoder, load_model
from fastode.train.config import TrainConfig, build_model
from fastode.train.data import DataError, idx, load_data
from fastode.train.data.folder import read_image
from fastode.train.run import check_checkpoint, train


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def model_file(folder, **changes):
    file = folder / "model.pt"
    Autoencoder(channels=1, image_size=8, code_size=2, width=2).save(file)
    if changes:
        torch.save({**torch.load(file), **changes}, file)
    return file


DAMAGES = {
    "empty": lambda raw: b"",
    "cut off": lambda raw: raw[: len(raw) // 2],
    "text": lambda raw: b"hello, this is no model",
    "pickle": lambda raw: pickle.dumps({"x": 1}),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("read", [load_model, check_checkpoint])
def test_damaged_files(read, damage, tmp_path):
    file = model_file(tmp_path)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.raises(ValueError, match=r"model.pt") as caught:
        read(file)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("read", [load_model, check_checkpoint])
def test_hostile_files_are_not_run(read, legacy, tmp_path):
    trap = tmp_path / "trap"
    file = tmp_path / "model.pt"
    torch.save({"state_dict": Hostile(trap)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="nothing in it was run") as caught:
        read(file)
    assert "weights_only" not in str(caught.value)
    assert not trap.exists()


def test_foreign_checkpoints(tmp_path):
    torch.save({"x": 1}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last.ckpt: it is no checkpoint of `fastode train`"):
        check_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="not a fastode model"):
        load_model(model_file(tmp_path, state_dict=[1, 2]))


def test_a_model_keeps_its_precision(tmp_path):
    model = Autoencoder(channels=1, image_size=8, code_size=2, width=2).double()
    model.save(tmp_path / "model.pt")
    again = load_model(tmp_path / "model.pt")
    assert all(p.dtype == torch.float64 for p in again.parameters())
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(again(x), model.eval()(x))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"devices": "foo"}, "devices"),
        ({"devices": "-3"}, "devices"),
    ],
    ids=str,
)
def test_settings_out_of_range(changes, word):
    with pytest.raises(ValueError, match=f"^{word} must be"):
        TrainConfig(**changes)


@pytest.mark.parametrize("name", ["width", "code_size", "hidden", "state_dim"])
@pytest.mark.parametrize("size", [10**7, 10**10, 10**30])
@pytest.mark.parametrize("others", [{}, {"hidden": 3}], ids=["defaults", "small"])
def test_sizes_that_no_memory_holds(name, size, others):
    with pytest.raises(ValueError, match=f"{name}={size}.* memory"):
        build_model(TrainConfig(**{**others, name: size}), (1, 8, 8))


@pytest.mark.parametrize("folder", ["file/x", "a" * 300])
def test_folders_that_cannot_be(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the folder of the run, --out"):
        train(TrainConfig(out=folder, progress=False))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("value", [0, 90, 255, 256, 32896, 65535])
def test_sixteen_bits(value, suffix, tmp_path):
    """White is 65,535, however dark the image is."""
    file = tmp_path / f"image.{suffix}"
    Image.fromarray(np.full((3, 5), value, np.uint16)).save(file)
    assert abs(read_image(file, 1, (3, 5)).double().mean().item() - value / 257) <= 0.5001


def write_tiff(file, values, order, photometric):
    """A gray TIFF of 16 bits; order: ">" is most significant byte first."""
    height, width = values.shape
    entries = [(256, 4, width), (257, 4, height), (258, 3, 16), (259, 3, 1), (262, 3, photometric)]
    entries += [(273, 4, 8 + 2 + 12 * 8 + 4), (278, 4, height), (279, 4, 2 * values.size)]
    packed = [
        struct.pack(order + "HHI", tag, kind, 1)
        + (struct.pack(order + "HH", number, 0) if kind == 3 else struct.pack(order + "I", number))
        for tag, kind, number in entries
    ]
    head = (b"MM" if order == ">" else b"II") + struct.pack(order + "HIH", 42, 8, len(entries))
    file.write_bytes(head + b"".join(packed) + struct.pack(order + "I", 0) + values.astype(order + "u2").tobytes())


@pytest.mark.parametrize(("order", "photometric"), [(">", 1), ("<", 1), ("<", 0)])
def test_tiff_in_either_order_and_with_zero_for_white(order, photometric, tmp_path):
    file = tmp_path / "image.tif"
    values = np.array([[0, 257], [514, 65535]])
    write_tiff(file, values, order, photometric)
    expected = values // 257
    pixels = read_image(file, 1, (2, 2))[0].numpy()
    assert (pixels == (expected if photometric else 255 - expected)).all()


def test_floating_point_images(tmp_path):
    file = tmp_path / "image.tif"
    Image.fromarray(np.array([[0.0, 0.5], [0.2, 1.0]], np.float32)).save(file)
    assert read_image(file, 1, (2, 2)).tolist() == [[[0, 128], [51, 255]]]
    for wrong in (3.0, -0.5, np.nan):
        Image.fromarray(np.array([[0.0, wrong]], np.float32)).save(file)
        with pytest.raises(DataError, match="not between 0, black, and 1, white"):
            read_image(file, 1, (1, 2))
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(file)
    with pytest.raises(DataError, match="black and white are not known"):
        read_image(file, 1, (1, 2))


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "LA", "RGBA", "L", "RGB"])
def test_other_formats_show_what_they_hold(mode, tmp_path):
    gray = Image.fromarray(np.array([[0, 255, 0], [255, 255, 0]], np.uint8))
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    gray.convert("RGB").convert(mode).save(file) if mode in ("CMYK", "P") else gray.convert(mode).save(file)
    for channels in (1, 3):
        pixels = read_image(file, channels, (2, 3))
        assert (pixels.int() - torch.from_numpy(np.array(gray)).int()).abs().max() <= 1


def test_archives_write_nothing_and_bombs_are_refused(tmp_path, monkeypatch):
    link, outside = tarfile.TarInfo("cifar-10-batches-py/data_batch_1"), tmp_path / "outside"
    outside.write_bytes(b"secret")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.addfile(link)
        escaping = tarfile.TarInfo("../../data_batch_2")
        tar.addfile(escaping)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="incomplete"):
        load_data("cifar10", folder)
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(idx, "MAX_BYTES", 1000)
    bomb = tmp_path / "train-images-idx3-ubyte.gz"
    bomb.write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(DataError, match="more than 1000 bytes"):
        idx.read_idx(bomb, 0x803, "somewhere")
