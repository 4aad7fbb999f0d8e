"""``odeint_dense``: the solution as a function of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastode.dropin.adaptive import RungeKutta, combine
from fastode.dropin.arguments import Arguments, check
from fastode.dropin.compiled import outside_of_graphs
from fastode.dropin.rk_state import Step
from fastode.solution import DenseOutput


@outside_of_graphs
def odeint_dense(
    func: Callable[..., Any],
    y0: Any,
    t0: Any,
    t1: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[[Any], Any]:
    """Solves from t0 to t1 and returns the solution as a function; a drop-in for ``torchdiffeq.odeint_dense``.

    Args:
        func: as for ``odeint``.
        y0: as for ``odeint``.
        t0: initial time, a number or a tensor of one entry.
        t1: final time, likewise; before or after t0.
        rtol: as for ``odeint``.
        atol: as for ``odeint``.
        method: an adaptive explicit Runge-Kutta method.
        options: as for ``odeint``.

    Returns:
        A function of a time between t0 and t1, a number or a 0-d tensor, that gives the state; or of times (M,) that
        gives (M, *y0.shape). It is differentiable in the time and in whatever the solution depends on, and raises
        ``ValueError`` outside of the interval.

    Raises:
        ValueError: a method that is not adaptive; and as ``odeint``.
    """
    like = next((x for x in (t0, t1) if isinstance(x, Tensor)), torch.zeros((), dtype=torch.float64))
    ends = [torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in (t0, t1)]
    times = torch.stack([end.detach().reshape(()) for end in ends])
    args = check(func, y0, times, rtol, atol, method, options, None)
    solver = args.solver()
    if not isinstance(solver, RungeKutta):
        raise ValueError(f"odeint_dense needs an adaptive explicit Runge-Kutta method, got {args.method!r}")
    solver.accepted = []
    solver.integrate(args.solver_times())
    return _Interpolant(args, solver.steps.tableau.q.T.tolist(), solver.accepted)


class _Interpolant:
    """The solution between two times."""

    def __init__(
        self, args: Arguments, coefficients: list[list[float]], accepted: list[tuple[Step, Tensor, list[Tensor]]]
    ) -> None:
        start = args.flat_state()
        device = start.device
        rows = [
            torch.stack([y, *(combine(None, step.h, column, slopes) for column in coefficients)]).reshape(
                1 + len(coefficients), -1
            )
            for step, y, slopes in accepted
        ]
        steps = [step for step, _, _ in accepted]
        column = lambda values: torch.tensor(values, dtype=torch.float64, device=device)[:, None]  # noqa: E731
        self._args, self._shape = args, start.shape
        self._first, self._last = steps[0].t, steps[-1].t1
        self._dense = DenseOutput(
            start=column([step.t for step in steps]),
            size=column([step.h for step in steps]),
            rows=torch.arange(len(steps), device=device)[:, None],
            coefs=torch.stack(rows),
            n_accepted=torch.tensor([len(steps)], device=device),
            first=column([self._first])[0],
            reached=column([self._last])[0],
            y0=start.reshape(1, -1),
        )

    def __call__(self, t: Any) -> Any:
        """The state at a time, or the states at times (M,)."""
        args = self._args
        given = torch.as_tensor(t, dtype=torch.float64, device=args.t.device)
        times = (-given if args.backward else given).reshape(-1, 1)
        known = times.detach()
        if bool(((known < self._first) | (known > self._last) | known.isnan()).any()):
            ends = sorted([float(args.t[0]), float(args.t[-1])])
            raise ValueError(f"t must lie inside the interval of the solve, [{ends[0]:.6g}, {ends[1]:.6g}]")
        states = args.restore(self._dense(times)[:, 0].reshape(-1, *self._shape))
        if given.ndim > 0:
            return states
        return states[0] if args.shapes is None else tuple(part[0] for part in states)
