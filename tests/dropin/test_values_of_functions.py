"""Values that functions return: other shapes and dtypes than the state's, and memory that is written again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import fastode
from tests.dropin.tools import F64, parts

T = torch.tensor([0.0, 0.6, 1.1], dtype=F64)
A = torch.tensor([[-0.4, 0.9], [-0.8, -0.1]], dtype=F64)
METHODS = ["dopri5", "dopri8", "rk4", "midpoint", "explicit_adams", "implicit_adams"]


class Function(nn.Module):
    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn
        self.a = nn.Parameter(A.clone())

    def forward(self, t: Tensor, y: Any) -> Any:
        return self.fn(t, y, self.a)


SHAPES = {
    "(1,) for ()": (lambda t, y, a: (a[0, 1] * y).reshape(1), torch.tensor(0.7, dtype=F64)),
    "(1, 1) for ()": (lambda t, y, a: (a[0, 1] * y).reshape(1, 1), torch.tensor(0.7, dtype=F64)),
    "() for (1,)": (lambda t, y, a: a[0, 1] * y.reshape(()), torch.tensor([0.7], dtype=F64)),
    "() for (3,)": (lambda t, y, a: a[0, 1] * torch.cos(t), torch.ones(3, dtype=F64)),
    "(2,) for (3, 2)": (lambda t, y, a: (y @ a).mean(0), torch.ones(3, 2, dtype=F64)),
    "(1, 2) for (3, 2)": (lambda t, y, a: (y @ a).mean(0, keepdim=True), torch.ones(3, 2, dtype=F64)),
    "(1, 3, 2) for (3, 2)": (lambda t, y, a: (y @ a)[None], torch.ones(3, 2, dtype=F64)),
    "float32": (lambda t, y, a: torch.tanh(y @ a).float(), torch.ones(3, 2, dtype=F64)),
    "flat part": (
        lambda t, y, a: [(y[0] @ a).reshape(-1), -y[1]],
        (torch.ones(3, 2, dtype=F64), torch.ones(4, dtype=F64)),
    ),
    "float32 part": (
        lambda t, y, a: ((y[0] @ a).float(), -y[1]),
        (torch.ones(3, 2, dtype=F64), torch.ones(4, dtype=F64)),
    ),
}


def written_out(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same with values in the state's shapes: with others torchdiffeq fails here and there."""

    def one(value: Tensor, y: Tensor) -> Tensor:
        return value.reshape(y.shape) if value.numel() == y.numel() else value.reshape(value.shape[-1:]).expand(y.shape)

    def call(t: Tensor, y: Any, a: Tensor) -> Any:
        value = fn(t, y, a)
        return one(value, y) if isinstance(y, Tensor) else tuple(map(one, value, y))

    return call


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4", "midpoint"])
@pytest.mark.parametrize("case", SHAPES)
def test_shapes_and_dtypes_are_taken_as_torchdiffeq_takes_them(case: str, method: str, name: str) -> None:
    fn, y0 = SHAPES[case]
    fixed = method in ("rk4", "midpoint")
    results = []
    for library in (fastode, torchdiffeq):
        ours = library is fastode
        module = Function(fn if ours else written_out(fn))
        solve = getattr(fastode, name) if ours else torchdiffeq.odeint
        chosen = method if ours or fixed else "dopri5"
        ys = solve(module, y0, T, method=chosen, options={"step_size": 0.05} if fixed else {})
        sum(part.square().sum() for part in parts(ys)).backward()
        results.append([*parts(ys), module.a.grad])
    bound = 1e-5 if "float32" in case else 1e-6
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("dtypes", [(torch.float32, F64), (F64, torch.float32)])
def test_a_slope_of_another_precision_is_rounded_to_the_states(
    dtypes: tuple[torch.dtype, torch.dtype], name: str
) -> None:
    of_state, of_slope = dtypes
    module = Function(lambda t, y, a: y.to(of_slope) @ a.to(of_slope))
    ys = getattr(fastode, name)(module, torch.ones(3, 2, dtype=of_state), T.to(of_state), rtol=1e-5, atol=1e-6)
    exact = torch.ones(3, 2, dtype=F64) @ torch.linalg.matrix_exp(T[-1] * A)
    assert ys.dtype == of_state
    torch.testing.assert_close(ys[-1].double().detach(), exact, rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(ys[-1].sum(), module.a)
    assert torch.isfinite(grad).all()
    assert grad.abs().max() > 0.1


@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_euler", "explicit_adams"])
@pytest.mark.parametrize(
    ("fn", "y0", "error"),
    [
        (lambda t, y: torch.zeros(3, 1), torch.ones(3), "must have shape"),
        (lambda t, y: torch.zeros(2), torch.ones(3), "must have shape"),
        (lambda t, y: 1.0, torch.ones(3), "dense tensor"),
        (lambda t, y: y.to_sparse(), torch.ones(3), "dense tensor"),
        (lambda t, y: y * 1j, torch.ones(3), "complex"),
        (lambda t, y: y[0], (torch.ones(3), torch.ones(2)), "tuple"),
        (lambda t, y: (y[0],), (torch.ones(3), torch.ones(2)), "2 tensors"),
        (lambda t, y: (y[0], y[0]), (torch.ones(3), torch.ones(2)), "part 1"),
    ],
)
def test_values_that_fit_no_state_are_refused(fn: Callable[..., Any], y0: Any, error: str, method: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        fastode.odeint(fn, y0, torch.tensor([0.0, 1.0]), method=method)


@pytest.mark.parametrize("make", [Tensor.to_sparse, lambda y: y.to_sparse_csr()])
def test_sparse_states_are_refused(make: Callable[[Tensor], Tensor]) -> None:
    y0 = make(torch.eye(4, 2))
    for solve in (fastode.odeint, fastode.solve):
        with pytest.raises(TypeError, match=r"y0.* dense"):
            solve(lambda t, y: -y, y0, torch.tensor([0.0, 1.0]))


def into_buffer(buffer: Tensor) -> Callable[..., Tensor]:
    return lambda t, y: torch.mul(y, -torch.cos(t), out=buffer[: len(y)])


def into_view(buffer: Tensor) -> Callable[..., Tensor]:
    def fn(t: Tensor, y: Tensor) -> Tensor:
        buffer[: len(y)].copy_(y).mul_(-torch.cos(t))
        return buffer.T.T[: len(y)]

    return fn


def into_two(buffer: Tensor) -> Callable[..., Tensor]:
    buffers, calls = [buffer, buffer.clone()], [0]

    def fn(t: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        return torch.mul(y, -torch.cos(t), out=buffers[calls[0] % 2][: len(y)])

    return fn


def into_array(buffer: Tensor) -> Callable[..., Tensor]:
    array = buffer.numpy()

    def fn(t: Tensor, y: Tensor) -> Tensor:
        np.multiply(y.numpy(), -np.cos(t.numpy()), out=array[: len(y)])
        return torch.from_numpy(array[: len(y)])

    return fn


def behind_data(buffer: Tensor) -> Callable[..., Tensor]:
    def fn(t: Tensor, y: Tensor) -> Tensor:
        buffer.data[: len(y)] = -torch.cos(t) * y
        return buffer if len(y) == len(buffer) else buffer[: len(y)]

    return fn


BUFFERS = [into_buffer, into_view, into_two, into_array, behind_data]


@pytest.mark.parametrize("make", BUFFERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_buffer_that_every_call_writes_into_does_no_harm(method: str, make: Callable[..., Any]) -> None:
    y0 = torch.linspace(-1, 2, 8, dtype=F64).reshape(4, 2)
    plain = lambda t, y: -torch.cos(t) * y  # noqa: E731
    options = {} if method in ("dopri5", "dopri8") else {"step_size": 0.1}
    chosen = "dopri5" if method == "dopri8" else method
    times = [(T, options), (torch.flip(T, [0]), options)]
    if "adams" not in method:
        times.append((T, {**options, "interp": "cubic"} if options else {"max_step": 0.3}))
    with torch.no_grad():
        for t, given in times:
            ours = fastode.odeint(make(torch.zeros_like(y0)), y0, t, method=method, options=given)
            right = torchdiffeq.odeint(plain, y0, t, method=chosen, options=given)
            torch.testing.assert_close(ours, right, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make", BUFFERS)
def test_a_buffer_in_dense_output_and_events(make: Callable[..., Any]) -> None:
    y0 = torch.linspace(1, 2, 8, dtype=F64).reshape(4, 2)
    exact = lambda t: y0 * torch.exp(-torch.sin(torch.as_tensor(t, dtype=F64)))  # noqa: E731
    zero = torch.zeros((), dtype=F64)
    with torch.no_grad():
        dense = fastode.odeint_dense(make(torch.zeros_like(y0)), y0, zero, zero + 1.0)
        torch.testing.assert_close(dense(0.37), exact(0.37), rtol=1e-6, atol=1e-8)
        for method, options in (("dopri5", {}), ("rk4", {"step_size": 0.05})):
            event_t, ys = fastode.odeint_event(
                make(torch.zeros_like(y0)),
                y0,
                zero,
                event_fn=lambda t, y: y[0, 0] - 0.6,
                method=method,
                options={**options, "interp": "cubic"} if options else {},
            )
            torch.testing.assert_close(event_t, torch.asin(-torch.log(zero + 0.6)), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(ys[-1], exact(event_t), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", BUFFERS)
@pytest.mark.parametrize("backend", ["stepped", "reference"])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "bosh3"])
def test_a_buffer_in_solve(method: str, backend: str, make: Callable[..., Any]) -> None:
    y0 = torch.linspace(-1, 2, 8, dtype=F64).reshape(4, 2)
    field = make(torch.zeros_like(y0))
    steps: dict[str, Any] = {"step_size": 0.05} if method == "rk4" else {"rtol": 1e-7, "atol": 1e-9}
    with torch.no_grad():
        ours = fastode.solve(field, y0, T, method=method, backend=backend, **steps)
    exact = y0 * torch.exp(-torch.sin(T))[:, None, None]
    torch.testing.assert_close(ours.ys, exact, rtol=1e-4, atol=1e-5)


def test_a_buffer_with_gradient() -> None:
    """Slots of a tensor that the function fills and returns at every call, in a graph."""
    weight = torch.tensor([0.3, -0.6], dtype=F64, requires_grad=True)
    y0 = torch.ones(3, 2, dtype=F64)

    def fn(t: Tensor, y: Tensor) -> Tensor:
        value = torch.zeros_like(y)
        value[:, 0] = y[:, 0] * weight[0]
        value[:, 1] = torch.cos(t) * y[:, 1] * weight[1]
        return value

    ys = fastode.odeint(fn, y0, T, rtol=1e-9, atol=1e-11)
    (grad,) = torch.autograd.grad(ys[-1].sum(), weight)
    t = T[-1]
    right = 3 * torch.stack([t * torch.exp(0.3 * t), torch.sin(t) * torch.exp(-0.6 * torch.sin(t))])
    torch.testing.assert_close(grad, right, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "fn", [lambda t, y: y, lambda t, y: y[...], lambda t, y: y.T.mT, lambda t, y: y.flip(0).flip(0)]
)
@pytest.mark.parametrize("method", [*METHODS, "trapezoid"])
def test_the_state_itself_or_a_view_of_it_as_slope(fn: Callable[..., Any], method: str) -> None:
    y0 = torch.tensor([[0.5, -1.0], [2.0, 0.1]], dtype=F64, requires_grad=True)
    options = {} if method in ("dopri5", "dopri8") else {"step_size": 0.02}
    ys = fastode.odeint(fn, y0, T, method=method, options=options)
    bound = {"trapezoid": 1e-4, "midpoint": 1e-3, "explicit_adams": 2e-4}.get(method, 1e-6)
    torch.testing.assert_close(ys[-1].detach(), y0.detach() * T[-1].exp(), rtol=bound, atol=0.0)
    (grad,) = torch.autograd.grad(ys[-1].sum(), y0)
    torch.testing.assert_close(grad, T[-1].exp().expand_as(y0), rtol=bound, atol=0.0)
