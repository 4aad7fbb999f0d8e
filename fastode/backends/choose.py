"""Picks the backend of a solve: the first in a fixed order that can run it, or the one asked for."""

from __future__ import annotations

from fastode.backends.base import Backend
from fastode.backends.reference import ReferenceBackend
from fastode.backends.stepped import SteppedBackend
from fastode.problem import Plan

ORDER: tuple[Backend, ...] = (SteppedBackend(), ReferenceBackend())
"""What ``backend="auto"`` tries, in this order."""


def available() -> list[tuple[str, str | None]]:
    """Name of each backend and why it cannot run on this machine, None where it can."""
    return [(backend.name, backend.unavailable()) for backend in ORDER]


def choose(name: str, plan: Plan) -> Backend:
    """The backend for a plan.

    Raises:
        ValueError: no backend of this name.
        RuntimeError: the backend asked for cannot run here, or cannot run this plan; the message says why.
    """
    names = [backend.name for backend in ORDER]
    if name != "auto" and name not in names:
        raise ValueError(f"backend must be 'auto' or one of {names}, got {name!r}")
    reasons = []
    for backend in ORDER:
        if name in ("auto", backend.name):
            reason = backend.unavailable() or backend.unsupported(plan)
            if reason is None:
                return backend
            reasons.append(f"{backend.name}: {reason}")
    raise RuntimeError(f"backend {name!r} cannot run this solve: {'; '.join(reasons)}")
