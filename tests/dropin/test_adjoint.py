"""odeint_adjoint: exact gradients by default, the adjoint equation where it is asked for, errors and warnings."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor

import fastode
from tests.dropin.tools import F64, KINDS, Field, field_of, gradients, loss_of, parts, relative_difference, some, state

FORWARD, BACKWARD = torch.linspace(0.2, 1.4, 4, dtype=F64), torch.linspace(1.0, -0.2, 3, dtype=F64)


@pytest.mark.parametrize(
    ("how", "kind", "counts", "t"),
    some(
        [{}, {"method": "rk4", "options": {"step_size": 0.13}}, {"method": "implicit_adams"}],
        KINDS,
        [False, True],
        [FORWARD, BACKWARD],
        of=2,
    ),
)
def test_exact_gradients(how: dict[str, Any], kind: str, counts: bool, t: Tensor) -> None:
    y0 = state(kind)
    _, adjoint = gradients(fastode.odeint_adjoint, field_of(kind, counts=counts), y0, t, **how)
    _, direct = gradients(fastode.odeint, field_of(kind), y0, t, **how)
    assert all(g is not None for g in adjoint)
    assert relative_difference(adjoint, direct) < (1e-6 if how.get("method") is None else 1e-12)


EQUATIONS: list[dict[str, Any]] = [
    {"adjoint_options": {}},
    {"adjoint_options": {"norm": "seminorm"}},
    {"options": {"gradient": "adjoint"}},
    {"method": "rk4", "options": {"step_size": 0.04, "gradient": "adjoint"}},
    {"adjoint_method": "bosh3", "adjoint_options": {}, "adjoint_rtol": 1e-6, "adjoint_atol": 1e-6},
    {"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.04}},
]


@pytest.mark.parametrize(
    ("how", "kind", "counts", "t"), some(EQUATIONS, KINDS, [False, True], [FORWARD, BACKWARD], of=4)
)
def test_adjoint_equation(how: dict[str, Any], kind: str, counts: bool, t: Tensor) -> None:
    y0 = state(kind)
    _, adjoint = gradients(fastode.odeint_adjoint, field_of(kind, counts=counts), y0, t, **how)
    _, exact = gradients(fastode.odeint, field_of(kind), y0, t, rtol=1e-11, atol=1e-11)
    bound = 1e-3 if "adjoint_rtol" in how else 2e-5
    assert relative_difference(adjoint, exact) < bound
    if kind != "complex128":  # of which torchdiffeq's adjoint has no gradients by real parameters
        own = {key: value for key, value in how.items() if key != "options"}
        options = {key: value for key, value in how.get("options", {}).items() if key != "gradient"}
        _, theirs = gradients(torchdiffeq.odeint_adjoint, field_of(kind), y0, t, options=options or None, **own)
        assert relative_difference(adjoint, theirs) < bound


def test_unused_and_foreign_parameters() -> None:
    func, other = field_of("rows"), torch.ones(2, dtype=F64, requires_grad=True)
    params = [func.W, func.unused, other]
    for how in ({}, {"adjoint_options": {}}):
        solution = fastode.odeint_adjoint(func, state("rows"), FORWARD, adjoint_params=params, **how)
        grads = torch.autograd.grad(loss_of(solution), params)
        assert grads[0].abs().max() > 0
        assert torch.equal(grads[1], torch.zeros(2, dtype=F64))
        assert torch.equal(grads[2], torch.zeros(2, dtype=F64))
        solution = fastode.odeint_adjoint(func, state("rows"), FORWARD, adjoint_params=[func.W], **how)
        with pytest.raises(RuntimeError, match="appears to not have been used"):
            torch.autograd.grad(loss_of(solution), func.b)


def test_no_parameters_at_all() -> None:
    y0 = state("rows").requires_grad_()
    w = torch.randn(3, 3, dtype=F64, requires_grad=True)
    solution = fastode.odeint_adjoint(lambda t, y: torch.tanh(y @ w), y0, FORWARD, adjoint_params=())
    assert torch.autograd.grad(solution.sum(), y0)[0].abs().max() > 0
    assert not fastode.odeint_adjoint(lambda t, y: y @ w, y0.detach(), FORWARD, adjoint_params=()).requires_grad
    with torch.no_grad():
        assert not fastode.odeint_adjoint(lambda t, y: y @ w, y0, FORWARD, adjoint_params=()).requires_grad


def test_errors_of_torchdiffeq() -> None:
    func, y0 = field_of("rows"), state("rows")
    for odeint_adjoint in (fastode.odeint_adjoint, torchdiffeq.odeint_adjoint):
        with pytest.raises(ValueError, match=r"must be an instance of nn\.Module"):
            odeint_adjoint(lambda t, y: -y, y0, FORWARD)
        with pytest.raises(ValueError, match="cannot infer `adjoint_options`"):
            odeint_adjoint(func, y0, FORWARD, method="rk4", adjoint_method="dopri5", options={"step_size": 0.1})
    with pytest.raises(ValueError, match="gradient must be one of"):
        fastode.odeint_adjoint(func, y0, FORWARD, options={"gradient": "magic"})


def test_frozen_parameters_warn_only_with_a_norm() -> None:
    for odeint_adjoint in (fastode.odeint_adjoint, torchdiffeq.odeint_adjoint):
        func = field_of("rows")
        func.b.requires_grad_(False)
        norm = lambda state: state[0].abs()  # noqa: E731
        with pytest.warns(UserWarning, match="passed without requiring gradient"):
            odeint_adjoint(func, state("rows"), FORWARD, adjoint_options={"norm": norm})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            solution = odeint_adjoint(func, state("rows"), FORWARD)
        solution.sum().backward()
        assert func.b.grad is None
        assert func.W.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["rows", "tuple"])
@pytest.mark.parametrize("choice", [None, "seminorm", "own"])
def test_norm_in_force(kind: str, choice: str | None) -> None:
    """What the norm is given, and what it gives, are torchdiffeq's."""
    found = []
    for lib in (fastode, torchdiffeq):
        func, calls = field_of(kind), []

        def own(state: Any, calls: list[Any] = calls) -> Tensor:
            calls.append([x.shape for x in state])
            return torch.stack([x.abs().max() for x in state if x.numel()]).max()

        options = {} if choice is None else {"norm": own if choice == "own" else choice}
        solution = lib.odeint_adjoint(func, state(kind), FORWARD, adjoint_options=options)
        if kind == "rows":
            norm = solution.grad_fn.adjoint_options["norm"]
            given = [torch.tensor(1.0), torch.full((5, 3), 2.0), torch.full((5, 3), 3.0), torch.full((4,), 9.0)]
            found.append(float(norm(tuple(given))))
            calls.clear()
        parts(solution)[0].sum().backward()
        found.append(calls[0] if calls else None)
    half = len(found) // 2
    assert found[:half] == found[half:]


