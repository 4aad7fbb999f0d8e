"""fastode.compat.torchdiffeq in the place of torchdiffeq, and solvers that users add."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor

import fastode
import fastode.compat.torchdiffeq as alias
from fastode.compat.torchdiffeq._impl import event_handling, fixed_grid_implicit, interp, misc, rk_common, solvers
from fastode.compat.torchdiffeq._impl.odeint import SOLVERS
from tests.dropin.tools import F64, FIXED, field_of, gradients, largest_difference, relative_difference, state

T = torch.linspace(0.0, 1.0, 5, dtype=F64)
their_rk, their_misc, their_interp, their_odeint, their_solvers, their_bosh3 = (
    importlib.import_module(f"torchdiffeq._impl.{name}")  # attributes of some of these names are functions there
    for name in ("rk_common", "misc", "interp", "odeint", "solvers", "bosh3")
)

SCRIPT = """
import sys
{install}
import torch, torchdiffeq
import torchdiffeq._impl.odeint
from torchdiffeq import odeint, odeint_adjoint, odeint_event, odeint_dense
from torchdiffeq._impl.odeint import SOLVERS
from torchdiffeq._impl.misc import _rms_norm, _mixed_norm, _flat_to_shape, Perturb
from torchdiffeq._impl.solvers import FixedGridODESolver, AdaptiveStepsizeODESolver
from torchdiffeq._impl.adjoint import find_parameters
from torchdiffeq._impl.fixed_grid import Euler, Midpoint, RK4
from torchdiffeq._impl.interp import _interp_evaluate, _interp_fit
from torchdiffeq._impl.event_handling import find_event
from torchdiffeq._impl.dopri5 import Dopri5Solver, _DORMAND_PRINCE_SHAMPINE_TABLEAU, DPS_C_MID
import fastode
from fastode.dropin import methods
assert odeint is fastode.odeint and odeint_event is fastode.odeint_event
assert SOLVERS is methods.SOLVERS
assert callable(torchdiffeq._impl.odeint)  # as in torchdiffeq, where the function hides the module
assert issubclass(SOLVERS["rk4"], FixedGridODESolver)
print(float(torchdiffeq.odeint(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]))[-1]))
"""


@pytest.mark.parametrize(
    "install",
    [
        "from fastode.compat.torchdiffeq import install; install()",
        "import fastode.compat.torchdiffeq as module; sys.modules['torchdiffeq'] = module",
    ],
)
def test_in_the_place_of_torchdiffeq(install: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(install=install)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(0.36787944, abs=1e-5)


def test_install_after_torchdiffeq_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="imported already"):
        alias.install()


def test_names() -> None:
    for name in ("odeint", "odeint_adjoint", "odeint_event", "odeint_dense"):
        assert getattr(alias, name) is getattr(fastode, name)
    assert set(their_odeint.SOLVERS) <= set(SOLVERS)


def rk38(self: Any, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    f0 = func(t0, y0)
    return dt * (f0 + func(t1, y0 + dt * f0)) / 2, f0


@pytest.fixture
def heun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heun's method as a user of either library would add it."""
    for base, registry in (
        (solvers.FixedGridODESolver, SOLVERS),
        (their_solvers.FixedGridODESolver, their_odeint.SOLVERS),
    ):
        monkeypatch.setitem(registry, "mine", type("Mine", (base,), {"order": 2, "_step_func": rk38}))


@pytest.mark.usefixtures("heun")
@pytest.mark.parametrize("kind", ["rows", "tuple", "complex128"])
@pytest.mark.parametrize("backward", [False, True])
def test_solvers_of_users(kind: str, backward: bool) -> None:
    t, how = T.flip(0) if backward else T, {"method": "mine", "options": {"step_size": 0.1}}
    mine, grads = gradients(fastode.odeint, field_of(kind), state(kind), t, **how)
    theirs, their_grads = gradients(torchdiffeq.odeint, field_of(kind), state(kind), t, **how)
    assert largest_difference(mine, theirs) < 1e-12
    assert relative_difference(grads, their_grads) < 1e-11
    built_in = fastode.odeint(field_of(kind), state(kind), t, method="heun2", options={"step_size": 0.1})
    assert largest_difference(mine, built_in) < 1e-12
    if kind == "rows":
        _, adjoint = gradients(fastode.odeint_adjoint, field_of(kind), state(kind), t, **how)
        _, their_adjoint = gradients(torchdiffeq.odeint_adjoint, field_of(kind), state(kind), t, **how)
        assert relative_difference(adjoint, their_adjoint) < 1e-11


