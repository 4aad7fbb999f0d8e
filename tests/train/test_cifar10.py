"""CIFAR-10 archives, packed and unpacked, and that nothing in them is executed or written."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fastode.train.data import DataError, load_data
from fastode.train.data.unpickle import loads

N = 4  # images per batch
WHERE = r"www\.cs\.toronto\.edu/~kriz/cifar\.html"
PYTHON = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
BINARY = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
Batches = dict[str, tuple[np.ndarray, list[int]]]


@pytest.fixture
def batches() -> Batches:
    rng = np.random.default_rng(0)
    return {name: (rng.integers(0, 256, (N, 3072), np.uint8), rng.integers(0, 10, N).tolist()) for name in PYTHON}


def pickled(pixels: np.ndarray, labels: list[int], protocol: int = 2) -> bytes:
    content = {b"batch_label": b"a batch", b"labels": labels, b"data": pixels, b"filenames": [b"a.png"] * len(labels)}
    return pickle.dumps(content, protocol=protocol)


def python_files(batches: Batches, protocol: int = 2) -> dict[str, bytes]:
    return {name: pickled(*batch, protocol) for name, batch in batches.items()}


def binary_files(batches: Batches) -> dict[str, bytes]:
    return {
        f"{name}.bin": b"".join(bytes([c]) + x.tobytes() for x, c in zip(*batch, strict=True))
        for name, batch in batches.items()
    }


def pack(path: Path, files: dict[str, bytes], folder: str = "cifar-10-batches-py/") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, raw in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def unpack(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def check(path: Path, batches: Batches) -> None:
    data = load_data("cifar10", path)
    assert data.image_shape == (3, 32, 32)
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 4)
    assert data.classes[0] == "airplane"

    def rows(images):
        return {(x.numpy().tobytes(), int(c)) for x, c in zip(images.pixels, images.labels, strict=True)}

    def expected(names):
        return {(x.tobytes(), c) for name in names for x, c in zip(*batches[name], strict=True)}

    assert rows(data.train) | rows(data.val) == expected(PYTHON[:5])
    assert rows(data.test) == expected(PYTHON[5:])


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_python_archive(batches, protocol, tmp_path):
    path = pack(tmp_path / "cifar-10-python.tar.gz", python_files(batches, protocol))
    check(tmp_path, batches)
    check(path, batches)


def test_python_batches_unpacked(batches, tmp_path):
    folder = unpack(tmp_path / "cifar-10-batches-py", python_files(batches))
    check(folder, batches)
    check(tmp_path, batches)


def test_binary_archive(batches, tmp_path):
    path = pack(tmp_path / "cifar-10-binary.tar.gz", binary_files(batches), "cifar-10-batches-bin/")
    check(tmp_path, batches)
    check(path, batches)


def test_binary_batches_unpacked(batches, tmp_path):
    folder = unpack(tmp_path / "cifar-10-batches-bin", binary_files(batches))
    check(folder, batches)
    check(tmp_path, batches)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=rf"no CIFAR-10 in .*cifar-10-python\.tar\.gz.*{WHERE}"):
        load_data("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_missing_batches_are_named(name, batches, tmp_path):
    files = python_files(batches)
    del files[name]
    pack(tmp_path / "cifar-10-python.tar.gz", files)
    with pytest.raises(DataError, match=rf"cifar-10-python\.tar\.gz is incomplete: {name} missing.*{WHERE}"):
        load_data("cifar10", tmp_path)
    with pytest.raises(DataError, match=rf"unpacked is incomplete: {name} missing.*{WHERE}"):
        load_data("cifar10", unpack(tmp_path / "unpacked", files))


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
def test_damaged_archives_are_named(how, batches, tmp_path):
    path = pack(tmp_path / "cifar-10-python.tar.gz", python_files(batches))
    raw = path.read_bytes()
    path.write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "text": b"404 not found\n" * 99}[how])
    with pytest.raises(DataError, match=rf"(?s)cifar-10-python\.tar\.gz.*{WHERE}"):
        load_data("cifar10", tmp_path)


def _bad_batches() -> dict[str, bytes]:
    pixels, labels = np.zeros((N, 3072), np.uint8), [0] * N
    return {
        "cut": pickled(pixels, labels)[:5000],
        "empty": b"",
        "text": b"<html>",
        "a list": pickle.dumps([1, 2], protocol=2),
        "no labels": pickle.dumps({b"data": pixels}, protocol=2),
        "labels of text": pickled(pixels, ["0"] * N),
        "data of floats": pickled(pixels.astype(np.float32), labels),
        "data of objects": pickled(np.array([None] * N), labels),
        "other shape": pickled(pixels[:, :3000], labels),
        "fewer labels": pickled(pixels, labels[:-1]),
        "label 10": pickled(pixels, [10] * N),
        "negative label": pickled(pixels, [-1] * N),
        "huge label": pickled(pixels, [2**80] * N),
    }


@pytest.mark.parametrize("how", list(_bad_batches()))
def test_damaged_python_batches_are_named(how, batches, tmp_path):
    folder = unpack(tmp_path, {**python_files(batches), "data_batch_2": _bad_batches()[how]})
    with pytest.raises(DataError, match="data_batch_2"):
        load_data("cifar10", folder)


@pytest.mark.parametrize("raw", [b"", b"x" * 3074, b"\x0a" + bytes(3072)], ids=["empty", "too long", "label 10"])
def test_damaged_binary_batches_are_named(raw, batches, tmp_path):
    folder = unpack(tmp_path, {**binary_files(batches), "data_batch_2.bin": raw})
    with pytest.raises(DataError, match=r"data_batch_2\.bin is damaged"):
        load_data("cifar10", folder)


class Call:
    """Pickles to a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _malicious(trace: Path) -> dict[str, bytes]:
    command = f"touch {trace}"
    return {
        "os.system": pickle.dumps({b"data": Call(os.system, command), b"labels": []}, protocol=2),
        "eval": pickle.dumps(Call(eval, f"open({str(trace)!r}, 'w')"), protocol=2),
        "protocol 0": b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
        "inst": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "getattr": pickle.dumps(Call(getattr, os, "system"), protocol=2) if False else b"cbuiltins\ngetattr\n.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.",
        "numpy.load": b"cnumpy\nload\n(S'x'\ntR.",
        "state of a name": b"cnumpy\nndarray\n(dS'x'\nI1\nsb.",
        "call of ndarray": b"cnumpy\nndarray\n(I3\ntR.",
        "persistent name": b"Pos.system\n.",
    }


