"""Options that steps depend on: their gradients, or a refusal; and on which path which options are obeyed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastode
from fastode.dropin.adams import adams_weights, varying_adams_weights
from tests.dropin.tools import ADAMS, F64, FIXED, parts

T = torch.tensor([0.2, 0.9, 1.7], dtype=F64)
IMPLICIT = ["implicit_euler", "radauIIA3"]
METHODS = [*FIXED, *ADAMS, *IMPLICIT]
Y0 = torch.tensor([[1.0, 0.2], [-0.4, 0.7], [0.1, 0.3]], dtype=F64)


class Field(nn.Module):
    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[-0.5, 1.2], [-0.9, 0.1]], dtype=F64))
        self.counts, self.nfe = counts, 0

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.W) + torch.cos(3 * t)

    def forward(self, t: Tensor, y: Any) -> Any:
        if self.counts:
            self.nfe += 1
        return self.slope(t, y) if isinstance(y, Tensor) else tuple(self.slope(t, part) for part in y)


def check(make: Callable[[Tensor], dict[str, Any]], x: Tensor, method: str, name: str, kind: str = "rows") -> None:
    """The gradient of a solve by what ``make`` makes its options of."""
    t = T.flip(0) if kind == "backward" else T
    y0 = (Y0, Y0[0]) if kind == "tuple" else Y0
    how: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}

    def loss(x: Tensor) -> Tensor:
        ys = getattr(fastode, name)(Field(kind == "counts"), y0, t, method=method, options=make(x), **how)
        return sum((part.square().sum() for part in parts(ys)), torch.zeros((), dtype=F64))

    x = x.clone().requires_grad_()
    value = loss(x)
    assert value.requires_grad
    (grad,) = torch.autograd.grad(value, x)
    with torch.no_grad():
        step = 1e-5 * torch.cos(torch.arange(1.0, 1.0 + x.numel(), dtype=F64)).reshape(x.shape)
        want = (loss(x + step) - loss(x - step)) / 2e-5
    assert want.abs() > 1e-3
    torch.testing.assert_close((grad * step).sum() / 1e-5, want, rtol=1e-5, atol=1e-7)


KINDS = ["rows", "backward", "tuple", "counts"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_the_step_size(method: str, kind: str) -> None:
    check(lambda h: {"step_size": h}, torch.tensor(0.17, dtype=F64), method, "odeint", kind)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_gradient_by_a_learned_grid(method: str, name: str) -> None:
    def grid(logits: Tensor) -> Tensor:
        inner = T[0] + (T[-1] - T[0]) * torch.cumsum(torch.softmax(logits, 0), 0)[:-1]
        return torch.cat([T[:1], inner, T[-1:]])

    logits = torch.linspace(-0.3, 0.4, 9, dtype=F64)
    check(lambda x: {"grid_constructor": lambda func, y0, t: grid(x)}, logits, method, name)


@pytest.mark.parametrize("kind", ["rows", "backward"])
@pytest.mark.parametrize("gradient", ["exact", "adjoint"])
def test_gradient_of_odeint_adjoint_by_the_step_size(gradient: str, kind: str) -> None:
    x = torch.tensor(0.17, dtype=F64)
    check(lambda h: {"step_size": h, "gradient": gradient}, x, "rk4", "odeint_adjoint", kind)


def test_gradient_by_cubically_interpolated_outputs() -> None:
    check(lambda h: {"step_size": h, "interp": "cubic"}, torch.tensor(0.17, dtype=F64), "rk4", "odeint")


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("backward", [False, True])
def test_gradient_by_the_time_of_a_jump(backward: bool, name: str) -> None:
    """y' = -y before the jump and 2 y after it, so that the end is a function of its time."""
    t = torch.tensor([1.0, 0.0] if backward else [0.0, 1.0], dtype=F64)
    jump = torch.tensor([0.4], dtype=F64, requires_grad=True)

    class Jumps(nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.where(t < 0.4, -1.0, 2.0) * y

    options = {"jump_t": jump, "step_t": torch.tensor([0.7], dtype=F64)}
    y = getattr(fastode, name)(Jumps(), Y0, t, rtol=1e-9, atol=1e-11, options=options)[-1]
    exponent = 3 * jump - 2 if backward else 2 - 3 * jump
    right = Y0 * exponent.exp()
    torch.testing.assert_close(y.detach(), right.detach(), rtol=1e-7, atol=1e-9)
    got, want = (torch.autograd.grad(x[0, 0] - 2 * x[2, 1], jump)[0] for x in (y, right))
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("option", ["first_step", "min_step", "max_step", "step_t", "safety", "ifactor", "dfactor"])
def test_options_by_which_no_gradient_is_taken_are_refused_with_one(option: str) -> None:
    number = [0.5] if option == "step_t" else 5.0 if option == "ifactor" else 0.5
    value = torch.tensor(number, dtype=F64, requires_grad=True)
    for solve in (fastode.odeint, fastode.odeint_adjoint):
        with pytest.raises(ValueError, match=rf"options\['{option}'\] requires grad.*{option}\.detach"):
            solve(Field(False), Y0, T, options={option: value})
        with torch.no_grad():
            solve(Field(False), Y0, T, options={option: value.detach()})


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", ["euler", "rk4", "implicit_adams", "radauIIA3"])
@pytest.mark.parametrize("counts", [False, True])
def test_a_grid_constructor_is_called_once_with_the_state_as_solvers_hold_it(
    counts: bool, method: str, name: str
) -> None:
    calls: list[Any] = []

    def constructor(func: Any, y0: Tensor, t: Tensor) -> Tensor:
        calls.append((y0.shape, t.tolist()))
        return torch.linspace(0.2, 1.7, 16, dtype=F64)

    y0 = (Y0.clone().requires_grad_(), Y0[0])
    options = {"grid_constructor": constructor}
    getattr(fastode, name)(Field(counts), y0, T, method=method, options=options)
    assert calls == [(torch.Size([8]), T.tolist())]


@pytest.mark.parametrize(
    "method", ["implicit_euler", "trapezoid", "radauIIA5", "gl4", "trbdf2", "rk4", "implicit_adams"]
)
@pytest.mark.parametrize("backward", [False, True])
def test_perturbed_steps_never_evaluate_at_their_ends(method: str, backward: bool) -> None:
    times: list[float] = []
    grid = [0.0, 0.25, 0.5, 0.75, 1.0]

    def func(t: Tensor, y: Tensor) -> Tensor:
        times.append(t.item())
        return -y * torch.where(t < 0.5, 1.0, 3.0)

    for dtype in (torch.float32, F64):
        y0, t = torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)
        y0.requires_grad_()
        times.clear()
        t = t.flip(0) if backward else t
        y = fastode.odeint(func, y0, t, method=method, options={"step_size": 0.25, "perturb": True})
        torch.autograd.grad(y[-1].sum(), y0)
        assert not set(times) & set(grid)
        assert min(times) > 0.0
        assert max(times) < 1.0
        sides = {x < 0.5 for x in times if abs(x - 0.5) < 1e-3}
        assert sides <= {True, False}
        times.clear()
        fastode.odeint(func, y0, t, method=method, options={"step_size": 0.25})
        assert set(times) & set(grid)


