"""Every way a sample can end, in every backend that runs here: see ``tests/sick_samples.py``.

Triton's kernels: ``tests/triton/interpreted/check_status.py``.
"""

import math

import pytest
import torch

from fastode import Checkpoint
from fastode.backends import choose
from fastode.backends.stepped import SteppedBackend
from fastode.tableaus import IMPLICIT_TABLEAUS
from tests.sick_samples import FULL, SHORT, check, check_error

DTYPES = [torch.float64, torch.float32]
WAYS = [pytest.param("reference", marks=pytest.mark.slow), "stepped", "device", "cpu"]


@pytest.fixture(params=DTYPES, ids=["f64", "f32"])
def dtype(request):
    return request.param


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """A backend's name; ``device``: the kernels of GPUs of backend ``stepped``, compiled for the host."""
    if request.param == "device":
        replaced = [SteppedBackend(as_on_device=True) if b.name == "stepped" else b for b in choose.FIELDS]
        monkeypatch.setattr(choose, "FIELDS", tuple(replaced))
    return request.param


def check_both(way, dtype, **options):
    options["backend"] = "stepped" if way == "device" else way
    error = check_error(check(dtype, **options), dtype, **options)
    attempts = [step for step, when in zip(error.last_steps, error.times, strict=True) if when > 0]
    assert [math.isnan(step) for step in attempts] == [way == "device"] * len(attempts)
    assert ("last step" in str(error)) == (way != "device")


def test_adaptive_steps(way, dtype):
    check_both(way, dtype, **SHORT)


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient": Checkpoint(3)}, {"method": "tsit5", "step_to_outputs": True}, {"method": "dopri8"}],
    ids=str,
)
def test_down_to_the_least_step(options, dtype):
    check_both("cpu", dtype, **FULL, **options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"gradient": Checkpoint(3)}], ids=str)
def test_down_to_the_least_step_by_the_field(options, way, dtype):
    check_both(way, dtype, **FULL, **options)


ADAPTIVE = [name for name in IMPLICIT_TABLEAUS if IMPLICIT_TABLEAUS[name].e is not None]


@pytest.mark.slow
@pytest.mark.parametrize("method", ADAPTIVE)
def test_implicit_methods(method, dtype):
    options = {**SHORT, "max_steps": 300, "method": method}
    error = check_error(check(dtype, **options), dtype, **options)
    assert all(map(math.isnan, [*error.last_steps, *error.last_ratios]))
    assert "last step" not in str(error)
