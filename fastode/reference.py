"""The specification: a batched per-sample Runge-Kutta solve in plain, functional torch.

Every other backend takes the same steps. The solve has two passes. ``integrate`` finds the steps, without gradient: it
is the only place where step sizes are decided, and step sizes are constants of every gradient. ``replay`` walks the
accepted steps again and is differentiable to any order; rejected attempts never enter its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastode.controllers import LAST_STEP_STRETCH, PIDController, power, shortest_step
from fastode.fixed_clock import fixed_clock
from fastode.hostflags import host_any, host_flags, may_vary
from fastode.interpolant import basis
from fastode.problem import Plan
from fastode.solution import DenseOutput, Outcome, Stats
from fastode.status import RUNNING, Status
from fastode.tableaus import Tableau, get_tableau

Field = Callable[[Tensor, Tensor], Tensor]
"""dy/dt (B, D) at times (B,) float64 and states (B, D)."""

_SHIFT = get_tableau("rk4")

OnStep = Callable[[Tensor, Tensor, Tensor, list[Tensor]], None]
"""Called after every attempt with t, h (B,) float64, y (B, D) and the stages; h is 0 where no step was accepted."""


@dataclass(frozen=True)
class Steps:
    """The accepted steps of each sample, one after another; column b is padded after its count[b] steps.

    Attributes:
        t, t_next: (N, B) float64, start and end of each step.
        h: (N, B) float64, its signed size; 0 where padded.
        count: (B,) int64, number of accepted steps.
        reached: (B,) float64, the time reached.
        final: (B, D), the state there.
        status: (B,) int64 of ``Status``.
        stats: work per sample.
        last: signed size of each sample's last attempt and its error ratio, (B,) float64; None where not known.
    """

    t: Tensor
    t_next: Tensor
    h: Tensor
    count: Tensor
    reached: Tensor
    final: Tensor
    status: Tensor
    stats: Stats
    last: tuple[Tensor | None, Tensor | None] = (None, None)

    @property
    def outcome(self) -> Outcome:
        """What became of each sample."""
        return Outcome(self.status, self.reached, self.stats, *self.last)

    @property
    def n(self) -> int:
        """Number of rows, the largest count in the batch."""
        return self.t.shape[0]

    def active(self, j: int) -> Tensor:
        """(B,) bool: which samples took a step number j."""
        return self.count > j

    def select(self, index: Tensor) -> Steps:
        """The steps of the samples ``index`` (B,)."""
        return replace(
            self,
            t=self.t[:, index],
            t_next=self.t_next[:, index],
            h=self.h[:, index],
            count=self.count[index],
            reached=self.reached[index],
            final=self.final[index],
            status=self.status[index],
        )


def rms(x: Tensor) -> Tensor:
    """Root mean square over the state of each sample, (B, D) to (B,) float64; 0 for an empty state."""
    return (x.double() ** 2).sum(1).div(max(x.shape[1], 1)).sqrt()


def tolerance(plan: Plan, size: Tensor) -> Tensor:
    """The tolerance atol + rtol |y| of magnitudes ``size`` (B, D), kept off zero: an exact step has error ratio 0."""
    return (plan.atol + plan.rtol * size).clamp_min(torch.finfo(size.dtype).tiny)


def rk_step(tableau: Tableau, field: Field, t: Tensor, h: Tensor, y: Tensor, k1: Tensor) -> tuple[Tensor, list[Tensor]]:
    """One explicit Runge-Kutta step of size h (B,) float64 from (t, y): the new state and the stages k_1..k_s.

    In first-same-as-last form the state of the last stage is the new state.
    """
    size = h.to(y.dtype)[:, None]
    stages, state = [k1], y
    for i in range(1, tableau.n_stages):
        slope = sum_products(tableau.a[i, :i], stages)
        state = y + size * slope
        stages.append(field(t + float(tableau.c[i]) * h, state))
    return state, stages


def sum_products(weights: Iterable[float], stages: list[Tensor]) -> Tensor:
    """sum_j weights[j] stages[j], in this order, without the zero weights."""
    total = torch.zeros_like(stages[0])
    for weight, stage in zip(weights, stages, strict=True):
        if weight != 0.0:
            total = total + float(weight) * stage
    return total


def polynomial(tableau: Tableau, h: Tensor, y: Tensor, stages: list[Tensor]) -> Tensor:
    """The step's dense output (degree + 1, B, D): the state at its start, then the coefficients of ``basis``."""
    size = h.to(y.dtype)[:, None]
    return torch.stack([y] + [size * sum_products(tableau.q[:, m], stages) for m in range(tableau.degree)])


