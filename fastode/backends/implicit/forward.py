"""The forward solve: steps of all samples side by side, each with its own time, step size and fate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastode.backends.base import Forward
from fastode.backends.compare import same_rows
from fastode.backends.implicit.arithmetic import column, combine, rms
from fastode.backends.implicit.defect import Filter, defects
from fastode.backends.implicit.jacobian import jacobian
from fastode.backends.implicit.record import Recorder, StepRecord
from fastode.backends.implicit.rosenbrock import rosenbrock_attempt
from fastode.backends.implicit.stages import Accuracy, Stages, StageSolver
from fastode.checkpoint import Checkpoint
from fastode.controllers import LAST_STEP_STRETCH, PIDController, shortest_step
from fastode.interpolant import basis
from fastode.problem import Plan
from fastode.reference import initial_step, tolerance
from fastode.solution import DenseOutput, Outcome, Stats
from fastode.status import RUNNING, Status
from fastode.tableaus.implicit import ImplicitTableau
from fastode.tableaus.order_conditions import Array
from fastode.tableaus.rosenbrock import RosenbrockTableau

_COMPACT_BELOW = 0.75
"""The batch is compacted when no more than this part of its samples is still running."""
_NEWTON_ERROR = 0.01
"""Error of a stage's solution, as part of the tolerance of a step."""
_NEWTON_ITERS, FIXED_ITERS = 10, 50
"""Iterations of Newton's method at most, with step control and with fixed steps."""
_FIXED_ULPS = 64.0
"""With fixed steps stages are solved to this many roundings of the largest component."""
_KEEP_RATE, _KEEP_RATE_WIDE, _WIDE = 1e-3, 0.03, 16
"""A Jacobian is kept for the next step when the iteration contracts faster; where it is dear, with width, sooner."""
_SHORTER = 0.5
"""Factor on the step size when the stages cannot be found."""


@dataclass(frozen=True)
class ImplicitRecord:
    """What the backward pass needs.

    Attributes:
        steps: the accepted steps.
        k1: (B, D), the field at the start.
        final: (B, D), the state at the end.
        solved: (B,) bool.
        separable: whether the field may be called with fewer samples; None if that was not tried.
    """

    steps: StepRecord
    k1: Tensor
    final: Tensor
    solved: Tensor
    separable: bool | None


def accuracy_of(plan: Plan, y: Tensor, h: Tensor, k1: Tensor) -> Accuracy:
    """How well the stages of steps h (n,) from y (n, D) with slopes k1 (n, D) are solved."""
    if plan.controller is not None:
        return Accuracy(y.abs(), plan.rtol, plan.atol, False, _NEWTON_ERROR, 0.1, _NEWTON_ITERS, renew=False)
    size = torch.maximum(y.abs(), (column(h, y) * k1).abs())
    done = _FIXED_ULPS * torch.finfo(y.dtype).eps
    return Accuracy(size, 1.0, plan.atol, True, done, done**0.5 * 1e-3, FIXED_ITERS, renew=True)


def keep_rate(width: int) -> float:
    """Contraction below which a Jacobian serves for the next step, too."""
    return _KEEP_RATE_WIDE if width >= _WIDE else _KEEP_RATE


