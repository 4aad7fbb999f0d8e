"""A checked problem solved by the gradient mode and the backend that were asked for."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fastode.adjoint import adjoint_solve
from fastode.autograd import checkpoint_solve
from fastode.backends.base import Forward
from fastode.backends.choose import Choice, choose, may_differentiate
from fastode.backprop import backprop_solve
from fastode.checkpoint import Checkpoint
from fastode.fused import program_solve
from fastode.hostflags import differentiation_hidden
from fastode.problem import Inputs, Plan

Gradient = Literal["checkpoint", "backprop", "adjoint"]
_EVERY_STEP = Checkpoint()


def check_gradient(gradient: Gradient | Checkpoint, backend: str) -> None:
    """Raises where a gradient mode does not exist, or does not go with a backend.

    Raises:
        ValueError: no such mode.
        RuntimeError: another backend than the one that the mode runs on.
    """
    if not isinstance(gradient, Checkpoint) and gradient not in ("checkpoint", "backprop", "adjoint"):
        raise ValueError(f"gradient must be 'checkpoint', a Checkpoint, 'backprop' or 'adjoint', got {gradient!r}")
    if gradient == "backprop" and backend not in ("auto", "reference"):
        raise RuntimeError(f"gradient='backprop' runs on backend 'reference', not on {backend!r}")


def execute(
    plan: Plan, inputs: Inputs, gradient: Gradient | Checkpoint, backend: str
) -> tuple[Tensor, Tensor | None, Forward]:
    """Solves a plan: ys (T, B, D) and the dense coefficients with their graph, and the rest.

    Raises:
        ValueError: a derivative by the step size that a gradient mode does not have.
        RuntimeError: the backend cannot run this plan, or a transform is active that the gradient mode does not know.
    """
    if gradient == "backprop":
        _make_graphs(plan, inputs)
        return backprop_solve(plan, inputs)
    if gradient == "adjoint":
        if inputs.step_size is not None:
            raise ValueError("gradient='adjoint' has no derivative by step_size; use another, or detach step_size")
        _forbid_transforms("adjoint")
        choice = choose(backend, plan, inputs, programs=False)
        assert choice.fields is not None
        _make_graphs(plan, inputs)
        return _by(choice, adjoint_solve(choice.fields, plan, inputs))
    policy = gradient.within(plan.max_steps) if isinstance(gradient, Checkpoint) else _EVERY_STEP
    _forbid_transforms("checkpoint")
    choice = choose(backend, plan, inputs)
    if choice.fields is not None:
        _make_graphs(plan, inputs)
        return _by(choice, checkpoint_solve(choice.fields, plan, inputs, policy))
    assert choice.programs is not None
    assert choice.capture is not None
    return _by(choice, program_solve(choice.programs, plan, inputs, choice.capture, choice.tensors, policy))


def may_have_graph(plan: Plan, inputs: Inputs, gradient: Gradient | Checkpoint, backend: str) -> bool:
    """Whether a gradient of what ``execute`` returns may be asked for; also if its mode alone decides who solves.

    Raises:
        RuntimeError: as ``execute``.
    """
    if not isinstance(gradient, Checkpoint) and gradient != "checkpoint":
        return True
    if not torch.is_grad_enabled():
        return False
    choice = choose(backend, plan, inputs)
    return choice.programs is None or may_differentiate(inputs, choice.tensors)


def _make_graphs(plan: Plan, inputs: Inputs) -> None:
    """From now on evaluations make their graphs, where a gradient may be asked for; not while programs are recorded."""
    if torch.is_grad_enabled() and not differentiation_hidden():
        plan.field.controls_vary = [c.requires_grad for c in inputs.controls]


def _by(choice: Choice, solved: tuple[Tensor, Tensor | None, Forward]) -> tuple[Tensor, Tensor | None, Forward]:
    """The result, which knows who solved it."""
    result = solved[2]
    result.backend, result.why_not = choice.name, choice.reasons
    return solved


def _forbid_transforms(gradient: str) -> None:
    if differentiation_hidden():
        raise RuntimeError(
            f"gradient={gradient!r} does not run under torch.func transforms or forward-mode differentiation; use "
            "gradient='backprop'"
        )
