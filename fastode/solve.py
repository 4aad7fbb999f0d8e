"""``fastode.solve``: batched, per-sample controlled Runge-Kutta solves with exact gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from fastode.adjoint import adjoint_solve
from fastode.autograd import checkpoint_solve
from fastode.backends.base import Forward
from fastode.backends.choose import choose
from fastode.backprop import backprop_solve
from fastode.checkpoint import Checkpoint
from fastode.controllers import PIDController
from fastode.fused import program_solve
from fastode.hostflags import differentiation_hidden, transforms_active
from fastode.problem import make_problem
from fastode.solution import Solution
from fastode.status import SolveError
from fastode.tableaus import Tableau

Gradient = Literal["checkpoint", "backprop", "adjoint"]


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
    on_failure: Literal["raise", "nan"] = "raise",
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
        method: name of a tableau in ``fastode.TABLEAUS``, or a ``Tableau``.
        rtol: relative tolerance of each step: a number, a tensor that broadcasts to the state of one sample, or a tree
            of these.
        atol: absolute tolerance, likewise, in units of y. A step is accepted when the root mean square over the
            sample's state of error / (atol + rtol |y|) is at most 1.
        step_size: fixed steps of this size, in units of t, a number or (B,); the last step is shortened or, by less
            than 1e-8 of itself, stretched. Methods without an error estimate take by default one step from each
            output time to the next.
        controller: step-size control, ``IController()`` by default.
        gradient: ``"checkpoint"``, the exact discrete adjoint from a record of the accepted steps, or a ``Checkpoint``
            that keeps fewer states; ``"backprop"``, automatic differentiation through the accepted steps, to any order
            and under ``torch.func`` transforms, in memory proportional to all stages; ``"adjoint"``, the continuous
            adjoint solved backward in time, in constant memory and to the accuracy of the tolerance.
            Gradients reach y0, controls, t, and every tensor the field owns or closes over; step sizes are constants.
        backend: ``"auto"`` or the name of a backend.
        max_steps: limit on the attempted steps of each sample.
        dense: keep the polynomial of every step for ``Solution.interpolate``.
        on_failure: ``"raise"`` raises ``SolveError`` if a sample fails; ``"nan"`` returns NaN for that sample after the
            last time it reached, with zero gradient from the whole sample, and leaves the others untouched.

    Returns:
        ``Solution``.

    Raises:
        TypeError: an argument, or the field's value, of the wrong type, structure or dtype.
        ValueError: wrong shapes, times that are not finite or not monotone, values out of range, mixed devices.
        RuntimeError: the backend asked for cannot run this solve.
        SolveError: a sample failed and ``on_failure="raise"``.
    """
    options = {
        "controls": controls,
        "method": method,
        "rtol": rtol,
        "atol": atol,
        "step_size": step_size,
        "controller": controller,
        "gradient": gradient,
        "backend": backend,
        "max_steps": max_steps,
        "dense": dense,
        "on_failure": on_failure,
    }
    if torch.compiler.is_compiling():
        from fastode import compiled  # loads torch's compiler

        return compiled.solve(field, y0, t, **options)
    return solve_now(field, y0, t, **options)


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
    on_failure: str,
) -> Solution:
    """``solve`` outside of compilation."""
    if on_failure not in ("raise", "nan"):
        raise ValueError(f"on_failure must be 'raise' or 'nan', got {on_failure!r}")
    policy = Checkpoint() if gradient == "checkpoint" else gradient if isinstance(gradient, Checkpoint) else None
    if policy is None and gradient not in ("backprop", "adjoint"):
        raise ValueError(f"gradient must be 'checkpoint', a Checkpoint, 'backprop' or 'adjoint', got {gradient!r}")
    plan, inputs = make_problem(field, y0, t, controls, method, rtol, atol, step_size, controller, max_steps, dense)
    if gradient == "backprop":
        if backend not in ("auto", "reference"):
            raise RuntimeError(f"gradient='backprop' runs on backend 'reference', not on {backend!r}")
        ys, coefs, result = backprop_solve(plan, inputs)
    elif policy is not None:
        _forbid_transforms("checkpoint")
        choice = choose(backend, plan, inputs)
        if choice.fields is not None:
            ys, coefs, result = checkpoint_solve(choice.fields, plan, inputs, policy)
        else:
            assert choice.programs is not None
            assert choice.capture is not None
            ys, coefs, result = program_solve(choice.programs, plan, inputs, choice.capture, choice.tensors, policy)
    else:
        _forbid_transforms("adjoint")
        fields = choose(backend, plan, inputs, programs=False).fields
        assert fields is not None
        ys, coefs, result = adjoint_solve(fields, plan, inputs)
    if on_failure == "raise" and result.failed:
        if transforms_active():
            raise RuntimeError("samples failed, and torch.func hides which; on_failure='nan' and Solution.status tell")
        raise SolveError(result.status, result.reached)
    return _solution(t, ys, coefs, result, plan.field.state)


def _solution(t: Any, ys: Tensor, coefs: Tensor | None, result: Forward, spec: Any) -> Solution:
    dense = None if coefs is None or result.dense is None else replace(result.dense, coefs=coefs, y0=ys[0])
    given = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64, device=ys.device)
    given = given if given.device == ys.device else given.to(ys.device)
    ys = ys if ys.dtype is spec.dtype else ys.to(spec.dtype)
    return Solution(given, spec.unflatten(ys), result.status, result.stats, spec, dense)


def _forbid_transforms(gradient: str) -> None:
    if differentiation_hidden():
        raise RuntimeError(
            f"gradient={gradient!r} does not run under torch.func transforms or forward-mode differentiation; use "
            "gradient='backprop'"
        )
