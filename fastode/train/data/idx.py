"""MNIST and Fashion-MNIST in the idx format of their publication, plain or gzipped."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastode.train.data.images import DataError, Images

IMAGES_MAGIC = 0x00000803  # unsigned bytes, 3 dimensions
LABELS_MAGIC = 0x00000801  # unsigned bytes, 1 dimension

WHERE = {
    "mnist": "http://yann.lecun.com/exdb/mnist/ or https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "https://github.com/zalandoresearch/fashion-mnist",
}
CLASSES = {
    "mnist": [str(i) for i in range(10)],
    "fashion-mnist": [
        "T-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "boot",
    ],
}
# Where other tools put the files below the folder that a user would name.
SUBFOLDERS = ("", "raw", "MNIST/raw", "FashionMNIST/raw")


MAX_BYTES = 512 * 2**20
"""Of one file, unpacked: those of MNIST have 47 MB."""


def read_idx(path: Path, magic: int, where: str) -> np.ndarray:
    """The uint8 array of an idx file.

    Raises:
        DataError: the file cannot be read, is damaged or has another type; ``where`` says where to get it.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise DataError(f"{path} holds more than {MAX_BYTES} bytes, far too many; get it again from {where}")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; get it again from {where}") from error
    n_dims = magic & 0xFF
    header = 4 * (1 + n_dims)
    if len(raw) < header or struct.unpack(">I", raw[:4])[0] != magic:
        raise DataError(
            f"{path} is not an idx file of bytes with {n_dims} dimensions (its first four bytes are "
            f"{raw[:4].hex() or 'missing'}, expected {magic:08x}); get it again from {where}"
        )
    shape = struct.unpack(f">{n_dims}I", raw[4:header])
    expected = header + math.prod(shape)
    if len(raw) != expected:
        raise DataError(
            f"{path} is damaged: {len(raw)} bytes, expected {expected} for shape {shape}; get it again from {where}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, part: str, kind: str) -> Path | None:
    for sub in SUBFOLDERS:
        for name in (f"{part}-{kind}-ubyte", f"{part}-{kind.replace('-idx', '.idx')}-ubyte"):
            for suffix in (".gz", ""):
                path = folder / sub / (name + suffix)
                if path.is_file():
                    return path
    return None


def _read_part(folder: Path, part: str, where: str) -> Images | None:
    images, labels = _find(folder, part, "images-idx3"), _find(folder, part, "labels-idx1")
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        missing = f"{part}-{'images-idx3' if images is None else 'labels-idx1'}-ubyte.gz"
        raise DataError(f"{folder / missing} is missing; get it from {where}")
    pixels = torch.from_numpy(read_idx(images, IMAGES_MAGIC, where).copy()).unsqueeze(1)
    classes: Tensor = torch.from_numpy(read_idx(labels, LABELS_MAGIC, where).astype(np.int64))
    if len(pixels) != len(classes):
        raise DataError(
            f"{images} holds {len(pixels)} images but {labels} {len(classes)} labels; get both from {where}"
        )
    if len(classes) and int(classes.max()) > 9:
        raise DataError(f"{labels} is damaged: it holds the label {int(classes.max())}, expected 0 to 9")
    return Images(pixels, classes)


def read(folder: Path, name: str) -> tuple[Images, Images | None, str]:
    """(pool, test part or None, source) of ``name``, "mnist" or "fashion-mnist", below ``folder``.

    A folder with only the train-* or only the t10k-* files gives a pool without a test part.
    """
    where = WHERE[name]
    train, test = _read_part(folder, "train", where), _read_part(folder, "t10k", where)
    if train is not None:
        return train, test, f"{name} from {folder}"
    if test is not None:
        return test, None, f"{name} from {folder} (only the t10k files are there)"
    raise DataError(
        f"no {name} in {folder}: expected train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz, or the t10k-* "
        f"files, gzipped or not; get them from {where}"
    )
