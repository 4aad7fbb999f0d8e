"""The steps of any backend's record, as the reference holds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastode.backends.implicit.forward import ImplicitRecord
from fastode.backends.implicit.replay import intervals
from fastode.backends.program_record import ProgramRecord
from fastode.backends.reference import ReferenceRecord
from fastode.backends.stepped_adjoint import SteppedRecord
from fastode.backends.triton.record import SegmentedRecord
from fastode.reference import Steps
from fastode.solution import Stats


def steps_of(record: Any, y0: Tensor) -> Steps | None:
    """The accepted steps of a record, for ``replay``; None if it is of a kind that does not tell.

    Status, statistics and the time reached are not in a record: these are zero.

    Args:
        record: of a forward solve.
        y0: (B, D).
    """
    if isinstance(record, ReferenceRecord):
        return record.steps
    if isinstance(record, SegmentedRecord):
        record = record.ragged(y0.shape[0])
    if isinstance(record, ProgramRecord):
        count = record.offsets.diff()
        table = record.table
        step = torch.arange(table.shape[0], device=table.device)
        sample = torch.repeat_interleave(torch.arange(len(count), device=table.device), count)
        place = (step - record.offsets[:-1].repeat_interleave(count), sample)
        n = int(count.max()) if count.numel() else 0
        t, t_next, h = (table.new_zeros(n, len(count)).index_put(place, column) for column in table.unbind(1))
    elif isinstance(record, SteppedRecord):
        count, t, t_next, h = record.table()
    elif isinstance(record, ImplicitRecord):
        count = record.steps.count
        t, t_next, h = intervals(record.steps)
    else:
        return None
    zeros = torch.zeros_like(count)
    return Steps(t, t_next, h, count, zeros.double(), y0, zeros, Stats(zeros, zeros, zeros))
