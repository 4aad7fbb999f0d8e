"""Times that require grad: what they cost, and their derivatives of higher order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastode
from fastode.dropin.times import carry
from tests.dropin.tools import F64, FIXED, field_of, relative_difference, state

T = torch.linspace(0.0, 1.0, 5, dtype=F64)


def test_a_gradient_by_times_costs_one_call_per_time() -> None:
    counts = []
    for varying in (False, True):
        func = field_of("rows", counts=True)
        how = {"options": {"step_control": "batch"}, "rtol": 1e-5, "atol": 1e-5}
        ys = fastode.odeint(func, state("rows"), T.clone().requires_grad_(varying), **how)
        called = func.nfe
        ys.sum().backward()
        assert func.nfe == called
        counts.append(called)
    assert counts[1] - counts[0] == len(T)


def by_hand(p: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """y' = p t y from the present t, as a function of a time later on, about which it is differentiated."""
    now = t.detach()
    return y * torch.exp(p * (t**2 - now**2) / 2)


@pytest.mark.parametrize("order", ["ptt", "tpt", "ttp", "pyt", "tyt", "ttt"])
def test_derivatives_of_third_order(order: str) -> None:
    """In whatever order they are taken; p is seen by the function alone, and y depends on it, too."""
    found = []
    for exact in (False, True):
        p, t, start = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.7, 1.3, 0.9))
        y = start * p
        end = by_hand(p, t, y) if exact else carry(lambda t, y, p=p: p * t * y, t.detach(), t, y)
        value = end**2
        for name in order:
            by = {"p": p, "t": t, "y": start}[name]
            (value,) = torch.autograd.grad(value, by, create_graph=True)
        found.append([value])
    assert abs(float(found[1][0].detach())) > 0.1
    assert relative_difference(*found) < 1e-12


def test_a_function_that_has_changed_is_refused() -> None:
    """Its value is needed again, and would be another one: of a module under functional_call."""
    module = nn.Linear(2, 2).double()
    other = {name: p.detach().clone().requires_grad_() + 1 for name, p in module.named_parameters()}
    t, y = torch.tensor(0.3, dtype=F64, requires_grad=True), torch.ones(2, dtype=F64)

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, t: Tensor) -> Tensor:
            return carry(lambda t, y: self.inner(y) * t, t.detach(), t, y)

    given = {f"inner.{name}": value for name, value in other.items()}
    end = torch.func.functional_call(Ends(), given, (t,))
    (by_t,) = torch.autograd.grad(end.sum(), t, retain_graph=True)
    torch.testing.assert_close(by_t, (nn.functional.linear(y, other["weight"], other["bias"]) * t).sum())
    with pytest.raises(RuntimeError, match="functional_call"):
        torch.autograd.grad(end.sum(), t, create_graph=True)


@pytest.mark.filterwarnings("error:Converting a tensor")
@pytest.mark.parametrize("method", [*FIXED, "explicit_adams", "implicit_adams"])
def test_events_from_times_with_gradient_are_silent(method: str) -> None:
    t = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
    y0 = torch.ones(1)  # float32: the clock stays exact, and grids regular
    event_t, ys = fastode.odeint(
        lambda t, y: -y, y0, t, method=method, event_fn=lambda t, y: y.sum() - 0.5, options={"step_size": 0.05}
    )
    assert float(event_t.detach()) == pytest.approx(0.6931, abs=0.05 if method == "euler" else 2e-3)
    assert float(ys[-1].detach()) == pytest.approx(0.5, abs=1e-5)
