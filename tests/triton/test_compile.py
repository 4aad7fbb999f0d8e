"""Generated kernels compile for every architecture that we support, and those that did not spill do not start to."""

import importlib.util
import os
import re
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton's interpreter is on", allow_module_level=True)

from fastode.backends.triton.heuristics import choose_launch
from fastode.backends.triton.kernels import forward_kernel
from fastode.backends.triton.method import method_of
from fastode.backends.triton.resources import compiled, generated, kernels, measured, read, signature
from fastode.tableaus import get_tableau
from tests.program.tools import program_of

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


def rounded(t, y, c):
    """A matrix of each sample in half precision."""
    return torch.tanh((c.to(y.dtype) @ y[..., None])[..., 0])


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("half", "store"), [(torch.bfloat16, "bf16"), (torch.float16, "f16")], ids=["bf16", "fp16"])
def test_half_precision_is_read_and_written_as_such(half, store, arch):
    """Loads of two bytes, conversions on chip, gradients rounded where they are stored."""
    found = program_of(rounded, torch.randn(3, 16), torch.randn(3, 16, 16).to(half).requires_grad_())
    for kernel in generated(found, torch.float32):
        ptx = compiled(kernel, arch).asm["ptx"]
        types, _ = signature(kernel)
        assert types["sample0_ptr"] == f"*{'bf16' if store == 'bf16' else 'fp16'}"
        if kernel.name == "adjoint":
            assert types["grad0_ptr"] == types["sample0_ptr"]
            assert f"cvt.rn.{store}" in ptx


@pytest.mark.parametrize("half", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_tf32_only_where_it_is_asked_for(half):
    """What the compiler makes of a product with shared weights by ``tl.dot``: one of tf32, or three for each."""
    weight = torch.randn(160, 160).to(half)
    wide = program_of(lambda t, y: torch.tanh(y @ weight.to(y.dtype)), torch.randn(3, 160)).program
    narrow = program_of(lambda t, y: torch.tanh(y @ weight[:32, :32].to(y.dtype)), torch.randn(3, 32)).program
    products = {}
    for exact in ("highest", "high"):
        launch = choose_launch(wide, None, torch.float32, exact)  # of the narrow one, which compiles quickly
        kernel = forward_kernel(narrow, torch.float32, method_of(get_tableau("euler"), False), launch)
        products[exact] = len(re.findall(r"mma\.sync\S*tf32", compiled(kernel, 80).asm["ptx"]))
    assert products["highest"] == 3 * products["high"] > 0


def test_the_table_lists_what_is_compiled():
    expected = {
        (case, kernel, str(dtype).removeprefix("torch."), arch)
        for case, dtype in CASES
        for kernel in ("forward", "adjoint")
        for arch in (80, 90, 100)
    }
    assert set(TABLE) == expected
