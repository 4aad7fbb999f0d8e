"""``fastode.solve``: batched, per-sample controlled Runge-Kutta solves with exact gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from fastode.backends.base import Forward
from fastode.captured import uncaptured
from fastode.checkpoint import Checkpoint
from fastode.controllers import PIDController
from fastode.events.chain import solve_events
from fastode.events.event import Event, FlatEvents, check_events
from fastode.execute import Gradient, check_gradient, execute, may_have_graph
from fastode.hostflags import differentiation_hidden, host_any, transforms_active
from fastode.problem import Inputs, Plan, make_problem
from fastode.solution import DenseOutput, Outcome, Solution
from fastode.status import SolveError, Status
from fastode.tableaus import Tableau
from fastode.tracers import refuse_tracers


def solve(
    field: Callable[..., Any],
    y0: Any,
    t: Any,
    *,
    controls: Any = None,
    method: str | Tableau = "dopri5",
    rtol: Any = 1e-5,
    atol: Any = 1e-6,
    step_size: float | Tensor | None = None,
    controller: PIDController | None = None,
    gradient: Gradient | Checkpoint = "checkpoint",
    backend: str = "auto",
    max_steps: int = 100_000,
    dense: bool = False,
    step_to_outputs: bool | None = None,
    on_failure: Literal["raise", "nan"] = "raise",
    events: Event | Sequence[Event] | None = None,
) -> Solution:
    """Solves dy/dt = field(t, y[, controls]) for every sample of a batch with its own steps.

    Each sample has its own time, step size, acceptance and end; its result does not depend on the other samples,
    provided that the field treats them separately. The field may be called with fewer samples than the batch once some
    are done, so whatever is per sample should come in through ``controls`` and not through a closure; a field that
    does not give the same values then is recognised and always called with the whole batch. A field that couples
    samples sees the others at their own times, which adaptive steps and rejections make different from this one's:
    write coupled systems as one sample.

    Args:
        field: ``field(t, y)``, or ``field(t, y, controls)`` where controls are given. Receives t as (n, 1, ..., 1) in
            the dtype of y and with the rank of y (of its first leaf), y as (n, *state), controls as (n, ...), and
            returns dy/dt, shaped like y.
        y0: (B, *state) initial states, a tensor or a nested tuple, list or dict of tensors of one floating dtype.
            float16 and bfloat16 states are held and combined in float32.
        t: output times, (T,) for all samples or (T, B) per sample, monotone in either direction, repetitions allowed;
            the first is the initial time. A tensor or a sequence of numbers.
        controls: per-sample parameters, any tree of tensors with leading dimension B.
        method: name of a tableau in ``fastode.TABLEAUS``, or a ``Tableau``; for stiff problems ``"rodas5p"``,
            ``"kvaerno5"`` and others of ``fastode.IMPLICIT_TABLEAUS``.
        rtol: relative tolerance of each step: a number, a tensor that broadcasts to the state of one sample, or a tree
            of these.
        atol: absolute tolerance, likewise, in units of y. A step is accepted when the root mean square over the
            sample's state of error / (atol + rtol |y|) is at most 1. Not both may be 0 for a component. With implicit
            methods the same holds for the error of the dense output, estimated by its defect, in steps that outputs
            or ``dense`` read before their end.
        step_size: fixed steps of this size, in units of t, a number or (B,); the last step is shortened or, by less
            than 1e-8 of itself, stretched. Methods without an error estimate take by default one step from each
            output time to the next. A step too small for the float64 clock at its time ends the sample with
            ``Status.STEP_UNDERFLOW``.
        controller: step-size control, ``IController()`` by default.
        gradient: ``"checkpoint"``, the exact discrete adjoint from a record of the accepted steps, or a ``Checkpoint``
            that keeps fewer states; ``"backprop"``, automatic differentiation through the accepted steps, to any order
            and under ``torch.func`` transforms, in memory proportional to all stages; ``"adjoint"``, the continuous
            adjoint solved backward in time, in constant memory and to the accuracy of the tolerance.
            Gradients reach y0, controls, t, and every tensor the field owns or closes over. Adaptive step sizes are
            constants; fixed steps depend on t and step_size, and a gradient by these takes the memory of
            ``"backprop"`` (with ``"adjoint"``, t alone, to the accuracy of the steps).
        backend: ``"auto"`` or the name of a backend. A sample gets the same bits in every batch on those that execute
            programs; ``"stepped"`` calls the field, and torch's products depend on the size of the batch.
        max_steps: limit on the attempted steps of each sample.
        dense: keep the polynomial of every step for ``Solution.interpolate``.
        step_to_outputs: ``True`` ends a step at every output time of the sample, so that outputs are ends of steps and
            not read from polynomials; the next step is as long as if the one before had not been cut. Fixed steps
            start again there. ``False`` lets steps pass outputs. ``None`` does as the method needs.
        on_failure: ``"raise"`` raises ``SolveError`` if a sample fails; ``"nan"`` returns NaN for that sample after the
            last time it reached, with zero gradient from the whole sample, and leaves the others untouched.
        events: functions of time and state at whose changes of sign a sample ends, is recorded or goes on from another
            state; ``Solution.events`` tells where. Outputs after the end of a sample are NaN and have no gradient.

    Returns:
        ``Solution``.

    Raises:
        TypeError: an argument, or the field's value, of the wrong type, structure or dtype.
        ValueError: wrong shapes, times that are not finite or not monotone, values out of range, mixed devices, tensors
            that require a gradient that does not exist.
        RuntimeError: the backend asked for cannot run this solve; or it is traced (``torch.jit.trace``, ``make_fx``).
        SolveError: a sample failed and ``on_failure="raise"``.
    """
    now = solve_now
    if torch.compiler.is_compiling():
        from fastode import compiled  # loads torch's compiler

        now = compiled.solve
    return now(
        field,
        y0,
        t,
        controls=controls,
        method=method,
        rtol=rtol,
        atol=atol,
        step_size=step_size,
        controller=controller,
        gradient=gradient,
        backend=backend,
        max_steps=max_steps,
        dense=dense,
        step_to_outputs=step_to_outputs,
        on_failure=on_failure,
        events=events,
    )


def solve_now(
    field: Callable[..., Any],
    y0: Any,
    t: Any,
    *,
    controls: Any,
    method: str | Tableau,
    rtol: Any,
    atol: Any,
    step_size: float | Tensor | None,
    controller: PIDController | None,
    gradient: Gradient | Checkpoint,
    backend: str,
    max_steps: int,
    dense: bool,
    step_to_outputs: bool | None,
    on_failure: str,
    events: Any = None,
) -> Solution:
    """``solve`` outside of compilation."""
    refuse_tracers("fastode.solve")
    if on_failure not in ("raise", "nan"):
        raise ValueError(f"on_failure must be 'raise' or 'nan', got {on_failure!r}")
    check_gradient(gradient, backend)
    field = uncaptured(field)
    plan, inputs = make_problem(
        field, y0, t, controls, method, rtol, atol, step_size, controller, max_steps, dense, step_to_outputs
    )
    if events is not None:
        return _with_events(plan, inputs, t, check_events(events), gradient, backend, on_failure)
    ys, coefs, result = execute(plan, inputs, gradient, backend)
    if on_failure == "raise" and result.failed:
        if transforms_active():
            raise RuntimeError("samples failed, and torch.func hides which; on_failure='nan' and Solution.status tell")
        raise SolveError(result.status, result.reached, result.outcome.last_step, result.outcome.last_ratio)
    polynomials = None
    if coefs is not None and result.dense is not None:
        polynomials = _with_slopes(replace(result.dense, coefs=coefs, y0=ys[0].clone()), plan, inputs)
    return _solution(t, ys, polynomials, result, plan.field.state)


def _with_slopes(dense: DenseOutput, plan: Plan, inputs: Inputs) -> DenseOutput:
    """With the field at the start, if there are samples that have nowhere to go."""
    resting = plan.times[0] == plan.times[-1]
    if not host_any(resting):
        return dense
    slope = plan.field(inputs.times[0], inputs.y0, inputs.controls).clone()
    known = resting[:, None] & torch.isfinite(slope)
    return replace(dense, slope=torch.where(known, slope, 0.0), origin=inputs.times[0])


def _with_events(
    plan: Plan,
    inputs: Inputs,
    t: Any,
    events: tuple[Event, ...],
    gradient: Gradient | Checkpoint,
    backend: str,
    on_failure: str,
) -> Solution:
    if differentiation_hidden():
        raise RuntimeError("events do not run under torch.func transforms or forward-mode differentiation")
    if inputs.step_size is not None:
        raise ValueError("events have no derivative by step_size; detach it")
    spec = plan.field.state
    solved = solve_events(
        plan,
        inputs,
        FlatEvents(events, plan.field, inputs.controls),
        lambda plan, inputs: execute(plan, inputs, gradient, backend),
        lambda plan, inputs: execute(plan, inputs, "checkpoint", backend),
        any_order=gradient == "backprop",
        graph=may_have_graph(plan, inputs, gradient, backend),
        dtype=t.dtype if isinstance(t, Tensor) and t.is_floating_point() else torch.float64,
    )
    if on_failure == "raise" and solved.failed:
        raise SolveError(torch.where(solved.status == Status.EVENT, int(Status.SUCCESS), solved.status), solved.reached)
    given = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64, device=solved.ys.device)
    ys = spec.separate(solved.ys.to(spec.dtype))
    outcome = Outcome(solved.status, solved.reached, solved.stats)
    who = (backend, ()) if solved.by is None else (solved.by.backend, solved.by.why_not)
    dense = None if solved.dense is None else _with_slopes(solved.dense, plan, inputs)
    return Solution(given.to(solved.ys.device), ys, outcome, spec, dense, solved.events, *who)


def _solution(t: Any, ys: Tensor, dense: DenseOutput | None, result: Forward, spec: Any) -> Solution:
    given = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64, device=ys.device)
    given = given if given.device == ys.device else given.to(ys.device)
    ys = ys if ys.dtype is spec.dtype else ys.to(spec.dtype)
    return Solution(given, spec.separate(ys), result.outcome, spec, dense, None, result.backend, result.why_not)
