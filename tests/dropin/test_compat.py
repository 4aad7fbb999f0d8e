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
from fastode.compat.torchdiffeq._impl import event_handling, interp, misc, rk_common, solvers
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
from torchdiffeq._impl.dopri5 import Dopri5Solver
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
