"""The stages of one step of an implicit Runge-Kutta method, for all samples at once, by Newton's method.

Simplified Newton iteration with the Jacobian at the start of the step (Hairer and Wanner 1996, section IV.8), every
sample for itself: a sample whose iteration is done is not changed any more by that of the others. The unknowns are the
slopes k_i, so that h k_i is as accurate as the stage; f(Y_i) would multiply the remaining error by h J.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fastode.backends.implicit.arithmetic import combine, rms
from fastode.backends.implicit.defect import Filter
from fastode.backends.implicit.jacobian import Field, jacobian
from fastode.backends.implicit.linear import Factors, factorise, stage_matrix
from fastode.tableaus.implicit import Block, ImplicitTableau

_STAGNATES = 0.5
"""Corrections that shrink more slowly than this, but are small, are rounding."""

_CAREFUL = 4.0
_FIRST_RATE = 1e-3
"""No contraction is trusted to be better than this before it was seen."""
_TINY_RATE = 0.05


@dataclass(frozen=True)
class Accuracy:
    """When an iteration is done.

    Attributes:
        size: (n, D), magnitudes of the states at the start of the step.
        rtol, atol: (D,) or numbers: corrections of the states are divided by atol + rtol max(size, |state|), and their
            root mean square is compared. Of the state that is being found, as in the error ratio of a step: what was
            zero at the start has no other measure where atol is zero.
        whole: whether the largest component's magnitude counts for all components of a sample.
        done: the error that may remain.
        good: a correction of this size that does not get smaller is accepted, as rounding.
        max_iters: limit on iterations.
        renew: whether the Jacobian is computed again, at the iterate, where the iteration is slow.
    """

    size: Tensor
    rtol: Tensor | float
    atol: Tensor | float
    whole: bool
    done: float
    good: float
    max_iters: int
    renew: bool

    def scale(self, state: Tensor) -> Tensor:
        """What corrections of a stage's state (n, D) are divided by, (n, D) or (n, 1); not zero."""
        size = torch.maximum(self.size, state.abs())
        size = size.amax(1, keepdim=True) if self.whole and size.shape[1] else size
        return (self.atol + self.rtol * size).clamp_min(torch.finfo(state.dtype).tiny)


@dataclass(frozen=True)
class Stages:
    """One attempted step.

    Attributes:
        y1: (n, D), the state at its end.
        slopes: s times (n, D), the k_i.
        solved: (n,) bool, whether all stages were found. Where not, the rest has no meaning, but may be finite.
        rate: (n,) float64, the slowest contraction of the iterations.
        evals: (n,) int64, evaluations of the field, without those for Jacobians.
    """

    y1: Tensor
    slopes: list[Tensor]
    solved: Tensor
    rate: Tensor
    evals: Tensor


@lru_cache(maxsize=64)
def predictors(tableau: ImplicitTableau) -> tuple[tuple[float, ...], ...]:
    """Weights w_ij that predict k_i = sum_j w_ij k_j from earlier stages by extrapolation in the nodes."""
    rows: list[tuple[float, ...]] = [()]
    for block in tableau.blocks:
        for i in range(block.start, block.stop):
            c = tableau.c[: block.start]
            degree = min(len(np.unique(c)) - 1, 2)
            powers = np.vander(c, degree + 1, increasing=True).T
            target = float(tableau.c[i]) ** np.arange(degree + 1)
            rows.append(tuple(float(w) for w in np.linalg.lstsq(powers, target, rcond=None)[0]))
    return tuple(rows)


