"""Solvers that other programs drive step by step, and parts of torchdiffeq that they put together by themselves."""

from __future__ import annotations

import importlib
import pkgutil
import types
from typing import Any

import pytest
import torch
from torch import Tensor

import fastode
from fastode.compat.torchdiffeq._impl import adjoint, dopri5, interp, misc, rk_common
from fastode.compat.torchdiffeq._impl.odeint import SOLVERS, ImplicitFnGradientRerouting
from tests.dropin.tools import F64, field_of, largest_difference, relative_difference, state

T = torch.linspace(0.0, 1.0, 5, dtype=F64)
CONTROL = {"options": {"step_control": "batch"}, "rtol": 1e-6, "atol": 1e-6}
their_misc, their_adjoint = (importlib.import_module(f"torchdiffeq._impl.{name}") for name in ("misc", "adjoint"))

NOT_HERE = {
    "_UncheckedAssign",  # how torchdiffeq writes stages into a buffer
    "np_nextafter",
    "vjp",
    "solve_ivp",
    "convert_func_to_numpy",
    *("Enum", "A", "B", "C_sol", "C_err", "h", "_C_mid"),
    *("_BASHFORTH_COEFFICIENTS", "_MOULTON_COEFFICIENTS", "_DIVISOR", "_BASHFORTH_DIVISOR", "_MOULTON_DIVISOR"),
    *("_MIN_ORDER", "_MAX_ORDER", "_MAX_ITERS", "_dot_product"),
}
"""Names of torchdiffeq that no program found imports."""


@pytest.mark.parametrize(
    "name", [found.name for found in pkgutil.iter_modules(importlib.import_module("torchdiffeq._impl").__path__)]
)
def test_names(name: str) -> None:
    theirs = importlib.import_module(f"torchdiffeq._impl.{name}")
    mine = importlib.import_module(f"fastode.compat.torchdiffeq._impl.{name}")
    names = {key for key, value in vars(theirs).items() if not isinstance(value, types.ModuleType) and key[:2] != "__"}
    assert names - NOT_HERE <= set(vars(mine))


def solver_of(method: str, kind: str, cls: Any = None) -> Any:
    how = {**CONTROL["options"]}
    _, func, y0, _, rtol, atol, _, _, _, _ = misc._check_inputs(
        field_of(kind), state(kind), T, 1e-6, 1e-6, method, how, None, SOLVERS
    )
    return (cls or SOLVERS[method])(func=func, y0=y0, rtol=rtol, atol=atol)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "tsit5"])
@pytest.mark.parametrize("kind", ["rows", "complex64", "0-d"])
def test_driven_by_states(method: str, kind: str) -> None:
    """A loop over steps, with the polynomial of each step, gives the solver's own solution."""
    solver = solver_of(method, kind)
    solver._before_integrate(T)
    first = solver.rk_state
    assert first.t0 == first.t1 == T[0]
    assert first.y1 is solver.y0
    found = [solver.y0]
    for t in T[1:]:
        while t > solver.rk_state.t1:
            solver.rk_state = solver._adaptive_step(solver.rk_state)
        now = solver.rk_state
        assert len(now.interp_coeff) >= 5
        torch.stack(now.interp_coeff)
        found.append(interp._interp_evaluate(now.interp_coeff, now.t0, now.t1, t))
    own = fastode.odeint(field_of(kind), state(kind), T, method=method, **CONTROL)
    assert largest_difference(torch.stack(found), own) < (1e-5 if kind == "complex64" else 1e-13)


def test_driven_without_an_end() -> None:
    """A solver that knows its start alone, given as a list, and a function without callbacks."""
    func = misc._PerturbFunc(lambda t, y: -y)
    solver = dopri5.Dopri5Solver(func=func, y0=torch.ones(2), rtol=1e-6, atol=1e-6, norm=misc._rms_norm)
    solver._before_integrate([torch.tensor(0.0, dtype=F64)])
    for _ in range(5):
        solver.rk_state = solver._adaptive_step(solver.rk_state)
    now = solver.rk_state
    assert now.t1 > now.t0 > 0
    torch.testing.assert_close(now.y1, torch.exp(-now.t1).float().expand(2), rtol=1e-5, atol=0)
    torch.testing.assert_close(now.f1, -now.y1)


