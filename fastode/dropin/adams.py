"""Adams-Bashforth and Adams-Bashforth-Moulton methods of variable order on fixed grids.

The polynomial through the last slopes, and for Moulton's methods the one at the end of the step, is integrated over the
step (Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", section III.1). Its weights are computed
in exact fractions from the times of the slopes, so that the order holds on grids of any spacing (section III.5); on
regular grids they are the classical ones.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastode.dropin.functions import Perturb
from fastode.dropin.solvers import RungeKuttaGrid, weighted

_MIN_ORDER = 4
_MAX_ORDER = 12
_MAX_ITERS = 4


@lru_cache(maxsize=4096)
def adams_weights(nodes: tuple[float, ...]) -> tuple[float, ...]:
    """Integrals over [0, 1] of the Lagrange polynomials of these nodes."""
    exact = [Fraction(node) for node in nodes]
    weights = []
    for i, node in enumerate(exact):
        coefficients, scale = [Fraction(1)], Fraction(1)  # of the product of (s - other), lowest power first
        for j, other in enumerate(exact):
            if j != i:
                shifted, scaled = [Fraction(0), *coefficients], [other * c for c in coefficients] + [Fraction(0)]
                coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
                scale *= node - other
        weights.append(float(sum(c / (m + 1) for m, c in enumerate(coefficients)) / scale))
    return tuple(weights)


def varying_adams_weights(nodes: Sequence[Tensor]) -> list[Tensor]:
    """The same for nodes (0-d each) that steps of a learned grid depend on: the weights exact for powers of s."""
    s = torch.stack(list(nodes)).double()
    powers = torch.arange(len(nodes), dtype=s.dtype, device=s.device)
    weights = torch.linalg.solve(s[None, :] ** powers[:, None], 1 / (powers + 1))
    return list(weights.unbind())


class AdamsBashforthMoulton(RungeKuttaGrid):
    """Predictor and corrector; the first steps are taken by the 3/8 rule.

    Args:
        func: ``func(t, y, perturb=...)``.
        y0: the start.
        rtol: relative tolerance of the corrector's iteration.
        atol: its absolute tolerance.
        implicit: whether there is a corrector.
        max_iters: iterations of the corrector, at most.
        max_order: largest order, at most 12.
        **kwargs: options of ``FixedGridODESolver``.
    """

    order = 4
    method = "rk4"

    def __init__(
        self,
        func: Any,
        y0: Tensor,
        rtol: Any = 1e-3,
        atol: Any = 1e-4,
        implicit: bool = True,
        max_iters: int = _MAX_ITERS,
        max_order: int = _MAX_ORDER,
        **kwargs: Any,
    ) -> None:
        super().__init__(func, y0, rtol=rtol, atol=atol, **kwargs)
        if max_order > _MAX_ORDER:
            raise AssertionError(f"max_order must be at most {_MAX_ORDER}")
        if max_order < _MIN_ORDER:
            warnings.warn(f"max_order is below {_MIN_ORDER}, so the solver reduces to `rk4`.", stacklevel=2)
        self.rtol = torch.as_tensor(rtol, dtype=y0.dtype.to_real(), device=y0.device)
        self.implicit = implicit
        self.max_iters = max_iters
        self.max_order = int(max_order)
        self._slopes: deque[Tensor] = deque(maxlen=max(self.max_order - 1, 1))
        self._times: deque[float] = deque(maxlen=self._slopes.maxlen)
        self._times_of_graph: deque[Tensor] = deque(maxlen=self._slopes.maxlen)

    def _weights(self, t0: Tensor, dt: Tensor, t1: Tensor) -> tuple[Sequence[Any], Sequence[Any]]:
        """Weights of the known slopes, and of those with the one at the step's end before them."""
        if dt.requires_grad and torch.is_grad_enabled():
            varying = [(t - t0) / dt for t in self._times_of_graph]
            return varying_adams_weights(varying), varying_adams_weights([torch.ones_like(dt), *varying])
        nodes = self._nodes(t0, t1)
        return adams_weights(tuple(nodes)), adams_weights((1.0, *nodes)) if self.implicit else ()

    def _nodes(self, t0: Tensor, t1: Tensor) -> list[float]:
        """Times of the known slopes in units of the step, 0 at its start; whole but for rounding of the times."""
        start = float(t0.detach())
        size = float(t1.detach()) - start
        rounding = 64 * torch.finfo(t0.dtype).eps * max(map(abs, self._times)) / abs(size)
        nodes = [(t - start) / size for t in self._times]
        whole = all(abs(node + j) <= rounding for j, node in enumerate(nodes))
        return [-float(j) for j in range(len(nodes))] if whole else nodes

    def _converged(self, old: Tensor, new: Tensor) -> bool:
        tol = self.atol + self.rtol * torch.maximum(old.abs(), new.abs())
        return bool(((new - old).abs() / tol).max() < 1)

    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        f0 = func(t0, y0, perturb=Perturb.NEXT if self.perturb else Perturb.NONE)
        start = float(t0.detach())
        if not self._times or self._times[0] != start:
            self._slopes.appendleft(f0)
            self._times.appendleft(start)
            self._times_of_graph.appendleft(t0)
        if min(len(self._slopes), self.max_order - 1) < _MIN_ORDER - 1:
            return self._start(func, t0, dt, t1, y0, f0), f0
        predictor, corrector = self._weights(t0, dt, t1)
        dy = dt * weighted(predictor, list(self._slopes))
        if not self.implicit:
            return dy, f0
        first, *others = corrector
        known = dt * weighted(others, list(self._slopes))
        for _ in range(self.max_iters):
            old = dy
            f1 = func(t1, y0 + dy, perturb=Perturb.PREV if self.perturb else Perturb.NONE)
            dy = dt * first * f1 + known
            with torch.no_grad():
                if self._converged(old, dy):
                    return dy, f0
        warnings.warn("Functional iteration did not converge. Solution may be incorrect.", stacklevel=2)
        self._slopes.pop()
        self._times.pop()
        self._times_of_graph.pop()
        return dy, f0

    def _start(self, func: Callable[..., Tensor], t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor, f0: Tensor) -> Tensor:
        """A step of the 3/8 rule from a slope that is known."""
        known = [f0]

        def reused(t: Tensor, y: Tensor, perturb: Perturb = Perturb.NONE) -> Tensor:
            return known.pop() if known else func(t, y, perturb=perturb)

        return super()._step_func(reused, t0, dt, t1, y0)[0]


class AdamsBashforth(AdamsBashforthMoulton):
    """Explicit methods of Adams; the first steps are taken by the 3/8 rule."""

    def __init__(self, func: Any, y0: Tensor, **kwargs: Any) -> None:
        super().__init__(func, y0, implicit=False, **kwargs)
