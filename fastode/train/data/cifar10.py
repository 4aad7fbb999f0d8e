"""CIFAR-10 as published: the python archive (pickles) and the binary archive, packed or unpacked."""

import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fastode.train.data.images import DataError, Images
from fastode.train.data.unpickle import Array, loads

WHERE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIDE = 32
PIXELS = 3 * SIDE * SIDE
# Far above the 30 MB of a published batch: a bound on what a damaged archive can make us hold in memory.
MAX_MEMBER = 256 * 2**20


def _to_images(pixels: np.ndarray, labels: np.ndarray, file: str) -> Images:
    if pixels.ndim != 2 or pixels.shape[1] != PIXELS or labels.shape != pixels.shape[:1]:
        raise DataError(
            f"{file} is damaged: pixels {pixels.shape} and labels {labels.shape}, expected (n, {PIXELS}) and (n,); "
            f"get it again from {WHERE}"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < len(CLASSES)):
        raise DataError(f"{file} is damaged: labels from {labels.min()} to {labels.max()}, expected 0 to 9")
    return Images(
        torch.from_numpy(pixels.copy()).view(-1, 3, SIDE, SIDE), torch.from_numpy(labels.astype(np.int64, copy=False))
    )


def parse_python(raw: bytes, file: str) -> Images:
    """One batch of the python archive. The pickle is read without executing code from it (see `unpickle`)."""
    try:
        batch = loads(raw)
    except pickle.UnpicklingError as error:
        raise DataError(f"{file} cannot be read: {error}; get it again from {WHERE}") from error
    entries = (
        {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in batch.items()}
        if isinstance(batch, dict)
        else {}
    )
    data, labels = entries.get("data"), entries.get("labels")
    if not isinstance(data, Array) or not isinstance(labels, list) or not all(type(x) is int for x in labels):
        raise DataError(f"{file} is not a CIFAR-10 batch: expected 'data' and 'labels' in it; get it from {WHERE}")
    try:
        pixels = data.value()
    except pickle.UnpicklingError as error:
        raise DataError(f"{file} cannot be read: {error}; get it again from {WHERE}") from error
    return _to_images(pixels, np.array(labels, object), file)  # numbers of any size, until checked


def parse_binary(raw: bytes, file: str) -> Images:
    """One batch of the binary archive: records of a label byte and 3072 pixel bytes."""
    if not raw or len(raw) % (1 + PIXELS):
        raise DataError(
            f"{file} is damaged: {len(raw)} bytes, expected a multiple of {1 + PIXELS}; get it again from {WHERE}"
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + PIXELS)
    return _to_images(records[:, 1:], records[:, 0], file)


# kind -> (archive, folder in it, batches to train on, batch to test on, parser)
KINDS: dict[str, tuple[str, str, list[str], str, Callable[[bytes, str], Images]]] = {
    "python": (
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)],
        "test_batch",
        parse_python,
    ),
    "binary": (
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test_batch.bin",
        parse_binary,
    ),
}


def _read_archive(path: Path, names: list[str]) -> dict[str, bytes]:
    """The named members' contents, held in memory: nothing is written to disk, so no member can escape a folder."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                if name not in names or not member.isfile():
                    continue
                if member.size > MAX_MEMBER:
                    raise DataError(f"{path}: {member.name} is {member.size} bytes, far more than a CIFAR-10 batch")
                content = tar.extractfile(member)
                assert content is not None  # it is a regular file
                found[name] = content.read()
                if len(found) == len(names):
                    break
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; get it again from {WHERE}") from error
    return found


def _read_folder(folder: Path, names: list[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _kind_of_archive(path: Path) -> str:
    return "binary" if "binary" in path.name or "-bin" in path.name else "python"


def _locate(path: Path) -> tuple[str, Path]:
    """(kind, archive or folder) for what the user named: an archive, a folder of batches, or a folder with either."""
    if path.is_file():
        return _kind_of_archive(path), path
    for kind, (archive, folder, train, test, _) in KINDS.items():
        for candidate in (path, path / folder):
            if any((candidate / name).is_file() for name in [*train, test]):
                return kind, candidate
        if (path / archive).is_file():
            return kind, path / archive
    raise DataError(
        f"no CIFAR-10 in {path}: expected {' or '.join(kind[0] for kind in KINDS.values())}, or the folder that one "
        f"of them unpacks to; get it from {WHERE}. (For a folder of JPEG or PNG images use --data folder.)"
    )


def read(path: Path) -> tuple[Images, Images, str]:
    """(training part, test part, source) of CIFAR-10 at ``path``."""
    kind, place = _locate(path)
    _, _, train, test, parse = KINDS[kind]
    names = [*train, test]
    content = _read_archive(place, names) if place.is_file() else _read_folder(place, names)
    missing = [name for name in names if name not in content]
    if missing:
        raise DataError(f"{place} is incomplete: {', '.join(missing)} missing; get it again from {WHERE}")
    parts = {name: parse(raw, f"{place}/{name}") for name, raw in content.items()}
    pool = Images(
        torch.cat([parts[name].pixels for name in train]),
        torch.cat([labels for name in train if (labels := parts[name].labels) is not None]),
    )
    return pool, parts[test], f"cifar10 ({kind} archive) from {place}"
