"""What became of each sample, and the error that says so."""

from __future__ import annotations

from enum import IntEnum

from torch import Tensor


class Status(IntEnum):
    """Outcome of one sample's solve; the integers are those of ``Solution.status`` and of every kernel."""

    SUCCESS = 0
    """The end time was reached."""
    MAX_STEPS = 1
    """``max_steps`` attempted steps did not reach the end."""
    STEP_UNDERFLOW = 2
    """The error stayed too large at the smallest admissible step."""
    NON_FINITE = 3
    """The state or the field became infinite or NaN, and no smaller step avoided it."""
    NO_CONVERGENCE = 4
    """The equations of an implicit method's stages could not be solved, and no smaller step avoided it."""
    EVENT = 5
    """An event ended the sample (``solve(..., events=...)``): no failure."""
    TOO_MANY_EVENTS = 6
    """Events followed each other without time passing, as those of a ball that has come to rest."""


RUNNING = -1
"""Status of a sample on its way; never seen by users."""


class SolveError(RuntimeError):
    """Some samples could not be solved.

    Attributes:
        samples: list of int, indices of the failed samples.
        times: list of float, the time each of them reached, in units of t.
        statuses: list of ``Status``, why each of them ended.
    """

    def __init__(self, status: Tensor, reached: Tensor) -> None:
        """Gathers the failed samples of status (B,) and reached (B,)."""
        self._given = status.detach().cpu(), reached.detach().cpu()
        failed = (status != Status.SUCCESS).nonzero().flatten().tolist()
        codes = status.tolist()
        times = reached.tolist()
        self.samples: list[int] = failed
        self.times: list[float] = [times[i] for i in failed]
        self.statuses: list[Status] = [Status(codes[i]) for i in failed]
        shown = [
            f"sample {i} at t={t:.6g}: {s.name}"
            for i, t, s in zip(self.samples[:8], self.times[:8], self.statuses[:8], strict=True)
        ]
        more = f" and {len(failed) - 8} more" if len(failed) > 8 else ""
        super().__init__(
            f"{len(failed)} of {len(codes)} samples failed: {'; '.join(shown)}{more}. "
            "on_failure='nan' returns the others and marks these in Solution.status."
        )

    def __reduce__(self) -> tuple[type[SolveError], tuple[Tensor, Tensor]]:
        return SolveError, self._given  # what worker processes send home is pickled