def test_steps_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass sees every attempt, and may change the state between steps."""
    seen: list[Any] = []

    class Watching(SOLVERS["dopri5"]):
        def _adaptive_step(self, rk_state: Any) -> Any:
            seen.append(super()._adaptive_step(rk_state))
            return seen[-1]

    class Clamped(Watching):
        def _adaptive_step(self, rk_state: Any) -> Any:
            done = super()._adaptive_step(rk_state)
            return done._replace(y1=done.y1.clamp(max=0.5))

    monkeypatch.setitem(SOLVERS, "watching", Watching)
    monkeypatch.setitem(SOLVERS, "clamped", Clamped)
    own = fastode.odeint(field_of("rows"), state("rows"), T, method="dopri5", **CONTROL)
    how = {"rtol": 1e-6, "atol": 1e-6}
    assert largest_difference(fastode.odeint(field_of("rows"), state("rows"), T, method="watching", **how), own) < 1e-13
    assert len(seen) > 3
    assert seen[-1].t1 == T[-1]
    clamped = fastode.odeint(field_of("rows"), state("rows"), T, method="clamped", **how)
    assert clamped[-1].max() <= 0.5 < own[-1].max()


def test_steps_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that a subclass takes wholly by itself: here of 1/8, by the rule of the rectangle."""

    class Rectangles(rk_common.RKAdaptiveStepsizeODESolver):
        order, tableau, mid = 5, dopri5._DORMAND_PRINCE_SHAMPINE_TABLEAU, dopri5.DPS_C_MID

        def _adaptive_step(self, rk_state: Any) -> Any:
            y0, f0, _, t0, *_ = rk_state
            t1, y1 = t0 + 0.125, y0 + f0 / 8
            line = [y0, y1 - y0]
            return rk_common._RungeKuttaState(y1, self.func(t1, y1), t0, t1, t1 - t0, line)

    monkeypatch.setitem(SOLVERS, "rectangles", Rectangles)
    t = torch.tensor([0.0, 0.25, 0.3125], dtype=F64)
    found = fastode.odeint(lambda t, y: -y, torch.ones(1, dtype=F64), t, method="rectangles")
    torch.testing.assert_close(found[:, 0], torch.tensor([1.0, (7 / 8) ** 2, (7 / 8) ** 2 * 15 / 16], dtype=F64))


def test_polynomial_of_a_step() -> None:
    solver = solver_of("dopri5", "rows", type("Mine", (rk_common.RKAdaptiveStepsizeODESolver,), vars(Mine).copy()))
    y0, y1, k, dt = state("rows"), state("rows") + 1, torch.randn(5, 3, 7, dtype=F64), torch.tensor(0.3, dtype=F64)
    found = solver._interp_fit(y0, y1, k, dt)
    middle = y0 + dt * k @ dopri5.DPS_C_MID
    torch.testing.assert_close(interp._interp_evaluate(found, 0 * dt, dt, dt / 2), middle)
    torch.testing.assert_close(interp._interp_evaluate(found, 0 * dt, dt, dt), y1)


class Mine:
    order, tableau, mid = 5, dopri5._DORMAND_PRINCE_SHAMPINE_TABLEAU, dopri5.DPS_C_MID


def test_functions_in_parts() -> None:
    """A tuple, backward in time, beside a jump: as ``_check_inputs`` puts it together."""
    shapes = [torch.Size([2]), torch.Size([3])]
    flat, t = torch.arange(5.0), torch.tensor(-0.5)
    for module in (misc, their_misc):
        parts = module._TupleFunc(lambda t, y: (y[0] * t, y[1] + t), shapes)
        func = module._PerturbFunc(module._ReverseFunc(parts, mul=-1.0))
        assert torch.equal(func(t.double(), flat), -torch.tensor([0.0, 0.5, 2.5, 3.5, 4.5]))
        beside = func(t, flat, perturb=module.Perturb.NEXT)
        assert 0 < (beside - func(t, flat)).abs().max() < 1e-6
        with pytest.raises(AssertionError, match="Perturb enum"):
            func(t, flat, perturb=True)
        event = module._TupleInputOnlyFunc(lambda t, y: y[1].sum() - t, shapes)
        assert float(event(t, flat)) == 9.5
        assert list(func.parameters()) == []


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("_check_timelike", ("t", [0.0], True)),
        ("_check_timelike", ("t", torch.tensor([0, 1]), True)),
        ("_check_timelike", ("t", torch.tensor([0.0, 2.0, 1.0]), True)),
        ("_check_timelike", ("t", torch.tensor([[0.0, 2.0]]), True)),
        ("_check_timelike", ("t", torch.tensor([0.0, 2.0], requires_grad=True), False)),
        ("_check_timelike", ("t", torch.tensor([0.0, 2.0], requires_grad=True), True)),
        ("_assert_increasing", ("t", torch.tensor([1.0, 0.0]))),
        ("_assert_floating", ("t", torch.tensor([1, 0]))),
        ("_assert_one_dimensional", ("t", torch.tensor(1.0))),
        ("_decreasing", (torch.tensor([1.0, 0.0]),)),
        ("_decreasing", (torch.tensor([1.0, 0.0, 2.0]),)),
        ("_nextafter", (torch.tensor(1.0), torch.tensor(2.0))),
        ("_tuple_tol", ("rtol", (1e-3, 1e-4), [torch.Size([2]), torch.Size([])])),
        ("_tuple_tol", ("rtol", (1e-3,), [torch.Size([2]), torch.Size([])])),
    ],
)
def test_checks(name: str, args: tuple[Any, ...]) -> None:
    """Values, and classes and words of errors."""
    found = []
    for module in (misc, their_misc):
        try:
            found.append(getattr(module, name)(*args))
        except (AssertionError, TypeError) as error:
            found.append((type(error), str(error)))
    if isinstance(found[0], Tensor):
        assert torch.equal(*found)
    else:
        assert found[0] == found[1]


