"""Kernels of whole solves under a data race detector: no thread of a group reads what another has yet to write."""

import subprocess
from pathlib import Path

import pytest

from build_support import BuildError
from build_support.toolchain import find_host_compiler, try_compile

SOURCE = Path(__file__).with_name("cuda_races.cpp")
FLAGS = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-ffp-contract=off", "-pthread", "-Wno-unknown-pragmas"]


@pytest.mark.slow
def test_threads_of_a_group_wait_for_each_other(tmp_path):
    try:
        compiler = find_host_compiler().command
    except BuildError as error:
        pytest.skip(f"there is no compiler: {error}")
    if try_compile([*compiler, "-fsanitize=thread"], [], "int main() { return 0; }\n"):
        pytest.skip("this compiler has no thread sanitizer")
    program = tmp_path / "races"
    include = f"-I{SOURCE.parents[1] / 'csrc'}"
    subprocess.run([*compiler, *FLAGS, include, str(SOURCE), "-o", str(program)], check=True)
    found = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    if "unexpected memory mapping" in found.stderr:
        pytest.skip("the thread sanitizer does not run on this system")
    assert found.returncode == 0, found.stdout + found.stderr[-4000:]
    assert "data race" not in found.stderr
    assert found.stdout.count("same bits") == 6
