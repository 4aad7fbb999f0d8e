"""``fastode info``: complete, aligned, and right about this machine."""

import platform

import numpy
import pytest
import torch

from fastode import info
from fastode._environment import _C, OPENMP, set_num_threads


def section(title: str) -> dict[str, str]:
    """Label and text of the lines under a title of the report."""
    blocks = [block.splitlines() for block in info.report().split("\n\n")]
    (lines,) = (block[1:] for block in blocks if block[0].startswith(title))
    return {line[2:].split("  ")[0].strip(): line[2:].partition("  ")[2].strip() for line in lines}


def test_versions():
    rows = section("fastode")
    assert rows["python"].startswith(platform.python_version())
    assert rows["torch"].startswith(torch.__version__)
    assert rows["numpy"] == numpy.__version__


def test_a_package_that_is_not_installed_is_named_as_such():
    assert info._version("no-such-package-of-fastode") == "not installed"


def test_extension():
    rows = section("Extension")
    assert f"(in use: {_C.get_isa()})" in rows["instruction sets"]
    built = _C.build_info()
    if built["cuda"]:
        assert f"nvcc {built['nvcc']}" in rows["CUDA sources"]
        assert f"sm_{built['cuda_archs'][0]}" in rows["CUDA sources"]
    else:
        assert rows["CUDA sources"].startswith("not compiled: ")
        assert built["cuda_reason"].splitlines()[0] in rows["CUDA sources"]


def test_backends_are_listed_with_their_reasons(monkeypatch):
    import fastode.backends.choose as choose

    assert section("Backends")["reference"] == "can run"
    monkeypatch.setattr(choose, "available", lambda: [("good", None), ("bad", "there is no such device")])
    assert section("Backends") == {"good": "can run", "bad": "cannot run: there is no such device"}


def test_threads_and_processor():
    set_num_threads(3)
    rows = section("CPU")
    assert rows["threads"] == f"fastode 3{' of OpenMP' if OPENMP else ''}, torch {torch.get_num_threads()}"
    assert rows["model"]
    assert set(rows["features"].split()) == set(_C.cpu_features() or ["none", "known"])


def test_gpus_or_the_reason_why_there_are_none():
    rows = section("GPU")
    if _C.cuda_devices():
        assert "sm_" in rows["cuda:0"]
    else:
        assert rows["none usable"] == _C.cuda_runtime()["reason"]


def test_gpus_as_the_driver_would_report_them(monkeypatch):
    device = {"name": "A GPU", "capability": (9, 0), "multiprocessors": 132, "memory": 80 * 2**30}
    monkeypatch.setattr(info, "_C", FakeExtension([device], {"driver": 12040, "runtime": 13000, "reason": ""}))
    assert info._gpus() == [
        ("driver", "supports CUDA up to 12.4"),
        ("cuda:0", "A GPU, sm_90, 132 multiprocessors, 80.0 GiB"),
    ]


class FakeExtension:
    def __init__(self, devices, runtime):
        self.cuda_devices = lambda: devices
        self.cuda_runtime = lambda: runtime


def test_columns_are_aligned():
    starts = set()
    for line in info.report().splitlines():
        if line.startswith("  "):
            label, _, text = line[2:].partition("  ")
            starts.add(len(line) - len(text.lstrip()) if label else 0)
    assert len(starts - {0}) == 1


def test_several_lines_of_reason_stay_in_their_column(monkeypatch):
    import fastode.backends.choose as choose

    monkeypatch.setattr(choose, "available", lambda: [("bad", "first line\nsecond line")])
    first, second = (line for line in info.report().splitlines() if line.endswith(" line"))
    assert first.index("cannot run: first line") == second.index("second line")


@pytest.mark.parametrize(("number", "text"), [(13000, "13.0"), (12040, "12.4"), (11080, "11.8")])
def test_cuda_version(number, text):
    assert info.cuda_version(number) == text


def test_gpu_properties_where_there_is_a_gpu():
    devices = _C.cuda_devices()
    assert bool(devices) == (_C.cuda_runtime()["reason"] == "")
    for device in devices:
        assert device["capability"] >= (5, 0)
        assert device["multiprocessors"] > 0
        assert device["memory"] > 2**30
        assert device["shared_per_block"] >= 48 * 1024
