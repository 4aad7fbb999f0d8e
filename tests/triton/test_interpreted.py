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
    "solve": ("check_solve.py", ""),
    "some_fields": ("check_fields.py", "mlp or lotka or hyper"),
    "some_halves": ("check_halves.py", "2-3 or second or source or plain"),
    "some_gradients": ("check_gradients.py", "(methods and not dopri8) or second or budgets or wanted or failed"),
}
WHOLE = {  # minutes each
    "fields": ("check_fields.py", ""),
    "halves": ("check_halves.py", ""),
    "special": ("check_special.py", ""),
    "status": ("check_status.py", ""),
    "gradients_scalarised": ("check_gradients.py", "scalarised or bits"),
    "gradients_tiled": ("check_gradients.py", "not scalarised and not bits"),
}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("group", [*GROUPS, *(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE)])
def test_interpreted(group, tmp_path):
    file, selection = (GROUPS | WHOLE)[group]
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
