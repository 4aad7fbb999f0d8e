"""Runs the files of ``interpreted/`` in processes with Triton's interpreter on; the other tests have it off."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
GROUPS = {
    "compile": ("check_compile.py", ""),
    "fields_scalarised": ("check_fields.py", "scalarised"),
    "fields_tiled": ("check_fields.py", "tiled and f64"),
    "fields_float32": ("check_fields.py", "f32"),
    "halves": ("check_halves.py", ""),
    "solve": ("check_solve.py", ""),
    "special": ("check_special.py", ""),
    "gradients_scalarised": ("check_gradients.py", "scalarised or bits"),
    "gradients_tiled": ("check_gradients.py", "not scalarised and not bits"),
}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("group", GROUPS)
def test_interpreted(group, tmp_path):
    file, selection = GROUPS[group]
    environment = dict(os.environ, TRITON_INTERPRET="1", FASTODE_CACHE_DIR=str(tmp_path), OMP_NUM_THREADS="1")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::RuntimeWarning:triton",
        str(HERE / "interpreted" / file),
    ]
    done = subprocess.run(
        [*command, "-k", selection],
        cwd=HERE.parents[1],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-6000:]