def evaluate(coefs: Tensor, theta: Tensor) -> Tensor:
    """The dense output (degree + 1, B, D) at theta (B,) float64."""
    weights = basis(theta, coefs.shape[0] - 1).to(coefs.dtype)
    change = torch.zeros_like(coefs[0])
    for weight, coef in zip(weights, coefs[1:], strict=True):  # not Tensor.sum: its order depends on the batch
        change = change + weight[:, None] * coef
    return coefs[0] + change


def initial_step(
    plan: Plan, controller: PIDController, field: Field, t: Tensor, y: Tensor, k1: Tensor, direction: Tensor
) -> Tensor:
    """Size of the first step, (B,) float64: Hairer, Norsett, Wanner I, algorithm II.4, sample by sample."""
    scale = tolerance(plan, y.abs())
    d0, d1 = rms(y / scale), rms(k1 / scale)
    span = (plan.times[-1] - t).abs()
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
    h0 = torch.where(torch.isfinite(h0) & (h0 > 0), h0, 1e-6).minimum(span)
    probe = field(t + direction * h0, y + (direction * h0).to(y.dtype)[:, None] * k1)
    d2 = rms((probe - k1) / scale) / h0
    steepest = torch.maximum(d1, d2)
    h1 = torch.where(
        steepest <= 1e-15, (h0 * 1e-3).clamp_min(1e-6), power(0.01 / steepest, plan.tableau.error_exponent)
    )
    guess = torch.where(torch.isfinite(h1) & (h1 > 0), torch.minimum(100 * h0, h1), h0)
    return guess.maximum(shortest_step(t, y.dtype, controller.min_step)).clamp_max(controller.max_step)


def integrate(
    plan: Plan,
    field: Field,
    y0: Tensor,
    k1: Tensor,
    on_step: OnStep | None = None,
) -> Steps:
    """Finds the steps of every sample. No gradient.

    Args:
        plan: the solve.
        field: the vector field.
        y0: (B, D).
        k1: (B, D), the field at the start.
        on_step: called after every attempt.
    """
    with torch.no_grad(), forward_ad._set_fwd_grad_enabled(False):
        return _integrate(plan, field, y0.detach(), k1.detach(), on_step)


