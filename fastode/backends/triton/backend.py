"""Backend ``triton``: the solve of a field's program, and its discrete adjoint, each one generated GPU kernel."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fastode.backends.base import Forward
from fastode.backends.program_record import dense_output
from fastode.backends.triton.forward_source import CONTROL
from fastode.backends.triton.heuristics import too_large
from fastode.backends.triton.kernels import Kernels, kernels_of
from fastode.backends.triton.method import method_of
from fastode.backends.triton.record import Segment, SegmentedRecord, new_segment
from fastode.checkpoint import Checkpoint
from fastode.controllers import IController, PIDController
from fastode.problem import Plan
from fastode.program.capture import Capture
from fastode.program.evaluate import evaluate
from fastode.solution import Outcome, Stats

_REPLAY_BYTES = 1 << 28
"""For the states between kept ones, of all programs that run at the same time."""


def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that a kernel is to write; tests fill it with poison."""
    return torch.empty(shape, dtype=dtype, device=device)


@lru_cache(maxsize=256)
def _control(
    controller: PIDController | None, exponent: float, step_to_outputs: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, bool]:
    """The controller's constants (13,) float64 on a device, and whether it looks at more than the present ratio."""
    constants = (controller or IController()).constants(exponent, step_to_outputs, dtype)
    assert tuple(constants) == CONTROL
    with torch.inference_mode(False):
        made = torch.tensor(list(constants.values()), dtype=torch.float64, device=device)
    return made, constants["b2"] != 0.0 or constants["b3"] != 0.0


