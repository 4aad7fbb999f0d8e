"""Solvers of ``scipy.integrate.solve_ivp``. Their results carry no gradient; ``odeint_adjoint`` gives them one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastode.dropin.failure import whole_state_error
from fastode.dropin.solvers import warn_unused
from fastode.status import Status


class ScipyWrapperODESolver:
    """A solver of scipy, on the host.

    Args:
        func: ``func(t, y)``.
        y0: the start.
        rtol: relative tolerance.
        atol: absolute tolerance.
        min_step: smallest step, for the methods that know such.
        max_step: largest step.
        solver: ``method`` of ``scipy.integrate.solve_ivp``.
    """

    def __init__(
        self,
        func: Any,
        y0: Tensor,
        rtol: Any,
        atol: Any,
        min_step: float = 0.0,
        max_step: float = math.inf,
        solver: str = "LSODA",
        **unused_kwargs: Any,
    ) -> None:
        for name in ("norm", "grid_points", "eps"):
            unused_kwargs.pop(name, None)
        warn_unused(self, unused_kwargs)
        self.func = func
        self.y0 = y0.detach()
        self.rtol, self.atol = (self._tolerance(x) for x in (rtol, atol))
        self.options = {"max_step": max_step, "method": solver}
        if solver == "LSODA" or min_step:  # scipy warns where the solver has no smallest step
            self.options["min_step"] = min_step

    def _tolerance(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.expand(self.y0.shape).reshape(-1).cpu().numpy() if value.ndim else float(value)

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        """Callbacks that the solver calls: none."""
        return set()

    def integrate(self, t: Tensor) -> Tensor:
        """The states (T, *state) at increasing times (T,), without gradient."""
        if t.numel() == 1:
            return self.y0[None].clone()
        from scipy.integrate import solve_ivp  # not needed otherwise

        y0 = self.y0

        def slope(time: float, state: Any) -> Any:
            with torch.no_grad():
                given = torch.as_tensor(state).to(y0.device, y0.dtype).reshape(y0.shape)
                at = torch.tensor(time, dtype=y0.dtype.to_real(), device=y0.device)
                return self.func(at, given).cpu().numpy().reshape(-1)

        times = t.detach().double().cpu().numpy()
        solution = solve_ivp(
            slope,
            t_span=(times[0], times[-1]),
            y0=y0.cpu().numpy().reshape(-1),
            t_eval=times,
            rtol=self.rtol,
            atol=self.atol,
            **self.options,
        )
        if not solution.success:
            reached = float(solution.t[-1]) if len(solution.t) else float(times[0])
            raise whole_state_error(Status.STEP_UNDERFLOW, reached, f"scipy: {solution.message}", None)
        return torch.as_tensor(solution.y.T.copy()).to(y0.device, y0.dtype).reshape(len(times), *y0.shape)