def test_small_parts() -> None:
    options: dict[str, Any] = {"step_t": torch.tensor([1.0, 2.0])}
    misc._flip_option(options, "step_t")
    misc._flip_option(options, "jump_t")
    assert torch.equal(options.pop("step_t"), torch.tensor([-1.0, -2.0]))
    assert options == {}
    assert torch.equal(rk_common._sort_tvals(torch.tensor([3.0, 0.0, 1.0]), 1.0), torch.tensor([1.0, 3.0]))
    x = torch.tensor(1.0, requires_grad=True)
    moved = misc._nextafter(x, x + 1)
    assert moved > x
    assert torch.autograd.grad(moved, x)[0] == 1


@pytest.mark.parametrize("norm", [None, "seminorm"])
@pytest.mark.parametrize("kind", ["rows", "tuple"])
def test_adjoint_in_parts(kind: str, norm: str | None) -> None:
    """A solve put together from the inside of ``odeint_adjoint``, against torchdiffeq's, put together likewise."""
    found = []
    for module, parts in ((adjoint, misc), (their_adjoint, their_misc)):
        func, t = field_of(kind), T.clone().requires_grad_()
        y0 = state(kind)
        leaves = [part.requires_grad_() for part in (y0 if isinstance(y0, tuple) else (y0,))]
        params = tuple(module.find_parameters(func))
        settings: dict[str, Any] = {} if norm is None else {"norm": norm}
        shapes, flat_func, flat, times, rtol, atol, method, options, event, _ = parts._check_inputs(
            func, y0, t, 1e-9, 1e-9, "dopri5", {}, None, module.SOLVERS
        )
        module.handle_adjoint_norm_(settings, shapes, options["norm"])
        args = (1e-9, 1e-9, "dopri5", settings, True, *params)
        ys = module.OdeintAdjointMethod.apply(shapes, flat_func, flat, times, rtol, atol, method, options, event, *args)
        grads = torch.autograd.grad((ys**2).sum(), [*leaves, t, *params], allow_unused=True)
        found.append([g for g in grads if g is not None and g.any()])
    assert relative_difference(*found) < 1e-6


def test_event_in_parts() -> None:
    """Time and state of an event get their gradients, as torchdiffeq's function gives them."""
    rate = torch.tensor(0.5, dtype=F64, requires_grad=True)
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    t = torch.tensor(1.0, dtype=F64)
    found = []
    theirs = importlib.import_module("torchdiffeq._impl.odeint").ImplicitFnGradientRerouting
    for way in (ImplicitFnGradientRerouting, theirs):
        y = y0 * torch.exp(-rate)  # at t = 1
        event_t, end = way.apply(lambda t, y: -0.5 * y, lambda t, y: y.sum() - 1, t, y)
        found.append(list(torch.autograd.grad(event_t + (end**3).sum(), (y0, rate))))
    assert relative_difference(*found) < 1e-10


def test_gradients_of_a_driven_loop() -> None:
    """Steps driven by a program are as differentiable as the solver's own."""
    grads = []
    for driven in (False, True):
        func, y0 = field_of("rows"), state("rows").requires_grad_()
        if driven:
            solver = solver_of("dopri5", "rows")
            solver.func.base_func, solver.y0 = func, y0
            solver._before_integrate(T[[0, -1]])
            while T[-1] > solver.rk_state.t1:
                solver.rk_state = solver._adaptive_step(solver.rk_state)
            end = solver.rk_state.y1
        else:
            end = fastode.odeint(func, y0, T[[0, -1]], **CONTROL)[-1]
        grads.append(list(torch.autograd.grad((end**2).sum(), (y0, func.W, func.b))))
    assert relative_difference(*grads) < 1e-12
