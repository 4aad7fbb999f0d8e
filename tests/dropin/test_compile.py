"""odeint inside of a model that torch.compile compiles: outside of its graphs, with the same results."""

from __future__ import annotations

import torch

import fastode
from tests.dropin.tools import F64, field_of, state


def test_compiled_models() -> None:
    func, t = field_of("rows"), torch.tensor([0.0, 1.0], dtype=F64)

    def model(x: torch.Tensor) -> torch.Tensor:
        y0 = torch.sin(x)
        return fastode.odeint(func, y0, t)[-1] + fastode.odeint_adjoint(func, y0, t, method="rk4")[-1]

    found = []
    for call in (model, torch.compile(model, backend="eager")):
        func.zero_grad()
        value = call(state("rows"))
        value.square().sum().backward()
        found.append((value.detach(), func.W.grad.clone()))
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y)
