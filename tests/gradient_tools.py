"""What the tests of gradients share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FIELD_BACKENDS = ["stepped", "reference"]
"""Those that call the field, whatever it is."""
BACKENDS = [*FIELD_BACKENDS, "cpu"]
FIELD_MODES = [("checkpoint", "stepped"), ("checkpoint", "reference"), ("backprop", "reference")]
MODES = [*FIELD_MODES, ("checkpoint", "cpu")]
"""The four ways to the exact gradient of the steps taken."""

ROUNDING = 1e-11
"""Relative difference of two float64 gradients that are the same but for the order of their sums."""


def gradients(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of loss(*inputs) by fresh leaves of the floating inputs, in their order."""
    leaves = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return list(torch.autograd.grad(loss(*leaves), wanted, allow_unused=True))


def assert_close(actual: Any, expected: Any, rtol: float = ROUNDING) -> None:
    """Two tensors, or lists of tensors and None, equal within rtol of their largest entry."""
    if isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, rtol)
        return
    if expected is None or actual is None:
        assert actual is None, f"expected no gradient, got {actual}"
        assert expected is None, f"expected {expected}, got no gradient"
        return
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=rtol * max(1.0, float(expected.abs().max())))


def node_of(tensor: Tensor) -> Any:
    """The autograd node of the solve that a result comes from; None if it has none."""
    stack: list[Any] = [tensor.grad_fn]
    seen: dict[int, Any] = {}
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen[id(node)] = node
        if hasattr(node, "plan"):
            return node
        stack.extend(edge for edge, _ in node.next_functions)
    return None


def random(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal random numbers."""
    return scale * torch.randn(*shape, dtype=dtype)
