"""Environment variables at run time, and the message when the extension is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastode import _environment
from fastode._environment import _C, get_num_threads, set_num_threads, use_num_threads


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("isa", _C.usable_isas())
def test_isa_can_be_chosen(isa):
    done = run_python("from fastode._environment import _C; print(_C.get_isa())", FASTODE_ISA=isa)
    assert done.stdout.strip() == isa, done.stderr


def test_the_best_isa_is_the_default():
    code = "from fastode._environment import _C; print(_C.get_isa())"
    assert run_python(code, FASTODE_ISA="").stdout.strip() == _C.usable_isas()[-1]


def test_an_unknown_isa_is_an_error_that_names_the_variable_and_the_choices():
    done = run_python("import fastode._environment", FASTODE_ISA="avx1024")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "FASTODE_ISA='avx1024'" in last
    assert "usable: generic" in last


def test_set_isa_refuses_what_cannot_run_here():
    chosen = _C.get_isa()
    with pytest.raises(ValueError, match="'sse9' cannot be used here; usable: generic"):
        _C.set_isa("sse9")
    assert _C.get_isa() == chosen


def test_threads_follow_torch_unless_chosen():
    set_num_threads(None)
    torch.set_num_threads(3)
    assert get_num_threads() == 3
    use_num_threads()
    assert _C.get_num_threads() == 3
    set_num_threads(2)
    torch.set_num_threads(1)
    assert (get_num_threads(), _C.get_num_threads()) == (2, 2)
    with pytest.raises(ValueError, match="between 1 and 1024"):
        set_num_threads(0)
    assert get_num_threads() == 2


def test_threads_from_the_environment():
    code = "from fastode import _environment as e; e.use_num_threads(); print(e._C.get_num_threads())"
    assert run_python(code, FASTODE_NUM_THREADS="3").stdout.strip() == "3"


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1025"])
def test_a_bad_number_of_threads_is_an_error(text):
    with pytest.raises(ValueError, match=f"FASTODE_NUM_THREADS must be .* got '{text}'"):
        _environment._threads_from(text)


@pytest.mark.parametrize("text", [None, "", "  "])
def test_an_empty_number_of_threads_is_none(text):
    assert _environment._threads_from(text) is None


def test_a_missing_extension_says_how_to_build_it():
    done = run_python("import sys; sys.modules['fastode._C'] = None; import fastode._environment")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "pip install -e ." in last


def test_a_torch_that_is_too_old_is_named():
    done = run_python("import torch; torch.__version__ = '2.9.1+cpu'; import fastode._environment")
    assert done.returncode != 0
    assert (
        done.stderr.strip().splitlines()[-1].startswith("ImportError: fastode needs torch 2.11 or newer, this is 2.9.1")
    )


def test_the_floor_of_torch_is_the_same_everywhere():
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'"torch>={".".join(map(str, _environment._LEAST_TORCH))}"' in pyproject
