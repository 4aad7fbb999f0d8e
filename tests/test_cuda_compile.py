"""Every CUDA source compiles for every architecture without warnings, and no kernel spills that did not."""

import re

import pytest

from build_support import BuildError, cuda_resources
from build_support.cuda import decide
from build_support.toolchain import find_host_compiler


@pytest.fixture(scope="module")
def cuda():
    try:
        found = decide(find_host_compiler().executable)
    except BuildError as error:
        pytest.skip(f"there is no compiler: {error}")
    if not found.nvcc:
        pytest.skip(f"there is no nvcc: {found.reason}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("source", cuda_resources.sources(), ids=lambda path: path.name)
def test_compiles_without_warnings_and_does_not_start_to_spill(cuda, source):
    listed = {(row.kernel, row.arch): row for row in cuda_resources.read_table()}
    text = cuda_resources.compile_one(cuda, source)
    found = cuda_resources.usages(text)
    assert len(found) == len(re.findall("Compiling entry function", text)), "a kernel was not understood"
    for usage in found:
        known = listed.get((usage.kernel, usage.arch))
        if known is None:
            assert usage.arch not in {arch for _, arch in listed}, f"{usage.kernel} is not in {cuda_resources.TABLE}"
            continue
        if known.spill_stores + known.spill_loads == 0:
            assert usage.spill_stores + usage.spill_loads == 0, f"{usage} spills, and did not"


def test_the_table_lists_the_kernels_of_all_sizes():
    listed = {row.kernel for row in cuda_resources.read_table()}
    for direction in ("forward", "adjoint"):
        for kind in ("float", "double"):
            for dim in (8, 16, 32, 64, 128, 256, 512):
                for layers in (1, 2):
                    assert f"net_{direction} {kind} {dim} layers {layers}" in listed
    assert len({row.arch for row in cuda_resources.read_table()}) >= 3


def test_names_are_read():
    text = """
ptxas info    : Compiling entry function '_ZN7fastode18net_adjoint_kernelINS_8NetShapeIdLi64ELi2EEEdEEv' for 'sm_90'
ptxas info    : Function properties for _ZN7fastode18net_adjoint_kernelINS_8NetShapeIdLi64ELi2EEEdEEv
    112 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 112 bytes cumulative stack size
"""
    (usage,) = cuda_resources.usages(text)
    assert usage == cuda_resources.Usage("net_adjoint double 64 layers 2", "90", 128, 4, 8, 112)
