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

_NUMPY = (torch.float32, torch.float64)


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
        coefs = dense.coefs.detach()
        held = list(controls) if events.fn_reads else []

        def evaluate(e: int, t: Array, y: Array, sample: Array) -> Array:
            own: list[Tensor] = []
            if held and events.reads(e):
                index = torch.from_numpy(sample)
                own = [c[index] for c in held]
            value = events.raw(e, torch.from_numpy(t), torch.from_numpy(y), own).detach()
            return (value if value.dtype in _NUMPY else value.double()).numpy()

        self.ends, self.size, self.fired, self.jumps, values, signs, self._signs, records = _C.search_events(
            dense.start.numpy(),
            dense.size.numpy(),
            dense.rows.numpy(),
            coefs.numpy(),
            self._count,
            direction,
            start.values,
            start.signs,
            counts,
            events.kinds,
            events.parts,
            max(1, NUMBERS // max(1, events.row_size)),
            coefs.dtype is events.state.dtype,
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
