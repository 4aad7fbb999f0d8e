"""Fixed steps by implicit methods: order, stiff problems, gradients, states of every kind."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastode
from fastode.dropin.implicit import METHODS
from tests.dropin.tools import F64, field_of, gradients, largest_difference, parts, relative_difference, state

ORDERS = {solver.method: solver.order for solver in METHODS}
T = torch.tensor([0.0, 0.5, 1.0], dtype=F64)


@pytest.mark.parametrize("method", ORDERS)
def test_order_where_the_function_depends_on_time(method: str) -> None:
    """torchdiffeq's gl4 is of order 1 here."""

    def func(t: Tensor, y: Tensor) -> Tensor:
        return -2 * y + torch.sin(3 * t) * y**2

    y0 = torch.tensor([[0.5], [1.0]], dtype=F64)
    exact = fastode.odeint(func, y0, T, method="dopri8", rtol=1e-13, atol=1e-14)
    errors = []
    for h in (0.125, 0.0625):
        solution = fastode.odeint(func, y0, T, method=method, rtol=1e-12, atol=1e-13, options={"step_size": h})
        errors.append(largest_difference(solution, exact))
    assert math.log2(errors[0] / errors[1]) > ORDERS[method] - 0.4


@pytest.mark.parametrize("kind", ["rows", "tuple", "1-d", "0-d", "complex128"])
@pytest.mark.parametrize("backward", [False, True])
def test_states_of_every_kind(kind: str, backward: bool) -> None:
    t, how = T.flip(0) if backward else T, {"method": "radauIIA5", "options": {"step_size": 0.25}}
    mine, grads = gradients(fastode.odeint, field_of(kind), state(kind), t, **how)
    exact, exact_grads = gradients(fastode.odeint, field_of(kind), state(kind), t, method="dopri8")
    assert largest_difference(mine, exact) < 1e-4
    n = len(parts(state(kind)))  # the gradient by t is that of the grid: as in torchdiffeq, t[1] is a point of it
    assert relative_difference(grads[:n] + grads[n + 1 :], exact_grads[:n] + exact_grads[n + 1 :]) < 1e-3
    with torch.no_grad():
        fast = fastode.odeint(field_of(kind), state(kind), t, **how)
        mixed = fastode.odeint(field_of(kind, counts=True), state(kind), t, **how)
    assert largest_difference(fast, mine) < 1e-7
    assert largest_difference(mixed, mine) < 1e-7


@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_stiff_problem_and_outputs_between_steps(interp: str) -> None:
    func = lambda t, y: -1000.0 * (y - torch.cos(t)) - torch.sin(t)  # noqa: E731
    y0, t = torch.ones(3, 1, dtype=F64), torch.linspace(0.0, 2.0, 8, dtype=F64)
    how: dict[str, Any] = {"method": "radauIIA5", "options": {"step_size": 0.1, "interp": interp}}
    solution = fastode.odeint(func, y0, t, **how)
    bound = 2e-3 if interp == "linear" else 1e-4
    assert largest_difference(solution, torch.cos(t)[:, None, None].expand(8, 3, 1)) < bound


def test_events_and_adjoints() -> None:
    func = field_of("rows")
    event_t, _ = fastode.odeint_event(
        lambda t, y: -y,
        torch.tensor([1.0], dtype=F64),
        torch.tensor(0.0, dtype=F64),
        event_fn=lambda t, y: y[0] - 0.5,
        method="gl6",
        options={"step_size": 0.1, "interp": "cubic"},
    )
    assert float(event_t) == pytest.approx(math.log(2.0), abs=1e-6)
    how = {"method": "gl4", "options": {"step_size": 0.25}}
    _, adjoint = gradients(fastode.odeint_adjoint, func, state("rows"), T, **how)
    _, direct = gradients(fastode.odeint, func, state("rows"), T, **how)
    assert relative_difference(adjoint, direct) < 1e-10
