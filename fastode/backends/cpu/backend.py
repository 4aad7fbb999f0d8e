"""Backend ``cpu``: the solve of a field's program, and its discrete adjoint, each in one compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastode._environment import _C, get_num_threads, use_num_threads
from fastode.backends.base import Forward
from fastode.backends.cpu.record import PackedRecord
from fastode.backends.cpu.tile import pointers, tiles_of
from fastode.checkpoint import Checkpoint
from fastode.controllers import IController, PIDController
from fastode.problem import Plan
from fastode.program.capture import Capture
from fastode.solution import DenseOutput, TableOutcome
from fastode.tableaus import Tableau

_CPU = torch.device("cpu")  # named everywhere: the default device may be another
_MAX_STAGES = 32
_TOO_LARGE = 1 << 17
"""Multiply-adds of one product with shared weights from which on the gradient is faster by torch's matrix products:
measured, docs/benchmarks.md."""


@lru_cache(maxsize=256)
def _method(tableau: Tableau, adaptive: bool) -> Any:
    e = tableau.e.tolist() if adaptive and tableau.e is not None else []
    return _C.TileMethod(
        c=tableau.c.tolist(), a=tableau.a.flatten().tolist(), b=tableau.b.tolist(), e=e, q=tableau.q.flatten().tolist()
    )


@lru_cache(maxsize=256)
def _control(controller: PIDController | None, exponent: float, step_to_outputs: bool, dtype: torch.dtype) -> Any:
    return _C.TileControl((controller or IController()).constants(exponent, step_to_outputs, dtype))


def _dense_output(
    plan: Plan,
    capture: Capture,
    record: PackedRecord,
    outcome: TableOutcome,
    shared: Sequence[Tensor],
    sample: Sequence[Tensor],
    y0: Tensor,
) -> DenseOutput:
    """The polynomial of every accepted step."""
    batch, reached = plan.batch, outcome.reached
    program = tiles_of(capture, y0.dtype).program(max(1, int(record.words[0])), None)
    start, size, rows, coefs = map(
        torch.from_numpy,
        program.dense(
            _method(plan.tableau, plan.step_size is None),
            batch,
            pointers(shared),
            pointers(sample),
            [leaf.stride(0) for leaf in sample],
            record.words,
            reached.data_ptr(),
            get_num_threads(),
        ),
    )
    return DenseOutput(start, size, rows, coefs, outcome.stats.n_accepted, plan.times[0], reached, y0)


class CpuBackend:
    """Programs on the CPU, in float32 and float64."""

    name = "cpu"
    device = "cpu"
    reads_halves = False

    def unavailable(self) -> str | None:
        """Runs wherever the extension was built."""
        return None if hasattr(_C, "TileProgram32") else "not built yet"

    def unsupported(self, plan: Plan) -> str | None:
        """Why no program could be run for this plan, whatever the field; None if one could."""
        state = plan.field.state
        if state.device.type != "cpu":
            return f"it runs on the CPU, the state is on {state.device}"
        if state.dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 and float64, the state is {state.dtype}"
        if plan.tableau.n_stages > _MAX_STAGES:
            return f"at most {_MAX_STAGES} stages, {plan.tableau.name} has {plan.tableau.n_stages}"
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
        return None

    def slower(self, plan: Plan, capture: Capture, differentiable: bool) -> str | None:
        """Why another backend is faster for this program, or None.

        Args:
            plan: the solve.
            capture: the field.
            differentiable: whether a gradient may be asked for; without one no size was found where torch wins.
        """
        if not differentiable:
            return None
        size = tiles_of(capture, plan.field.state.dtype).largest_shared_product
        if size >= _TOO_LARGE:
            return f"a product of {size} multiply-adds with shared weights is faster in torch"
        return None

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
        """Solves without gradient.

        Args:
            plan: the solve.
            capture: the field.
            y0: (B, D), contiguous.
            shared: leaves (*shape), contiguous.
            sample: leaves (B, *shape), from ``leaves_for_kernels``.
            policy: what to remember for ``backward``; None remembers nothing.
            k1: (B, D), receives the field at the start; None if it is not wanted.
        """
        use_num_threads()
        batch, (n_times, _) = plan.batch, plan.times.shape
        adaptive = plan.step_size is None
        width, dtype = y0.shape[1], y0.dtype
        ys = torch.empty((n_times, batch, width), dtype=dtype, device=_CPU)
        table, failed, words = (
            tiles_of(capture, dtype)
            .program(batch, None)
            .solve(  # by position: so many names would take two microseconds
                _method(plan.tableau, adaptive),
                _control(plan.controller, plan.tableau.error_exponent, plan.step_to_outputs, plan.rtol.dtype),
                batch,
                n_times,
                plan.times.data_ptr(),
                *plan.times.stride(),
                y0.data_ptr(),
                pointers(shared),
                pointers(sample),
                [leaf.stride(0) for leaf in sample],
                plan.rtol.data_ptr(),
                plan.atol.data_ptr(),
                0 if plan.step_size is None else plan.step_size.data_ptr(),
                0.0 if plan.controller is None else plan.controller.first_step or 0.0,
                plan.max_steps,
                ys.data_ptr(),
                0 if k1 is None else k1.data_ptr(),
                1 if plan.dense else 0 if policy is None else policy.every,
                0 if policy is None or plan.dense else policy.max_bytes or 0,
                get_num_threads(),
            )
        )
        outcome = TableOutcome(table)
        kept = None if words is None else PackedRecord(words, batch, width, dtype)
        dense = None
        if plan.dense:
            assert kept is not None
            dense = _dense_output(plan, capture, kept, outcome, shared, sample, ys[0])
        return Forward(ys, dense, outcome, None if policy is None else kept, failed)

    def backward(
        self,
        plan: Plan,
        capture: Capture,
        record: PackedRecord,
        shared: Sequence[Tensor],
        sample: Sequence[Tensor],
        wanted: tuple[bool, ...],
        solved: Tensor | None,
        grad_ys: Tensor,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The discrete adjoint of the recorded steps.

        Args:
            plan: as given to ``forward``.
            capture: as given to it.
            record: as returned by it.
            shared: as given to it.
            sample: as given to it.
            wanted: for each leaf, shared ones first, whether its gradient is wanted.
            solved: (B,) bool, None if all are.
            grad_ys: (T, B, D); entries at or before the start and of samples that are not solved are ignored.

        Returns:
            Gradients by the state at the start (B, D), from outputs after it, and by each leaf; None where not wanted.
        """
        use_num_threads()
        grad_ys = grad_ys.contiguous()
        n_times, batch, width = grad_ys.shape
        dtype = grad_ys.dtype
        grad_y0 = torch.empty((batch, width), dtype=dtype, device=_CPU)
        grads = [
            torch.empty_like(leaf, memory_format=torch.contiguous_format) if flag else None
            for leaf, flag in zip((*shared, *sample), wanted, strict=True)
        ]
        at = [0 if grad is None else grad.data_ptr() for grad in grads]
        tiles_of(capture, dtype).program(batch, wanted, record.replays).solve_adjoint(
            _method(plan.tableau, plan.step_size is None),
            batch,
            n_times,
            plan.times.data_ptr(),
            *plan.times.stride(),
            pointers(shared),
            pointers(sample),
            [leaf.stride(0) for leaf in sample],
            record.words,
            0 if solved is None else solved.data_ptr(),
            grad_ys.data_ptr(),
            grad_y0.data_ptr(),
            at[: len(shared)],
            at[len(shared) :],
            get_num_threads(),
        )
        return grad_y0, grads

    def evaluate(
        self, capture: Capture, t: Tensor, y: Tensor, shared: Sequence[Tensor], sample: Sequence[Tensor]
    ) -> Tensor:
        """dy/dt (B, D) at times (B,) float64 and states (B, D)."""
        use_num_threads()
        t, y = t.contiguous(), y.contiguous()
        out = torch.empty_like(y)
        tiles_of(capture, y.dtype).program(y.shape[0], None).evaluate(
            batch=y.shape[0],
            t_ptr=t.data_ptr(),
            y_ptr=y.data_ptr(),
            shared_ptrs=pointers(shared),
            param_ptrs=pointers(sample),
            param_strides=[leaf.stride(0) for leaf in sample],
            out_ptr=out.data_ptr(),
            threads=get_num_threads(),
        )
        return out
