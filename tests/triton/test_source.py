"""The source of kernels is written, shown and kept on disk without Triton and without a GPU."""

import ast
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastode
from fastode import _environment
from fastode.backends.triton import cache
from fastode.backends.triton.heuristics import SCALARISED, TILED, Launch, choose_launch
from fastode.backends.triton.kernels import Kernels, adjoint_kernel, forward_kernel
from fastode.backends.triton.method import method_of
from fastode.fields import ControlledField, MLPField
from fastode.tableaus import get_tableau
from tests.program.test_fields import FIELDS
from tests.program.tools import program_of


def test_explain_shows_both_kernels():
    field, y0 = ControlledField(20), torch.randn(3, 20)
    controls = torch.randn(3, field.n_controls)
    found = fastode.explain(field, y0, controls, source=True)
    assert "def forward(" in found.source
    assert "def adjoint(" not in found.source  # nothing wants a gradient
    found = fastode.explain(field, y0, controls.requires_grad_(), source=True)
    assert "def adjoint(" in found.source
    assert found.source in str(found)
    ast.parse(found.source)
    assert fastode.explain(field, y0, controls).source is None


def test_explain_says_why_there_is_no_kernel():
    weights = torch.randn(2, 300, 300)
    field = lambda t, y, w: (w @ y[..., None])[..., 0]  # noqa: E731
    assert "do not fit into registers" in fastode.explain(field, torch.randn(2, 300), weights, source=True).source
    assert fastode.explain(lambda t, y: y - y.mean(0), torch.randn(2, 3), source=True).source is None


def test_writing_a_source_takes_no_triton():
    code = (
        "import sys, torch, fastode; sys.modules['triton'] = None\n"
        "e = fastode.explain(lambda t, y: -y, torch.ones(2, 3), source=True)\n"
        "assert 'def forward(' in e.source"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FIELDS)
def test_the_same_program_gives_the_same_source(name):
    """Or nothing would be found on disk again."""
    case = FIELDS[name]()
    found = program_of(case.field, case.y0, case.controls)
    method = method_of(get_tableau("dopri5"), True)
    wanted = (True,) * (len(found.program.shared) + len(found.program.sample))
    for launch in (Launch(SCALARISED, 32, 1), Launch(TILED, 2, 1)) if name != "pleiades" else (Launch(TILED, 2, 1),):
        texts = [
            forward_kernel(found.program, torch.float64, method, launch).source
            + adjoint_kernel(found.program, found.pullback, torch.float64, method, wanted, launch).kernel.source
            for _ in range(2)
        ]
        ast.parse(texts[0])
        assert texts[0] == texts[1]


def test_shapes_by_size():
    lorenz = FIELDS["lorenz"]()
    program = program_of(lorenz.field, lorenz.y0, lorenz.controls)
    assert choose_launch(program.program, program.pullback, torch.float32).shape == SCALARISED
    program = program_of(MLPField(3, (40,)), torch.randn(3, 3))
    assert choose_launch(program.program, program.pullback, torch.float32).shape == TILED


def test_tf32_where_torch_is_told_so():
    """As torch's own products; float64 and products without ``tl.dot`` know no such setting."""
    wide, narrow = MLPField(64, (160,)), MLPField(4, (32,))
    program = program_of(wide, torch.randn(3, 64)).program
    chosen = {
        exact: choose_launch(program, None, torch.float32, exact).precision for exact in ("highest", "high", "medium")
    }
    assert chosen == {"highest": "tf32x3", "high": "tf32", "medium": "tf32"}
    assert not choose_launch(program, None, torch.float64, "high").dot
    small = program_of(narrow, torch.randn(3, 4)).program
    assert choose_launch(small, None, torch.float32, "high") == choose_launch(small, None, torch.float32)


def test_a_changed_setting_makes_another_kernel():
    kernels = Kernels(program_of(MLPField(64, (160,)), torch.randn(3, 64)))
    method = method_of(get_tableau("dopri5"), True)
    wanted = (True,) * len(kernels.program.shared)
    make = {
        "forward": lambda: kernels.forward(torch.float32, method),
        "adjoint": lambda: kernels.adjoint(torch.float32, method, wanted).kernel,
    }
    before = torch.get_float32_matmul_precision()
    try:
        for name, made in make.items():
            torch.set_float32_matmul_precision("highest")
            exact = made()
            torch.set_float32_matmul_precision("high")
            quick = made()
            assert made() is quick
            assert 'input_precision="tf32x3"' in exact.source, name
            assert 'input_precision="tf32"' in quick.source, name
            torch.set_float32_matmul_precision("highest")
            assert made() is exact
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("setting", "expected"), [("tf32", "high"), ("ieee", "highest")])
def test_the_setting_by_its_newer_name(setting, expected):
    """Of which torch itself no longer makes one of the older names once it was told; in a process of its own."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has no newer name")
    code = (
        f"import torch; torch.backends.cuda.matmul.fp32_precision = {setting!r}\n"
        "from fastode.backends.triton.heuristics import matmul_precision\n"
        "print(matmul_precision())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


def test_sources_are_kept_in_the_directory_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(_environment, "_wanted_cache_dir", str(tmp_path / "made when needed"))
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(cache.written, ["x = 1\n"] * 64))
    (path,) = paths
    assert path.is_relative_to(tmp_path)
    assert path.read_text() == "x = 1\n"
    assert list(path.parent.iterdir()) == [path]  # nothing is left over
    path.write_text("damaged")
    assert cache.written("x = 1\n").read_text() == "x = 1\n"
    assert cache.imported("x = 1\n").x == 1


def test_a_directory_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(_environment, "_wanted_cache_dir", str(tmp_path / "file"))
    path = cache.written("x = 2\n")
    assert not path.is_relative_to(tmp_path)
    assert path.read_text() == "x = 2\n"
