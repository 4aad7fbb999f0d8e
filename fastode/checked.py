"""Solves that are compared with the user's field while they run: ``fastode.checking()`` and FASTODE_CHECK=1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from fastode._environment import CHECK
from fastode.problem import Inputs, Plan
from fastode.program.captures import Capture
from fastode.program.evaluate import evaluate_pullback
from fastode.program.verify import FLOATS, PRECISION, pulled

_POINTS = 5
"""Output times, the first and the last among them, at which a solve is compared."""
_checking: ContextVar[bool | None] = ContextVar("checking", default=None)


class CheckError(RuntimeError):
    """A program's value or gradient is not that of the field that it stands for."""


@contextmanager
def checking(enabled: bool = True) -> Iterator[None]:
    """Within this context every solve by a program is compared with the user's field.

    The field is called again at up to five output times of the solve, on the states that came out; its values there,
    and where gradients are enabled its derivatives by the state, must be those of the kernels. Backends that call the
    field itself have nothing to compare. ``FASTODE_CHECK=1`` in the environment does the same for all solves of a
    process.

    Args:
        enabled: False switches it off within the context.

    Raises:
        CheckError: by ``solve``, ``odeint`` and others: a value differs; the message tells where.
    """
    token = _checking.set(enabled)
    try:
        yield
    finally:
        _checking.reset(token)


def is_checking() -> bool:
    """Whether solves are compared with the field now."""
    now = _checking.get()
    return CHECK if now is None else now


def compare(
    plan: Plan,
    inputs: Inputs,
    capture: Capture,
    leaves: tuple[Sequence[Tensor], Sequence[Tensor]],
    evaluate: Callable[[Tensor, Tensor], Tensor],
    ys: Tensor,
) -> None:
    """Compares a solve with the field.

    Args:
        plan: the solve.
        inputs: its inputs.
        capture: the field's program.
        leaves: what it read, shared (*shape) and per sample (B, *shape).
        evaluate: dy/dt (B, D) by the kernels at times (B,) and states (B, D).
        ys: (T, B, D), the solution.

    Raises:
        CheckError: a value or derivative differs.
    """
    count = ys.shape[0]
    generator = torch.Generator().manual_seed(0)
    for i in sorted({round(k * (count - 1) / (_POINTS - 1)) for k in range(_POINTS)}):
        t, state = plan.times[i], ys[i].detach()
        healthy = torch.isfinite(state).all(1)
        state = torch.where(healthy[:, None], state, inputs.y0.detach()).requires_grad_(torch.is_grad_enabled())
        controls = [c.detach() for c in inputs.controls]
        value = plan.field(t, state, controls)
        with torch.no_grad():
            _hold("the value", evaluate(t, state.detach()), value.detach(), t, healthy, plan)
        if not torch.is_grad_enabled():
            continue  # a field may be another one then
        g = torch.randn(value.shape, generator=generator).to(value)
        truth = torch.zeros_like(state)
        if value.requires_grad:
            found = pulled([value], [state], [g])[0]
            truth = truth if found is None else found
        shared, sample = ([x.detach() for x in each] for each in leaves)
        own = evaluate_pullback(capture.pullback, t.to(state.dtype), state.detach(), shared, sample, g)[0]
        _hold("the derivative by the state", own, truth, t, healthy, plan)


def _hold(what: str, own: Tensor, truth: Tensor, t: Tensor, healthy: Tensor, plan: Plan) -> None:
    finite = torch.isfinite(truth)
    error = torch.where(finite & torch.isfinite(own), own - truth, 0.0).abs()
    size = torch.where(finite, truth, 0.0).abs().amax(1, keepdim=True)
    kind = torch.finfo(truth.dtype if truth.dtype in FLOATS else torch.float32)
    bound = PRECISION[plan.field.state.dtype] * size + 1000 * kind.eps * size.amax() + kind.tiny
    wrong = ((error > bound) | (finite != torch.isfinite(own))) & healthy[:, None]
    if bool(wrong.any()):
        b, k = wrong.nonzero()[0].tolist()
        raise CheckError(
            f"{what} of the program is not that of the field: {own[b, k].item():.9g} instead of "
            f"{truth[b, k].item():.9g} in sample {b}, component {k} of the state, at t = {t[b].item():.9g}. Please "
            "report this as a fault of fastode; backend='stepped' calls the field itself"
        )