def _integrate(
    plan: Plan,
    field: Field,
    y: Tensor,
    k1: Tensor,
    on_step: OnStep | None,
) -> Steps:
    tableau, controller, times = plan.tableau, plan.controller, plan.times
    t, end = times[0], times[-1]
    direction = torch.sign(end - t)
    zeros = torch.zeros_like(t + y.sum(1)).to(torch.int64)  # batched by vmap wherever t or y is
    n_accepted, n_rejected, n_evals = zeros, zeros, zeros + 1
    status = torch.where(direction == 0, int(Status.SUCCESS), zeros + RUNNING)
    finite = torch.isfinite(y).all(1) & torch.isfinite(k1).all(1)
    status = torch.where((status == RUNNING) & ~finite, int(Status.NON_FINITE), status)
    if controller is None:
        assert plan.step_size is not None
        h = plan.step_size
    else:
        if controller.first_step is None:
            h = initial_step(plan, controller, field, t, y, k1, direction)
            n_evals = n_evals + 1
        else:
            shortest = shortest_step(t, y.dtype, controller.min_step)
            h = torch.full_like(t, controller.first_step).maximum(shortest).clamp_max(controller.max_step)
    previous = before = torch.ones_like(h)
    attempts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    last_step, last_ratio = torch.full_like(t, torch.nan), torch.full_like(t, torch.nan)

    while host_any(status == RUNNING):
        running = status == RUNNING
        next_output = torch.where(direction * (times - t) > 0, direction * times, torch.inf).min(0).values * direction
        to_output = torch.isinf(h) | plan.step_to_outputs
        target = torch.where(to_output & running, next_output, end)
        room = (target - t).abs()
        cut = h * (1 + LAST_STEP_STRETCH) >= room
        t_next = torch.where(running, torch.where(cut, target, t + direction * h), t)
        step = t_next - t
        tried = torch.minimum(step.abs(), h)
        moves = step != 0
        y1, stages = rk_step(tableau, field, t, step, y, k1)
        finite = torch.isfinite(y1).all(1) & torch.isfinite(stages[-1]).all(1)
        if controller is None:
            assert plan.step_size is not None
            accept = finite & moves
            failure = torch.where(finite, int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE))
            status = torch.where(running & ~accept, failure, status)
            h = torch.where(running, plan.step_size + torch.where(cut, 0.0, h - step.abs()), h)
        else:
            assert tableau.e is not None
            error = step.to(y.dtype)[:, None] * sum_products(tableau.e, stages)
            ratio = rms(error / tolerance(plan, torch.maximum(y.abs(), y1.abs())))
            ratio = torch.where(finite, ratio, torch.nan)
            accept = moves & (ratio <= 1)
            reject = running & ~accept
            last_ratio = torch.where(running, ratio, last_ratio)
            stuck = reject & (tried <= shortest_step(t, y.dtype, controller.min_step))
            failure = torch.where(ratio.isnan(), int(Status.NON_FINITE), int(Status.STEP_UNDERFLOW))
            status = torch.where(stuck, failure, status)
            factor = controller.factor(tableau.error_exponent, ratio, previous, before, accept)
            size = torch.where(accept & cut, (tried * factor).maximum(h), tried * factor)
            shortest = shortest_step(torch.where(accept, t_next, t), y.dtype, controller.min_step)
            h = torch.where(running, size.maximum(shortest).clamp_max(controller.max_step), h)
            before = torch.where(accept & ~cut, previous, before)
            previous = torch.where(accept & ~cut, ratio, previous)
        last_step = torch.where(running, step, last_step)
        n_accepted = n_accepted + accept
        n_rejected = n_rejected + (running & ~accept)
        n_evals = n_evals + running * (tableau.n_stages - 1)
        attempts.append((t, t_next, step, accept))
        if on_step is not None:
            on_step(t, torch.where(accept, step, 0.0), y, stages)
        t = torch.where(accept, t_next, t)
        y = torch.where(accept[:, None], y1, y)
        k1 = torch.where(accept[:, None], stages[-1], k1)
        status = torch.where(accept & (t == end), int(Status.SUCCESS), status)
        out_of_steps = (status == RUNNING) & (n_accepted + n_rejected >= plan.max_steps)
        status = torch.where(out_of_steps, int(Status.MAX_STEPS), status)

    stats = Stats(n_accepted, n_rejected, n_evals)
    return _align(attempts, n_accepted, t, y, status, stats, (last_step, last_ratio))


def _align(
    attempts: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    count: Tensor,
    reached: Tensor,
    final: Tensor,
    status: Tensor,
    stats: Stats,
    last: tuple[Tensor, Tensor],
) -> Steps:
    """Attempts in the order of the loop, to accepted steps in the order of each sample."""
    if not attempts:
        empty = torch.zeros_like(reached)[None][:0]
        return Steps(empty, empty, empty, count, reached, final, status, stats, last)
    t, t_next, h, accept = (torch.stack(column) for column in zip(*attempts, strict=True))
    n_rows = sum(host_flags(torch.arange(len(attempts), device=t.device)[:, None] < count))
    row = torch.where(accept, accept.to(torch.int64).cumsum(0) - 1, len(attempts))

    def aligned(values: Tensor, pad: Tensor) -> Tensor:
        padded = pad.expand(len(attempts) + 1, *pad.shape[-1:]) + torch.zeros_like(values[:1])
        return padded.scatter(0, row, values)[:n_rows]

    ends = torch.zeros_like(reached)
    rows = aligned(t, reached), aligned(t_next, reached), aligned(h, ends)
    return Steps(*rows, count, reached, final, status, stats, last)


StepRule = Callable[[Tableau, Field, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, list[Tensor]]]
"""What ``rk_step`` is."""


def shifted(field: Field, start: Tensor, end: Tensor, y: Tensor) -> Tensor:
    """The state y (B, D) carried from times to the same times (B,), with its derivatives by both, exact to the fourth.

    A step of size zero by a method of order 4.
    """
    return rk_step(_SHIFT, field, start, end - start, y, field(start, y))[0]


