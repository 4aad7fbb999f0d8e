"""Every option of every method changes what comes out, by every way of solving: nothing is ignored."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import fastode
from fastode.dropin.methods import OWN, is_adaptive, is_implicit, known_options
from tests.dropin.tools import F64

T = torch.linspace(0.0, 1.0, 4, dtype=F64)
FIRST = 0.3
"""A first step that is rejected, so that it matters how far steps may shrink."""

ADAPTIVE: dict[str, Any] = {
    "norm": lambda y: y.abs().max(),
    "first_step": 1e-3,
    "min_step": 0.15,
    "max_step": 0.02,
    "step_t": torch.tensor([0.123, 0.77], dtype=F64),
    "jump_t": torch.tensor([0.4], dtype=F64),
    "safety": 0.5,
    "ifactor": 1.01,
    "dfactor": 0.75,
}
FIXED: dict[str, Any] = {
    "step_size": 0.07,
    "grid_constructor": lambda f, y, t: torch.cat([t[:1], torch.tensor([0.2, 0.45], dtype=F64), t[-1:]]),
    "interp": "cubic",
    "perturb": True,
}
ADAMS: dict[str, Any] = {**FIXED, "max_order": 5, "max_iters": 1, "implicit": False}
SCIPY: dict[str, Any] = {"solver": "RK45", "max_step": 0.01}
OF_NO_EFFECT = {
    "adaptive": {"dtype", "max_num_steps"},  # of the clock that callbacks get; an error beyond, tested below
    "fixed": {"norm", "max_iters"},  # as in torchdiffeq; a warning below Newton's limit
    "adams": {"norm"},
    "scipy": {"norm", "grid_points", "eps", "min_step"},  # as in torchdiffeq; LSODA seldom heeds the last
}
IN_SHORT = {
    "program": {"dopri5", "rk4"},
    "no program": {"dopri5", "euler", "rk4", "implicit_adams", "explicit_adams", "scipy_solver", "implicit_euler"},
    "adjoint": {"dopri5", "rk4"},
}
"""What CI tries; the rest is slow together."""


class Field(torch.nn.Module):
    """y' = rate A tanh(y) (1 + sin(3 t) / 2), and 1 more after t = 0.4; counts its calls for want of a program."""

    def __init__(self, counts: bool, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.A = torch.nn.Parameter(torch.tensor([[-0.5, 1.2], [-1.1, -0.4]], dtype=F64))
        self.counts, self.calls = counts, 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.counts:
            self.calls += 1
        return self.rate * torch.tanh(y) @ self.A * (1 + torch.sin(3 * t) / 2) + torch.where(t > 0.4, 1.0, 0.0)


def kind_of(method: str) -> str:
    if method == "scipy_solver":
        return "scipy"
    return "adaptive" if is_adaptive(OWN[method]) else "adams" if "adams" in method else "fixed"


def solved(method: str, way: str, options: dict[str, Any]) -> Tensor:
    """States, and by ``odeint_adjoint`` gradients, too."""
    func = Field(counts=way != "program", rate=12.0 if kind_of(method) == "adaptive" else 2.0)
    y0 = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [2.0, -1.0]], dtype=F64, requires_grad=True)
    base: dict[str, Any] = {"adaptive": {"first_step": FIRST}, "scipy": {}}.get(kind_of(method), {"step_size": 0.1})
    options = {**base, **options}
    if "grid_constructor" in options:
        del options["step_size"]
    t = T if "perturb" not in options else torch.tensor([0.0, 0.4, 1.0], dtype=F64)
    if "perturb" in options:
        del options["step_size"]  # the grid is t, and the jump a point of it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how: dict[str, Any] = {"method": method, "options": options, "rtol": 1e-3, "atol": 1e-3}
        if way != "adjoint":
            return fastode.odeint(func, y0, t, **how).detach()
        ys = fastode.odeint_adjoint(func, y0, t, **how)
        return torch.cat([ys.detach().flatten(), torch.autograd.grad(ys.sum(), y0)[0].flatten()])


@pytest.mark.parametrize(
    ("method", "way"),
    [
        pytest.param(method, way, marks=() if method in short else pytest.mark.slow)
        for way, short in IN_SHORT.items()
        for method in OWN
    ],
)
def test_every_option(method: str, way: str) -> None:
    kind = kind_of(method)
    tried = {"adaptive": ADAPTIVE, "fixed": FIXED, "adams": ADAMS, "scipy": SCIPY}[kind]
    known = known_options(OWN[method]) - OF_NO_EFFECT[kind]
    if is_implicit(OWN[method]):
        known -= {"perturb"}  # most are never at an end of a step; tests of implicit methods look at those that are
    if kind == "adams" and method == "explicit_adams":
        known -= {"max_iters"}  # without corrector
    assert known <= set(tried)
    if way == "adjoint" and is_implicit(OWN[method]):
        known &= {"step_size", "interp"}  # the others are tried without gradient; these solves take their time
    plain = solved(method, way, {})
    for name in sorted(known):
        before = solved(method, way, {"perturb": False}) if name == "perturb" else plain
        assert not torch.equal(solved(method, way, {name: tried[name]}), before), name


@pytest.mark.parametrize("method", [name for name in OWN if is_adaptive(OWN[name])])
@pytest.mark.parametrize("counts", [False, True])
def test_too_many_steps(method: str, counts: bool) -> None:
    with pytest.raises(AssertionError, match=r"max_num_steps|MAX_STEPS"):
        fastode.odeint(Field(counts, 12.0), torch.ones(3, 2, dtype=F64), T, method=method, options={"max_num_steps": 2})
