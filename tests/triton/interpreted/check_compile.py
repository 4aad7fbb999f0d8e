"""Solves by generated kernels inside the graphs of ``torch.compile``: records in segments go through as two tensors."""

import pytest
import torch
import torch._dynamo

import fastode
from fastode.backends.triton import record
from fastode.fields import ControlledField, MLPField
from tests.gradient_tools import assert_close
from tests.program.tools import F64
from tests.triton.interpreted.tools import launched

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(
    ("kind", "every", "first"), [("controlled", 1, 2), ("controlled", 3, 2), ("mlp", 1, 48), ("mlp", 3, 48)]
)
def test_compiled_is_eager(kind, every, first, monkeypatch):
    """With records of several launches, and of one."""
    torch._dynamo.reset()
    torch.manual_seed(1)
    monkeypatch.setattr(record, "_FIRST_STEPS", first)
    net = (ControlledField(3) if kind == "controlled" else MLPField(3, (5,))).double()
    example = torch.randn(4, 12, dtype=F64) if kind == "controlled" else None
    field = fastode.capture(net, torch.randn(4, 3, dtype=F64), example)
    options = {"backend": "triton", "gradient": fastode.Checkpoint(every), "rtol": 1e-6, "atol": 1e-6}

    def model(y0, controls):
        return fastode.solve(field, y0, [0.0, 0.3, 0.8], controls=controls, **options).ys.square().sum()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y0 = torch.randn(5, 3, dtype=F64, requires_grad=True)
    controls = torch.randn(5, 12, dtype=F64, requires_grad=True) if kind == "controlled" else None
    sources = [y0, *([] if controls is None else [controls]), *net.parameters()]
    got = []
    for run in (compiled, model):
        with launched("tiled"):
            got.append(torch.autograd.grad(run(y0, controls), sources))
    assert_close(list(got[0]), list(got[1]), 1e-12)


def test_weights_in_half_precision():
    torch._dynamo.reset()
    weight = torch.randn(3, 3).bfloat16().requires_grad_()
    field = fastode.capture(lambda t, y: torch.tanh(y @ weight.to(y.dtype)), torch.randn(4, 3))
    y0 = torch.randn(5, 3, requires_grad=True)
    model = lambda y0: fastode.solve(field, y0, [0.0, 0.5], backend="triton").ys.square().sum()  # noqa: E731
    got = []
    for run in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        with launched("tiled"):
            got.append(torch.autograd.grad(run(y0), [y0, weight]))
    assert got[0][1].dtype == torch.bfloat16
    for mine, true in zip(*got, strict=True):
        torch.testing.assert_close(mine, true, rtol=0.0, atol=0.0)
