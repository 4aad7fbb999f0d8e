"""``fastode.checking()`` compares solves with the field, and kernels are tried before they are first used."""

import collections
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import fastode
from fastode.backends.cpu.backend import CpuBackend
from fastode.program import capture
from fastode.program.known import KNOWN_FIELDS

T = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
Y0 = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(KNOWN_FIELDS, "entries", collections.OrderedDict())


def make(controlled):
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    if not controlled:
        return net, lambda t, y: net(y) * torch.cos(t), None
    return net, lambda t, y, c: net(y) * c + torch.sin(t), torch.rand(5, 1, dtype=torch.float64)


@pytest.mark.parametrize("controlled", [False, True])
def test_right_programs_pass(controlled):
    _, field, controls = make(controlled)
    with fastode.checking():
        sol = fastode.solve(field, Y0.clone().requires_grad_(), T, controls=controls, backend="cpu")
    sol.ys.sum().backward()
    with fastode.checking():
        fastode.odeint(lambda t, y: torch.sin(y) * t, Y0, T)


def falsified(monkeypatch, what):
    """Programs in which one constant is off, as if something had changed unnoticed."""
    real = capture.capture_field

    def wrong(*args):
        found, tensors = real(*args)
        if what == "weights":
            tensors = [t.detach() * 1.01 for t in tensors]
        return found, tensors

    from fastode.backends import choose

    monkeypatch.setattr(choose, "capture_field", wrong)
    monkeypatch.setattr(choose, "kernels_differ", lambda *args: None)


def test_a_wrong_value_is_found(monkeypatch):
    _, field, _ = make(False)
    falsified(monkeypatch, "weights")
    fastode.solve(field, Y0, T)  # unnoticed without
    with fastode.checking(), pytest.raises(fastode.CheckError, match=r"value.*sample 0, component 0.*t = 0"):
        fastode.solve(field, Y0, T)
    with fastode.checking(), fastode.checking(False):
        fastode.solve(field, Y0, T)


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_kernels_that_differ_are_not_used(monkeypatch, part):
    """A backend with a fault: its first use is compared, and the solve goes on without it."""
    if part == "forward":
        real = CpuBackend.forward

        def wrong(self, plan, made, y0, *rest):
            return real(self, plan, made, y0 * 1.001, *rest)
    else:
        real = CpuBackend.backward

        def wrong(self, *args):
            state, leaves = real(self, *args)
            return state * 1.01, leaves

    monkeypatch.setattr(CpuBackend, part, wrong)
    _, field, _ = make(False)
    y0 = Y0.clone().requires_grad_()
    explained = fastode.explain(field, y0)
    assert explained.backend == "stepped"
    assert "kernels of backend cpu differ" in str(explained)
    (found,) = torch.autograd.grad(fastode.solve(field, y0, T).ys.sum(), y0)
    (right,) = torch.autograd.grad(fastode.solve(field, y0, T, backend="reference").ys.sum(), y0)
    torch.testing.assert_close(found, right)
    with pytest.raises(RuntimeError, match="differ"):
        fastode.solve(field, y0, T, backend="cpu")


def test_kernels_are_tried_once(monkeypatch):
    from fastode.backends import trial

    runs, real = [], trial._try
    monkeypatch.setattr(trial, "_try", lambda *args: runs.append(1) or real(*args))
    _, field, _ = make(False)
    for _ in range(3):
        fastode.solve(field, Y0, T)
    assert len(runs) == 1
    fastode.solve(field, Y0.clone().requires_grad_(), T)  # the same weights with gradient already
    assert len(runs) == 1


def test_environment_variable():
    code = "from fastode.checked import is_checking; print(is_checking())"
    for value, word in (("1", "True"), ("0", "False")):
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "FASTODE_CHECK": value}
        )
        assert out.stdout.strip() == word, out.stderr


def test_under_no_grad() -> None:
    with torch.no_grad(), fastode.checking():
        sol = fastode.solve(lambda t, y: torch.sin(y), torch.ones(3, 2), [0.0, 1.0])
    assert not sol.ys.requires_grad
