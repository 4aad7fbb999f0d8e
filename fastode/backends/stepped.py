"""Backend ``stepped``: any torch field, on the CPU or a GPU; everything else of a step in kernels over the batch.

Forward, finished samples are dropped from the batch as soon as they are a good part of it, provided that the field
gives the remaining rows the same values then (it may mix samples, or close over per-sample tensors). Backward, the
stages of each step are computed again from the record and pulled back one at a time; of small solves with fixed steps
the graph is kept instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastode._environment import _C
from fastode.backends.base import Forward, Gradients
from fastode.backends.compare import same_rows
from fastode.backends.stepped_adjoint import SteppedAdjoint, SteppedRecord
from fastode.backends.stepped_device import DeviceSteps
from fastode.backends.stepped_host import HostSteps
from fastode.backends.stepped_tape import Tape, start_tape
from fastode.checkpoint import Checkpoint
from fastode.problem import Plan
from fastode.status import Status
from fastode.vjp import FieldVjp

_MAX_STAGES = 32
_COMPACT_BELOW = 0.75
"""The batch is compacted when no more than this part of its samples is still running."""


class SteppedBackend:
    """Field as torch operations, the rest compiled; on the CPU and on NVIDIA GPUs.

    Args:
        as_on_device: run the kernels of GPUs, compiled for the host, on the CPU too: for tests without a GPU.
    """

    name = "stepped"

    def __init__(self, as_on_device: bool = False) -> None:
        self._as_on_device = as_on_device

    def unavailable(self) -> str | None:
        """Runs wherever the extension was built."""
        return None

    def unsupported(self, plan: Plan) -> str | None:
        """See ``Backend.unsupported``."""
        device = plan.field.state.device
        if device.type not in ("cpu", "cuda"):
            return f"its kernels run on the CPU and on NVIDIA GPUs, the state is on {device}"
        if device.type == "cuda" and (torch.version.hip or not _C.build_info()["cuda"]):
            return f"its kernels for NVIDIA GPUs are not there: {_C.build_info()['cuda_reason']}"
        if plan.tableau.n_stages > _MAX_STAGES:
            return f"at most {_MAX_STAGES} stages, {plan.tableau.name} has {plan.tableau.n_stages}"
        return None

    def forward(
        self, plan: Plan, y0: Tensor, controls: Sequence[Tensor], k1: Tensor, policy: Checkpoint | None
    ) -> Forward:
        """See ``Backend.forward``."""
        with torch.no_grad():
            y0, k1 = y0.detach().contiguous(), k1.contiguous()
            kind = DeviceSteps if self._as_on_device or y0.device.type != "cpu" else HostSteps
            controls = [c.detach() for c in controls]
            started = start_tape(plan, y0, controls, policy) if kind is HostSteps else None
            return _forward(kind(plan, y0, k1, policy), plan, controls, k1, policy is not None, started)

    def backward(
        self,
        plan: Plan,
        record: SteppedRecord,
        controls: Sequence[Tensor],
        vjp: FieldVjp,
        grad_ys: Tensor,
        grad_coefs: Tensor | None,
    ) -> Gradients:
        """See ``Backend.backward``."""
        known = None if record.tape is None else record.tape.pull(record, vjp, grad_ys, grad_coefs)
        return known or SteppedAdjoint(plan, record, controls, vjp, grad_ys, grad_coefs).run()


def _forward(
    steps: HostSteps | DeviceSteps,
    plan: Plan,
    controls: list[Tensor],
    k1: Tensor,
    recorded: bool,
    started: tuple[Tape, Tensor] | None,
) -> Forward:
    # k is the field at (t, y): the values that samples must get by themselves before the others may be dropped.
    k, controller = k1, plan.controller
    tape = None
    if started is not None:
        tape, k = started
    if controller is not None and controller.first_step is None and plan.batch > 0:
        steps.probe()
        k = plan.field(steps.t, steps.y, controls).contiguous()
        steps.choose_first_step(k)

    def launch() -> Tensor:
        value = k
        for i in range(1, plan.tableau.n_stages):
            steps.stage(i, value)
            if tape is not None:
                value = tape.evaluate(i, steps.t, steps.y)
            else:
                value = plan.field(steps.t, steps.y, controls).contiguous()
        steps.finish_step(value)
        return value

    may_compact = tape is None
    while steps.more():
        if may_compact and steps.running <= _COMPACT_BELOW * steps.lanes:
            kept = steps.running_lanes()
            fewer = [c[kept] for c in controls]
            same = same_rows(plan.field, steps.t[kept], steps.y[kept], fewer, k[kept])
            if same:
                steps.compact(kept)
                controls = fewer
            elif same is not None:
                may_compact = False
        k = steps.attempt(launch)

    outcome = steps.finish()
    record = None
    if recorded:
        solved = outcome.status == Status.SUCCESS
        if tape is not None and not bool((solved & (outcome.stats.n_accepted > 0)).all()):
            tape = None  # a sample that is not solved, or stands where the field is anything, would harm the others
        record = SteppedRecord(steps.record, k1, steps.ys[-1].clone(), solved, may_compact, tape)
    dense = steps.dense_output(outcome.reached, outcome.stats.n_accepted) if plan.dense else None
    return Forward(steps.ys, dense, outcome, record)