def test_replaced_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still(solvers.FixedGridODESolver):
        order = 1

        def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
            return 0 * y0, y0

    monkeypatch.setitem(SOLVERS, "rk4", Still)
    solution = fastode.odeint(lambda t, y: -y, state("rows"), T, method="rk4")
    assert torch.equal(solution, state("rows").expand(5, 5, 3))


def test_adaptive_solvers_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tableau in torchdiffeq's form: Bogacki and Shampine's, from torchdiffeq itself."""
    given = their_bosh3.Bosh3Solver
    tableau = rk_common._ButcherTableau(*given.tableau)
    mine = type("Mine", (rk_common.RKAdaptiveStepsizeODESolver,), {"order": 3, "tableau": tableau, "mid": given.mid})
    monkeypatch.setitem(SOLVERS, "mine", mine)
    how = {"rtol": 1e-6, "atol": 1e-6}
    found = fastode.odeint(field_of("rows"), state("rows"), T, method="mine", **how)
    built_in = fastode.odeint(
        field_of("rows"), state("rows"), T, method="bosh3", options={"step_control": "batch"}, **how
    )
    assert largest_difference(found, built_in) < 1e-12


TABLES = {
    "dopri5": ("_DORMAND_PRINCE_SHAMPINE_TABLEAU", "DPS_C_MID"),
    "dopri8": ("_DOPRI8_TABLEAU", "C_mid"),
    "bosh3": ("_BOGACKI_SHAMPINE_TABLEAU", "_BS_C_MID"),
    "fehlberg2": ("_FEHLBERG2_TABLEAU", "_FE_C_MID"),
    "adaptive_heun": ("_ADAPTIVE_HEUN_TABLEAU", "_AH_C_MID"),
}


@pytest.mark.parametrize("method", TABLES)
@pytest.mark.parametrize("kind", ["rows", "complex128"])
def test_tables_in_solvers_of_users(method: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver made from a method's own table takes the method's own steps."""
    module = importlib.import_module(f"fastode.compat.torchdiffeq._impl.{method}")
    tableau, mid = (getattr(module, name) for name in TABLES[method])
    order = SOLVERS[method].order
    mine = type("Mine", (rk_common.RKAdaptiveStepsizeODESolver,), {"order": order, "tableau": tableau, "mid": mid})
    monkeypatch.setitem(SOLVERS, "mine", mine)
    how, t = {"rtol": 1e-5, "atol": 1e-5}, T[[0, -1]]
    found = fastode.odeint(field_of(kind), state(kind), t, method="mine", **how)
    own = fastode.odeint(field_of(kind), state(kind), t, method=method, options={"step_control": "batch"}, **how)
    assert largest_difference(found, own) < 1e-12


@pytest.mark.parametrize("method", TABLES)
def test_tables(method: str) -> None:
    """Those of torchdiffeq, up to the error's sign and a last stage that is the next step's first."""
    mine, theirs = (
        importlib.import_module(f"{root}._impl.{method}") for root in ("fastode.compat.torchdiffeq", "torchdiffeq")
    )
    (tableau, mid), (their_tableau, _) = ([getattr(m, name) for name in TABLES[method]] for m in (mine, theirs))
    n = len(their_tableau.alpha)
    torch.testing.assert_close(tableau.alpha[:n], their_tableau.alpha)
    for row, their_row in zip(tableau.beta, their_tableau.beta, strict=False):
        torch.testing.assert_close(row, their_row)
    torch.testing.assert_close(tableau.c_sol[: n + 1], their_tableau.c_sol)
    torch.testing.assert_close(tableau.c_error[: n + 1].abs(), their_tableau.c_error.abs())
    assert not tableau.c_sol[n + 1 :].any()
    c = torch.cat([torch.zeros(1, dtype=F64), tableau.alpha])
    assert float(mid.sum()) == pytest.approx(1 / 2, abs=1e-14)
    assert float(mid @ c) == pytest.approx(1 / 8, abs=1e-14)
    if method == "dopri5":
        torch.testing.assert_close(mid, theirs.DPS_C_MID, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["rows", "complex128"])
