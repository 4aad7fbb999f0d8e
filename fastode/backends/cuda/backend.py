"""Backend ``cuda``: whole solves, and their discrete adjoints, of fields with per-sample weight matrices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastode._environment import _C
from fastode.backends.base import Forward
from fastode.backends.cuda.recognise import Net, recognise
from fastode.backends.cuda.record import WIDEST_SPACING, PagedRecord, new_record, record_within
from fastode.backends.stepped_device import device_index, stream_of
from fastode.checkpoint import Checkpoint
from fastode.controllers import IController
from fastode.problem import Plan
from fastode.program.capture import Capture
from fastode.program.evaluate import evaluate
from fastode.solution import Outcome, Stats
from fastode.status import RUNNING
from fastode.tableaus import Tableau

_ROWS = _C.net_rows
_ACTIVATIONS = list(_C.net_activations)


@lru_cache(maxsize=256)
def _method(tableau: Tableau, adaptive: bool, dtype: torch.dtype) -> Any:
    e = tableau.e.tolist() if adaptive and tableau.e is not None else []
    a, b, q = tableau.a.flatten().tolist(), tableau.b.tolist(), tableau.q.flatten().tolist()
    return (_C.NetMethod64 if dtype == torch.float64 else _C.NetMethod32)(a=a, b=b, e=e, q=q)


@lru_cache(maxsize=64)
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block may have, beside what kernels have at fixed places; on the CPU a GPU's."""
    there = [gpu["shared_per_block"] for gpu in _C.cuda_devices()] if device.type == "cuda" else []
    return (there[device_index(device)] if there else 227 * 1024) - 1024


