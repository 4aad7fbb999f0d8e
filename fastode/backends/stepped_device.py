"""The compiled part of the ``stepped`` backend for states on a GPU: no host synchronisation inside a step.

The host launches attempts without knowing how the one before ended: on the device, attempts of samples that are done
are steps of size zero. What the host must know, how many samples are running and how much was recorded, is copied to
it after every attempt and read when it has arrived. Before it launches an attempt that might not be needed it waits; it
need not wait as long as some sample's next step does not lead to its end.

The same kernels, compiled for the host, run on CPU tensors: that is how they are tested without a GPU.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastode._environment import _C
from fastode.backends.step_graph import StepGraph, get_cuda_graphs
from fastode.checkpoint import Checkpoint
from fastode.controllers import IController
from fastode.problem import Plan
from fastode.solution import DenseOutput, Outcome, Stats
from fastode.status import RUNNING
from fastode.tableaus import Tableau

_ROWS = _C.step_rows
_CHUNK_BYTES = 1 << 22
_MOST_CHUNKS = 1 << 14
_ROW_NUMBERS = 6
"""Of 8 bytes in a row of the record: sample, number, row of the state as int64; t, t_next, h as float64."""


def device_index(device: torch.device) -> int:
    """What kernels take for a device: the number of a GPU, -1 for the host."""
    if device.type != "cuda":
        return -1
    return torch.cuda.current_device() if device.index is None else device.index


def stream_of(device: torch.device) -> int:
    """Torch's current stream on a device, 0 for the host."""
    stream: int = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return stream


@lru_cache(maxsize=256)
def _interpolant(tableau: Tableau, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(tableau.q, dtype=torch.float64, device=device)


class Poll:
    """Counters of the device, read by the host some time later without stopping either.

    Args:
        counters: (n,) int64 on the device.
    """

    def __init__(self, counters: Tensor) -> None:
        self._counters = counters
        self._gpu = counters.device.type == "cuda"
        self._sent: deque[tuple[int, Tensor, Any]] = deque()
        self._free: list[Tensor] = []

    def post(self, number: int) -> None:
        """Sends the values of now, to be known by this number."""
        if self._gpu:
            slot = self._free.pop() if self._free else torch.empty_like(self._counters, device="cpu", pin_memory=True)
            slot.copy_(self._counters, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._counters.device))
            self._sent.append((number, slot, event))
        else:
            self._sent.append((number, self._counters.clone(), None))

    def take(self, wait: bool) -> tuple[int, list[int]] | None:
        """The oldest values that have not been taken: their number and themselves; None if none has arrived."""
        if not self._sent:
            return None
        number, slot, event = self._sent[0]
        if wait:
            if event is not None:
                event.synchronize()
        elif event is None or not event.query():  # on the host nothing arrives before somebody waits
            return None
        self._sent.popleft()
        values = slot.tolist()
        if event is not None:
            self._free.append(slot)
        return number, values


