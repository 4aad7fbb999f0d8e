"""The contract of a backend: the whole solve forward, and its exact discrete adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from fastode.checkpoint import Checkpoint
from fastode.hostflags import host_any, transforms_active
from fastode.problem import Plan
from fastode.program.capture import Capture
from fastode.solution import DenseOutput, Outcome, Stats
from fastode.status import Status
from fastode.vjp import FieldVjp


class Forward:
    """Result of a forward solve.

    Attributes:
        ys: (T, B, D), NaN beyond the time a sample reached.
        dense: the dense output, where the plan asks for it.
        outcome: ``status`` (B,) int64 of ``Status``, ``reached`` (B,) float64, ``stats``: work per sample.
        record: what ``backward`` needs; None when no policy was given.
        backend: name of the backend that solved.
        why_not: (backend, why it was not taken) of those that would have come before it.
    """

    backend = "reference"
    why_not: tuple[tuple[str, str], ...] = ()

    def __init__(
        self, ys: Tensor, dense: DenseOutput | None, outcome: Outcome, record: Any, failed: bool | None = None
    ) -> None:
        self.ys, self.dense, self.outcome, self.record = ys, dense, outcome, record
        if failed is not None:  # known already
            self.failed = failed

    @property
    def status(self) -> Tensor:
        """(B,) int64 of ``Status``."""
        return self.outcome.status

    @property
    def reached(self) -> Tensor:
        """(B,) float64, the time that each sample reached."""
        return self.outcome.reached

    @property
    def stats(self) -> Stats:
        """Work per sample."""
        return self.outcome.stats

    @cached_property
    def failed(self) -> bool:
        """Whether the solve of any sample failed, in any vmapped batch."""
        if transforms_active():
            return host_any(self.status != Status.SUCCESS)
        few = self.status.shape[0] <= 64  # then a list is quicker than a reduction
        return any(self.status.tolist()) if few else bool(self.status.any())


@dataclass(frozen=True)
class Gradients:
    """Result of a backward solve; None stands for an exact zero.

    Attributes:
        y0: (B, D), gradient with respect to the state at the start, from outputs after the start.
        controls: one entry per wanted control.
        externals: one entry per external tensor.
    """

    y0: Tensor
    controls: list[Tensor | None]
    externals: list[Tensor | None]


class Backend(Protocol):
    """Executes plans. Stateless; every backend takes the same steps as ``reference``."""

    name: str

    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine at all, or None."""
        ...

    def unsupported(self, plan: Plan) -> str | None:
        """Why this backend cannot run this plan, or None."""
        ...

    def forward(
        self, plan: Plan, y0: Tensor, controls: Sequence[Tensor], k1: Tensor, policy: Checkpoint | None
    ) -> Forward:
        """Solves without gradient.

        Args:
            plan: the solve.
            y0: (B, D) in the work dtype, contiguous.
            controls: leaves (B, ...).
            k1: (B, D), the field at the start.
            policy: what to remember for ``backward``; None remembers nothing.
        """
        ...

    def backward(
        self,
        plan: Plan,
        record: Any,
        controls: Sequence[Tensor],
        vjp: FieldVjp,
        grad_ys: Tensor,
        grad_coefs: Tensor | None,
    ) -> Gradients:
        """The discrete adjoint of the recorded steps.

        Args:
            plan: as given to ``forward``.
            record: as returned by it.
            controls: as given to it.
            vjp: the field's vector-Jacobian products.
            grad_ys: (T, B, D); entries at or before the start and of failed samples are ignored.
            grad_coefs: gradient with respect to ``dense.coefs``, or None.
        """
        ...


class ProgramBackend(Protocol):
    """Executes the program of a field. Stateless, but for what it has compiled; takes the steps of ``reference``.

    Attributes:
        name: of the backend.
        device: type of the states' device; for others ``backend="auto"`` passes it over.
        reads_halves: whether it takes leaves in half precision as they are stored, see ``Leaf.half``.
    """

    name: str
    device: str
    reads_halves: bool

    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine at all, or None."""
        ...

    def unsupported(self, plan: Plan) -> str | None:
        """Why no program could be run for this plan, whatever the field; None if one could."""
        ...

    def unsupported_program(self, plan: Plan, capture: Capture, differentiable: bool) -> str | None:
        """Why it cannot run this program for this plan, or None."""
        ...

    def slower(self, plan: Plan, capture: Capture, differentiable: bool) -> str | None:
        """Why another backend is faster for this program, or None."""
        ...

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
        """Solves without gradient; leaves are those of ``Capture.leaves``, contiguous and without graph."""
        ...

    def backward(
        self,
        plan: Plan,
        capture: Capture,
        record: Any,
        shared: Sequence[Tensor],
        sample: Sequence[Tensor],
        wanted: tuple[bool, ...],
        solved: Tensor | None,
        grad_ys: Tensor,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients by the state at the start (B, D), from outputs after it, and by each leaf, shared ones first."""
        ...

    def evaluate(
        self, capture: Capture, t: Tensor, y: Tensor, shared: Sequence[Tensor], sample: Sequence[Tensor]
    ) -> Tensor:
        """dy/dt (B, D) at times (B,) float64 and states (B, D)."""
        ...
