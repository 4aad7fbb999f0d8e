"""Tools that record torch's operations, and tensors that hold no numbers: refused in words, and solves in eager mode
are not disturbed by having been refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fastode
from tests.gradient_tools import random

F64 = torch.float64
T = torch.tensor([0.0, 1.0], dtype=F64)
NET = nn.Linear(2, 2).double()
SOLVES: dict[str, Any] = {
    "solve": lambda y0: fastode.solve(lambda t, y: NET(y), y0, T).ys[-1],
    "odeint": lambda y0: fastode.odeint(lambda t, y: NET(y), y0, T)[-1],
    "odeint_adjoint": lambda y0: fastode.odeint_adjoint(lambda t, y: y, y0, T, adjoint_params=())[-1],
    "stepped": lambda y0: fastode.solve(lambda t, y: NET(y), y0, T, backend="stepped").ys[-1],
    "backprop": lambda y0: fastode.solve(lambda t, y: NET(y), y0, T, gradient="backprop").ys[-1],
}


@pytest.mark.parametrize("name", SOLVES)
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(name: str, mode: str) -> None:
    y0 = random(3, 2)
    with pytest.raises((RuntimeError, TypeError), match=r"fastode.*make_fx|y0 must be"):
        make_fx(SOLVES[name], tracing_mode=mode)(y0)
    assert SOLVES[name](y0).shape == (3, 2)


@pytest.mark.parametrize("name", SOLVES)
@pytest.mark.parametrize("grad", [True, False])
def test_jit_trace(name: str, grad: bool) -> None:
    y0 = random(3, 2)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=r"fastode\.\w+ cannot be traced .*y0"):
        torch.jit.trace(SOLVES[name], y0)
    assert SOLVES[name](y0).shape == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["solve", "odeint"])
def test_export(name: str, strict: bool) -> None:
    """In a process of its own: what is left of a failed export may break the next one."""
    code = f"""
import torch
from tests.test_tracers import SOLVES
class Model(torch.nn.Module):
    def forward(self, y0):
        return SOLVES["{name}"](y0)
try:
    torch.export.export(Model(), (torch.ones(3, 2, dtype=torch.float64),), strict={strict})
except Exception as error:
    assert "fastode.{name} cannot be traced by torch.export" in str(error), error
else:
    raise AssertionError("exported")
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert out.returncode == 0, out.stderr[-800:]


@pytest.mark.parametrize("name", SOLVES)
def test_fake_tensors(name: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(torch.ones(3, 2, dtype=F64))
        with pytest.raises(RuntimeError, match="FakeTensorMode"):
            SOLVES[name](fake)
    with pytest.raises(TypeError, match=r"y0 must be a torch\.Tensor whose numbers lie in memory, got a FakeTensor"):
        SOLVES[name](fake)


@pytest.mark.parametrize("name", SOLVES)
def test_device_meta(name: str) -> None:
    with pytest.raises(ValueError, match="y0 must hold numbers, got a tensor on device meta"):
        SOLVES[name](torch.ones(3, 2, dtype=F64, device="meta"))


def test_other_arguments() -> None:
    mode = FakeTensorMode()
    times, controls = mode.from_tensor(T), mode.from_tensor(torch.ones(3, 2, dtype=F64))
    with pytest.raises(TypeError, match=r"t must be a torch\.Tensor"):
        fastode.solve(lambda t, y: y, random(3, 2), times)
    with pytest.raises(TypeError, match=r"controls must be a torch\.Tensor"):
        fastode.solve(lambda t, y, c: y * c, random(3, 2), T, controls=controls)


def test_other_modes_are_no_tracers() -> None:
    """Counting operations, say, leaves a solve as it is."""
    from torch.utils.flop_counter import FlopCounterMode

    y0 = random(3, 2)
    expected = SOLVES["stepped"](y0)
    with FlopCounterMode(display=False):
        got: Tensor = SOLVES["stepped"](y0)
    assert torch.equal(got, expected)