class DeviceSteps:
    """A forward solve: everything of a step but the field. Lanes are the samples that were not dropped.

    Attributes:
        ys: (T, B, D), the outputs.
        t, y: time (lanes,) and state (lanes, D) of the last evaluation that was asked for.
    """

    def __init__(self, plan: Plan, y0: Tensor, k1: Tensor, policy: Checkpoint | None) -> None:
        self.plan, tableau, device = plan, plan.tableau, y0.device
        batch, width = y0.shape
        self._device = device
        self._kernels_device = device_index(device)

        def empty(*shape: int, dtype: torch.dtype = y0.dtype) -> Tensor:
            # At least one number: kernels take no address for no memory.
            return torch.empty(max(1, math.prod(shape)), dtype=dtype, device=device)[: math.prod(shape)].view(shape)

        self.ys = empty(plan.times.shape[0], batch, width).fill_(torch.nan)
        self.t, self.y = plan.times[0].to(y0.dtype, copy=True), y0.clone(memory_format=torch.contiguous_format)
        self._real = empty(_ROWS["reals"], batch, dtype=torch.float64)
        self._whole = empty(_ROWS["wholes"], batch, dtype=torch.int64)
        self._counters = empty(_ROWS["counters"], dtype=torch.int64).zero_()
        self._sample = torch.arange(batch, device=device)
        self._base = empty(batch, width)
        self._k = empty(tableau.n_stages - 1, batch, width)
        self._lanes = batch
        times, step_size = plan.times.contiguous(), plan.step_size
        step_size = (
            None if step_size is None else torch.cat([step_size, step_size.new_ones(1)])
        )  # never without address
        q = _interpolant(tableau, device)
        partial = empty(max(1, batch * _C.step_chunks(width)), dtype=torch.float64)
        self._kept_alive = times, step_size, q, partial, plan.rtol, plan.atol
        controller = plan.controller
        self._kernels: Any = (_C.StepKernels64 if y0.dtype == torch.float64 else _C.StepKernels32)(
            device=self._kernels_device,
            batch=batch,
            width=width,
            n_times=times.shape[0],
            max_steps=plan.max_steps,
            first_step=0.0 if controller is None else controller.first_step or 0.0,
            times_ptr=times.data_ptr(),
            step_size_ptr=0 if step_size is None else step_size.data_ptr(),
            rtol_ptr=plan.rtol.data_ptr(),
            atol_ptr=plan.atol.data_ptr(),
            q_ptr=q.data_ptr(),
            ys_ptr=self.ys.data_ptr(),
            sample_ptr=self._sample.data_ptr(),
            real_ptr=self._real.data_ptr(),
            whole_ptr=self._whole.data_ptr(),
            counters_ptr=self._counters.data_ptr(),
            y_ptr=self._base.data_ptr(),
            k_ptr=self._k.data_ptr(),
            partial_ptr=partial.data_ptr(),
            c=tableau.c.tolist(),
            a=tableau.a.flatten().tolist(),
            e=[] if tableau.e is None else tableau.e.tolist(),
            degree=tableau.degree,
            control=(controller or IController()).constants(
                tableau.error_exponent, plan.step_to_outputs, plan.rtol.dtype
            ),
        )
        self.record: DeviceRecord | None = None
        if policy is not None or plan.dense:
            self.record = DeviceRecord(plan, y0, policy)
            self.record.attach(self._kernels)
        self._poll = Poll(self._counters)
        self._attempts = 0
        self._layout = 0
        self._graph = StepGraph(device) if get_cuda_graphs() else None
        self._known_after, self._known = 0, [batch, 0, 0, 0]
        self._kernels.start(y0.data_ptr(), k1.data_ptr(), stream_of(device))
        if controller is None or controller.first_step is not None or batch == 0:
            self._post()

    def _post(self) -> None:
        self._poll.post(self._attempts)

    def _learn(self, wait: bool) -> bool:
        found = self._poll.take(wait)
        if found is None:
            return False
        self._known_after, self._known = found
        return True

    def probe(self) -> None:
        """Sets t and y to the evaluation that chooses the first step."""
        self._kernels.probe(self.t.data_ptr(), self.y.data_ptr(), stream_of(self._device))

    def choose_first_step(self, k: Tensor) -> None:
        """Takes the field there, k (lanes, D)."""
        self._kernels.choose_first_step(k.data_ptr(), stream_of(self._device))
        self._post()

    def more(self) -> bool:
        """Whether another attempt is needed; waits only where that is not certain."""
        while self._learn(wait=False):
            pass
        if self._attempts == 0 and self._known_after == 0:
            self._learn(wait=True)  # samples may be done, or have failed, before the first step
        while self._known[_ROWS["running"]] > 0:
            # One more is needed after what is known, two if the next one is not everybody's last.
            certain = self._known_after + (2 if self._known[_ROWS["going_on"]] else 1)
            if self._attempts < certain:
                return True
            self._learn(wait=True)
        return False

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return self._lanes

    @property
    def running(self) -> int:
        """Number of lanes that are not done; what is known of it."""
        return self._known[_ROWS["running"]]

    def running_lanes(self) -> Tensor:
        """(running,) int64, the lanes that are not done. The host waits."""
        return (self._whole[_ROWS["status"]][self._sample] == RUNNING).nonzero().flatten()

    def compact(self, kept: Tensor) -> None:
        """Drops all lanes but those of ``running_lanes``."""
        n = len(kept)
        self._base[:n] = self._base[kept]
        first = self._k[0]
        first[:n] = first[kept]
        self._sample = self._sample[kept]
        self._kernels.use_lanes(n, self._sample.data_ptr())
        self.t, self.y, self._lanes = self.t[:n], self.y[:n], n
        self._layout += 1

    def attempt(self, launch: Callable[[], Tensor]) -> Tensor:
        """An attempt; ``launch`` takes its stages and ends with ``finish_step``. Returns the field's last value."""
        if self.record is not None:
            self._make_room()
        value = launch() if self._graph is None else self._graph.run(self._layout, launch)
        self._attempts += 1
        self._post()
        return value

    def stage(self, i: int, k: Tensor) -> None:
        """Sets t and y to stage i; k (lanes, D) is the value of stage i - 1, not read for i = 1."""
        self._kernels.stage(i, k.data_ptr(), self.t.data_ptr(), self.y.data_ptr(), stream_of(self._device))

    def finish_step(self, k: Tensor) -> None:
        """Accepts or rejects the attempt whose last stage has the value k (lanes, D)."""
        self._kernels.finish_step(self.y.data_ptr(), k.data_ptr(), stream_of(self._device))

    def _make_room(self) -> None:
        """Room in the record for this attempt, from what is known: no more samples run than then."""
        record = self.record
        assert record is not None

        def most(counter: str) -> int:
            return self._known[_ROWS[counter]] + (self._attempts + 1 - self._known_after) * self.running

        if record.over_budget(most("states")):
            while self._learn(wait=True):
                pass
            if record.over_budget(most("states")):
                self._known[_ROWS["states"]] = record.thin(
                    self._known[_ROWS["steps"]], self._known[_ROWS["states"]], self.running, self._counters
                )
                record.attach(self._kernels)
                self._layout += 1
        record.grow(most("steps"), most("states"))

    def finish(self) -> Outcome:
        """What became of every sample."""
        while self._learn(wait=True):
            pass
        status, *counts = (self._whole[_ROWS[name]] for name in ("status", "n_accepted", "n_rejected", "n_evals"))
        if self.record is not None:
            self.record.finish(self._known[_ROWS["steps"]], self._known[_ROWS["states"]], counts[0])
        return Outcome(status, self._real[_ROWS["time"]], Stats(*counts))

    def dense_output(self, reached: Tensor, n_accepted: Tensor) -> DenseOutput:
        """The polynomials of all accepted steps; after ``finish``."""
        assert self.record is not None
        return self.record.dense_output(self.plan, self.ys[0], reached, n_accepted)


