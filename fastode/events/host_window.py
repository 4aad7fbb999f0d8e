"""The events within the steps of a window on the CPU, found by compiled code that calls the event functions back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastode._environment import _C
from fastode.events.arrays import Array
from fastode.events.event import FlatEvents
from fastode.events.window import NUMBERS, Crossings, Start, last_state
from fastode.solution import DenseOutput


class HostWindow:
    """What ``Window`` is, to the last bit, for tensors on the CPU: its arguments and attributes."""

    def __init__(
        self,
        events: FlatEvents,
        dense: DenseOutput,
        alive: Array,
        direction: Array,
        controls: Sequence[Tensor],
        start: Start,
        counts: Array,
    ) -> None:
        self._dense, self._count = dense, np.where(alive, dense.n_accepted.numpy(), 0)
        n_rows, batch = dense.start.shape
        coefs = dense.coefs.detach()
        held = list(controls) if events.fn_reads else []

        def evaluate(e: int, t: Array, y: Array, sample: Array) -> Array:
            own: list[Tensor] = []
            if held and events.reads(e):
                index = torch.from_numpy(sample)
                own = [c[index] for c in held]
            return events.value(e, torch.from_numpy(t), torch.from_numpy(y), own).detach().numpy()

        arrays = [dense.start, dense.size, dense.rows, coefs]
        tensors = [x if x.is_contiguous() else x.contiguous() for x in arrays]
        known = [self._count, direction, start.values, start.signs, counts]
        numpy = [np.ascontiguousarray(x) for x in known]
        self.ends, self.size, self.fired, self.jumps, values, signs, self._signs, records = _C.search_events(
            [*(x.data_ptr() for x in tensors), *(x.ctypes.data for x in numpy)],
            n_rows,
            batch,
            coefs.shape[2],
            coefs.shape[1] - 1,
            coefs.shape[0],
            coefs.dtype == torch.float64,
            events.kinds,
            events.parts,
            max(1, NUMBERS // max(1, events.row_size)),
            evaluate,
        )
        self.last = Start(values, signs)
        self.records = [Crossings(*parts) for parts in records]

    def signs_before(self) -> Array:
        """Signs (B, E) of the event functions just before the ends; 0 where there is none."""
        return self._signs

    def last_state(self, y: Tensor) -> Tensor:
        """The states (B, D) at the end of the window; y where there was no step."""
        return last_state(self._dense, torch.from_numpy(self._count), y)
