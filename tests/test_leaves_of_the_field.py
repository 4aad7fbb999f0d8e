"""Fields that make tensors which require grad, in each call: no one can want the gradient of those."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastode import solve

F64 = torch.float64


class Field(torch.nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 2).double()
        self.kind = kind
        self.kept: list[Tensor] = []

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            factor = t.detach() if self.kind == "detached" else t
            if self.kind == "time":
                factor = t.detach().clone().requires_grad_()
            elif self.kind == "one":
                factor = t * torch.tensor(1.0, dtype=y.dtype, requires_grad=True)
            elif self.kind == "kept":
                factor = t * torch.ones((), dtype=y.dtype, requires_grad=True)
                self.kept.append(factor)
            return torch.tanh(self.layer(y)) * factor


CASES = {
    "gl4": {"method": "gl4", "step_size": 0.25},
    "kvaerno5": {"method": "kvaerno5"},
    "rodas5p": {"method": "rodas5p"},
    "stepped": {"method": "dopri5", "backend": "stepped"},
    "reference": {"method": "dopri5", "backend": "reference"},
    "adjoint": {"method": "dopri5", "gradient": "adjoint"},
}


def gradients(field: Field, options: dict[str, Any]) -> list[Tensor]:
    y0 = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2).requires_grad_()
    ys = solve(field, y0, [0.0, 0.5], rtol=1e-4, atol=1e-5, **options).ys
    return [ys.detach(), *torch.autograd.grad(ys[-1].square().sum(), [y0, *field.parameters()])]


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("kind", ["time", "one"])
def test_leaves_that_are_gone_with_the_graph_change_nothing(case: str, kind: str) -> None:
    found = gradients(Field(kind), CASES[case])
    same = Field("detached" if kind == "time" else "plain")  # rodas5p differentiates by the time
    for a, b in zip(found, gradients(same, CASES[case]), strict=True):
        assert float((a - b).abs().max()) < 1e-10


@pytest.mark.parametrize("case", ["gl4", "stepped"])
def test_leaves_that_someone_keeps_are_reported(case: str) -> None:
    with pytest.raises(RuntimeError, match="could not be found when the solve began"):
        gradients(Field("kept"), CASES[case])