class DeviceRecord:
    """The accepted steps of a solve, in chunks of device memory that grow as steps are taken.

    Rows come in the order in which threads of the device take them, which differs from run to run; ``finish`` sorts
    them.

    Attributes:
        steps: number of steps of all samples, after ``finish``.
        state_bytes: of the states that are kept.
        table: (steps, 6) int64, sample, number and row of the state; start, end and size, the bits of float64.
        offsets: (B + 1,) int64, place of each sample's first step in ``table``.
    """

    def __init__(self, plan: Plan, y0: Tensor, policy: Checkpoint | None) -> None:
        batch, self.width = y0.shape
        self.dtype, self.device, self.batch = y0.dtype, y0.device, batch
        self.every = 0 if policy is None else policy.every
        self.max_bytes = 0 if policy is None else policy.max_bytes or 0
        row_bytes = max(1, self.width * y0.element_size())
        self.row_bytes = row_bytes
        self.per_chunk = max(64, batch, _CHUNK_BYTES // row_bytes)
        self.degree = plan.tableau.degree
        self.dense = plan.dense
        self._chunks: list[Tensor] = []
        self._state_chunks: list[Tensor] = []
        self._coef_chunks: list[Tensor] = []
        self._addresses = torch.empty(3, _MOST_CHUNKS, dtype=torch.int64, device=self.device)
        self._position: Tensor | None = None
        self.steps = self.state_bytes = 0
        self.table = self.offsets = torch.empty(0, dtype=torch.int64, device=self.device)

    def attach(self, kernels: Any) -> None:
        """Tells kernels where to write."""
        steps, states, coefs = (row.data_ptr() for row in self._addresses)
        kernels.keep_record(
            step_chunks_ptr=steps,
            state_chunks_ptr=states,
            coef_chunks_ptr=coefs if self.dense else 0,
            steps_per_chunk=self.per_chunk,
            states_per_chunk=self.per_chunk,
            every=self.every,
        )

    def _add(self, kind: int, chunks: list[Tensor], *shape: int, dtype: torch.dtype) -> None:
        if len(chunks) == _MOST_CHUNKS:
            raise RuntimeError(f"more than {_MOST_CHUNKS * self.per_chunk} steps cannot be recorded")
        size = max(1, math.prod(shape))
        chunk = torch.empty(self.per_chunk * size, dtype=dtype, device=self.device).view(self.per_chunk, -1)
        self._addresses[kind, len(chunks)].fill_(chunk.data_ptr())
        chunks.append(chunk)

    def grow(self, steps: int, states: int) -> None:
        """Makes room for so many rows."""
        while len(self._chunks) * self.per_chunk < steps:
            self._add(0, self._chunks, _ROW_NUMBERS, dtype=torch.int64)
            if self.dense:
                self._add(2, self._coef_chunks, self.degree + 1, self.width, dtype=self.dtype)
        while self.every > 0 and len(self._state_chunks) * self.per_chunk < states:
            self._add(1, self._state_chunks, self.width, dtype=self.dtype)

    def over_budget(self, states: int) -> bool:
        """Whether so many states are more than the policy allows."""
        return 0 < self.max_bytes < states * self.row_bytes

    def thin(self, n_steps: int, n_states: int, more: int, counters: Tensor) -> int:
        """Doubles the spacing of the states until there is room for ``more``; returns how many are left.

        Past the largest number only the first state of each sample is left, and thinning can gain nothing more.
        """
        if n_steps == 0:
            return n_states
        rows = torch.cat(self._chunks)[:n_steps]
        states = torch.cat(self._state_chunks)[:n_states]
        longest = int(rows[:, 1].max()) + 1
        while self.over_budget(n_states + more) and self.every <= longest:
            self.every *= 2
            kept = (rows[:, 2] >= 0) & (rows[:, 1] % self.every == 0)
            states = states[rows[kept, 2]]
            n_states = states.shape[0]
            rows[:, 2] = torch.where(kept, kept.cumsum(0) - 1, -1)
        for chunk, part in zip(self._chunks, rows.split(self.per_chunk), strict=False):
            chunk[: len(part)] = part
        self._state_chunks = self._state_chunks[: -(-n_states // self.per_chunk)]
        for chunk, part in zip(self._state_chunks, states.split(self.per_chunk), strict=False):
            chunk[: len(part)] = part
        counters[_ROWS["states"]].fill_(n_states)
        return n_states

    def finish(self, n: int, n_states: int, n_accepted: Tensor) -> None:
        """Sorts n steps by sample and number."""
        self.steps, self.state_bytes = n, n_states * self.row_bytes
        rows = torch.cat(self._chunks)[:n] if self._chunks else self.table.new_empty(0, _ROW_NUMBERS)
        self.offsets = torch.cat([n_accepted.new_zeros(1), n_accepted.cumsum(0)])
        self._position = self.offsets[rows[:, 0]] + rows[:, 1]
        self.table = torch.empty_like(rows)
        self.table[self._position] = rows
        self._chunks = []

    def count(self) -> NDArray[np.int64]:
        """(B,) accepted steps of each sample. The host waits."""
        count: NDArray[np.int64] = self.offsets.diff().cpu().numpy()
        return count

    def dense_output(self, plan: Plan, y0: Tensor, reached: Tensor, n_accepted: Tensor) -> DenseOutput:
        """The polynomials, in the order of the table."""
        n, batch = self.steps, self.batch
        coefs = torch.empty(n, self.degree + 1, self.width, dtype=self.dtype, device=self.device)
        if n == 0:
            empty = torch.zeros(0, batch, dtype=torch.float64, device=self.device)
            rows = torch.zeros(0, batch, dtype=torch.int64, device=self.device)
            return DenseOutput(empty, empty, rows, coefs, n_accepted, plan.times[0], reached, y0)
        assert self._position is not None
        for i, chunk in enumerate(self._coef_chunks):
            place = self._position[i * self.per_chunk : (i + 1) * self.per_chunk]
            coefs[place] = chunk[: len(place), : coefs[0].numel()].view(len(place), self.degree + 1, self.width)
        self._coef_chunks = []
        _, start, end, size = self.padded()
        start = torch.where(size != 0, start, torch.where(n_accepted > 0, end, reached))
        number = torch.arange(start.shape[0], device=self.device)[:, None]
        rows = self.offsets[:-1] + torch.minimum(number, (n_accepted - 1).clamp_min(0))
        return DenseOutput(start, size, rows.clamp_max(n - 1), coefs, n_accepted, plan.times[0], reached, y0)

    def padded(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Accepted steps of each sample (B,) int64; start, end and signed size of each, (N, B) float64.

        After its last step a sample has the end of that one as start and end, and size 0; without any step zeros.
        """
        count = self.offsets.diff()
        start, end, size = self.table[:, 3:].contiguous().view(torch.float64).unbind(1)
        n = int(count.max()) if count.numel() else 0
        number = torch.arange(n, device=self.device)[:, None]
        if n == 0:
            empty = torch.zeros(0, len(count), dtype=torch.float64, device=self.device)
            return count, empty, empty, empty
        taken = number < count
        rows = (self.offsets[:-1] + torch.minimum(number, (count - 1).clamp_min(0))).clamp_max(len(start) - 1)
        ends = torch.where(count > 0, end[rows], 0.0)
        return count, torch.where(taken, start[rows], ends), ends, torch.where(taken, size[rows], 0.0)


class DeviceWalk:
    """Steps and states of a record, and the gradients of the outputs inside its steps: as ``HostWalk``.

    The host waits once, to learn at which numbers of steps there are outputs inside any.
    """

    def __init__(
        self, record: DeviceRecord, plan: Plan, lanes: Tensor, grad_ys: Tensor | None, grad_coefs: Tensor | None
    ) -> None:
        self.dtype, self.width, self.device = record.dtype, record.width, record.device
        self.degree = plan.tableau.degree
        self._kernels_device = device_index(self.device)
        grad_ys = None if grad_ys is None else grad_ys.contiguous()
        grad_coefs = None if grad_coefs is None else grad_coefs.contiguous()
        times, lanes = plan.times.contiguous(), lanes.to(self.device).contiguous()
        self._kept_alive = record, grad_ys, grad_coefs, times, lanes
        self._walk = (_C.StepWalk64 if self.dtype == torch.float64 else _C.StepWalk32)(
            device=self._kernels_device,
            batch=plan.batch,
            width=self.width,
            n_times=times.shape[0],
            degree=self.degree,
            every=record.every,
            states_per_chunk=record.per_chunk,
            times_ptr=times.data_ptr(),
            table_ptr=record.table.data_ptr(),
            offsets_ptr=record.offsets.data_ptr(),
            sample_ptr=lanes.data_ptr(),
            state_chunks_ptr=record._addresses[1].data_ptr(),
            grad_ys_ptr=0 if grad_ys is None else grad_ys.data_ptr(),
            grad_coefs_ptr=0 if grad_coefs is None else grad_coefs.data_ptr(),
        )
        self._all_inside = grad_coefs is not None
        self._inside: list[bool] = []
        n = record.table.shape[0]
        if grad_ys is not None and n > 0 and not self._all_inside:
            inside = torch.zeros(int(record.count().max()), dtype=torch.bool, device=self.device)
            self._walk.mark_inside(n, inside.data_ptr(), stream_of(self.device))
            self._inside = inside.tolist()

    def states(self, j: int, n: int) -> Tensor:
        """See ``HostWalk.states``."""
        y = torch.empty(n, self.width, dtype=self.dtype, device=self.device)
        self._walk.states(j, n, y.data_ptr(), stream_of(self.device))
        return y

    def steps(self, j: int, n: int) -> tuple[Tensor, Tensor]:
        """See ``HostWalk.steps``."""
        t, h = torch.empty(2, n, dtype=torch.float64, device=self.device)
        self._walk.steps(j, n, t.data_ptr(), h.data_ptr(), stream_of(self.device))
        return t, h

    def outputs(self, j: int, p: Tensor) -> Tensor | None:
        """See ``HostWalk.outputs``."""
        n = p.shape[0]
        inner = None
        if self._all_inside or self._inside[j]:
            inner = torch.empty(self.degree + 1, n, self.width, dtype=self.dtype, device=self.device)
        self._walk.outputs(j, n, p.data_ptr(), 0 if inner is None else inner.data_ptr(), stream_of(self.device))
        return inner

    def combine(self, base: Tensor | None, scale: Tensor | None, coefs: list[float], terms: list[Tensor]) -> Tensor:
        """See ``HostWalk.combine``."""
        like = terms[0] if base is None else base
        out = torch.empty_like(like)
        _C.combine_on(
            device=self._kernels_device,
            out_ptr=out.data_ptr(),
            base_ptr=0 if base is None else base.data_ptr(),
            scale_ptr=0 if scale is None else scale.data_ptr(),
            coefs=coefs,
            ptrs=[term.data_ptr() for term in terms],
            n=like.shape[0],
            d=self.width,
            is_double=self.dtype == torch.float64,
            stream=stream_of(self.device),
        )
        return out
