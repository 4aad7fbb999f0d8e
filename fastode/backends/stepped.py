"""Backend ``stepped``: any torch field; everything else of a step in compiled kernels over the batch.

Forward, finished samples are dropped from the batch as soon as they are a good part of it, provided that the field
gives the remaining rows the same values then (it may mix samples, or close over per-sample tensors). Backward, the
stages of each step are computed again from the record and pulled back one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastode._environment import _C, use_num_threads
from fastode.backends.base import Forward, Gradients
from fastode.backends.compare import same_rows
from fastode.backends.stepped_adjoint import SteppedAdjoint, SteppedRecord
from fastode.checkpoint import Checkpoint
from fastode.controllers import IController
from fastode.problem import Plan
from fastode.solution import DenseOutput, Stats
from fastode.status import Status
from fastode.vjp import FieldVjp

_CPU = torch.device("cpu")  # named everywhere: the default device may be another
_MAX_STAGES = 32
_COMPACT_BELOW = 0.75
"""The batch is compacted when no more than this part of its samples is still running."""


class SteppedBackend:
    """Field as torch operations, the rest compiled; on the CPU."""

    name = "stepped"

    def unavailable(self) -> str | None:
        """Runs wherever the extension was built."""
        return None

    def unsupported(self, plan: Plan) -> str | None:
        """See ``Backend.unsupported``."""
        device = plan.field.state.device
        if device.type != "cpu":
            return f"its kernels run on the CPU, the state is on {device}"
        if plan.tableau.n_stages > _MAX_STAGES:
            return f"at most {_MAX_STAGES} stages, {plan.tableau.name} has {plan.tableau.n_stages}"
        return None

    def forward(
        self, plan: Plan, y0: Tensor, controls: Sequence[Tensor], k1: Tensor, policy: Checkpoint | None
    ) -> Forward:
        """See ``Backend.forward``."""
        use_num_threads()
        with torch.no_grad():
            return _forward(plan, y0.detach().contiguous(), [c.detach() for c in controls], k1.contiguous(), policy)

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
        use_num_threads()
        return SteppedAdjoint(plan, record, controls, vjp, grad_ys, grad_coefs).run()


def _forward(plan: Plan, y0: Tensor, controls: list[Tensor], k1: Tensor, policy: Checkpoint | None) -> Forward:
    tableau, dtype = plan.tableau, y0.dtype
    batch, width = y0.shape
    wide = dtype == torch.float64
    ys = torch.full((plan.times.shape[0], batch, width), torch.nan, dtype=dtype, device=_CPU)
    times = plan.times.contiguous()
    steps = None
    if policy is not None or plan.dense:
        make_record = _C.StepRecord64 if wide else _C.StepRecord32
        every, budget = (policy.every, policy.max_bytes or 0) if policy is not None else (0, 0)
        steps = make_record(batch, width, every, budget)
    controller, step_size = plan.controller, plan.step_size
    if step_size is not None and batch == 0:
        step_size = step_size.new_ones(1)  # an empty tensor has no address, and none means adaptive steps
    stepper = (_C.Stepper64 if wide else _C.Stepper32)(
        batch=batch,
        width=width,
        n_times=plan.times.shape[0],
        times_ptr=times.data_ptr(),
        step_size_ptr=0 if step_size is None else step_size.data_ptr(),
        rtol_ptr=plan.rtol.data_ptr(),
        atol_ptr=plan.atol.data_ptr(),
        ys_ptr=ys.data_ptr(),
        max_steps=plan.max_steps,
        first_step=0.0 if controller is None else controller.first_step or 0.0,
        dense=plan.dense,
        c=tableau.c.tolist(),
        a=tableau.a.flatten().tolist(),
        e=[] if tableau.e is None else tableau.e.tolist(),
        q=tableau.q.flatten().tolist(),
        control=(controller or IController()).constants(tableau.error_exponent),
        record=steps,
    )
    stepper.start(y0.data_ptr(), k1.data_ptr())
    # k is the field at (t, y): the values that samples must get by themselves before the others may be dropped.
    k, t, y = k1, plan.times[0].to(dtype, copy=True), y0.clone()
    if controller is not None and controller.first_step is None and batch > 0:
        stepper.probe(t.data_ptr(), y.data_ptr())
        k = plan.field(t, y, controls).contiguous()
        stepper.choose_first_step(k.data_ptr())

    running = len(stepper.running())
    may_compact = True
    while running > 0:
        if may_compact and running <= _COMPACT_BELOW * stepper.lanes:
            kept = torch.from_numpy(stepper.running())
            fewer = [c[kept] for c in controls]
            same = same_rows(plan.field, t[kept], y[kept], fewer, k[kept])
            if same:
                stepper.compact()
                controls, t, y = fewer, t[:running], y[:running]
            elif same is not None:
                may_compact = False
        for i in range(1, tableau.n_stages):
            stepper.stage(i, 0 if i == 1 else k.data_ptr(), t.data_ptr(), y.data_ptr())
            # The kernel copies k before y is overwritten: a field may return its argument, or a buffer of its own.
            k = plan.field(t, y, controls).contiguous()
        running = stepper.finish_step(y.data_ptr(), k.data_ptr())

    n_accepted, n_rejected = torch.from_numpy(stepper.n_accepted()), torch.from_numpy(stepper.n_rejected())
    stats = Stats(n_accepted, n_rejected, torch.from_numpy(stepper.n_evals()))
    status, reached = torch.from_numpy(stepper.status()), torch.from_numpy(stepper.reached())
    record = None
    if steps is not None:
        steps.finish()
        if policy is not None:
            record = SteppedRecord(steps, k1, ys[-1].clone(), status == Status.SUCCESS, may_compact)
    dense = _dense_output(plan, stepper, steps, ys[0], reached, n_accepted) if plan.dense else None
    return Forward(ys, dense, status, reached, stats, record)


def _dense_output(plan: Plan, stepper: Any, steps: Any, y0: Tensor, reached: Tensor, n_accepted: Tensor) -> DenseOutput:
    coefs = torch.empty(steps.steps, plan.tableau.degree + 1, y0.shape[1], dtype=y0.dtype, device=_CPU)
    stepper.copy_dense(coefs.data_ptr())
    start, _, size, rows = (torch.from_numpy(column) for column in steps.table())
    return DenseOutput(start, size, rows, coefs, n_accepted, plan.times[0], reached, y0)
