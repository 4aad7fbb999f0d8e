"""Building blocks that programs written for torchdiffeq import from inside of it, for solvers of their own."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastode.dropin.adaptive import RungeKutta, first_step_size, step_factor
from fastode.dropin.arguments import check, flat_tolerance
from fastode.dropin.functions import Perturb, SolverEvent
from fastode.dropin.norms import Norm
from fastode.dropin.rk_state import interpolation_fit
from fastode.dropin.solvers import RungeKuttaGrid, locate_event, weighted
from fastode.tableaus import Tableau, get_tableau

ButcherTableau = namedtuple("ButcherTableau", "alpha, beta, c_sol, c_error")


def butcher_tableau(method: str) -> ButcherTableau:
    """An adaptive method of fastode's, in first-same-as-last form, as float64 tensors for solvers of users."""
    tableau = get_tableau(method)
    assert tableau.e is not None
    alpha, weights, error = (torch.tensor(x.tolist(), dtype=torch.float64) for x in (tableau.c, tableau.b, tableau.e))
    rows = [torch.tensor(tableau.a[i, :i].tolist(), dtype=torch.float64) for i in range(1, tableau.n_stages)]
    return ButcherTableau(alpha[1:], rows, weights, error)


def middle_weights(method: str) -> Tensor:
    """Weights (n_stages,), float64, of the stages in the middle of a step, from fastode's interpolant."""
    tableau = get_tableau(method)
    basis = [math.comb(tableau.degree, m) / 2**tableau.degree for m in range(1, tableau.degree + 1)]
    return torch.tensor((tableau.q @ basis).tolist(), dtype=torch.float64)