def test_tabulated_steps(kind: str) -> None:
    """Single steps as loops of other projects take them: values, and gradients by the state and the step."""

    def func(t: Tensor, y: Tensor, perturb: Any = None) -> Tensor:
        return torch.sin(t) * y**2

    found = []
    for rk, root in ((rk_common, "fastode.compat.torchdiffeq"), (their_rk, "torchdiffeq")):
        tableau = importlib.import_module(f"{root}._impl.dopri5")._DORMAND_PRINCE_SHAMPINE_TABLEAU
        t0, dt = torch.tensor(0.3, dtype=F64), torch.tensor(0.2, dtype=F64, requires_grad=True)
        y0 = state(kind).detach().requires_grad_()
        parts = rk._runge_kutta_step(func, y0, func(t0, y0), t0, dt, t0 + dt, tableau)
        loss = sum((part.abs() ** 2).sum() for part in parts)
        found.append([*parts, *torch.autograd.grad(loss, (y0, dt))])
        assert rk._RungeKuttaState(y0, parts[1], t0, t0 + dt, dt, [y0] * 5).interp_coeff[4] is y0
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


def test_step_sizes() -> None:
    t0, y0 = torch.tensor(0.3, dtype=F64), state("rows").detach()
    for order, rtol in ((1, 1e-3), (4, 1e-9)):
        args = (lambda t, y: torch.sin(t) * y, t0, y0, order, rtol, 1e-6)
        mine, theirs = (m._select_initial_step(*args, norm=m._rms_norm) for m in (misc, their_misc))
        torch.testing.assert_close(mine, theirs)
    step, safety, ifactor, dfactor = (torch.tensor(x, dtype=F64) for x in (0.25, 0.9, 10.0, 0.2))
    for ratio in (0.0, 1e-9, 0.3, 0.99, 1.0, 7.0, 1e9):
        args = (step, torch.tensor(ratio, dtype=F64), safety, ifactor, dfactor, 5)
        torch.testing.assert_close(misc._optimal_step_size(*args), their_misc._optimal_step_size(*args))


def test_small_parts() -> None:
    assert misc._convert_to_tensor(2, dtype=F64).dtype == F64
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert misc._convert_to_tensor(x) is x
    assert misc._is_finite(x)
    assert not misc._is_finite(torch.tensor([0.0, float("nan")]))
    assert not misc._is_finite(torch.tensor([float("inf"), 0.0]))
    assert misc._is_iterable((1, 2))
    assert not misc._is_iterable(1.0)
    assert float(misc._scaled_dot_product(0.5, [1.0, 2.0], [3.0, x[1]]).detach()) == 3.5
    assert fixed_grid_implicit.GaussLegendre4 is SOLVERS["gl4"]
    assert fixed_grid_implicit.GaussLegendre6 is SOLVERS["gl6"]


def test_norms() -> None:
    x = torch.tensor([3.0, -4.0])
    for name, args in (("_rms_norm", x), ("_linf_norm", x), ("_zero_norm", x), ("_mixed_norm", (x, 2 * x))):
        mine, theirs = (getattr(module, name)(args) for module in (misc, their_misc))
        assert float(mine) == pytest.approx(float(theirs))
    assert misc._mixed_norm(()) == 0.0