def replay(
    plan: Plan,
    field: Field,
    steps: Steps,
    y0: Tensor,
    times: Tensor,
    step: StepRule = rk_step,
    step_size: Tensor | None = None,
) -> tuple[Tensor, DenseOutput | None]:
    """Walks the accepted steps; differentiable in y0, times and whatever the field depends on.

    Sizes of adaptive steps are constants: the derivative by an output time is the field there, that by the start time
    minus the field at the start, carried along. Those of fixed steps are functions of the times and of the step size.

    Args:
        plan: the solve.
        field: the vector field.
        steps: from ``integrate``.
        y0: (B, D).
        times: (T, B) float64, the output times with their graph.
        step: how a step is taken.
        step_size: (B,) float64, the size of fixed steps with its graph; None where it has none.

    Returns:
        ys (T, B, D), NaN beyond the time that a sample reached, and the dense output if the plan asks for it.
    """
    tableau, known = plan.tableau, plan.times
    direction = torch.sign(known[-1] - known[0])
    y, k1 = y0, field(known[0], y0)
    vary = may_vary(times) or (step_size is not None and may_vary(step_size))
    clock = None
    if vary and plan.controller is None:
        clock = fixed_clock(plan, steps.t, steps.t_next, steps.h, times, step_size)
        k1 = field(times[0], y0)
    elif vary:
        y = shifted(field, times[0], known[0], y0)
        k1 = field(known[0], y)
    outputs = [y0] + [torch.where((t == known[0])[:, None], y, torch.nan) for t in known[1:]]  # NaN: not reached yet
    if clock is not None:
        for e in range(1, len(known)):
            repeated = known[e] == known[0]
            if host_any(repeated):
                at_start = shifted(field, times[0], torch.where(repeated, times[e], times[0]), y0)
                outputs[e] = torch.where(repeated[:, None], at_start, outputs[e])
    polynomials: list[Tensor] = []
    for j in range(steps.n):
        t, t_next, h, active = steps.t[j], steps.t_next[j], steps.h[j], steps.active(j)
        start, size = (t, h) if clock is None else (clock.start[j], clock.size[j])
        y1, stages = step(tableau, field, start, size, y, k1)
        y1 = torch.where(active[:, None], y1, y)
        inside = active & (direction * (known - t) > 0) & (direction * (t_next - known) >= 0)
        needed = [e for e, flag in enumerate(host_flags(inside)) if flag]
        if plan.dense or any(host_flags(inside & (known != t_next))):
            coefs = polynomial(tableau, size, y, stages)
        for e in needed:
            value = y1
            between = inside[e] & (known[e] != t_next)
            if clock is not None:
                apart = inside[e] & ~between & (clock.end_is[j] != e)  # at a step's end, which moves in another way
                if host_any(apart):
                    there = torch.where(apart, times[e], clock.end[j])
                    value = torch.where(apart[:, None], shifted(field, clock.end[j], there, y1), y1)
            if host_any(between):
                when = known[e] if clock is None else times[e]
                theta = torch.where(between, (when - start) / torch.where(between, size, 1.0), 1.0)
                value = torch.where(between[:, None], evaluate(coefs, theta), value)
            outputs[e] = torch.where(inside[e][:, None], value, outputs[e])
        if plan.dense:
            polynomials.append(coefs)
        y, k1 = y1, torch.where(active[:, None], stages[-1], k1)
    if vary and clock is None:
        for e, value in enumerate(outputs[1:], start=1):
            outputs[e] = shifted(field, known[e], times[e], value)
    if clock is not None:
        steps = replace(steps, t=clock.start, h=clock.size)
    return torch.stack(outputs), dense_output(plan, steps, polynomials, y0) if plan.dense else None


def dense_output(plan: Plan, steps: Steps, polynomials: list[Tensor], y0: Tensor) -> DenseOutput:
    """The polynomials of all steps, each (deg + 1, B, D), as a ``DenseOutput``."""
    batch, width = y0.shape
    if polynomials:
        coefs = torch.stack(polynomials).movedim(1, 2).reshape(steps.n * batch, plan.tableau.degree + 1, width)
    else:
        coefs = y0.new_zeros(0, plan.tableau.degree + 1, width)
    last = torch.minimum(torch.arange(steps.n, device=y0.device)[:, None], (steps.count - 1).clamp_min(0))
    rows = last * batch + torch.arange(batch, device=y0.device)
    return DenseOutput(steps.t, steps.h, rows, coefs, steps.count, plan.times[0], steps.reached, y0)