@lru_cache(maxsize=256)
def _number(value: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([value], dtype=torch.float64, device=device)


@lru_cache(maxsize=1)
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreting() -> bool:
    """Whether kernels run in Triton's interpreter; asked for by Triton's own variable, before Triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class TritonBackend:
    """Programs on NVIDIA GPUs, in float32 and float64; on the CPU in Triton's interpreter, for tests."""

    name = "triton"
    device = "cuda"
    reads_halves = True

    def unavailable(self) -> str | None:
        """Needs Triton, and a GPU or Triton's interpreter."""
        if not _installed():
            return "triton is not installed"
        if not torch.cuda.is_available() and not _interpreting():
            return "there is no NVIDIA GPU (TRITON_INTERPRET=1 runs its kernels on the CPU, slowly)"
        return None

    def unsupported(self, plan: Plan) -> str | None:
        """Why no program could be run for this plan, whatever the field; None if one could."""
        state = plan.field.state
        if state.device.type != ("cpu" if _interpreting() else "cuda"):
            where = "the CPU, by Triton's interpreter" if _interpreting() else "NVIDIA GPUs"
            return f"it runs on {where}, the state is on {state.device}"
        if state.dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 and float64, the state is {state.dtype}"
        if plan.batch == 0 or state.width == 0:
            return "there is nothing to solve"
        return None

    def unsupported_program(self, plan: Plan, capture: Capture, differentiable: bool) -> str | None:
        """Why it cannot run a program for this plan, or None.

        Args:
            plan: the solve.
            capture: the field.
            differentiable: whether a gradient may be asked for.
        """
        if plan.dense and differentiable:
            return "it has no gradient of the polynomials that dense=True keeps"
        return too_large(capture.program, plan.field.state.dtype)

    def slower(self, plan: Plan, capture: Capture, differentiable: bool) -> str | None:
        """Why another backend is faster for this program, or None."""
        return None

    def source(self, plan: Plan, capture: Capture, differentiable: bool) -> str:
        """The generated source of the forward kernel and, where a gradient may be asked for, of the adjoint."""
        dtype = plan.field.state.dtype
        reason = too_large(capture.program, dtype)
        if reason is None and not plan.tableau.is_explicit:
            reason = f"{plan.tableau.name} is an implicit method"
        if reason is not None:
            return f"# no kernels: {reason}\n"
        kernels = kernels_of(capture)
        method = method_of(plan.tableau, plan.step_size is None)
        text = kernels.forward(dtype, method).source
        if differentiable:
            wanted = (True,) * (len(capture.program.shared) + len(capture.program.sample))
            text += "\n\n" + kernels.adjoint(dtype, method, wanted).kernel.source
        return text

    def forward(
        self,
        plan: Plan,
        capture: Capture,
        y0: Tensor,
        shared: Sequence[Tensor],
        sample: Sequence[Tensor],
        policy: Checkpoint | None,
        k1: Tensor | None,
    ) -> Forward:
        """Solves without gradient; see ``CpuBackend.forward``."""
        batch, width, device = plan.batch, y0.shape[1], y0.device
        n_times = plan.times.shape[0]
        adaptive = plan.step_size is None
        kernel = kernels_of(capture).forward(y0.dtype, method_of(plan.tableau, adaptive))
        constants, pid = _control(
            plan.controller, plan.tableau.error_exponent, plan.step_to_outputs, plan.rtol.dtype, device
        )
        first = None if plan.controller is None else plan.controller.first_step
        ys = empty(n_times, batch, width, dtype=y0.dtype, device=device)
        counts = empty(5, batch, dtype=torch.int64, device=device)
        clocks = empty(4, batch, dtype=torch.float64, device=device)
        kept = Checkpoint() if plan.dense else policy
        resume = empty(2 * batch if kept is not None else 0, width, dtype=y0.dtype, device=device)
        running = torch.zeros(1, dtype=torch.int32, device=device)
        nothing = counts  # any memory, for what is not read
        record = None if kept is None else SegmentedRecord([], kept.max_bytes)
        rows: Tensor | None = None
        n, start = batch, True
        while True:
            segment: Segment | None = None
            if record is not None and kept is not None:
                previous = record.segments[-1] if record.segments else None
                segment = new_segment(rows, n, y0, kept.every, kept.max_bytes, previous, plan.max_steps)
                record.segments.append(segment)
            kernel.run(
                kernel.groups(n),
                [
                    y0,
                    *_times(plan),
                    batch,
                    nothing if rows is None else rows,
                    n,
                    plan.rtol,
                    plan.atol,
                    constants,
                    nothing if plan.step_size is None else plan.step_size,
                    _number(first or 0.0, device),
                    plan.max_steps,
                    *shared,
                    *(x for leaf in sample for x in (leaf, leaf.stride(0))),
                    kernel.tables(device),
                    ys,
                    counts,
                    clocks,
                    resume,
                    y0 if k1 is None else k1,
                    clocks if segment is None else segment.table,
                    y0 if segment is None else segment.states,
                    counts if segment is None else segment.taken,
                    running,
                    1 if segment is None else segment.capacity,
                    1 if segment is None else segment.every,
                ],
                START=start,
                SOME=rows is not None,
                RECORD=segment is not None,
                CHOOSE=adaptive and first is None,
                PID=pid,
                K1=k1 is not None,
            )
            if record is None:
                break
            record.keep_budget()
            if not _look(running):
                break
            running.zero_()
            rows = (counts[0] == -1).nonzero().flatten()
            n, start = rows.shape[0], False
        status, accepted, rejected, evals, _ = counts.unbind()
        reached, dense = clocks[0], None
        if plan.dense:
            assert record is not None

            def field(t: Tensor, y: Tensor, leaves: list[Tensor]) -> Tensor:
                return self.evaluate(capture, t, y, shared, leaves)

            dense = dense_output(plan, field, record.ragged(batch), sample, ys[0], accepted, reached)
        outcome = Outcome(status, reached, Stats(accepted, rejected, evals))
        return Forward(ys, dense, outcome, None if policy is None else record)

    def backward(
        self,
        plan: Plan,
        capture: Capture,
        record: SegmentedRecord,
        shared: Sequence[Tensor],
        sample: Sequence[Tensor],
        wanted: tuple[bool, ...],
        solved: Tensor | None,
        grad_ys: Tensor,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The discrete adjoint of the recorded steps; see ``CpuBackend.backward``."""
        kernels: Kernels = kernels_of(capture)
        parts = kernels.adjoint(grad_ys.dtype, method_of(plan.tableau, plan.step_size is None), wanted)
        kernel, code = parts.kernel, parts.kernel.code
        grad_ys = grad_ys.contiguous()
        batch, width = grad_ys.shape[1:]
        dtype, device = grad_ys.dtype, grad_ys.device
        several = len(record.segments) > 1
        p = empty(batch, width, dtype=dtype, device=device)
        e = empty(batch, dtype=torch.int64, device=device)
        most = parts.programs(batch)
        workspace = empty(most, code.workspace, dtype=dtype, device=device)
        grads: list[Tensor | None] = []
        n_shared = len(shared)
        for i, leaf in enumerate(sample):
            if not wanted[n_shared + i]:
                grads.append(None)
                continue
            # Of half precision only what is written once: sums are rounded at their end.
            once = not several and not code.overlaps(i)
            grad = empty(*leaf.shape, dtype=leaf.dtype if once else dtype, device=device)
            grads.append(grad)
            if several or not code.covers(i):
                grad.zero_()
        if several:
            p.zero_()
            e.fill_(plan.times.shape[0] - 1)
            workspace.zero_()
        flags = None if solved is None else solved.to(torch.int8)
        written = {a.leaf for a in code.accumulators if a.kind == "sample"}
        for segment in reversed(record.segments):
            replays = segment.every > 1
            programs = parts.programs(segment.n)
            replay = p
            if replays:
                each = segment.every * kernel.launch.samples * width * dtype.itemsize
                programs = max(1, min(programs, _REPLAY_BYTES // each))
                replay = empty(programs * segment.every * kernel.launch.samples * width, dtype=dtype, device=device)
            if programs < most and code.workspace and not several:
                workspace = workspace[:programs]
            kernel.run(
                programs,
                [
                    *_times(plan),
                    batch,
                    e if segment.rows is None else segment.rows,
                    segment.n,
                    segment.table,
                    segment.states,
                    segment.taken,
                    segment.capacity,
                    segment.every,
                    e if flags is None else flags,
                    grad_ys,
                    *shared,
                    *(x for leaf in sample for x in (leaf, leaf.stride(0))),
                    kernel.tables(device),
                    p,
                    e,
                    *(grad for i, grad in enumerate(grads) if i in written),
                    workspace,
                    replay,
                ],
                SOME=segment.rows is not None,
                SOLVED=flags is not None,
                ADD=several,
                REPLAY=replays,
            )
        found = zip((*shared, *sample), (*parts.shared_gradients(workspace), *grads), strict=True)
        return p, [None if grad is None else grad.to(leaf.dtype) for leaf, grad in found]

    def evaluate(
        self, capture: Capture, t: Tensor, y: Tensor, shared: Sequence[Tensor], sample: Sequence[Tensor]
    ) -> Tensor:
        """dy/dt (B, D) at times (B,) float64 and states (B, D), by torch: it is wanted at a few points only."""
        with torch.no_grad():
            return evaluate(capture.program, t, y, shared, sample)


def _times(plan: Plan) -> tuple[Tensor, int, int, int]:
    times = plan.times
    return times, times.stride(0), times.stride(1), times.shape[0]


def _look(counter: Tensor) -> bool:
    """Whether a counter on the device is not zero: the one thing that the host waits for."""
    if counter.device.type != "cuda":
        return bool(counter)
    seen = torch.empty(1, dtype=counter.dtype, pin_memory=True)
    seen.copy_(counter, non_blocking=True)
    torch.cuda.current_stream(counter.device).synchronize()
    return bool(seen)