class CudaBackend:
    """Fields x -> act(W_i x + b_i), and those of two such layers, with the weights on chip for the whole solve.

    Args:
        on_host: run the kernels' text, compiled for the host, on CPU tensors: for tests without a GPU.
    """

    name = "cuda"
    device = "cuda"
    reads_halves = False

    def __init__(self, on_host: bool = False) -> None:
        self._on_host = on_host

    def unavailable(self) -> str | None:
        """Needs a GPU, and the kernels for it."""
        if self._on_host:
            return None
        if not _C.build_info()["cuda"]:
            return f"its kernels are not compiled: {_C.build_info()['cuda_reason']}"
        if torch.version.hip or not torch.cuda.is_available():
            return "there is no NVIDIA GPU"
        return None

    def unsupported(self, plan: Plan) -> str | None:
        """Why no program could be run for this plan, whatever the field; None if one could."""
        state = plan.field.state
        if state.device.type != ("cpu" if self._on_host else "cuda"):
            return f"it runs on NVIDIA GPUs, the state is on {state.device}"
        if state.dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 and float64, the state is {state.dtype}"
        if plan.tableau.n_stages > _ROWS["stages"] or plan.tableau.degree > _ROWS["degree"]:
            return f"at most {_ROWS['stages']} stages, {plan.tableau.name} has {plan.tableau.n_stages}"
        if plan.batch == 0 or state.width == 0:
            return "there is nothing to solve"
        if plan.dense:
            return "it does not keep the polynomials that dense=True asks for"
        return None

    def unsupported_program(self, plan: Plan, capture: Capture, differentiable: bool) -> str | None:
        """Why it cannot run a program for this plan, or None."""
        net = recognise(capture.program)
        if isinstance(net, str):
            return net
        if not _C.net_supported(widest=net.widest, layers=len(net.layers)):
            return f"its matrices have up to {_ROWS['widest']} rows, not {net.widest}"
        method = _method(plan.tableau, plan.step_size is None, plan.field.state.dtype)
        needed = method.shared_bytes(widest=net.widest, layers=len(net.layers), adjoint=differentiable)
        there = _shared_memory(plan.field.state.device)
        if needed > there:
            return f"it needs {needed} bytes of shared memory with {plan.tableau.name}, this GPU has {there}"
        return None

    def slower(self, plan: Plan, capture: Capture, differentiable: bool) -> str | None:
        """Why another backend is faster for this program, or None."""
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
        """Solves without gradient; see ``CpuBackend.forward``."""
        solve = _Solve(plan, _net(capture), y0, sample, k1)
        record: PagedRecord | None = None
        batch, width = y0.shape
        if policy is not None and (policy.max_bytes or policy.every > WIDEST_SPACING):
            # To know the numbers of steps: then the states that fit are known, too, and how large a page must be.
            solve.launch(None, None)
            steps = solve.whole[_ROWS["n_accepted"]]
            record = record_within(steps, width, y0.dtype, policy.every, policy.max_bytes, solve.whole)
        elif policy is not None:
            record = new_record(batch, width, y0.dtype, policy.every, solve.whole)
        solve.launch(record, None)
        status = solve.whole[_ROWS["status"]]
        while record is not None:
            # Samples that found no page for their next step wait. The host looks once per chunk.
            waiting = (status == RUNNING).nonzero().flatten()
            if waiting.shape[0] == 0:
                break
            record.taken.fill_(record.pages)
            record.grow(record.pages)
            solve.launch(record, waiting)
        counts = (solve.whole[_ROWS[name]] for name in ("n_accepted", "n_rejected", "n_evals"))
        return Forward(solve.ys, None, Outcome(status, solve.real[_ROWS["time"]], Stats(*counts)), record)

    def backward(
        self,
        plan: Plan,
        capture: Capture,
        record: PagedRecord,
        shared: Sequence[Tensor],
        sample: Sequence[Tensor],
        wanted: tuple[bool, ...],
        solved: Tensor | None,
        grad_ys: Tensor,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The discrete adjoint of the recorded steps; see ``CpuBackend.backward``."""
        net, device = _net(capture), grad_ys.device
        grad_ys = grad_ys.contiguous()
        n_times, batch, width = grad_ys.shape
        method = _method(plan.tableau, plan.step_size is None, grad_ys.dtype)
        grads: list[Tensor | None] = []
        for leaf, covered, flag in zip(sample, net.covered, wanted[len(shared) :], strict=True):
            make = torch.empty if covered else torch.zeros
            grads.append(make(leaf.shape, dtype=leaf.dtype, device=device) if flag else None)
        grad_y0 = torch.empty(batch, width, dtype=grad_ys.dtype, device=device)
        scratch = None
        if record.every > 1:
            n_layers = len(net.layers)
            groups = method.groups(device=device_index(device), widest=net.widest, layers=n_layers, batch=batch)
            scratch = torch.empty(groups, record.every, width, dtype=grad_ys.dtype, device=device)
        method.backward(
            device=device_index(device),
            stream=stream_of(device),
            batch=batch,
            width=width,
            n_times=n_times,
            times_ptr=plan.times.data_ptr(),
            time_row_stride=plan.times.stride(0),
            time_sample_stride=plan.times.stride(1),
            whole_ptr=record.whole.data_ptr(),
            grad_ys_ptr=grad_ys.data_ptr(),
            grad_y0_ptr=grad_y0.data_ptr(),
            scratch_ptr=0 if scratch is None else scratch.data_ptr(),
            layers=_layers(net, sample, grads),
            chunks=record.pointers(),
            pages=record.pages,
            per_page=record.per_page,
            every=record.every,
            last_ptr=record.last.data_ptr(),
        )
        return grad_y0, [*[None] * len(shared), *grads]

    def evaluate(
        self, capture: Capture, t: Tensor, y: Tensor, shared: Sequence[Tensor], sample: Sequence[Tensor]
    ) -> Tensor:
        """dy/dt (B, D) at times (B,) float64 and states (B, D), by torch: it is wanted at a few points only."""
        with torch.no_grad():
            return evaluate(capture.program, t, y, shared, sample)


def _net(capture: Capture) -> Net:
    net = recognise(capture.program)
    assert isinstance(net, Net)
    return net


def _layers(net: Net, sample: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[tuple[Any, ...]]:
    """The layers as kernels take them."""
    found = []
    for layer in net.layers:
        leaf, offset, row_stride, col_stride = layer.weight
        row: list[Any] = [layer.rows, layer.cols, _ACTIVATIONS.index(layer.activation), layer.alpha]
        weight = sample[leaf]
        row += [weight.data_ptr() + offset * weight.element_size(), weight.stride(0), row_stride, col_stride]
        ends: list[int] = []
        for place in (layer.bias, layer.weight):
            grad = None if place is None else grads[place[0]]
            if place is None or grad is None:
                ends = [0, 0, *ends]
            else:
                ends = [grad.data_ptr() + place[1] * grad.element_size(), grad.stride(0), *ends]
        if layer.bias is None:
            row += [0, 0, 0]
        else:
            leaf, offset, row_stride, _ = layer.bias
            bias = sample[leaf]
            row += [bias.data_ptr() + offset * bias.element_size(), bias.stride(0), row_stride]
        found.append((*row, *ends))
    return found


class _Solve:
    """A forward solve and the memory that its launches write to."""

    def __init__(self, plan: Plan, net: Net, y0: Tensor, sample: Sequence[Tensor], k1: Tensor | None) -> None:
        batch, width = y0.shape
        self.plan, self.net, self.y0, self.sample, self.k1 = plan, net, y0, sample, k1
        self.ys = torch.empty(plan.times.shape[0], batch, width, dtype=y0.dtype, device=y0.device)
        self.real = torch.empty(_ROWS["reals"], batch, dtype=torch.float64, device=y0.device)
        self.whole = torch.empty(_ROWS["wholes"], batch, dtype=torch.int64, device=y0.device)
        self.y = torch.empty_like(y0)
        self.layers = _layers(net, sample, [None] * len(sample))

    def launch(self, record: PagedRecord | None, queue: Tensor | None) -> None:
        """Solves all samples, or goes on with those of a queue (n,) int64."""
        plan, y0 = self.plan, self.y0
        controller, step_size = plan.controller, plan.step_size
        _method(plan.tableau, step_size is None, y0.dtype).forward(
            device=device_index(y0.device),
            stream=stream_of(y0.device),
            batch=y0.shape[0],
            width=y0.shape[1],
            n_times=plan.times.shape[0],
            times_ptr=plan.times.data_ptr(),
            time_row_stride=plan.times.stride(0),
            time_sample_stride=plan.times.stride(1),
            step_size_ptr=0 if step_size is None else step_size.data_ptr(),
            first_step=0.0 if controller is None else controller.first_step or 0.0,
            max_steps=plan.max_steps,
            y0_ptr=y0.data_ptr(),
            rtol_ptr=plan.rtol.data_ptr(),
            atol_ptr=plan.atol.data_ptr(),
            ys_ptr=self.ys.data_ptr(),
            k1_ptr=0 if self.k1 is None else self.k1.data_ptr(),
            y_ptr=self.y.data_ptr(),
            real_ptr=self.real.data_ptr(),
            whole_ptr=self.whole.data_ptr(),
            queue_ptr=0 if queue is None else queue.data_ptr(),
            n_queue=0 if queue is None else queue.shape[0],
            control=(controller or IController()).constants(
                plan.tableau.error_exponent, plan.step_to_outputs, plan.rtol.dtype
            ),
            layers=self.layers,
            recorded=record is not None,
            chunks=[] if record is None else record.pointers(),
            pages=0 if record is None else record.pages,
            per_page=1 if record is None else record.per_page,
            every=1 if record is None else record.every,
            taken_ptr=0 if record is None else record.taken.data_ptr(),
            last_ptr=0 if record is None else record.last.data_ptr(),
        )
