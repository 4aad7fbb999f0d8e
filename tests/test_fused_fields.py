"""Fields that backends execute as programs: none of them may be lost to a stricter look at what programs rely on."""

import pytest
import torch
from torch import nn

import fastode
from bench.cases import CASES
from bench.clients.latent import LatentField
from bench.clients.spiral import Field, Truth
from fastode.program.capture import Capture, capture_field
from fastode.tree import tree_map
from tests.program.tools import problem

WITHOUT_PROGRAM = {"convolution", "autoencode", "autoencode-cifar"}  # convolutions; training of a whole model
BENCH = [name for name, case in CASES.items() if not case.group and name not in WITHOUT_PROGRAM]


def is_fused(field, y0, controls=None):
    plan, inputs = problem(field, y0, controls)
    found, _ = capture_field(plan.field, plan.times, inputs.y0, inputs.controls)
    return isinstance(found, Capture) or str(found)


@pytest.mark.parametrize("name", BENCH)
def test_fields_of_the_benchmarks(name):
    case = CASES[name].problem()
    few = lambda tree: tree_map(lambda x: x[:6], tree)  # noqa: E731
    assert is_fused(case.field, few(case.y0), None if case.controls is None else few(case.controls)) is True


@pytest.mark.parametrize(("make", "width"), [(Field, 2), (Truth, 2), (lambda: LatentField(False), 4)])
def test_fields_of_clients(make, width):
    assert is_fused(make(), torch.randn(5, width)) is True


def test_fields_that_come_with_fastode():
    field = fastode.fields.MLPField(3, (8, 8), "silu", time=True)
    assert is_fused(field, torch.randn(5, 3)) is True
    for hidden in (None, 6):
        controlled = fastode.fields.ControlledField(4, hidden)
        assert is_fused(controlled, torch.randn(5, 4), torch.randn(5, controlled.n_controls)) is True


def test_the_field_of_a_model():
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))  # README's and docs/programs.md's
    assert is_fused(lambda t, y: net(torch.cat([y, t], dim=1)), torch.randn(8, 2)) is True
    model = fastode.models.AutoencODE(1, 8, 4)
    codes = model.encode(torch.rand(5, 1, 8, 8))
    assert is_fused(model.field, model.initial_state(codes).detach(), model.controls(codes).detach()) is True