def runge_kutta_step(
    func: Any, y0: Tensor, f0: Tensor, t0: Tensor, dt: Tensor, t1: Tensor, tableau: ButcherTableau
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of a method, with gradients to all that it is made of.

    Returns:
        The state at its end, the slope of the last stage, the estimate of the error, and all stages as
        (*state, n_stages).
    """
    real = y0.dtype.to_real()
    t0, dt, t1 = (x.to(real) for x in (t0, dt, t1))
    slopes = [f0]
    for c, row in zip(_numbers(tableau.alpha), tableau.beta, strict=True):
        at, side = (t1, Perturb.PREV) if c == 1.0 else (t0 + c * dt, Perturb.NONE)
        slopes.append(func(at, y0 + dt * weighted(row, slopes), perturb=side))
    y1, error = y0 + dt * weighted(tableau.c_sol, slopes), dt * weighted(tableau.c_error, slopes)
    return y1, slopes[-1], error, torch.stack(slopes, dim=-1)


def select_initial_step(
    func: Callable[..., Tensor],
    t0: Tensor,
    y0: Tensor,
    order: int,
    rtol: Any,
    atol: Any,
    norm: Norm,
    f0: Tensor | None = None,
) -> Tensor:
    """Size of a first step, 0-d in the dtype of t0; order is the method's less one."""
    with torch.no_grad():
        known = func(t0, y0) if f0 is None else f0
        scale = atol + y0.abs() * rtol
        size = first_step_size(lambda h: func(t0 + h, y0 + h * known), y0, known, scale, norm, 1 / (order + 1))
    return torch.tensor(size, dtype=t0.dtype, device=t0.device)


def optimal_step_size(
    last_step: Tensor, error_ratio: Any, safety: Any, ifactor: Any, dfactor: Any, order: int
) -> Tensor:
    """Size of the next step, from the error in units of its tolerance; a constant for every gradient."""
    factor = step_factor(float(error_ratio), float(safety), float(ifactor), float(dfactor), 1 / order)
    return last_step.detach() * factor


def to_tensor(value: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    """A number or tensor as a tensor of a dtype on a device."""
    return torch.as_tensor(value, dtype=dtype, device=device)


def is_finite(tensor: Tensor) -> bool:
    """Whether all entries are finite."""
    return bool(tensor.isfinite().all())


def is_iterable(value: Any) -> bool:
    """Whether ``iter`` takes a value."""
    try:
        iter(value)
    except TypeError:
        return False
    return True


def scaled_dot_product(scale: Any, xs: Sequence[Any], ys: Sequence[Any]) -> Any:
    """The sum of scale x y over pairs of x and y."""
    return sum(scale * x * y for x, y in zip(xs, ys, strict=True))


class RKAdaptiveStepsizeODESolver(RungeKutta):
    """An adaptive Runge-Kutta method of the user's own: a subclass with ``order`` and ``tableau``.

    The state between steps comes from cubic Hermite interpolation; ``mid`` is for ``_interp_fit`` alone. A subclass may
    have an ``_adaptive_step(rk_state)`` of its own, which then takes every step.
    """

    tableau: ButcherTableau
    mid: Any = None

    def _interp_fit(self, y0: Tensor, y1: Tensor, k: Tensor, dt: Tensor) -> list[Tensor]:
        """The quartic that ``mid`` defines, for stages (*state, n_stages)."""
        dt = dt.to(y0.dtype.to_real())
        y_mid = y0 + dt * weighted(_numbers(self.mid), list(k.unbind(-1)))
        return interpolation_fit(y0, y1, y_mid, k[..., 0], k[..., -1], dt)

    @property
    def coefficients(self) -> Tableau:
        """The tableau, verified.

        Raises:
            ValueError: coefficients that violate an order condition.
        """
        given = self.tableau
        rows = tuple(_numbers(row) for row in given.beta)
        alpha, weights, error = (_numbers(x) for x in (given.alpha, given.c_sol, given.c_error))
        return _tableau(type(self).__name__, self.order, alpha, rows, weights, error)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(torch.as_tensor(values, dtype=torch.float64).tolist())


@lru_cache(maxsize=64)
def _tableau(
    name: str,
    order: int,
    alpha: tuple[float, ...],
    beta: tuple[tuple[float, ...], ...],
    weights: tuple[float, ...],
    error: tuple[float, ...],
) -> Tableau:
    embedded = [b - e for b, e in zip(weights, error, strict=True)]
    return Tableau(name, [0, *alpha], [[], *beta], weights, order, b_embedded=embedded, embedded_order=order - 1)


def check_inputs(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: dict[str, Any] | None,
    event_fn: Callable[..., Any] | None,
    solvers: dict[str, Any],
) -> tuple[Any, ...]:
    """Arguments of ``odeint`` in the form that solvers take.

    Returns:
        Shapes of the parts or None, func, y0, increasing times, rtol, atol, method, options, event_fn, and whether the
        times were decreasing.
    """
    if method is not None and method not in solvers:
        names = '", "'.join(solvers)
        raise ValueError(f'Invalid method "{method}". Must be one of {{"{names}"}}.')
    args = check(func, y0, t, rtol, atol, method, options, event_fn)
    event = None if event_fn is None else args.solver_event()
    rtol, atol = (flat_tolerance(name, tol, args.shapes) for name, tol in (("rtol", args.rtol), ("atol", args.atol)))
    return (
        None if args.shapes is None else list(args.shapes),
        args.solver_function(),
        args.flat_state(),
        args.solver_times(),
        rtol,
        atol,
        args.method,
        args.solver_options(),
        event,
        args.backward,
    )


def error_ratio(error: Tensor, rtol: Any, atol: Any, y0: Tensor, y1: Tensor, norm: Norm) -> Any:
    """The norm of an error in units of its tolerance."""
    return abs(norm(error / (atol + rtol * torch.maximum(y0.abs(), y1.abs()))))


class _Grid(RungeKuttaGrid):
    def __init__(self, method: str, perturb: bool) -> None:
        self.method, self.perturb = method, perturb


def grid_step(method: str) -> Callable[..., Tensor]:
    """The change of the state over one step of an explicit method.

    Returns:
        ``step(func, t0, dt, t1, y0, f0=None, perturb=False)``.
    """

    def step(
        func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor, f0: Tensor | None = None, perturb: bool = False
    ) -> Tensor:
        known = [] if f0 is None else [f0]

        def reused(t: Tensor, y: Tensor, perturb: Perturb = Perturb.NONE) -> Tensor:
            return known.pop() if known else func(t, y, perturb=perturb)

        return _Grid(method, perturb)._step_func(reused, t0, dt, t1, y0)[0]

    return step


rk4_alt_step_func = grid_step("rk4")
rk4_step_func = grid_step("rk4_classic")


def tabulated_step(
    func: Any,
    t0: Tensor,
    dt: Tensor,
    t1: Tensor,
    y0: Tensor,
    butcher_tableu: Sequence[Sequence[float]],
    f0: Tensor | None = None,
    perturb: bool = False,
) -> Tensor:
    """The change of the state over one step of an explicit method whose tableau is written as a square of numbers."""
    *rows, weights = butcher_tableu
    slopes = [func(t0, y0, perturb=Perturb.NEXT if perturb else Perturb.NONE) if f0 is None else f0]
    for c, *row in rows[1:]:
        side = Perturb.PREV if perturb and c == 1 else Perturb.NONE
        y = y0 + dt * sum(a * k for a, k in zip(row, slopes, strict=False))
        slopes.append(func(t0 + c * dt if c != 1 else t1, y, perturb=side))
    return dt * sum(b * k for b, k in zip(weights[1:], slopes, strict=True))


def combine_event_functions(event_fn: Callable[..., Tensor], t0: Tensor, y0: Any) -> Callable[..., Tensor]:
    """Several event functions as one that is positive at the start."""
    return SolverEvent(event_fn, t0, y0, None, False)


def find_event(
    interp_fn: Callable[[Tensor], Tensor], sign0: Any, t0: Tensor, t1: Tensor, event_fn: Callable[..., Any], tol: Any
) -> tuple[Tensor, Tensor]:
    """Time and state at which an event changes the sign that it has at t0, to rounding: finer than any tol."""
    event_t = locate_event(interp_fn, float(sign0), t0, t1, event_fn)
    return event_t, interp_fn(event_t)
