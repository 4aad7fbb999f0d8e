"""How much of a solve is remembered for its gradient."""

from __future__ import annotations

from dataclasses import dataclass

_MOST = 2**40
"""Steps that no sample takes: a wider spacing of states says no more."""


@dataclass(frozen=True)
class Checkpoint:
    """The exact discrete adjoint from the states at the start of accepted steps.

    Args:
        every: the state of every ``every``-th accepted step of a sample is kept; those between are computed again, at
            the cost of one more forward evaluation of each stage. 1 keeps all; as many as a sample takes steps, or
            more, keep one state of each sample.
            Backend ``stepped`` keeps, with 1, the graph of a solve with fixed steps where that takes at most 64 MiB.
        max_bytes: budget for the kept states of the whole batch, in bytes, and for that graph. When the states would
            exceed it ``every`` is doubled, as often as needed. One state per sample is always kept. None: no limit.

    Raises:
        ValueError: a value that is not a positive integer.
    """

    every: int = 1
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every must be a positive integer, got {self.every!r}")
        limit = self.max_bytes
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError(f"max_bytes must be a positive integer or None, got {limit!r}")

    def within(self, max_steps: int) -> Checkpoint:
        """The same for solves of at most ``max_steps`` steps, in numbers that kernels can multiply."""
        if self.every <= 1 and self.max_bytes is None:  # the usual case
            return self
        limit = None if self.max_bytes is None else min(self.max_bytes, 2**60)
        return Checkpoint(min(self.every, max_steps, _MOST), limit)
