"""What a solve returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastode.hostflags import host_any
from fastode.interpolant import basis
from fastode.printing import describe
from fastode.tree import StateSpec, tree_map

if TYPE_CHECKING:
    from fastode.events.result import Events


@dataclass(frozen=True)
class Stats:
    """Work done for each sample, each (B,) int64.

    Attributes:
        n_accepted: accepted steps.
        n_rejected: rejected steps.
        n_evals: evaluations of the field that this sample needs by itself.
    """

    n_accepted: Tensor
    n_rejected: Tensor
    n_evals: Tensor

    @property
    def n_steps(self) -> Tensor:
        """(B,) int64, attempted steps, accepted and rejected."""
        return self.n_accepted + self.n_rejected


@dataclass
class Outcome:
    """What became of each sample.

    Attributes:
        status: (B,) int64 of ``Status``.
        reached: (B,) float64, the time it reached.
        stats: work.
        last_step: (B,) float64, signed size of its last attempted step; None or NaN where that is not known.
        last_ratio: (B,) float64, error of that attempt over its tolerance; None or NaN where that is not known.
    """

    status: Tensor
    reached: Tensor
    stats: Stats
    last_step: Tensor | None = None
    last_ratio: Tensor | None = None


class TableOutcome(Outcome):
    """An outcome as kernels write it: its tensors are made when they are asked for, which small solves seldom are.

    Args:
        table: (7, B) int64: accepted steps, rejected steps, evaluations, status; the bits of float64 numbers: time
            reached, size of the last attempt and its error ratio.
    """

    def __init__(self, table: NDArray[np.int64]) -> None:
        self._table = table

    @cached_property
    def status(self) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(self._table[3])

    @cached_property
    def reached(self) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(self._table[4].view(np.float64))

    @cached_property
    def last_step(self) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(self._table[5].view(np.float64))

    @cached_property
    def last_ratio(self) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(self._table[6].view(np.float64))

    @cached_property
    def stats(self) -> Stats:  # type: ignore[override]
        return Stats(*map(torch.from_numpy, self._table[:3]))


@dataclass(frozen=True)
class DenseOutput:
    """Piecewise polynomials: step j of sample b is c_0 + sum_m phi_m(theta) c_m with c = coefs[rows[j, b]].

    theta = (t - start) / size, phi from ``fastode.interpolant.basis``.

    Attributes:
        start: (N, B) float64, start of each accepted step; padded with the time reached.
        size: (N, B) float64, signed size of each step; 0 where padded.
        rows: (N, B) int64, index of the step's polynomial; padded with the sample's last one.
        coefs: (R, degree + 1, D), polynomials.
        n_accepted: (B,) int64.
        first, reached: (B,) float64, the interval that is covered.
        y0: (B, D), value of samples that took no step.
        slope: (B, D), the field at the start, for the derivatives by time of samples that took no step; None where
            there are none.
        origin: (B,) float64, the start with its graph; goes with ``slope``.
    """

    start: Tensor
    size: Tensor
    rows: Tensor
    coefs: Tensor
    n_accepted: Tensor
    first: Tensor
    reached: Tensor
    y0: Tensor
    slope: Tensor | None = None
    origin: Tensor | None = None

    def __call__(self, t: Tensor) -> Tensor:
        """States (M, B, D) at times (M, B) float64; NaN outside a sample's interval."""
        resting = self.y0.expand(t.shape[0], *self.y0.shape)
        if self.slope is not None and self.origin is not None:
            apart = t - self.origin
            resting = resting + (apart - apart.detach()).to(resting.dtype)[..., None] * self.slope
        if self.start.shape[0] == 0:
            value = resting
        else:
            direction = torch.sign(self.reached - self.first)
            passed = direction * (t[:, None, :] - self.start) >= 0
            taken = torch.arange(self.start.shape[0], device=t.device)[:, None] < self.n_accepted
            step = ((passed & taken).sum(1) - 1).clamp_min(0)
            size = self.size.gather(0, step)
            theta = (t - self.start.gather(0, step)) / torch.where(size != 0, size, 1.0)
            coefs = self.coefs[self.rows.gather(0, step)]
            weights = basis(theta, coefs.shape[2] - 1).to(coefs.dtype)
            change = torch.zeros_like(coefs[:, :, 0])
            for k, weight in enumerate(weights, 1):  # in this order for any number of samples
                change = change + weight[..., None] * coefs[:, :, k]
            value = coefs[:, :, 0] + change
            value = torch.where((self.n_accepted > 0)[:, None], value, resting)
        low = torch.minimum(self.first, self.reached)
        high = torch.maximum(self.first, self.reached)
        return torch.where(((t >= low) & (t <= high))[..., None], value, torch.nan)


