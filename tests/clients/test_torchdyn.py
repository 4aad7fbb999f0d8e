"""torchdyn, from PyPI as it is, on fastode.

The neural ODEs of 0.3 are solved by torchdiffeq; it needs two names that have gone since, one from
Python 3.11 and one from torchcde 0.2. Later ones have solvers of their own and load torchdiffeq by way of torchcde.
"""

from __future__ import annotations

import pytest

from tests.clients.other_process import results

pytest.importorskip("torchdyn", exc_type=ImportError)

SCRIPT = """
import inspect, json
import torch, torchcde
inspect.getargspec = inspect.getfullargspec
torchcde.NaturalCubicSpline = torchcde.CubicSpline
import torchdiffeq
from torchdyn.core import NeuralODE
from torchdyn.core import neuralde

def train(sensitivity):
    torch.manual_seed(0)
    x = torch.randn(64, 2)
    wanted = torch.stack([x[:, 1], x[:, 0].square()], 1)
    field = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    model = NeuralODE(field, sensitivity=sensitivity, solver="dopri5", atol=1e-6, rtol=1e-6)
    optimiser = torch.optim.Adam(field.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        y = model(x)
        y = y[1][-1] if isinstance(y, tuple) else y
        loss = (y - wanted).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses

uses = hasattr(neuralde, "torchdiffeq")
print(json.dumps({"uses": uses, "file": torchdiffeq.__file__, "losses": [train(s) for s in ("autograd", "adjoint")]}))
"""


@pytest.mark.slow
def test_training() -> None:
    found = results(SCRIPT)
    assert "fastode" in found["fastode"]["file"]
    assert "fastode" not in found["torchdiffeq"]["file"].split("site-packages")[-1]
    for mine, theirs in zip(found["fastode"]["losses"], found["torchdiffeq"]["losses"], strict=True):
        assert mine == pytest.approx(theirs, rel=3e-5)  # 30 rtol
        assert mine[-1] < 0.9 * mine[0]
    if found["fastode"]["uses"]:  # solved by another library, the numbers cannot be the same to the last digit
        assert found["fastode"]["losses"] != found["torchdiffeq"]["losses"]