class Solve:
    """State of a forward solve. Lanes are the samples that are still worked on, rows of all tensors named below.

    Args:
        plan: the solve.
        y0: (B, D).
        controls: leaves (B, ...).
        k1: (B, D), the field at the start.
        policy: what is remembered for the gradient; None remembers nothing.
    """

    def __init__(
        self, plan: Plan, y0: Tensor, controls: Sequence[Tensor], k1: Tensor, policy: Checkpoint | None
    ) -> None:
        self.plan, self.tableau, self.policy = plan, plan.tableau, policy
        batch = plan.batch
        device = y0.device
        self.y0, self.k0 = y0, k1
        self.ys = torch.full((plan.times.shape[0], batch, y0.shape[1]), torch.nan, dtype=y0.dtype, device=device)
        self.recorder = Recorder(batch, policy, y0)
        self.polynomials: list[tuple[Tensor, Tensor]] = []
        start, end = plan.times[0], plan.times[-1]
        # Of the whole batch; the lanes' are written there when they leave.
        self.status = torch.full((batch,), RUNNING, dtype=torch.int64, device=device)
        self.reached = start.clone()
        self.counts = torch.zeros(3, batch, dtype=torch.int64, device=device)  # accepted, rejected, evaluations
        self.counts[2] = 1

        self.lanes = torch.arange(batch, device=device)
        self.controls = list(controls)
        self.t, self.y, self.k1 = start.clone(), y0, k1
        self.end = end
        self.direction = torch.sign(end - start)
        self.ascending = (self.direction * plan.times).T.contiguous()  # (n, T)
        self.cursor = self._passed(self.direction * start)
        self.lane_status = self.status.clone()
        self.lane_counts = self.counts.clone()
        self.previous, self.before = torch.ones(2, batch, dtype=torch.float64, device=device)
        width = y0.shape[1]
        self.jac = y0.new_zeros(batch, width, width)
        self.dfdt = torch.zeros_like(y0)
        self.jac_good = torch.zeros(batch, dtype=torch.bool, device=device)
        self.jac_fresh = torch.zeros_like(self.jac_good)
        self.separable: bool | None = None
        self.h = self.fixed = start if plan.step_size is None else plan.step_size
        self.to_output = torch.zeros_like(self.jac_good)  # the next step ends at the next output

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt of the lanes, in memory of its own."""
        return self.plan.field(t, y, self.controls).clone(memory_format=torch.contiguous_format)

    def _passed(self, when: Tensor) -> Tensor:
        """Number of output times up to ``when`` (n,), in the direction of time."""
        return torch.searchsorted(self.ascending, when[:, None].contiguous(), right=True)[:, 0]

    def run(self) -> Forward:
        """The whole solve."""
        self._start()
        while self.lanes.shape[0] and bool((self.lane_status == RUNNING).any()):
            self._step()
            self._compact()
        self._leave(torch.ones_like(self.lane_status, dtype=torch.bool))
        return self._result()

    def _start(self) -> None:
        plan, controller = self.plan, self.plan.controller
        at_start = torch.arange(plan.times.shape[0], device=self.y.device)[:, None] < self.cursor
        self.ys = torch.where(at_start[..., None], self.y0, self.ys)
        finite = torch.isfinite(self.y).all(1) & torch.isfinite(self.k1).all(1)
        self.lane_status[~finite] = int(Status.NON_FINITE)
        self.lane_status[self.direction == 0] = int(Status.SUCCESS)
        if controller is None:
            return
        if controller.first_step is not None:
            h = torch.full_like(self.t, controller.first_step).maximum(self._shortest(controller))
            self.h = h.clamp_max(controller.max_step)
        elif plan.batch:
            self.h = initial_step(plan, controller, self.field, self.t, self.y, self.k1, self.direction)
            self.lane_counts[2] += 1

    def _shortest(self, controller: PIDController) -> Tensor:
        """The least step (n,) from where the lanes are."""
        return shortest_step(self.t, self.y.dtype, controller.min_step)

    def _renew_jacobians(self, running: Tensor) -> None:
        if self.plan.controller is None and isinstance(self.tableau, ImplicitTableau):
            return  # fixed steps renew theirs while they iterate
        need = running & ~self.jac_good
        n_need = int(need.sum())
        if n_need == 0:
            return
        by_time = isinstance(self.tableau, RosenbrockTableau)
        if self.separable and n_need < self.lanes.shape[0]:
            index = need.nonzero()[:, 0]
            held = [c[index] for c in self.controls]
            found, by_t = jacobian(lambda t, y: self.plan.field(t, y, held), self.t[index], self.y[index], by_time)
            self.jac = self.jac.index_copy(0, index, found)
            if by_t is not None:
                self.dfdt = self.dfdt.index_copy(0, index, by_t)
        else:
            found, by_t = jacobian(lambda t, y: self.plan.field(t, y, self.controls), self.t, self.y, by_time)
            self.jac = torch.where(need[:, None, None], found, self.jac)
            if by_t is not None:
                self.dfdt = torch.where(need[:, None], by_t, self.dfdt)
        self.jac_good, self.jac_fresh = self.jac_good | need, self.jac_fresh | need

    def _without_jacobian(self, failed: Tensor) -> Tensor:
        """Which lanes (n,) of ``failed`` have no Jacobian where they are, so that no smaller step helps."""
        if not bool(failed.any()):
            return failed
        finite = torch.isfinite(self.jac).flatten(1).all(1) & torch.isfinite(self.dfdt).all(1)
        return failed & self.jac_fresh & ~finite

    def _attempt(self, step: Tensor, running: Tensor) -> tuple[Stages, Tensor, Callable[[], Filter]]:
        """The stages of steps (n,), the field at their ends, and the filter for defects of their dense output."""
        tableau = self.tableau
        if isinstance(tableau, RosenbrockTableau):
            return rosenbrock_attempt(tableau, self.field, self.t, step, self.y, self.k1, self.jac, self.dfdt, running)
        assert isinstance(tableau, ImplicitTableau)
        solver = StageSolver(tableau, self.field, self.t, step, self.y, self.k1, self.jac)
        stages = solver.run(accuracy_of(self.plan, self.y, step, self.k1), running)
        return stages, stages.slopes[-1], solver.filter

    def _between(
        self, ratio: Tensor, t_next: Tensor, step: Tensor, found: Stages, scale: Tensor, filter_of: Callable[[], Filter]
    ) -> Tensor:
        """The error ratio (n,), or that of the dense output where a step is read before its end and that is larger."""
        read = ratio <= 1
        if not self.plan.dense:
            if self.ascending.shape[1] <= 2:
                return ratio
            before = torch.searchsorted(self.ascending, (self.direction * t_next)[:, None].contiguous())[:, 0]
            read = read & (before > self.cursor)
        if not bool(read.any()):
            return ratio
        errors = defects(self.tableau, self.field, self.t, step, self.y, found.slopes, filter_of())
        self.lane_counts[2] += len(errors) * read
        for error in errors:
            ratio = torch.where(read, torch.maximum(ratio, rms(error / scale)), ratio)
        return ratio

    def _step(self) -> None:
        """One attempted step of every lane; the rules are those of ``fastode.reference``."""
        plan, tableau, controller = self.plan, self.tableau, self.plan.controller
        running = self.lane_status == RUNNING
        self._renew_jacobians(running)
        following = self.cursor.clamp_max(self.ascending.shape[1] - 1)[:, None]
        next_output = self.direction * self.ascending.gather(1, following)[:, 0]
        to_output = torch.isinf(self.h) | self.to_output | plan.step_to_outputs
        target = torch.where(to_output & running, next_output, self.end)
        room = (target - self.t).abs()
        cut = self.h * (1 + LAST_STEP_STRETCH) >= room
        t_next = torch.where(running, torch.where(cut, target, self.t + self.direction * self.h), self.t)
        step = t_next - self.t
        tried, moves = torch.minimum(step.abs(), self.h), step != 0
        found, k_end, filter_of = self._attempt(step, running)
        finite = torch.isfinite(found.y1).all(1) & torch.isfinite(k_end).all(1)
        self.lane_counts[2] += found.evals

        if controller is None:
            accept = moves & finite & found.solved
            why = torch.where(moves, int(Status.NO_CONVERGENCE), int(Status.STEP_UNDERFLOW))
            why = torch.where(finite, why, int(Status.NON_FINITE))
            self.lane_status = torch.where(running & ~accept, why, self.lane_status)
        else:
            assert tableau.e is not None
            error = combine(None, step, tableau.e.tolist(), found.slopes)
            scale = tolerance(plan, torch.maximum(self.y.abs(), found.y1.abs()))
            ratio = rms(error / scale)
            ratio = torch.where(finite & found.solved, ratio, torch.nan)
            at_end = ratio <= 1
            ratio = self._between(ratio, t_next, step, found, scale, filter_of)
            accept = moves & (ratio <= 1)
            reject = running & ~accept
            lost = reject & ~found.solved
            again = lost & ~self.jac_fresh  # with the Jacobian of this place first
            stuck = (
                reject
                & ~again
                & ((tried <= self._shortest(controller)) | self._without_jacobian(reject & ratio.isnan()))
            )
            why = torch.where(ratio.isnan(), int(Status.NON_FINITE), int(Status.STEP_UNDERFLOW))
            why = torch.where(lost & finite, int(Status.NO_CONVERGENCE), why)
            self.lane_status = torch.where(stuck, why, self.lane_status)
            factor = controller.factor(tableau.error_exponent, ratio, self.previous, self.before, accept)
            factor = torch.where(lost & finite, max(_SHORTER, controller.min_factor), factor)
            factor = torch.where(again, 1.0, factor)
            size = torch.where(accept & cut, (tried * factor).maximum(self.h), tried * factor)
            self.before = torch.where(accept & ~cut, self.previous, self.before)
            self.previous = torch.where(accept & ~cut, ratio, self.previous)
        self.lane_counts[0] += accept
        self.lane_counts[1] += running & ~accept

        self._accepted(accept, t_next, step, found)
        self.t = torch.where(accept, t_next, self.t)
        if controller is None:
            following_h = self.fixed + torch.where(cut, 0.0, self.h - step.abs())
        else:
            following_h = size.maximum(self._shortest(controller)).clamp_max(controller.max_step)
            # Where only what lies before the end is wrong, a step that ends at the next output may be as long as that.
            room = (next_output - self.t).abs()
            self.to_output = reject & at_end & (room < tried) & (room > following_h) & (not plan.dense)
            following_h = torch.where(self.to_output, room, following_h)
        self.h = torch.where(running, following_h, self.h)
        self.y = torch.where(accept[:, None], found.y1, self.y)
        self.k1 = torch.where(accept[:, None], k_end, self.k1)
        reusable = found.rate <= keep_rate(self.y.shape[1])
        self.jac_good = torch.where(accept, reusable, self.jac_fresh)
        self.jac_fresh = self.jac_fresh & ~accept
        self.lane_status[accept & (self.t == self.end)] = int(Status.SUCCESS)
        attempts = self.lane_counts[0] + self.lane_counts[1]
        self.lane_status[(self.lane_status == RUNNING) & (attempts >= plan.max_steps)] = int(Status.MAX_STEPS)

    def _accepted(self, accept: Tensor, t_next: Tensor, step: Tensor, found: Stages) -> None:
        """Outputs, record and dense output of the accepted steps."""
        rows = accept.nonzero()[:, 0]
        if not rows.shape[0]:
            return
        passed = torch.where(accept, self._passed(self.direction * t_next), self.cursor)
        first, n_outputs = self.cursor[rows], (passed - self.cursor)[rows]
        owner = torch.repeat_interleave(rows, n_outputs)
        if owner.shape[0]:
            which = torch.arange(owner.shape[0], device=rows.device)
            ahead = torch.repeat_interleave(n_outputs.cumsum(0) - n_outputs - first, n_outputs)
            outputs = which - ahead
            samples = self.lanes[owner]
            when = self.plan.times[outputs, samples]
            value = found.y1[owner]
            at_end = when == t_next[owner]
            if not bool(at_end.all()):
                theta = torch.where(at_end, 1.0, (when - self.t[owner]) / step[owner])
                inside = self._inside(theta, owner, step, found)
                value = torch.where(at_end[:, None], value, inside)
            self.ys[outputs, samples] = value
        self.cursor = passed
        if self.policy is not None or self.plan.dense:
            samples, number = self.lanes[rows], self.lane_counts[0][rows] - 1
            self.recorder.add(samples, number, self.t[rows], t_next[rows], step[rows], first, n_outputs, self.y[rows])
            if self.plan.dense:
                self.polynomials.append((samples, polynomials(self.tableau.q, self.y, step, found.slopes)[rows]))

    def _inside(self, theta: Tensor, owner: Tensor, step: Tensor, found: Stages) -> Tensor:
        """Dense output at theta (m,) of the steps of lanes ``owner`` (m,)."""
        q = torch.tensor(self.tableau.q.tolist(), dtype=torch.float64, device=theta.device)
        weights = [(b[:, None] * q[:, m]) for m, b in enumerate(basis(theta, q.shape[1]))]
        total = weights[0]
        for weight in weights[1:]:  # in this order, whatever the batch
            total = total + weight
        change = torch.zeros_like(found.y1[owner])
        for i, slope in enumerate(found.slopes):
            change = change + total[:, i, None].to(change.dtype) * slope[owner]
        return self.y[owner] + column(step[owner], change) * change

    def _leave(self, leaving: Tensor) -> None:
        """Writes lanes that are done, or the solve is over, to where the whole batch's results are."""
        samples = self.lanes[leaving]
        self.status[samples] = self.lane_status[leaving]
        self.reached[samples] = self.t[leaving]
        self.counts[:, samples] = self.lane_counts[:, leaving]

    def _compact(self) -> None:
        """Drops lanes that are done where enough are, and the field gives the others the same values then."""
        if self.separable is False:
            return
        running = self.lane_status == RUNNING
        n_running = int(running.sum())
        if n_running == 0 or n_running > _COMPACT_BELOW * running.shape[0]:
            return
        kept = running.nonzero()[:, 0]
        controls = [c[kept] for c in self.controls]
        y, t = self.y[kept], self.t[kept]
        expected = self.plan.field(self.t, self.y, self.controls)[kept].clone()
        same = same_rows(self.plan.field, t, y, controls, expected)
        if not same:
            self.separable = None if same is None else False
            return
        self.separable = True
        self._leave(~running)
        self.lanes, self.controls, self.t, self.y, self.k1 = self.lanes[kept], controls, t, y, self.k1[kept]
        self.end, self.direction, self.ascending = self.end[kept], self.direction[kept], self.ascending[kept]
        self.cursor, self.lane_status = self.cursor[kept], self.lane_status[kept]
        self.lane_counts, self.fixed, self.h = self.lane_counts[:, kept], self.fixed[kept], self.h[kept]
        self.previous, self.before = self.previous[kept], self.before[kept]
        self.jac, self.dfdt = self.jac[kept], self.dfdt[kept]
        self.jac_good, self.jac_fresh = self.jac_good[kept], self.jac_fresh[kept]
        self.to_output = self.to_output[kept]

    def _result(self) -> Forward:
        plan = self.plan
        stats = Stats(*self.counts.unbind())
        record, dense = None, None
        if self.policy is not None or plan.dense:
            steps = self.recorder.finish(self.counts[0])
            if self.policy is not None:
                solved = self.status == Status.SUCCESS
                record = ImplicitRecord(steps, self.k0, self.ys[-1].clone(), solved, self.separable)
            if plan.dense:
                dense = self._dense(steps)
        return Forward(self.ys, dense, Outcome(self.status, self.reached, stats), record)

    def _dense(self, steps: StepRecord) -> DenseOutput:
        plan, batch = self.plan, self.plan.batch
        if self.polynomials:
            order = torch.sort(torch.cat([samples for samples, _ in self.polynomials]), stable=True).indices
            coefs = torch.cat([part for _, part in self.polynomials])[order]
        else:
            coefs = self.y0.new_zeros(0, self.tableau.degree + 1, self.y0.shape[1])
        n = int(steps.count.max()) if batch else 0
        number = torch.arange(n, device=self.y0.device)[:, None]
        taken = number < steps.count
        rows = steps.offset + torch.minimum(number, (steps.count - 1).clamp_min(0))
        if coefs.shape[0] == 0:
            start = size = plan.times[:0]
        else:
            safe = rows.clamp_max(coefs.shape[0] - 1)
            start = torch.where(taken, steps.t[safe], self.reached)
            size = torch.where(taken, steps.h[safe], 0.0)
            rows = safe
        return DenseOutput(start, size, rows, coefs, steps.count, plan.times[0], self.reached, self.y0)


def polynomials(q: Array, y: Tensor, h: Tensor, slopes: list[Tensor]) -> Tensor:
    """Dense output of steps h (n,) from y (n, D): (n, degree + 1, D), see ``fastode.reference.polynomial``."""
    parts = [combine(None, h, weights.tolist(), slopes) for weights in q.T]
    return torch.stack([y, *parts], 1)
