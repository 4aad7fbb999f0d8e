"""Backend ``implicit``: see the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastode.backends.base import Forward, Gradients
from fastode.backends.implicit.forward import ImplicitRecord, Solve
from fastode.checkpoint import Checkpoint
from fastode.problem import Plan
from fastode.vjp import FieldVjp


class ImplicitBackend:
    """Implicit Runge-Kutta and Rosenbrock methods: torch on any device, exact Jacobians, LU factors per sample."""

    name = "implicit"

    def unavailable(self) -> str | None:
        """Runs wherever torch runs."""
        return None

    def unsupported(self, plan: Plan) -> str | None:
        """See ``Backend.unsupported``."""
        if plan.tableau.is_explicit:
            return f"{plan.tableau.name} is an explicit method"
        return None

    def forward(
        self, plan: Plan, y0: Tensor, controls: Sequence[Tensor], k1: Tensor, policy: Checkpoint | None
    ) -> Forward:
        """See ``Backend.forward``."""
        with torch.no_grad():
            held = [c.detach() for c in controls]
            return Solve(plan, y0.detach().contiguous(), held, k1.detach().contiguous(), policy).run()

    def backward(
        self,
        plan: Plan,
        record: ImplicitRecord,
        controls: Sequence[Tensor],
        vjp: FieldVjp,
        grad_ys: Tensor,
        grad_coefs: Tensor | None,
    ) -> Gradients:
        """See ``Backend.backward``."""
        from fastode.backends.implicit.adjoint import ImplicitAdjoint

        return ImplicitAdjoint(plan, record, controls, vjp, grad_ys, grad_coefs).run()
