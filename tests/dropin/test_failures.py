"""Solves that fail: errors that users of torchdiffeq catch, and that say which samples are to blame."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

import fastode

T = torch.linspace(0.0, 1.0, 3, dtype=torch.float64)


def explode(t: Tensor, y: Tensor) -> Tensor:
    return y**2


def start() -> Tensor:
    return torch.tensor([[0.1], [2.0], [0.3], [3.0]], dtype=torch.float64)  # the second and the fourth explode


@pytest.mark.parametrize("step_control", ["auto", "batch", "per_sample"])
@pytest.mark.parametrize(
    "odeint", [fastode.odeint, lambda *args, **how: fastode.odeint_adjoint(*args, **how, adjoint_params=())]
)
def test_error_names_the_samples(step_control: str, odeint: object) -> None:
    with pytest.raises(fastode.OdeintError) as caught:
        odeint(explode, start().requires_grad_(), T, options={"step_control": step_control})  # type: ignore[operator]
    error = caught.value
    assert isinstance(error, AssertionError)
    assert isinstance(error, fastode.SolveError)
    assert set(error.samples) <= {1, 3}
    assert error.samples
    if step_control != "batch":
        assert error.samples == [1, 3]
    assert "on_failure" not in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert again.samples == error.samples
    assert str(again) == str(error)


def test_whole_states() -> None:
    mixed = lambda t, y: y**2 + 0 * y.sum()  # noqa: E731
    with pytest.raises(fastode.OdeintError, match="rows of the state are at fault: 3") as caught:
        fastode.odeint(mixed, start(), T)
    assert caught.value.samples == [3]
    with pytest.raises(AssertionError, match=r"non-finite|underflow"):
        fastode.odeint(explode, torch.tensor(3.0), T)
    with pytest.raises(AssertionError):
        fastode.odeint(lambda t, y: (y[0] ** 2, y[1]), (torch.tensor([3.0]), torch.tensor([1.0])), T)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_starts_that_are_not_finite(value: float) -> None:
    y0 = start()
    y0[2] = value
    for func in (lambda t, y: -y, lambda t, y: -y * (1.0 + 0.0 * float(y[0]))):
        with pytest.raises(AssertionError):
            fastode.odeint(func, y0, T)


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_fixed_steps_return_what_they_get(method: str) -> None:
    """As in torchdiffeq: infinities of one row are no matter of the others, and no error."""
    for func in (explode, lambda t, y: y**2 * (1.0 + 0.0 * float(y[0]))):
        solution = fastode.odeint(func, 1e100 * start(), T * 1e100, method=method)
        assert not bool(torch.isfinite(solution[-1]).any())
        mixed = start()
        mixed[1] = 1e200
        solution = fastode.odeint(func, mixed, T, method=method)
        assert torch.isfinite(solution[:, [0, 2, 3]]).all()
        assert not torch.isfinite(solution[-1, 1]).any()


def test_max_num_steps() -> None:
    for control in ("auto", "batch"):
        with pytest.raises(AssertionError, match=r"MAX_STEPS|max_num_steps"):
            fastode.odeint(lambda t, y: -50 * y, start(), T, options={"max_num_steps": 3, "step_control": control})


def test_functions_that_return_something_else() -> None:
    with pytest.raises((TypeError, RuntimeError, AttributeError)):
        fastode.odeint(lambda t, y: None, start(), T)
    with pytest.raises(ZeroDivisionError):
        fastode.odeint(lambda t, y: y / (1 // 0), start(), T)
