"""Compares a program with the field that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastode.field import FlatField
from fastode.program.captures import Capture
from fastode.program.evaluate import evaluate, evaluate_pullback
from fastode.program.trace import NotAProgram
from fastode.vjp import Substitute, need_stand_ins

FLOATS = (torch.float32, torch.float64)
PRECISION = {torch.float32: 3e-4, torch.float64: 1e-7, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Of the comparison with the field. Torch computes some gradients in float64 with constants in float32."""


def verify(
    field: FlatField,
    made: Capture,
    tensors: Sequence[Tensor],
    times: Tensor,
    y0: Tensor,
    controls: Sequence[Tensor],
    asks_for_gradient: bool,
    trial: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Compares program and pullback with the field and torch's gradient, on states and controls moved at random.

    Args:
        field: the field.
        made: its program.
        tensors: what the field holds now.
        times: output times of a solve.
        y0: (B, D).
        controls: leaves (B, ...).
        asks_for_gradient: whether the field asks tensors if they require grad: then its values without gradient are
            compared, too.
        trial: makes the context in which the field is called.

    Raises:
        NotAProgram: they differ.
    """
    batch = y0.shape[0]
    n = batch if made.batch is not None else min(max(batch, 3), 5)
    rows = torch.arange(n, device=y0.device) % batch
    random = torch.Generator().manual_seed(0)
    sources = [t for t in tensors if t.requires_grad]
    replaced = {id(t): t.detach().requires_grad_() for t in sources} if need_stand_ins(sources) else {}
    own_tensors = [replaced.get(id(t), t) for t in tensors]

    def moved(x: Tensor) -> Tensor:
        x = x.detach()[rows]
        if not x.is_floating_point():
            return x
        noise = torch.randn(2, *x.shape, generator=random, dtype=torch.float32, device="cpu").to(x)
        size = x.abs().mean() if x.numel() else 0.0
        return (x * (1 + 0.1 * noise[0]) + 0.05 * size * noise[1]).contiguous()

    first, last = times[0].expand(batch)[rows], times[-1].expand(batch)[rows]
    t = (first + (last - first) * torch.rand(n, generator=random, device="cpu").to(first)).to(y0.dtype)
    for state, inputs in (
        (y0.detach()[rows], [c.detach()[rows] for c in controls]),
        (moved(y0), [moved(c) for c in controls]),
    ):
        state = state.clone().requires_grad_()
        inputs = [c.clone().requires_grad_(c.is_floating_point()) for c in inputs]
        with torch.enable_grad():
            with Substitute(replaced) if replaced else nullcontext(), trial():
                expected = field(t, state, inputs)
            shared, sample = made.leaves(own_tensors, inputs, n)
        value = evaluate(made.program, t, state.detach(), [x.detach() for x in shared], [x.detach() for x in sample])
        agree(value, expected.detach(), "the values of the lowered program", largest(expected.detach()))
        if asks_for_gradient:
            with torch.no_grad(), trial():
                plain = field(t, state.detach(), [c.detach() for c in inputs])
            agree(value, plain, "the values without gradient", largest(plain))
        g = torch.randn(expected.shape, generator=random, dtype=torch.float32, device="cpu").to(expected)
        wanted = [state, *inputs, *[t for t in own_tensors if t.requires_grad]]
        wanted = [x for x in wanted if x.requires_grad]
        true: Sequence[Tensor | None] = (None,) * len(wanted)
        if expected.requires_grad:
            try:
                true = pulled([expected], wanted, [g])
            except RuntimeError as error:
                raise NotAProgram(f"torch cannot differentiate the field: {error}") from None
        by_state, by_shared, by_sample = evaluate_pullback(
            made.pullback, t, state.detach(), [x.detach() for x in shared], [x.detach() for x in sample], g
        )
        pairs = [(x, grad) for x, grad in zip((*shared, *sample), (*by_shared, *by_sample), strict=True)]
        pairs = [(x, grad) for x, grad in pairs if x.requires_grad]
        own: list[Tensor | None] = [None] * len(wanted)
        if pairs:
            own = pulled([x for x, _ in pairs], wanted, [grad.reshape(x.shape) for x, grad in pairs])
        own[0] = by_state if own[0] is None else own[0] + by_state
        scale = max((largest(grad) for grad in true if grad is not None), default=0.0)
        for x, got, want in zip(wanted, own, true, strict=True):
            zero = torch.zeros_like(x)
            pair = zero if got is None else got, zero if want is None else want
            agree(*pair, "the gradient of the lowered program", scale)


def pulled(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients by the inputs; None where there is none.

    As ``torch.autograd.grad``, which imports sympy, for half a second, when cotangents are handed to it.
    """
    total = sum(((x * g.to(x.dtype)).sum() for x, g in zip(outputs, cotangents, strict=True)), torch.zeros(()))
    return list(torch.autograd.grad(total, inputs, allow_unused=True))


def largest(x: Tensor) -> float:
    """The largest absolute value of the finite entries, 0 if there is none."""
    return float(torch.where(torch.isfinite(x), x, 0.0).abs().amax()) if x.numel() else 0.0


def agree(value: Tensor, expected: Tensor, what: str, scale: float) -> None:
    """Compares, up to rounding.

    Args:
        value: of the program.
        expected: of the field.
        what: for the message.
        scale: the largest of all numbers that are compared. A gradient that is zero but for cancellation (of the bias
            of keys in attention, say) is rounding of numbers of this size.
    """
    finite = torch.isfinite(expected)
    same = torch.isfinite(value) == finite
    kind = torch.finfo(expected.dtype if expected.dtype in FLOATS else torch.float32)
    difference = torch.where(finite & same, value - expected, 0.0).abs()
    bound = PRECISION[expected.dtype] * largest(expected) + 1000 * kind.eps * scale + kind.tiny
    if not bool(same.all()) or bool((difference > bound).any()):
        raise NotAProgram(
            f"{what} differ from those of the field: it is random, mixes samples, changes from call to call, or "
            "defines a gradient of its own"
        )
