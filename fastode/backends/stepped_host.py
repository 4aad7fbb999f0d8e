"""The compiled part of the ``stepped`` backend for states on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastode._environment import _C, use_num_threads
from fastode.checkpoint import Checkpoint
from fastode.controllers import IController
from fastode.problem import Plan
from fastode.solution import DenseOutput, Outcome, Stats

_CPU = torch.device("cpu")  # named everywhere: the default device may be another


class HostSteps:
    """A forward solve: everything of a step but the field. Lanes are the samples that were not dropped.

    Attributes:
        ys: (T, B, D), the outputs.
        t, y: time (lanes,) and state (lanes, D) of the last evaluation that was asked for.
        record: the compiled record of steps; None where nothing is recorded.
    """

    def __init__(self, plan: Plan, y0: Tensor, k1: Tensor, policy: Checkpoint | None) -> None:
        use_num_threads()
        tableau, dtype, self.plan = plan.tableau, y0.dtype, plan
        batch, width = y0.shape
        wide = dtype == torch.float64
        self.ys = torch.full((plan.times.shape[0], batch, width), torch.nan, dtype=dtype, device=_CPU)
        self.t, self.y = plan.times[0].to(dtype, copy=True), y0.clone()
        steps: Any = None
        if policy is not None or plan.dense:
            every, budget = (policy.every, policy.max_bytes or 0) if policy is not None else (0, 0)
            steps = (_C.StepRecord64 if wide else _C.StepRecord32)(batch, width, every, budget)
        self.record = steps
        controller, step_size = plan.controller, plan.step_size
        if step_size is not None and batch == 0:
            step_size = step_size.new_ones(1)  # an empty tensor has no address, and none means adaptive steps
        times = plan.times.contiguous()
        self._kept_alive = times, step_size
        self._stepper: Any = (_C.Stepper64 if wide else _C.Stepper32)(
            batch=batch,
            width=width,
            n_times=plan.times.shape[0],
            times_ptr=times.data_ptr(),
            step_size_ptr=0 if step_size is None else step_size.data_ptr(),
            rtol_ptr=plan.rtol.data_ptr(),
            atol_ptr=plan.atol.data_ptr(),
            ys_ptr=self.ys.data_ptr(),
            max_steps=plan.max_steps,
            first_step=0.0 if controller is None else controller.first_step or 0.0,
            dense=plan.dense,
            c=tableau.c.tolist(),
            a=tableau.a.flatten().tolist(),
            e=[] if tableau.e is None else tableau.e.tolist(),
            q=tableau.q.flatten().tolist(),
            control=(controller or IController()).constants(
                tableau.error_exponent, plan.step_to_outputs, plan.rtol.dtype
            ),
            record=steps,
        )
        self._stepper.start(y0.data_ptr(), k1.data_ptr())
        self._running = len(self._stepper.running())

    def probe(self) -> None:
        """Sets t and y to the evaluation that chooses the first step."""
        self._stepper.probe(self.t.data_ptr(), self.y.data_ptr())

    def choose_first_step(self, k: Tensor) -> None:
        """Takes the field there, k (lanes, D)."""
        self._stepper.choose_first_step(k.data_ptr())

    def more(self) -> bool:
        """Whether another attempt is needed."""
        return self._running > 0

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        lanes: int = self._stepper.lanes
        return lanes

    @property
    def running(self) -> int:
        """Number of lanes that are not done; what is known of it."""
        return self._running

    def running_lanes(self) -> Tensor:
        """(running,) int64, the lanes that are not done."""
        return torch.from_numpy(self._stepper.running())

    def compact(self, kept: Tensor) -> None:
        """Drops all lanes but those of ``running_lanes``."""
        self._stepper.compact()
        self.t, self.y = self.t[: len(kept)], self.y[: len(kept)]

    def attempt(self, launch: Callable[[], Tensor]) -> Tensor:
        """An attempt; ``launch`` takes its stages and ends with ``finish_step``. Returns the field's last value."""
        return launch()

    def stage(self, i: int, k: Tensor) -> None:
        """Sets t and y to stage i; k (lanes, D) is the value of stage i - 1, not read for i = 1.

        The kernel copies k before y is overwritten: a field may return its argument, or a buffer of its own.
        """
        self._stepper.stage(i, 0 if i == 1 else k.data_ptr(), self.t.data_ptr(), self.y.data_ptr())

    def finish_step(self, k: Tensor) -> None:
        """Accepts or rejects the attempt whose last stage has the value k (lanes, D)."""
        self._running = self._stepper.finish_step(self.y.data_ptr(), k.data_ptr())

    def finish(self) -> Outcome:
        """What became of every sample."""
        s = self._stepper
        if self.record is not None:
            self.record.finish()
        counts = [torch.from_numpy(column) for column in (s.n_accepted(), s.n_rejected(), s.n_evals())]
        rest = [torch.from_numpy(column) for column in (s.last_step(), s.last_ratio())]
        return Outcome(torch.from_numpy(s.status()), torch.from_numpy(s.reached()), Stats(*counts), *rest)

    def dense_output(self, reached: Tensor, n_accepted: Tensor) -> DenseOutput:
        """The polynomials of all accepted steps; after ``finish``."""
        record, y0 = self.record, self.ys[0]
        coefs = torch.empty(record.steps, self.plan.tableau.degree + 1, y0.shape[1], dtype=y0.dtype, device=_CPU)
        self._stepper.copy_dense(coefs.data_ptr())
        start, _, size, rows = (torch.from_numpy(column) for column in record.table())
        return DenseOutput(start, size, rows, coefs, n_accepted, self.plan.times[0], reached, y0)


