"""Programs as text, and what explain and repr say."""

import textwrap

import pytest
import torch
from torch import nn

import fastode
from fastode.fields import ControlledField
from tests.program.tools import F64, program_of

EXPECTED = {
    "network": """
        program of y (3)
            shared: net.0.weight 8x3, net.0.bias 8, net.2.weight 3x8, net.2.bias 3
            dy/dt = tanh(y @ net.0.weight^T + net.0.bias) @ net.2.weight^T + net.2.bias
    """,
    "lorenz": """
        program of y (3)
            dy/dt = [(y[1] - y[0]) * 10, y[0] * (28 - y[2]) - y[1], y[0] * y[1] - y[2] * 2.5]
    """,
    "controlled": """
        program of y (2)
            per sample: controls 17
            dy/dt = controls[i][9:15] @ tanh(controls[i][0:6] @ y + controls[i][6:9]) + controls[i][15:17]
    """,
    "prologue": """
        program of y (2)
            per sample: neg(controls) 1
            dy/dt = neg(controls)[i] * y + sin(t * 2)
    """,
    "precedence": """
        program of y (2)
            dy/dt = (y - (1 - y)) / (y * (y + 1)) - (-y)^2
    """,
    "named": """
        program of y (3)
            shared: w 3x3
            v0 = tanh(y @ w)  (3)
            dy/dt = v0 * (1 - v0)
    """,
}


def text_of(field, y0, controls=None):
    return str(program_of(field, y0, controls).program)


def written(text):
    return textwrap.dedent(text).strip()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, t, y):
        return self.net(y)


def lorenz(t, y):
    x, y_, z = y.unbind(-1)
    return torch.stack([10.0 * (y_ - x), x * (28.0 - z) - y_, x * y_ - 2.5 * z], -1)


def test_network():
    assert text_of(Network(), torch.randn(5, 3)) == written(EXPECTED["network"])


def test_lorenz():
    assert text_of(lorenz, torch.randn(5, 3)) == written(EXPECTED["lorenz"])


def test_controlled_field():
    field = ControlledField(2, hidden=3)
    assert text_of(field, torch.randn(5, 2), torch.randn(5, field.n_controls)) == written(EXPECTED["controlled"])


def test_what_is_used_twice_has_a_name():
    w = torch.randn(3, 3)

    def field(t, y):
        h = torch.tanh(y @ w)
        return h * (1 - h)

    assert text_of(field, torch.randn(5, 3)) == written(EXPECTED["named"])


def test_what_torch_computes_before_a_solve():
    field = lambda t, y, c: -c["k"] * y + torch.sin(2 * t)  # noqa: E731
    assert text_of(field, torch.randn(5, 2), {"k": torch.randn(5, 1)}) == written(EXPECTED["prologue"])


def test_a_precedence_is_kept():
    field = lambda t, y: (y - (1 - y)) / (y * (y + 1)) - (-y) ** 2  # noqa: E731
    assert text_of(field, torch.randn(5, 2)) == written(EXPECTED["precedence"])


def test_explain_of_a_field_with_a_program():
    found = fastode.explain(lorenz, torch.randn(5, 3, dtype=F64))
    assert found.program is not None
    text = str(found)
    assert text.startswith(f"backend: {found.backend}\n")
    assert text.endswith(str(found.program))


def test_explain_of_a_field_without_one():
    found = fastode.explain(lambda t, y: y.sort(0).values, torch.randn(5, 3))
    assert found.program is None
    assert found.backend == "stepped"
    assert "aten.sort" in str(found)


def test_explain_takes_the_options_of_solve():
    fastode.explain(lorenz, torch.randn(5, 3), method="rk4", step_size=0.1, rtol=1e-3)
    with pytest.raises(TypeError, match="unknown options"):
        fastode.explain(lorenz, torch.randn(5, 3), steps=3)


def test_a_captured_field_is_the_field():
    y = torch.randn(5, 3)
    captured = fastode.capture(lorenz, y)
    assert torch.equal(captured(torch.zeros(5, 1), y), lorenz(None, y))
    assert repr(captured).endswith(str(captured.program))