def test_check_inputs() -> None:
    """As solvers of other projects call it."""
    for module in (misc, their_misc):
        y0, t = (torch.ones(2), torch.zeros(3)), torch.tensor([1.0, 0.0])
        registry = SOLVERS if module is misc else their_odeint.SOLVERS
        shapes, func, flat, times, rtol, atol, method, options, event, backward = module._check_inputs(
            lambda t, y: (y[0] * t, y[1] + t), y0, t, 1e-3, (1e-4, 1e-5), None, None, None, registry
        )
        assert [tuple(shape) for shape in shapes] == [(2,), (3,)]
        assert torch.equal(flat, torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))
        assert torch.equal(times, -t)
        assert torch.equal(func(torch.tensor(-0.5), flat), -torch.tensor([0.5] * 5))
        assert (rtol, method, event, backward) == (1e-3, "dopri5", None, True)
        assert atol.shape == (5,)
        assert float(options["norm"](flat)) == 1.0
        with pytest.raises(ValueError, match="Invalid method"):
            module._check_inputs(func, flat, t, 1e-3, 1e-3, "magic", None, None, registry)


def test_interpolation() -> None:
    y0, y1, y_mid, f0, f1, dt = (torch.randn((), dtype=F64) for _ in range(6))
    theirs = their_interp
    mine = interp._interp_fit(y0, y1, y_mid, f0, f1, dt)
    ends = torch.tensor(1.0, dtype=F64), torch.tensor(3.0, dtype=F64)
    for t in torch.linspace(1.0, 3.0, 5, dtype=F64):
        want = theirs._interp_evaluate(theirs._interp_fit(y0, y1, y_mid, f0, f1, dt), *ends, t)
        torch.testing.assert_close(interp._interp_evaluate(mine, *ends, t), want)
    with pytest.raises(AssertionError):
        interp._interp_evaluate(mine, *ends, torch.tensor(3.5, dtype=F64))


def test_steps() -> None:
    def func(t: Tensor, y: Tensor, perturb: Any = None) -> Tensor:
        return torch.sin(t) * y**2

    t0, dt, y0 = torch.tensor(0.3, dtype=F64), torch.tensor(0.2, dtype=F64), state("rows")
    for name in ("rk4_step_func", "rk4_alt_step_func"):
        torch.testing.assert_close(
            getattr(rk_common, name)(func, t0, dt, t0 + dt, y0), getattr(their_rk, name)(func, t0, dt, t0 + dt, y0)
        )
    heun3 = [[0.0, 0.0, 0.0, 0.0], [1 / 3, 1 / 3, 0.0, 0.0], [2 / 3, 0.0, 2 / 3, 0.0], [0.0, 1 / 4, 0.0, 3 / 4]]
    heun2 = [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.5, 0.5]]
    for name, table in (("rk3_step_func", heun3), ("rk2_step_func", heun2)):
        mine, theirs = (
            getattr(m, name)(func, t0, dt, t0 + dt, y0, butcher_tableu=table) for m in (rk_common, their_rk)
        )
        torch.testing.assert_close(mine, theirs)


def test_event_handling() -> None:
    event = event_handling.combine_event_functions(
        lambda t, y: torch.stack([y - 2.0, 1.0 - t]), torch.tensor(0.0), torch.tensor(0.0)
    )
    assert float(event(torch.tensor(0.25), torch.tensor(0.0))) == 0.75
    t, y = event_handling.find_event(
        lambda t: t**2, torch.tensor(1.0), torch.tensor(0.0), torch.tensor(2.0), lambda t, y: 1.0 - y, 1e-6
    )
    assert float(t) == pytest.approx(1.0, abs=1e-5)
    assert float(y) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("method", FIXED)
def test_classes_can_be_used_by_themselves(method: str) -> None:
    """As by projects that take a class out of SOLVERS and drive it."""
    found = []
    for registry, module in ((SOLVERS, misc), (their_odeint.SOLVERS, their_misc)):
        _, func, y0, t, rtol, atol, _, options, _, _ = module._check_inputs(
            field_of("tuple"), state("tuple"), T, 1e-3, 1e-3, method, {"step_size": 0.1}, None, registry
        )
        found.append(registry[method](func=func, y0=y0, rtol=rtol, atol=atol, **options).integrate(t))
    assert largest_difference(*found) < 1e-13