class StageSolver:
    """Finds the stages of steps of given sizes from given states.

    Args:
        tableau: the method.
        field: dy/dt of these samples.
        t, h: (n,) float64.
        y: (n, D).
        k1: (n, D), the field at (t, y).
        jac: (n, D, D), the Jacobian at (t, y) or close by; None where it will be renewed anyway.
    """

    def __init__(
        self, tableau: ImplicitTableau, field: Field, t: Tensor, h: Tensor, y: Tensor, k1: Tensor, jac: Tensor | None
    ) -> None:
        self.tableau, self.field = tableau, field
        self.t, self.h, self.y, self.k1, self.jac = t, h, y, k1, jac
        self._factors: dict[bytes, Factors] = {}

    def factors(self, block: Block) -> Factors:
        """Those of the block's matrix with the Jacobian at the start; shared by blocks of the same coefficients."""
        a = self.tableau.a[block.start : block.stop, block.start : block.stop]
        key = a.tobytes()
        if key not in self._factors:
            assert self.jac is not None
            self._factors[key] = factorise(stage_matrix(self.h, a.tolist(), [self.jac]))
        return self._factors[key]

    def filter(self) -> Filter:
        """For defects of the dense output, with gamma that of the last implicit stages."""
        block = [block for block in self.tableau.blocks if block.kind != "explicit"][-1]
        gamma = float(np.diag(self.tableau.a)[block.start : block.stop].mean())
        if block.kind == "diagonal":
            return Filter(self.factors(block), gamma)
        assert self.jac is not None
        return Filter(factorise(stage_matrix(self.h, [[gamma]], [self.jac])), gamma)

    def state(self, i: int, slopes: list[Tensor]) -> Tensor:
        """Computes y + h sum_j a_ij k_j over the slopes that are known."""
        return combine(self.y, self.h, self.tableau.a[i, : len(slopes)].tolist(), slopes)

    def time(self, i: int) -> Tensor:
        """Time of stage i, t + c_i h."""
        return self.t + float(self.tableau.c[i]) * self.h

    def run(self, accuracy: Accuracy, live: Tensor) -> Stages:
        """All stages; of the samples that are not live (n,) anything."""
        tableau = self.tableau
        slopes = [self.k1]
        n = self.y.shape[0]
        rate = torch.zeros(n, dtype=torch.float64, device=self.y.device)
        solved, evals = live, torch.zeros(n, dtype=torch.int64, device=self.y.device)
        for block in tableau.blocks:
            if block.kind == "explicit":
                y1 = self.state(block.start, slopes)
                slopes.append(self.field(self.time(block.start), y1))
                evals = evals + live
            else:
                solved, rate, used = self._solve(block, slopes, accuracy, solved, rate)
                evals = evals + used
        if tableau.blocks[-1].kind != "explicit":
            y1 = self.state(tableau.n_stages - 1, slopes)
        return Stages(y1, slopes, solved, rate, evals)

    def _solve(
        self, block: Block, slopes: list[Tensor], accuracy: Accuracy, live: Tensor, slowest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Appends the slopes of the block's stages; returns which samples are solved, their rates, evaluations."""
        stages = range(block.start, block.stop)
        m, (n, width) = len(stages), self.y.shape
        inner = self.tableau.a[block.start : block.stop, block.start : block.stop]
        bases = [self.state(i, slopes) for i in stages]
        weights = predictors(self.tableau)
        # Extrapolation may end beyond another root; where no step can be rejected the last slope is the guess.
        k = [slopes[-1] if accuracy.renew else combine(None, None, weights[i], slopes) for i in stages]
        # Where no step can be rejected the first Jacobian is that of the guess: the start may be far from it.
        factors = self._renewed(block, bases, k) if accuracy.renew else self.factors(block)
        rounding = 8 * torch.finfo(self.y.dtype).eps

        active, solved = live, torch.zeros_like(live)
        evals = torch.zeros(n, dtype=torch.int64, device=self.y.device)
        # Stages before had the same Jacobian, so that their rate is a first guess, a careful one; 0: not known.
        rate = (_CAREFUL * slowest).clamp_max(1.0)
        previous = torch.full_like(slowest, torch.inf)
        for iteration in range(accuracy.max_iters):
            states = [combine(bases[i], self.h, inner[i].tolist(), k) for i in range(m)]
            residual = [self.field(self.time(i), states[r]) - k[r] for r, i in enumerate(stages)]
            change = factors.solve(residual[0] if m == 1 else torch.cat(residual, 1)).split(width, 1)
            change = [torch.where(active[:, None], delta, 0.0) for delta in change]
            k = [old + delta for old, delta in zip(k, change, strict=True)]
            moved = [combine(None, self.h, inner[i].tolist(), list(change)) for i in range(m)]
            states = [state + delta for state, delta in zip(states, moved, strict=True)]
            scales = [accuracy.scale(state) for state in states]
            moved = [delta / scale for delta, scale in zip(moved, scales, strict=True)]
            size = rms(moved[0] if m == 1 else torch.cat(moved, 1))
            floor = rounding * rms(states[0] / scales[0])
            evals = evals + active * m
            if iteration > 0:
                rate = torch.where(active, size / previous, rate)
                telling = active & ((size > floor) | (rate < _TINY_RATE))  # the ratio of two roundings tells nothing
                slowest = torch.where(telling, torch.maximum(slowest, rate.clamp_min(_FIRST_RATE)), slowest)
            # With contraction q the error that remains is at most q / (1 - q) times the last correction.
            known = (rate > 0) & (rate < 1)
            remaining = torch.where(known, rate / (1 - rate) * size, torch.inf)
            done = (remaining <= accuracy.done) | (size <= floor) | (size == 0)
            if iteration > 1:
                done = done | ((rate > _STAGNATES) & (size <= accuracy.good))
            solved = solved | (active & done)
            lost = ~torch.isfinite(size)
            if not accuracy.renew and iteration > 0:  # a shorter step is better than many iterations
                left = accuracy.max_iters - 1 - iteration
                hopeless = (rate >= 2) | (torch.exp(left * torch.log(rate)) * size > accuracy.done)
                lost = lost | (hopeless & (rate > _STAGNATES) & (size > accuracy.good))
            active = active & ~done & ~lost
            if not bool(active.any()):
                break
            previous = torch.where(active, size, previous)
            if accuracy.renew and iteration > 0:
                slow = active & (rate > 0.1)
                if bool(slow.any()):
                    factors = self._renewed(block, bases, k).where(slow, factors)
        slopes.extend(k)
        return solved, slowest, evals

    def _renewed(self, block: Block, bases: list[Tensor], k: list[Tensor]) -> Factors:
        """Factors of the matrix with the Jacobians at the iterate."""
        inner = self.tableau.a[block.start : block.stop, block.start : block.stop]
        found = []
        for r, i in enumerate(range(block.start, block.stop)):
            found.append(jacobian(self.field, self.time(i), combine(bases[r], self.h, inner[r].tolist(), k))[0])
        return factorise(stage_matrix(self.h, inner.tolist(), found))
