"""Picks the backend of a solve: the first in a fixed order that can run it, or the one asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastode.backends.base import Backend, ProgramBackend
from fastode.backends.cpu.backend import CpuBackend
from fastode.backends.cuda.backend import CudaBackend
from fastode.backends.implicit.backend import ImplicitBackend
from fastode.backends.reference import ReferenceBackend
from fastode.backends.stepped import SteppedBackend
from fastode.backends.trial import kernels_differ
from fastode.backends.triton.backend import TritonBackend
from fastode.performance import warn_of
from fastode.problem import Inputs, Plan
from fastode.program.capture import Capture, Refusal, capture_field

PROGRAMS: tuple[ProgramBackend, ...] = (CudaBackend(), TritonBackend(), CpuBackend())
"""Backends that execute programs; ``backend="auto"`` tries them first, in this order."""
FIELDS: tuple[Backend, ...] = (SteppedBackend(), ImplicitBackend(), ReferenceBackend())
"""Backends that call the field itself, tried next, in this order."""


@dataclass
class Choice:
    """A backend for a solve.

    Attributes:
        programs: a backend that executes programs, or None.
        capture: the field's program for it.
        tensors: what the field holds, for ``Capture.leaves``.
        fields: otherwise, a backend that calls the field.
        reasons: (backend, why it was not taken) of those that come before it.
        refusal: why the field has no program, where it was asked for one.
    """

    programs: ProgramBackend | None
    capture: Capture | None
    tensors: Sequence[Tensor]
    fields: Backend | None
    reasons: tuple[tuple[str, str], ...]
    refusal: Refusal | None = None

    @property
    def name(self) -> str:
        """The backend's name."""
        chosen = self.programs or self.fields
        assert chosen is not None
        return chosen.name


def available() -> list[tuple[str, str | None]]:
    """Name of each backend and why it cannot run on this machine, None where it can."""
    programs = [(backend.name, backend.unavailable()) for backend in PROGRAMS]
    return programs + [(backend.name, backend.unavailable()) for backend in FIELDS]


def _declined(candidate: Backend | ProgramBackend, plan: Plan) -> str | None:
    """Why a backend cannot run here, or not this plan, or None."""
    if not plan.tableau.is_explicit and not isinstance(candidate, ImplicitBackend):
        return f"{plan.tableau.name} is an implicit method, for backend 'implicit'"
    return candidate.unavailable() or candidate.unsupported(plan)


def may_differentiate(inputs: Inputs, tensors: Sequence[Tensor]) -> bool:
    """Whether a gradient of the solve may be asked for."""
    if not torch.is_grad_enabled():
        return False
    if inputs.y0.requires_grad or inputs.times.requires_grad or inputs.step_size is not None:
        return True
    return any(t.requires_grad for t in (*inputs.controls, *tensors))


def _is_meant(candidate: ProgramBackend, name: str, plan: Plan) -> bool:
    """Whether a backend is the one asked for, or one of those that are tried for the states' device."""
    return candidate.device == plan.field.state.device.type if name == "auto" else candidate.name == name


def choose_for_program(name: str, plan: Plan, capture: Capture) -> ProgramBackend:
    """The backend for a program whose gradient may be asked for, where the field itself cannot be called.

    Args:
        name: ``"auto"`` or a backend's name.
        plan: the solve.
        capture: the field's program.

    Raises:
        RuntimeError: none can run it, or the one asked for cannot; the message says why.
    """
    reasons = []
    for candidate in PROGRAMS:
        if not _is_meant(candidate, name, plan):
            continue
        reason = _declined(candidate, plan) or candidate.unsupported_program(plan, capture, True)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.name}: {reason}")
    why = "; ".join(reasons) or f"no backend executes programs on {plan.field.state.device}"
    raise RuntimeError(f"backend {name!r} cannot run this solve inside a graph: {why}")


def choose(name: str, plan: Plan, inputs: Inputs, programs: bool = True) -> Choice:
    """The backend for a solve.

    Args:
        name: ``"auto"`` or a backend's name.
        plan: the solve.
        inputs: its inputs.
        programs: whether backends that execute programs may be taken.

    Raises:
        ValueError: no backend of this name.
        RuntimeError: the backend asked for cannot run here, or cannot run this plan; the message says why.
    """
    reasons: list[tuple[str, str]] = []
    refusal: Refusal | None = None
    for candidate in PROGRAMS:
        if not _is_meant(candidate, name, plan):
            continue
        reason = _declined(candidate, plan)
        if reason is None and not programs:
            reason = "it does not evaluate single points, which this gradient needs"
        if reason is None:
            found, tensors = capture_field(plan.field, plan.times, inputs.y0, inputs.controls)
            if isinstance(found, Refusal):
                reason, refusal = str(found), found
                if name == candidate.name:
                    with torch.no_grad():  # a field in error says so itself
                        plan.field(plan.times[0], inputs.y0.detach().clone(), [c.detach() for c in inputs.controls])
            else:
                differentiable = may_differentiate(inputs, tensors)
                reason = candidate.unsupported_program(plan, found, differentiable)
                if reason is None and name == "auto":
                    reason = candidate.slower(plan, found, differentiable)
                if reason is None:
                    reason = kernels_differ(candidate, plan, found, inputs, tensors, differentiable)
                if reason is None:
                    return Choice(candidate, found, tensors, None, tuple(reasons))
        reasons.append((candidate.name, reason))
    for backend in FIELDS:
        if name in ("auto", backend.name):
            reason = _declined(backend, plan)
            if reason is None:
                if refusal is not None and name == "auto":
                    warn_of(plan.field.field, refusal)
                return Choice(None, None, (), backend, tuple(reasons), refusal)
            reasons.append((backend.name, reason))
    if not reasons:
        names = [who for who, _ in available()]
        raise ValueError(f"backend must be 'auto' or one of {names}, got {name!r}")
    raise RuntimeError(f"backend {name!r} cannot run this solve: {'; '.join(f'{who}: {why}' for who, why in reasons)}")
