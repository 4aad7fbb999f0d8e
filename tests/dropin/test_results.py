"""Solutions against those of torchdiffeq, for every method, state and direction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchdiffeq

import fastode
from tests.dropin.tools import (
    ADAMS,
    ADAPTIVE,
    F64,
    FIXED,
    KINDS,
    TOLERANCE,
    Field,
    field_of,
    largest,
    largest_difference,
    parts,
    some,
    state,
)

FORWARD, BACKWARD = torch.linspace(0.2, 2.2, 7, dtype=F64), torch.linspace(1.5, -0.5, 4, dtype=F64)


def truth(func: Any, y0: Any, t: torch.Tensor) -> Any:
    with torch.no_grad():
        return torchdiffeq.odeint(func, y0, t, rtol=1e-12, atol=1e-13, method="dopri8")


def assert_as_accurate(solve: Any, func: Any, y0: Any, t: torch.Tensor, tol: float) -> None:
    """The error is at most three times torchdiffeq's, or thirty times the tolerance of one step."""
    exact = truth(func, y0, t)
    error = largest_difference(solve(fastode.odeint), exact)
    baseline = largest_difference(solve(torchdiffeq.odeint), exact)
    assert error <= 3 * baseline + 30 * tol * largest(exact)


@pytest.mark.parametrize("t", [FORWARD, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods(method: str, kind: str, t: torch.Tensor) -> None:
    func, y0, tol = field_of(kind), state(kind), TOLERANCE[method]
    assert_as_accurate(lambda odeint: odeint(func, y0, t, rtol=tol, atol=tol, method=method), func, y0, t, tol)


@pytest.mark.parametrize("kind", KINDS)
def test_tsit5_which_this_torchdiffeq_has_not(kind: str) -> None:
    func, y0 = field_of(kind), state(kind)
    exact = truth(func, y0, FORWARD)
    assert largest_difference(fastode.odeint(func, y0, FORWARD, rtol=1e-8, atol=1e-8, method="tsit5"), exact) < 1e-6


@pytest.mark.parametrize(
    ("method", "kind", "t", "options"),
    some(FIXED, KINDS, [FORWARD, BACKWARD], [None, {"step_size": 0.0473}, {"step_size": 0.1, "interp": "cubic"}]),
)
def test_fixed_steps_to_rounding(method: str, kind: str, t: torch.Tensor, options: Any) -> None:
    func, y0 = field_of(kind), state(kind)
    mine = fastode.odeint(func, y0, t, method=method, options=options)
    theirs = torchdiffeq.odeint(func, y0, t, method=method, options=options)
    assert largest_difference(mine, theirs) <= 1e-13 * largest(theirs)


@pytest.mark.parametrize(
    ("method", "kind", "t", "options"),
    some(
        ADAMS,
        KINDS,
        [FORWARD, BACKWARD],
        [{}, {"max_order": 4}, {"max_order": 7, "max_iters": 2, "interp": "cubic"}],
    ),
)
@pytest.mark.filterwarnings("ignore:Functional iteration")
def test_adams_methods(method: str, kind: str, t: torch.Tensor, options: dict[str, Any]) -> None:
    if method == "explicit_adams":
        options = {key: value for key, value in options.items() if key != "max_iters"}
    options = {**options, "step_size": 0.05}  # on irregular grids torchdiffeq's coefficients are wrong
    func, y0 = field_of(kind), state(kind)
    mine = fastode.odeint(func, y0, t, method=method, options=options)
    theirs = torchdiffeq.odeint(func, y0, t, method=method, options=options)
    # The explicit method of order 11 is unstable for such steps, and rounding grows.
    unstable = method == "explicit_adams" and "max_order" not in options
    assert largest_difference(mine, theirs) <= (1e-8 if unstable else 1e-12) * largest(theirs)


@pytest.mark.parametrize("counts", [False, True], ids=["program", "no program"])
@pytest.mark.parametrize("t", [FORWARD, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("method", FIXED)
def test_grid_constructors(method: str, t: torch.Tensor, counts: bool) -> None:
    seen = []

    def grid(func: Any, y0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((t.clone(), func(t[0], y0)))
        return t[0] + (t[-1] - t[0]) * torch.linspace(0, 1, 23, dtype=F64) ** 2

    func, y0 = field_of("rows", counts=counts), state("rows")
    mine = fastode.odeint(func, y0, t, method=method, options={"grid_constructor": grid})
    assert torch.equal(seen[-1][0], t)
    torch.testing.assert_close(seen[-1][1], func(t[0], y0) * (1 if t is FORWARD else -1))  # as torchdiffeq has it
    theirs = torchdiffeq.odeint(func, y0, t, method=method, options={"grid_constructor": grid})
    assert largest_difference(mine, theirs) <= 1e-13 * largest(theirs)


@pytest.mark.parametrize("counts", [False, True], ids=["program", "no program"])
def test_grid_that_does_not_fit_the_times(counts: bool) -> None:
    func = field_of("rows", counts=counts)
    with pytest.raises(AssertionError):
        fastode.odeint(
            func, state("rows"), FORWARD, method="rk4", options={"grid_constructor": lambda f, y, t: t + 0.1}
        )


@pytest.mark.parametrize("t", [FORWARD, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("method", [*FIXED, "implicit_adams"])
def test_perturbed_fixed_steps(method: str, t: torch.Tensor) -> None:
    class Jumps(Field):
        def forward(self, t: torch.Tensor, y: Any) -> Any:
            return super().forward(t, y) * torch.where(t < 1.0, 1.0, 3.0)  # jumps at a point of the grid

    options = {"step_size": 0.1 if t is FORWARD else 0.125, "perturb": True}
    func, y0 = Jumps("rows"), state("rows")
    mine = fastode.odeint(func, y0, t, method=method, options=options)
    theirs = torchdiffeq.odeint(func, y0, t, method=method, options=options)
    assert largest_difference(mine, theirs) <= 1e-12 * largest(theirs)


@pytest.mark.parametrize("kind", ["rows", "tuple", "uneven tuple", "1-d"])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("counts", [False, True], ids=["program", "no program"])
def test_float32_states_and_times_of_another_dtype(kind: str, method: str, counts: bool) -> None:
    func, y0 = Field(kind, counts=counts, dtype=torch.float32), state(kind, torch.float32)
    for t in (FORWARD, FORWARD.float()):
        mine = fastode.odeint(func, y0, t, rtol=1e-5, atol=1e-5, method=method)
        theirs = torchdiffeq.odeint(func, y0, t, rtol=1e-5, atol=1e-5, method=method)
        assert largest_difference(mine, theirs) <= (2e-3 if method == "dopri5" else 2e-6) * largest(theirs) * 0.1


def test_complex64() -> None:
    func, y0 = field_of("complex64"), state("complex64")
    mine = fastode.odeint(func, y0, FORWARD, rtol=1e-5, atol=1e-5)
    assert mine.dtype == torch.complex64
    assert largest_difference(mine, torchdiffeq.odeint(func, y0, FORWARD, rtol=1e-5, atol=1e-5)) < 1e-4


@pytest.mark.parametrize("counts", [False, True], ids=["program", "no program"])
def test_time_is_a_number_in_the_dtype_of_the_state(counts: bool) -> None:
    seen = []

    class Watch(Field):
        def forward(self, t: torch.Tensor, y: Any) -> Any:
            if self.counts:
                seen.append((t.dtype, t.ndim, t.device))
            return super().forward(t, y)

    func = Watch("rows", counts=counts, dtype=torch.float32)
    fastode.odeint(func, state("rows", torch.float32), FORWARD)
    seen.clear()  # of the attempt to record it
    fastode.odeint(func, state("rows", torch.float32), FORWARD)
    assert set(seen) == ({(torch.float32, 0, torch.device("cpu"))} if counts else set())


@pytest.mark.parametrize("rtol", [1e-8, torch.tensor(1e-8), torch.full((3,), 1e-8, dtype=F64)])
@pytest.mark.parametrize("atol", [1e-9, torch.full((5, 3), 1e-9, dtype=F64), torch.full((1, 1), 1e-9)])
def test_tolerances_as_tensors(rtol: Any, atol: Any) -> None:
    func, y0 = field_of("rows"), state("rows")
    mine = fastode.odeint(func, y0, FORWARD, rtol=rtol, atol=atol)
    assert largest_difference(mine, truth(func, y0, FORWARD)) < 1e-6


@pytest.mark.parametrize("kind", ["tuple", "uneven tuple"])
@pytest.mark.parametrize("counts", [False, True], ids=["program", "no program"])
def test_tolerances_of_parts(kind: str, counts: bool) -> None:
    func, y0 = field_of(kind, counts=counts), state(kind)
    exact = truth(func, y0, FORWARD)
    tight, loose = 1e-9, 1e-3
    first = [tight, *[loose] * (len(y0) - 1)]
    solution = fastode.odeint(func, y0, FORWARD, rtol=first, atol=tuple(first))
    errors = [largest_difference(a, b) for a, b in zip(solution, exact, strict=True)]
    assert errors[0] < 1e-6
    assert len(solution) == len(y0)


def test_one_time_gives_the_start() -> None:
    for kind in KINDS:
        for method in ("dopri5", "rk4", "explicit_adams", "scipy_solver"):
            if method == "scipy_solver" and kind.startswith("complex"):
                continue
            solution = fastode.odeint(field_of(kind), state(kind), torch.tensor([0.3], dtype=F64), method=method)
            for got, part in zip(parts(solution), parts(state(kind)), strict=True):
                assert torch.equal(got, part[None])


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_states_without_entries(shape: tuple[int, ...], method: str) -> None:
    solution = fastode.odeint(lambda t, y: -y, torch.zeros(shape, dtype=F64), FORWARD, method=method)
    assert solution.shape == (7, *shape)


def test_func_that_returns_a_list() -> None:
    y0 = state("tuple")
    mine = fastode.odeint(lambda t, y: [-y[0], y[1] * t], y0, FORWARD)
    theirs = torchdiffeq.odeint(lambda t, y: [-y[0], y[1] * t], y0, FORWARD)
    assert largest_difference(mine, theirs) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    y0 = torch.ones(3, 2, dtype=dtype)
    solution = fastode.odeint(lambda t, y: -y, y0, torch.tensor([0.0, 1.0]), rtol=1e-2, atol=1e-2)
    assert solution.dtype == dtype
    assert float((solution[-1] - torch.exp(torch.tensor(-1.0))).abs().max()) < 0.05
