"""The time that there is, and whose it is."""

from __future__ import annotations

import time

SHARES = {"environment": 0.1, "first checks": 0.22, "checks": 0.45, "benchmarks": 0.95}
"""Part of the budget by whose end a stage is over. What a stage leaves over goes to the next."""
QUICK = {"environment": 0.33, "first checks": 0.6, "checks": 0.6, "benchmarks": 0.93}


class Budget:
    """Wall time from the start of the command.

    Args:
        seconds: all of it.
        shares: of the stages.
    """

    def __init__(self, seconds: float, shares: dict[str, float] = SHARES) -> None:
        self.seconds, self.shares = seconds, shares
        self._start = time.monotonic()

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def until(self, stage: str) -> float:
        """When a stage must be over, by ``time.monotonic``."""
        return self._start + self.shares[stage] * self.seconds
