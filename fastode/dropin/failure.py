"""The error of a solve that could not reach its end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastode.status import SolveError, Status


class OdeintError(SolveError, AssertionError):
    """A solve of ``odeint`` failed; also an ``AssertionError``, which is what torchdiffeq raises.

    Attributes:
        samples, times, statuses: as those of ``SolveError``. With one step size for the whole state they are the rows
            (indices of the leading dimension) to which the failure is due, as far as these can be told.
    """

    def __init__(
        self,
        status: Tensor,
        reached: Tensor,
        last_step: Tensor | None = None,
        last_ratio: Tensor | None = None,
        message: str | None = None,
    ) -> None:
        """As ``SolveError``, with a message of its own or that of ``SolveError``."""
        super().__init__(status, reached, last_step, last_ratio)
        self._message = message
        if message is None:
            message = str(self.args[0]).rsplit(" on_failure=", 1)[0]
        self.args = (message,)

    def __reduce__(self) -> tuple[type[OdeintError], tuple[Any, ...]]:
        return OdeintError, (*self._given, self._message)


def whole_state_error(why: Status, t: float, detail: str, ratio: Tensor | None) -> OdeintError:
    """The error of a state that is solved with one step size.

    Args:
        why: what happened.
        t: the time that was reached.
        detail: the same in words.
        ratio: error of the last attempt over its tolerance, shaped like the state, to name the rows at fault; or None.
    """
    rows, failed = 1, torch.ones(1, dtype=torch.bool)
    message = f"{detail} at t={t:.6g}"
    if ratio is not None and ratio.ndim > 0 and ratio.shape[0] > 1:
        size = ratio.detach().abs().reshape(ratio.shape[0], -1).amax(1).cpu()
        bad = ~(size <= 1)
        if bool(bad.any()):
            rows, failed = ratio.shape[0], bad
            worst = bad.nonzero().flatten().tolist()
            shown = ", ".join(map(str, worst[:8])) + (f" and {len(worst) - 8} more" if len(worst) > 8 else "")
            message += f"; {len(worst)} of {rows} rows of the state are at fault: {shown}"
    status = torch.where(failed, int(why), int(Status.SUCCESS))
    return OdeintError(status, torch.full((rows,), t, dtype=torch.float64), message=message)