@pytest.mark.parametrize("options", [None, {}, {"norm": "seminorm"}])
def test_norm_can_be_replaced(options: dict[str, Any] | None) -> None:
    """As torchdiffeq's users do to look at it; it is then the norm of the adjoint equation on either path."""
    func, shapes = field_of("rows"), []
    solution = fastode.odeint_adjoint(func, state("rows"), FORWARD, adjoint_options=options)
    former = solution.grad_fn.adjoint_options["norm"]

    def spy(state: Any) -> Any:
        shapes.append([tuple(x.shape) for x in state])
        return former(state)

    solution.grad_fn.adjoint_options["norm"] = spy
    (grad,) = torch.autograd.grad(loss_of(solution), func.W)
    assert shapes
    assert shapes[0] == [(), (5, 3), (5, 3), (3, 3), (3,), (2,)]
    exact = torch.autograd.grad(loss_of(fastode.odeint(func, state("rows"), FORWARD)), func.W)[0]
    torch.testing.assert_close(grad, exact, rtol=1e-4, atol=1e-5)


def test_options_given_to_both_functions_keep_their_norm_to_themselves() -> None:
    """The forward norm counts for y and adj_y, and user's dictionaries stay as they were."""
    options = {"norm": lambda y: y.abs().max()}
    before = dict(options)
    solution = fastode.odeint_adjoint(field_of("rows"), state("rows"), FORWARD, options=options)
    assert options == before
    norm = solution.grad_fn.adjoint_options["norm"]
    y = torch.tensor([[1.0, 5.0]])
    assert float(norm((torch.tensor(0.0), y, 0 * y, torch.zeros(3)))) == 5.0


def test_callbacks_of_the_adjoint_equation() -> None:
    seen: dict[Any, list[Any]] = {}

    class Watched(Field):
        log: list[Any]

        def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
            self.log.append("forward")

        def callback_step_adjoint(self, t0: Tensor, y0: Any, dt: Tensor) -> None:
            self.log.append((type(y0), len(y0), float(t0)))

    for lib in (fastode, torchdiffeq):
        func = Watched("rows")
        log = func.log = seen[lib] = []
        solution = lib.odeint_adjoint(func, state("rows"), FORWARD, method="rk4")
        n = len(log)
        assert set(log) == {"forward"}
        solution.sum().backward()
        assert len(log) > n
    assert seen[fastode] == seen[torchdiffeq]


def test_second_derivatives() -> None:
    found = []
    for odeint in (fastode.odeint_adjoint, fastode.odeint):
        func, y0 = field_of("rows"), state("rows").requires_grad_()
        grads = torch.autograd.grad(loss_of(odeint(func, y0, FORWARD)), (y0, func.W), create_graph=True)
        found.append(list(torch.autograd.grad(grads[0].square().sum() + grads[1].sum(), (y0, func.W))))
    assert relative_difference(*found) < 1e-10


