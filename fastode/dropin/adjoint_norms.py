"""Norms of the adjoint equation's state: a tuple (dL/dt, y, a, dL/dparams), y and a as solvers hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastode.dropin.arguments import Arguments
from fastode.dropin.functions import unflatten
from fastode.dropin.norms import Norm, mixed_norm, rms_norm


def state_norm(args: Arguments) -> Norm:
    """The norm of the forward solve, of a state as solvers hold it."""
    norm: Norm = args.options.get("norm", rms_norm if args.shapes is None else mixed_norm)
    shapes = args.shapes
    return norm if shapes is None else lambda flat: norm(unflatten(flat, (), shapes))


def adjoint_norm(given: Any, of_state: Norm, shapes: Sequence[torch.Size] | None) -> Norm:
    """The norm in force.

    Args:
        given: None for the largest of the norms of all parts, ``"seminorm"`` for the same without the parameters, or a
            callable of (t, y, adj_y, *params), where a state that is a tuple is unpacked.
        of_state: ``state_norm`` of the forward solve.
        shapes: of the parts where its state is a tuple, else None.
    """

    def seminorm(state: Sequence[Tensor]) -> Any:
        t, y, a, *_ = state
        return max(t.abs(), of_state(y), of_state(a))

    def full_norm(state: Sequence[Tensor]) -> Any:
        return max(seminorm(state), mixed_norm(state[3:]))

    def of_users(state: Sequence[Tensor]) -> Any:
        t, y, a, *params = state
        assert shapes is not None
        return given((t, *unflatten(y, (), shapes), *unflatten(a, (), shapes), *params))

    if given is None:
        return full_norm
    if given == "seminorm":
        return seminorm
    norm: Norm = given if shapes is None else of_users
    return norm
