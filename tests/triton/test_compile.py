"""Generated kernels compile for every architecture that we support, and those that did not spill do not start to."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton's interpreter is on", allow_module_level=True)

from fastode.backends.triton.resources import generated, kernels, measured, read

TABLE = {row.key: row for row in read(Path(__file__).parents[2] / "docs" / "gpu_resources.csv")}
CASES = {(case, dtype): program for case, dtype, program in kernels()}
SLOW = pytest.mark.slow


def listed():
    """All of the table; of the architectures one is compiled in every run, of float64 only some kernels."""
    for case, dtype in CASES:
        for kernel in ("forward", "adjoint"):
            for arch in (80, 90, 100):
                quick = arch == 90 and (dtype == torch.float32 or case == "lorenz") and "128" not in case
                name = f"{case}-{kernel}-{str(dtype).removeprefix('torch.')}-sm_{arch}"
                yield pytest.param(case, dtype, kernel, arch, id=name, marks=() if quick else SLOW)


@pytest.mark.parametrize(("case", "dtype", "name", "arch"), listed())
def test_compiles_and_spills_no_more_than_it_did(case, dtype, name, arch):
    (kernel,) = (k for k in generated(CASES[case, dtype](), dtype) if k.name == name)
    found = measured(case, kernel, arch)
    known = TABLE[found.key]
    assert (found.shape, found.samples, found.warps) == (known.shape, known.samples, known.warps), "renew the table"
    if known.spilled == 0:
        assert found.spilled == 0
    assert found.shared <= 99 * 1024
    assert found.registers <= 255


def test_the_table_lists_what_is_compiled():
    expected = {
        (case, kernel, str(dtype).removeprefix("torch."), arch)
        for case, dtype in CASES
        for kernel in ("forward", "adjoint")
        for arch in (80, 90, 100)
    }
    assert set(TABLE) == expected
