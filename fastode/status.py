"""What became of each sample, and the error that says so."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

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
    """The state, the field or an implicit method's Jacobian became infinite or NaN, and no smaller step avoided it."""
    NO_CONVERGENCE = 4
    """The equations of an implicit method's stages could not be solved, and no smaller step avoided it."""
    EVENT = 5
    """An event ended the sample (``solve(..., events=...)``): no failure."""
    TOO_MANY_EVENTS = 6
    """Events followed each other without time passing, as those of a ball that has come to rest."""


RUNNING = -1
"""Status of a sample on its way; never seen by users."""


_CURES = {
    Status.MAX_STEPS: "raise max_steps or the tolerances, or take a method for stiff problems, such as 'kvaerno5'",
    Status.STEP_UNDERFLOW: "the solution may be infinite or jump there, or the tolerances be below rounding: end "
    "before it, make the time of a jump an output time, raise the tolerances or solve in float64",
    Status.NON_FINITE: "look at the field at that time and state, for divisions by zero, overflow and NaN in its "
    "inputs, for implicit methods in its derivatives too, such as that of sqrt at 0; fixed steps may be too long",
    Status.NO_CONVERGENCE: "raise the tolerances, give a smaller first step or take a Rosenbrock method, such as "
    "'rodas5p'",
    Status.TOO_MANY_EVENTS: "end the sample at such an event, or move its reset away from where the event happens",
}
"""What to try."""


class SolveError(RuntimeError):
    """Some samples could not be solved.

    Attributes:
        samples: list of int, indices of the failed samples.
        times: list of float, the time each of them reached, in units of t.
        statuses: list of ``Status``, why each of them ended.
        last_steps: list of float, the signed size of each one's last attempted step; NaN where it is not known.
        last_ratios: list of float, the error of that attempt over its tolerance; NaN where it is not known.
    """

    def __init__(
        self,
        status: Tensor,
        reached: Tensor,
        last_step: Tensor | None = None,
        last_ratio: Tensor | None = None,
        backward: bool = False,
    ) -> None:
        """Gathers the failed samples of status (B,), reached (B,), last_step (B,) and last_ratio (B,).

        ``backward`` is whether it was the solve of the adjoint equation that failed.
        """
        given = status, reached, last_step, last_ratio
        self._given: Any = tuple(None if x is None else x.detach().cpu() for x in given)
        self._backward = backward
        failed = ((status != Status.SUCCESS) & (status != Status.EVENT)).nonzero().flatten().tolist()
        codes = status.tolist()
        self.samples: list[int] = failed
        self.statuses: list[Status] = [Status(codes[i]) for i in failed]
        self.times, self.last_steps, self.last_ratios = (
            [math.nan] * len(failed) if x is None else [float(x[i]) for i in failed]
            for x in (reached, last_step, last_ratio)
        )
        shown = [self._line(i) for i in range(min(len(failed), 8))]
        more = f" and {len(failed) - 8} more" if len(failed) > 8 else ""
        cures = [f"{kind.name}: {_CURES[kind]}." for kind in sorted(set(self.statuses))]
        where = " in the backward solve of gradient='adjoint'" if backward else ""
        instead = (
            "gradient='checkpoint' takes the steps of the forward solve."
            if backward
            else "on_failure='nan' returns the others and marks these in Solution.status."
        )
        count = f"{len(failed)} of {len(codes)} samples failed{where}"
        super().__init__(f"{count}: {'; '.join(shown)}{more}. {' '.join(cures)} {instead}")

    def _line(self, i: int) -> str:
        """One failed sample in words."""
        step, ratio = self.last_steps[i], self.last_ratios[i]
        known = [] if math.isnan(step) else [f"last step {step:.3g}"]
        known += [] if math.isnan(ratio) else [f"error {ratio:.3g} times its tolerance"]
        detail = f" ({', '.join(known)})" if known else ""
        return f"sample {self.samples[i]} at t={self.times[i]:.6g}: {self.statuses[i].name}{detail}"

    def __reduce__(self) -> tuple[type[SolveError], tuple[Any, ...]]:
        return SolveError, (*self._given, self._backward)  # what worker processes send home is pickled
