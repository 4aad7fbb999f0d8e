"""Errors, warnings, options, callbacks: as torchdiffeq has them."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor

import fastode
from tests.dropin.tools import F64, Field, field_of, largest_difference, state

T = torch.linspace(0.0, 1.0, 4, dtype=F64)
BOTH = pytest.mark.parametrize("lib", [fastode, torchdiffeq], ids=["fastode", "torchdiffeq"])


def decay(t: Tensor, y: Any) -> Any:
    return tuple(-x for x in y) if isinstance(y, tuple) else -y


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint", "odeint_event", "odeint_dense"])
def test_signatures(name: str) -> None:
    mine, theirs = (inspect.signature(getattr(lib, name)).parameters for lib in (fastode, torchdiffeq))
    assert list(mine) == list(theirs)
    assert [p.kind for p in mine.values()] == [p.kind for p in theirs.values()]
    defaults = [(p.name, p.default) for p in theirs.values() if not callable(p.default)]
    assert [(p.name, p.default) for p in mine.values() if not callable(p.default)] == defaults


@BOTH
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"method": "magic"}, ValueError),
        ({"t": [0.0, 1.0]}, AssertionError),
        ({"t": torch.tensor([0, 1])}, TypeError),
        ({"t": torch.tensor([[0.0, 1.0]])}, AssertionError),
        ({"t": torch.tensor(0.0)}, (AssertionError, TypeError)),
        ({"t": torch.tensor([0.0, 1.0, 1.0])}, AssertionError),
        ({"t": torch.tensor([0.0, 1.0, 0.5])}, AssertionError),
        ({"t": torch.tensor([1.0, 0.0, 0.0])}, AssertionError),
        ({"y0": [torch.ones(2)]}, AssertionError),
        ({"y0": (torch.ones(2), torch.ones(2)), "rtol": (1e-3,)}, AssertionError),
        ({"y0": (torch.ones(2), torch.ones(2)), "atol": (1e-3, 1e-3, 1e-3)}, AssertionError),
        ({"rtol": torch.tensor(1e-3, requires_grad=True)}, AssertionError),
        ({"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": lambda f, y, t: t}}, ValueError),
        ({"method": "rk4", "options": {"interp": "quintic"}}, ValueError),
        ({"method": "explicit_adams", "options": {"max_order": 13}}, AssertionError),
        ({"options": {"step_t": torch.tensor([0.5]), "jump_t": torch.tensor([0.5])}, "method": "dopri5"}, ValueError),
        ({"options": {"max_num_steps": 2}, "method": "dopri5"}, AssertionError),
    ],
)
def test_errors(lib: Any, changes: dict[str, Any], error: Any) -> None:
    given = {"func": decay, "y0": torch.ones(2), "t": T.float(), **changes}
    func, y0, t = given.pop("func"), given.pop("y0"), given.pop("t")
    with pytest.raises(error):
        lib.odeint(func, y0, t, **given)


def test_states_of_integers() -> None:
    with pytest.raises(TypeError, match="floating point"):
        fastode.odeint(decay, torch.ones(2, dtype=torch.int64), T)
    with pytest.raises(ValueError, match="step_control"):
        fastode.odeint(decay, torch.ones(2), T, options={"step_control": "magic"})


@BOTH
@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams", "scipy_solver"])
def test_unknown_options_warn(lib: Any, method: str) -> None:
    with pytest.warns(UserWarning, match=r"Unexpected arguments \{'colour': 'blue'\}"):
        lib.odeint(decay, torch.ones(2), T.float(), method=method, options={"colour": "blue"})


@BOTH
def test_adams_of_low_order_warns(lib: Any) -> None:
    with pytest.warns(UserWarning, match="max_order is below 4"):
        lib.odeint(decay, torch.ones(2), T.float(), method="explicit_adams", options={"max_order": 3})


@BOTH
@pytest.mark.parametrize(
    ("method", "given"),
    [("rk4", "callback_accept_step"), ("scipy_solver", "callback_step"), ("explicit_adams", "callback_reject_step")],
)
def test_callbacks_that_are_not_supported_warn(lib: Any, method: str, given: str) -> None:
    func = field_of("rows")
    setattr(func, given, lambda t0, y0, dt: None)
    with pytest.warns(UserWarning, match="does not support callbacks"):
        lib.odeint(func, state("rows"), T, method=method)


def test_nothing_warns_without_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastode.odeint(field_of("rows"), state("rows"), T, options={"max_num_steps": 1000, "dtype": F64})
        fastode.odeint(field_of("rows"), state("rows"), T, method="rk4", options={"norm": lambda y: y.abs().max()})


@pytest.mark.parametrize("kind", ["rows", "tuple"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_callbacks(kind: str, backward: bool, method: str) -> None:
    """What callbacks are given is what torchdiffeq's are given, up to the last step, which here ends at the end."""
    logs: dict[Any, list[Any]] = {}
    t = T.flip(0) if backward else T
    for lib in (fastode, torchdiffeq):
        func, log = field_of(kind), []
        logs[lib] = log
        names = ["step", "accept_step", "reject_step"] if method == "dopri5" else ["step"]
        for name in names:

            def callback(t0: Tensor, y0: Any, dt: Tensor, name: str = name, log: list[Any] = log) -> None:
                assert isinstance(y0, tuple) == (kind == "tuple")
                log.append((name, float(t0), float(dt), t0.dtype, dt.ndim))

            setattr(func, f"callback_{name}", callback)
        lib.odeint(func, state(kind), t, method=method, rtol=1e-5, atol=1e-5)
    mine, theirs = logs[fastode], logs[torchdiffeq]
    assert len(mine) == len(theirs)
    last = 1 if method == "rk4" else 0
    for a, b in zip(mine[: len(mine) - 4 + 4 * last], theirs, strict=False):
        assert a[0] == b[0]
        assert a[3:] == b[3:]
        assert a[1:3] == pytest.approx(b[1:3], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", ["rows", "tuple", "complex128"])
def test_jumps_and_prescribed_times(kind: str, backward: bool) -> None:
    class Jumps(Field):
        def slope(self, t: Tensor, y: Tensor) -> Tensor:
            return super().slope(t, y) + torch.where(t < 0.4, 0.0, 3.0)

    steps: list[float] = []

    func, y0, t = Jumps(kind), state(kind), T.flip(0) if backward else T
    func.callback_accept_step = lambda t0, y0, dt: steps.append(float(t0))  # type: ignore[assignment]
    options = {"jump_t": torch.tensor([0.4], dtype=F64), "step_t": torch.tensor([0.77], dtype=F64)}
    mine = fastode.odeint(func, y0, t, method="dopri5", options=options)
    assert 0.4 in steps
    assert 0.77 in steps
    times = [0.0, 0.4 - 1e-13, 0.4, 1.0]
    pieces, value = [], y0
    for a, b in ((1.0, 0.4), (0.4 - 1e-12, 0.0)) if backward else ((0.0, 0.4 - 1e-12), (0.4, 1.0)):
        solution = torchdiffeq.odeint(func, value, torch.tensor([a, b], dtype=F64), rtol=1e-11, atol=1e-12)
        value = tuple(x[-1] for x in solution) if isinstance(y0, tuple) else solution[-1]
        pieces.append(value)
    end = tuple(x[-1] for x in mine) if isinstance(y0, tuple) else mine[-1]
    assert largest_difference(end, pieces[-1]) < 1e-6
    assert len(times) == 4


def test_norm_of_the_users() -> None:
    """It is called with states in the user's form, and decides."""
    for kind in ("rows", "tuple"):
        shapes = []

        def norm(y: Any, kind: str = kind, shapes: list[Any] = shapes) -> Any:
            shapes.append([x.shape for x in y] if isinstance(y, tuple) else y.shape)
            return 0.0 if kind == "rows" else max(x.abs().max() for x in y)

        func = field_of(kind, counts=True)
        fastode.odeint(func, state(kind), T, method="dopri5", options={"norm": norm})
        assert shapes[0] == (torch.Size((5, 3)) if kind == "rows" else [torch.Size((5, 3)), torch.Size((5, 2, 3))])
        if kind == "rows":
            assert func.nfe < 60  # nothing is an error: steps grow tenfold


def test_min_step_accepts_whatever_the_error() -> None:
    counts = {}
    for lib in (fastode, torchdiffeq):
        func = field_of("rows", counts=True)
        lib.odeint(func, state("rows"), T, method="dopri5", options={"min_step": 0.25})
        counts[lib] = func.nfe
    assert abs(counts[fastode] - counts[torchdiffeq]) <= 6


@pytest.mark.parametrize("options", [{"max_step": 0.02}, {"first_step": 1e-4}, {"safety": 0.5}, {"ifactor": 1.5}])
@pytest.mark.parametrize("step_control", ["auto", "batch"])
def test_constants_of_step_control(options: dict[str, Any], step_control: str) -> None:
    mine = fastode.odeint(
        field_of("rows"), state("rows"), T, method="dopri5", options={**options, "step_control": step_control}
    )
    assert largest_difference(mine, torchdiffeq.odeint(field_of("rows"), state("rows"), T)) < 5e-6


def test_dictionaries_of_options_stay_as_they_are() -> None:
    options = {"step_control": "batch", "first_step": 0.1}
    fastode.odeint(decay, torch.ones(3), T, options=options)
    assert options == {"step_control": "batch", "first_step": 0.1}


@pytest.mark.parametrize("solver", ["LSODA", "RK45", "Radau", "BDF", "DOP853"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", ["rows", "tuple", "0-d"])
def test_scipy(solver: str, backward: bool, kind: str) -> None:
    t, how = T.flip(0) if backward else T, {"rtol": 1e-8, "atol": 1e-9}
    mine = fastode.odeint(field_of(kind), state(kind), t, method="scipy_solver", options={"solver": solver}, **how)
    assert largest_difference(mine, fastode.odeint(field_of(kind), state(kind), t)) < 1e-5


def test_options_that_cannot_be_obeyed_warn() -> None:
    """A smallest step of solvers that have none, and a limit of iterations below the one of Newton's method."""
    with pytest.warns(UserWarning, match="min_step"):
        fastode.odeint(decay, torch.ones(2), T, method="scipy_solver", options={"solver": "RK45", "min_step": 0.1})
    with pytest.warns(UserWarning, match=r"max_iters=3 is no limit here: .* up to 50 iterations"):
        ys = fastode.odeint(decay, torch.ones(2), T, method="implicit_euler", options={"max_iters": 3})
    assert torch.equal(ys, fastode.odeint(decay, torch.ones(2), T, method="implicit_euler", options={"max_iters": 100}))


def test_adams_without_corrector() -> None:
    t, how = torch.linspace(0.0, 1.0, 21, dtype=torch.float64), {"options": {"implicit": False}}
    mine, theirs = (
        lib.odeint(field_of("rows"), state("rows"), t, method="implicit_adams", **how) for lib in (fastode, torchdiffeq)
    )
    assert largest_difference(mine, theirs) < 1e-10
    assert torch.equal(mine, fastode.odeint(field_of("rows"), state("rows"), t, method="explicit_adams"))