def test_second_derivative_of_the_adjoint_equation_is_an_error() -> None:
    y0 = state("rows").requires_grad_()
    solution = fastode.odeint_adjoint(field_of("rows"), y0, FORWARD, options={"gradient": "adjoint"})
    (grad,) = torch.autograd.grad(loss_of(solution), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        torch.autograd.grad(grad.sum(), y0)


def test_replicas_of_data_parallel() -> None:
    """Their parameters are results of operations, held as attributes."""
    func = field_of("rows")
    replica = copy.copy(func)
    replica.__dict__ = {**func.__dict__, "_parameters": {}, "_is_replica": True}
    held = {name: p * 1.0 for name, p in func.named_parameters()}
    replica.__dict__.update(held)
    for how in ({}, {"adjoint_options": {}}):
        func.zero_grad()
        loss_of(fastode.odeint_adjoint(replica, state("rows"), FORWARD, **how)).backward(retain_graph=True)
        exact = torch.autograd.grad(loss_of(fastode.odeint(func, state("rows"), FORWARD)), (func.W, func.b))
        assert relative_difference([func.W.grad, func.b.grad], list(exact)) < 1e-5
        assert torch.equal(func.unused.grad, torch.zeros(2, dtype=F64))


def test_scipy_solver_has_the_gradient_of_the_adjoint_equation() -> None:
    func, y0 = field_of("rows"), state("rows")
    how = {"method": "scipy_solver", "options": {"solver": "DOP853"}, "rtol": 1e-9, "atol": 1e-9}
    _, mine = gradients(fastode.odeint_adjoint, func, y0, FORWARD, **how)
    _, exact = gradients(fastode.odeint, func, y0, FORWARD)
    assert relative_difference(mine, exact) < 1e-5


def test_random_functions_fall_back_to_the_adjoint_equation() -> None:
    class Noisy(Field):
        def forward(self, t: Tensor, y: Any) -> Any:
            return super().forward(t, y) * (1 + 0.1 * torch.rand(()))

    func = Noisy("rows")
    solution = fastode.odeint_adjoint(func, state("rows"), FORWARD, method="rk4")
    with pytest.warns(UserWarning, match="gives other values"):
        solution.sum().backward()
    assert torch.isfinite(func.W.grad).all()


@pytest.mark.parametrize("kind", ["rows", "tuple"])
def test_tolerances_of_parts_in_the_adjoint_equation(kind: str) -> None:
    y0 = state(kind)
    tol = [1e-9] * len(y0) if kind == "tuple" else torch.full((5, 3), 1e-9, dtype=F64)
    _, mine = gradients(fastode.odeint_adjoint, field_of(kind), y0, FORWARD, rtol=tol, atol=tol, adjoint_options={})
    _, exact = gradients(fastode.odeint, field_of(kind), y0, FORWARD, rtol=1e-10, atol=1e-10)
    assert relative_difference(mine, exact) < 1e-5


def test_module_whose_parameters_are_shared_with_the_start() -> None:
    func = field_of("rows")
    y0 = (torch.ones(4, 3, dtype=F64) @ func.W).tanh()
    found = [
        torch.autograd.grad(loss_of(odeint(func, y0, FORWARD)), (func.W, func.b), retain_graph=True)
        for odeint in (fastode.odeint_adjoint, fastode.odeint)
    ]
    assert relative_difference(list(found[0]), list(found[1])) < 1e-11


@pytest.mark.parametrize("how", [{}, {"adjoint_options": {}}])
def test_parameters_that_are_computed_from_each_other(how: dict[str, Any]) -> None:
    a = torch.randn(3, 3, dtype=F64, requires_grad=True)
    b = torch.tanh(a)
    func = lambda t, y: torch.tanh(y @ a) + y @ b  # noqa: E731
    found = [
        torch.autograd.grad(loss_of(solution), a, retain_graph=True)[0]
        for solution in (
            fastode.odeint_adjoint(func, state("rows"), FORWARD, adjoint_params=(a, b), **how),
            fastode.odeint(func, state("rows"), FORWARD),
        )
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_third_derivatives_with_a_start_that_depends_on_the_parameters() -> None:
    found = []
    for odeint in (fastode.odeint_adjoint, fastode.odeint):
        func = field_of("rows")
        x = state("rows").requires_grad_()
        y0 = (x @ func.W).tanh()
        t = (FORWARD * func.b[0]).abs()
        inputs, total = [x, func.W, func.b], loss_of(odeint(func, y0, t)) + (y0**2).sum()
        for _ in range(2):
            grads = torch.autograd.grad(total, inputs, create_graph=True)
            total = sum((g.square().sum() for g in grads), torch.zeros((), dtype=F64))
        found.append(list(torch.autograd.grad(total, inputs)))
    assert relative_difference(*found) < 1e-9
