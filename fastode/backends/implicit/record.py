"""The accepted steps of every sample, and the states at the start of some of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastode.checkpoint import Checkpoint


@dataclass(frozen=True)
class StepRecord:
    """Accepted steps, one row each, sorted by sample and then by number.

    Attributes:
        offset: (B,) int64, first row of each sample.
        count: (B,) int64, number of its rows.
        t, t_next, h: (R,) float64, start, end and signed size.
        first_output, n_outputs: (R,) int64, the output times in (t, t_next].
        every: the state of every ``every``-th step of a sample is kept.
        state_offset: (B,) int64, first row of each sample in ``states``.
        states: (S, D), states at the start.
    """

    offset: Tensor
    count: Tensor
    t: Tensor
    t_next: Tensor
    h: Tensor
    first_output: Tensor
    n_outputs: Tensor
    every: int
    state_offset: Tensor
    states: Tensor

    def rows(self, samples: Tensor, j: int) -> Tensor:
        """Rows of step number j of samples (n,), of their last step where they have no such step."""
        return self.offset[samples] + (self.count[samples] - 1).clamp(0, j)

    def state(self, samples: Tensor, j: int) -> Tensor:
        """(n, D), states at the start of step j, a multiple of ``every``; of the last one that is kept otherwise."""
        last = torch.div(self.count[samples] - 1, self.every, rounding_mode="floor")
        return self.states[self.state_offset[samples] + last.clamp(0, j // self.every)]


class Recorder:
    """Collects accepted steps.

    Args:
        batch: number of samples.
        policy: which states are kept; None keeps none.
        like: (B, D), for shape, dtype and device of states.
    """

    def __init__(self, batch: int, policy: Checkpoint | None, like: Tensor) -> None:
        self._batch, self._like = batch, like
        self._every = 0 if policy is None else policy.every
        self._budget = None if policy is None else policy.max_bytes
        self._steps: list[tuple[Tensor, ...]] = []
        self._states: list[tuple[Tensor, Tensor, Tensor]] = []
        self._kept = 0

    def add(
        self,
        samples: Tensor,
        number: Tensor,
        t: Tensor,
        t_next: Tensor,
        h: Tensor,
        first_output: Tensor,
        n_outputs: Tensor,
        y: Tensor,
    ) -> None:
        """One accepted step of each of some samples (m,): its number, its interval, its outputs, its first state."""
        self._steps.append((samples, t, t_next, h, first_output, n_outputs))
        if self._every == 0:
            return
        chosen = number % self._every == 0
        if not bool(chosen.all()):
            samples, number, y = samples[chosen], number[chosen], y[chosen]
        self._states.append((samples, number, y))
        self._kept += samples.shape[0]
        row = self._like.shape[1] * self._like.element_size()
        while self._budget is not None and self._kept > self._batch and self._kept * row > self._budget:
            self._every *= 2
            thinned = [(s, n, states, n % self._every == 0) for s, n, states in self._states]
            self._states = [(s[keep], n[keep], states[keep]) for s, n, states, keep in thinned]
            before, self._kept = self._kept, sum(s.shape[0] for s, _, _ in self._states)
            if before == self._kept:
                break

    def finish(self, count: Tensor) -> StepRecord:
        """The record of samples that took ``count`` (B,) steps."""
        device = self._like.device
        _, order = self._sorted([step[0] for step in self._steps])

        def column(i: int, dtype: torch.dtype) -> Tensor:
            parts = [step[i] for step in self._steps]
            return torch.cat(parts)[order] if parts else torch.empty(0, dtype=dtype, device=device)

        owners, state_order = self._sorted([s for s, _, _ in self._states])
        states = torch.cat([y for _, _, y in self._states])[state_order] if self._states else self._like[:0]
        kept = torch.bincount(owners, minlength=self._batch)
        return StepRecord(
            count.cumsum(0) - count,
            count,
            t=column(1, torch.float64),
            t_next=column(2, torch.float64),
            h=column(3, torch.float64),
            first_output=column(4, torch.int64),
            n_outputs=column(5, torch.int64),
            every=max(self._every, 1),
            state_offset=kept.cumsum(0) - kept,
            states=states,
        )

    def _sorted(self, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Owners of all rows, and the order by owner; rows of one owner stay in the order in which they came."""
        if not parts:
            empty = torch.empty(0, dtype=torch.int64, device=self._like.device)
            return empty, empty
        return torch.sort(torch.cat(parts), stable=True)