class HostWalk:
    """Steps and states of a record, and the gradients of the outputs inside its steps.

    Args:
        steps: the compiled record.
        plan: the solve.
        lanes: (n,) int64, samples.
        grad_ys: (T, B, D), None if only steps and states are wanted.
        grad_coefs: gradient of the polynomials, or None.
    """

    def __init__(
        self, steps: Any, plan: Plan, lanes: Tensor, grad_ys: Tensor | None, grad_coefs: Tensor | None
    ) -> None:
        use_num_threads()
        self.dtype, self.width = plan.rtol.dtype, plan.rtol.shape[0]
        self.degree = plan.tableau.degree
        self.wide = self.dtype == torch.float64
        grad_ys = None if grad_ys is None else grad_ys.contiguous()
        grad_coefs = None if grad_coefs is None else grad_coefs.contiguous()
        times = plan.times.contiguous()
        self._kept_alive = grad_ys, grad_coefs, times
        self._walker = (_C.StepWalker64 if self.wide else _C.StepWalker32)(
            record=steps,
            width=self.width,
            n_times=0 if grad_ys is None else times.shape[0],
            degree=self.degree,
            times_ptr=times.data_ptr(),
            grad_ys_ptr=0 if grad_ys is None else grad_ys.data_ptr(),
            grad_coefs_ptr=0 if grad_coefs is None else grad_coefs.data_ptr(),
            samples=lanes.tolist(),
        )

    def states(self, j: int, n: int) -> Tensor:
        """(n, D), states of the first n lanes at the start of step j, a multiple of the record's spacing."""
        y = torch.empty(n, self.width, dtype=self.dtype, device=_CPU)
        self._walker.states(j, n, y.data_ptr())
        return y

    def steps(self, j: int, n: int) -> tuple[Tensor, Tensor]:
        """Start and signed size of step j of the first n lanes, (n,) float64; size 0 where there is none."""
        t, h = torch.empty(2, n, dtype=torch.float64, device=_CPU)
        self._walker.steps(j, n, t.data_ptr(), h.data_ptr())
        return t, h

    def outputs(self, j: int, p: Tensor) -> Tensor | None:
        """Adds the gradients of outputs at the ends of steps j to p (n, D).

        Returns:
            (degree + 1, n, D), gradients by the steps' polynomials; None if there is no output inside any.
        """
        inner = torch.empty(self.degree + 1, *p.shape, dtype=self.dtype, device=_CPU)
        inside = self._walker.outputs(j, p.shape[0], p.data_ptr(), inner.data_ptr())
        return inner if inside else None

    def combine(self, base: Tensor | None, scale: Tensor | None, coefs: list[float], terms: list[Tensor]) -> Tensor:
        """Computes base + scale sum_j coefs[j] terms[j], all (n, D), scale (n,) float64."""
        like = terms[0] if base is None else base
        out = torch.empty_like(like)
        _C.combine(
            out.data_ptr(),
            0 if base is None else base.data_ptr(),
            0 if scale is None else scale.data_ptr(),
            coefs,
            [term.data_ptr() for term in terms],
            like.shape[0],
            self.width,
            self.wide,
        )
        return out