@pytest.mark.parametrize("how", list(_malicious(Path("x"))))
def test_code_in_a_batch_is_refused_and_not_executed(how, batches, tmp_path):
    trace = tmp_path / "trace"
    evil = _malicious(trace)[how]
    pack(tmp_path / "cifar-10-python.tar.gz", {**python_files(batches), "data_batch_1": evil})
    with pytest.raises(DataError, match=r"data_batch_1 cannot be read"):
        load_data("cifar10", tmp_path)
    assert not trace.exists()


def test_a_pickle_that_would_run_code_does_so_under_plain_pickle(tmp_path):
    """The trap of the test above is live: otherwise its passing would mean nothing."""
    trace = tmp_path / "trace"
    pickle.loads(_malicious(trace)["os.system"])
    assert trace.exists()


def test_what_a_refused_pickle_asked_for_is_named():
    with pytest.raises(pickle.UnpicklingError, match=r"names (posix|nt|os)\.system"):
        loads(pickle.dumps(Call(os.system, "true"), protocol=2))


def test_members_that_point_elsewhere_write_nothing(batches, tmp_path):
    files = python_files(batches)
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    path = home / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("../../escaped", str(tmp_path / "absolute")):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"bad"))
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")  # a link is not a batch
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, raw in files.items():
            member = tarfile.TarInfo(f"../../../{name}")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    check(home, batches)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_member_of_absurd_size_is_refused(monkeypatch, batches, tmp_path):
    monkeypatch.setattr("fastode.train.data.cifar10.MAX_MEMBER", 1000)
    pack(tmp_path / "cifar-10-python.tar.gz", python_files(batches))
    with pytest.raises(DataError, match="far more than a CIFAR-10 batch"):
        load_data("cifar10", tmp_path)