@dataclass(frozen=True)
class Solution:
    """Result of ``fastode.solve``.

    Attributes:
        t: the output times as they were given, (T,) or (T, B).
        ys: the states, (T, B, *state), a tree like y0.
        outcome: ``status`` and ``stats``.
        dense: the solution between output times, where ``dense=True`` was asked for.
        events: what happened at the events, where some were given.
        backend: name of the backend that solved; inside a graph of ``torch.compile`` the one that was asked for, which
            may be "auto", as the choice is made when the graph runs.
        why_not: (backend, why it was not taken) for each that would have come before it.
    """

    t: Tensor
    ys: Any
    outcome: Outcome
    spec: StateSpec
    dense: DenseOutput | None = None
    events: Events | None = None
    backend: str = "auto"
    why_not: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        """A few lines, whatever the size of the batch."""
        return describe(self)

    @property
    def status(self) -> Tensor:
        """(B,) int64 of ``fastode.Status``: SUCCESS, EVENT where an event ended the sample, or a failure."""
        return self.outcome.status

    @property
    def stats(self) -> Stats:
        """Work per sample."""
        return self.outcome.stats

    def interpolate(self, t: Any) -> Any:
        """The states at any times inside the interval of the solve, differentiable in whatever ys is, and in t.

        Args:
            t: a number, (M,) or (M, B) times. One that equals an end of the interval in the dtype in which t, or the
                solve's times, are given is that end: 0.1 lies inside of a solve from float32's 0.1, which is greater.

        Returns:
            Tree of (B, *state) for a number, of (M, B, *state) otherwise; NaN after the failure of a failed sample.

        Raises:
            RuntimeError: the solve was made without ``dense=True``.
            ValueError: a time outside the interval, or a wrong shape.
        """
        if self.dense is None:
            raise RuntimeError("interpolate needs solve(..., dense=True)")
        batch = self.status.shape[0]
        times = torch.as_tensor(t, dtype=torch.float64, device=self.status.device)
        if times.ndim > 2 or (times.ndim == 2 and times.shape[1] != batch):
            raise ValueError(f"t must be a number or of shape (M,) or (M, B) with B={batch}, got {tuple(times.shape)}")
        query = times if times.ndim == 2 else times.reshape(-1, 1).expand(-1, batch)
        ends = self.t.detach()
        kinds = [x.dtype for x in (t, ends) if isinstance(x, Tensor) and x.is_floating_point()]
        coarse = max(kinds, key=lambda kind: torch.finfo(kind).eps, default=torch.float64)
        ends = ends.double()
        low, high = torch.minimum(ends[0], ends[-1]), torch.maximum(ends[0], ends[-1])
        nearest = torch.minimum(torch.maximum(query.detach(), low), high)
        same = query.detach().to(coarse) == nearest.to(coarse)
        query = query + torch.where(same, nearest - query.detach(), 0.0)
        if host_any(~same):
            raise ValueError(
                f"t must lie inside the interval of the solve, [{float(low.min()):.6g}, {float(high.max()):.6g}]"
            )
        value = self.spec.separate(self.dense(query).to(self.spec.dtype))
        if times.ndim == 0:
            return tree_map(lambda leaf: leaf[0], value)
        return value