@pytest.mark.parametrize("method", ["implicit_euler", "radauIIA3"])
def test_perturb_at_a_jump_of_an_implicit_method(method: str) -> None:
    """Two solves, one on either side of the jump, are the same as one that goes through it on a grid that hits it."""
    func = lambda t, y: -y * torch.where(t < 0.5, 1.0, 3.0)  # noqa: E731
    y0 = torch.tensor([1.0, 2.0], dtype=F64)
    how: dict[str, Any] = {"method": method, "rtol": 1e-11, "atol": 1e-13}
    grid = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    whole = fastode.odeint(func, y0, grid, options={"step_size": 0.125, "perturb": True}, **how)[-1]
    y = y0
    for rate, ends in ((-1.0, grid[:2]), (-3.0, grid[1:])):
        y = fastode.odeint(lambda t, y, rate=rate: rate * y, y, ends, options={"step_size": 0.125}, **how)[-1]
    torch.testing.assert_close(whole, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n", [4, 7, 11])
def test_weights_of_adams_methods_on_learned_grids(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    nodes = -torch.cumsum(0.5 + torch.rand(n, generator=generator, dtype=F64), 0) + 0.5
    got = torch.stack(varying_adams_weights(list(nodes)))
    want = torch.tensor(adams_weights(tuple(nodes.tolist())), dtype=F64)
    torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-7 * float(want.abs().max()))


@pytest.mark.parametrize("value", [0, 1])
def test_a_limit_of_steps_that_is_too_small_is_an_error(value: int) -> None:
    with pytest.raises(AssertionError):
        fastode.odeint(Field(False), Y0, T, options={"max_num_steps": value, "first_step": 1e-3})


class MakesLeaves(nn.Module):
    """Marks a copy of the time, or a constant, to differentiate by it inside of the call."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[-0.5, 1.2], [-0.9, 0.1]], dtype=F64))
        self.keeps, self.calls, self.last = keeps, 0, torch.zeros(())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        with torch.enable_grad():
            t = t.detach().clone().requires_grad_()
            y = y if y.requires_grad else y.clone().requires_grad_()
            phase = torch.sin(2 * t)
            (rate,) = torch.autograd.grad(phase, t, create_graph=True)
            if self.keeps:
                self.last = t
            return torch.tanh(y @ self.W) * rate * torch.tensor(1.0, dtype=F64, requires_grad=True)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("method", ["rk4"])
def test_leaves_that_are_made_in_each_call(method: str, keeps: bool) -> None:
    """Nobody can want the gradient of such a leaf; it must not stop the gradients that are wanted."""
    options = {} if method == "dopri5" else {"step_size": 0.02}
    how: dict[str, Any] = {"method": method, "rtol": 1e-9, "atol": 1e-11, "options": options}
    y0 = Y0.clone().requires_grad_()
    field = MakesLeaves(keeps)
    got = torch.autograd.grad(fastode.odeint_adjoint(field, y0, T, **how)[-1].square().sum(), [y0, field.W])
    W = field.W.detach().clone().requires_grad_()
    plain = lambda t, y: torch.tanh(y @ W) * 2 * torch.cos(2 * t)  # noqa: E731
    want = torch.autograd.grad(fastode.odeint(plain, y0, T, **how)[-1].square().sum(), [y0, W])
    bound = 1e-6 if method in ("dopri5", "rk4") or not keeps else 1e-2  # the adjoint equation in the same steps
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)
