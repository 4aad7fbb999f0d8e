"""One step by the kernels that a solve will use, held against the same step by the user's field."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from fastode.backends.base import ProgramBackend
from fastode.backends.leaves import leaves_for_kernels
from fastode.checkpoint import Checkpoint
from fastode.problem import Inputs, Plan
from fastode.program.capture import Capture
from fastode.program.trace import NotAProgram
from fastode.program.verify import agree, largest, pulled
from fastode.reference import rk_step
from fastode.vjp import Substitute, need_stand_ins

_ROWS = 4
_SPECIAL = (0.0, 1.0, -1.0, 25.0)
"""States at which functions have kinks, or are saturated."""


def kernels_differ(
    backend: ProgramBackend,
    plan: Plan,
    capture: Capture,
    inputs: Inputs,
    tensors: Sequence[Tensor],
    differentiable: bool,
) -> str | None:
    """In what a backend's kernels differ from the field, or None.

    One step of the method is taken from the given states, from others near them and from special ones, with cotangents
    at random. It is done once for each program, backend and layout of what the program reads.

    Args:
        backend: what will execute the program.
        plan: the solve.
        capture: the field's program.
        inputs: of the solve.
        tensors: what the field holds now.
        differentiable: whether gradients are compared, too.
    """
    layout = tuple(x.is_contiguous() for x in (*inputs.controls, *tensors))
    key = ("trial", backend.name, differentiable, layout)
    if key not in capture.compiled:
        capture.compiled[key] = _try(backend, plan, capture, inputs, tensors, differentiable)
    found: str | None = capture.compiled[key]
    return found


def _try(
    backend: ProgramBackend,
    plan: Plan,
    capture: Capture,
    inputs: Inputs,
    tensors: Sequence[Tensor],
    differentiable: bool,
) -> str | None:
    batch = inputs.y0.shape[0]
    rows = torch.arange(batch if capture.batch is not None else min(batch, _ROWS), device=inputs.y0.device)
    y = inputs.y0.detach()[rows]
    controls = [c.detach()[rows] for c in inputs.controls]
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(y.shape, generator=random, dtype=torch.float32).to(y)
    near = y * (1 + 0.1 * noise) + 0.05 * noise * y.abs().amax() if y.numel() else y
    special = torch.tensor(_SPECIAL)[torch.arange(len(rows)) % len(_SPECIAL)].to(y)[:, None].expand_as(y).contiguous()
    try:
        for state in (y, near, special):
            _compare(backend, plan, capture, state, rows, controls, tensors, differentiable, random)
    except NotAProgram as reason:
        return f"{reason.reason} (please report this)"
    return None


def _compare(
    backend: ProgramBackend,
    plan: Plan,
    capture: Capture,
    y: Tensor,
    rows: Tensor,
    controls: list[Tensor],
    tensors: Sequence[Tensor],
    differentiable: bool,
    random: torch.Generator,
) -> None:
    n = y.shape[0]
    start, span = plan.times[0][rows], (plan.times[-1] - plan.times[0])[rows]
    sources = [t for t in tensors if t.requires_grad]
    replaced = {id(t): t.detach().requires_grad_() for t in sources} if need_stand_ins(sources) else {}
    own = [replaced.get(id(t), t) for t in tensors]
    y = y.contiguous().requires_grad_(differentiable)
    controls = [c.clone().requires_grad_(differentiable and c.is_floating_point()) for c in controls]

    def field(t: Tensor, state: Tensor) -> Tensor:
        return plan.field(t, state, controls)

    with torch.set_grad_enabled(differentiable), Substitute(replaced) if replaced else nullcontext():
        k1 = field(start, y)
        size = 0.05 * (1.0 + largest(y.detach())) / (largest(k1.detach()) + 1e-12)
        h = span.sign() * span.abs().clamp(max=size)
        h = start + torch.where(h == 0.0, size, h) - start  # as the clock has it
        truth, _ = rk_step(plan.tableau, field, start, h, y, k1)
    step = replace(
        plan,
        controller=None,
        step_size=h.abs(),
        times=torch.stack([start, start + h]),
        starts_again=False,
        max_steps=2,
        dense=False,
    )
    with torch.set_grad_enabled(differentiable):
        leaves = capture.leaves(own, controls, n, backend.reads_halves)
    with torch.no_grad():
        kernel_leaves = leaves_for_kernels(*leaves)
        policy = Checkpoint() if differentiable else None
        result = backend.forward(step, capture, y.detach(), *kernel_leaves, policy, None)
    change, known = result.ys[1] - y.detach(), truth.detach() - y.detach()
    good = torch.isfinite(known).all(1)  # a solve ends where the solution does
    scale = max(largest(known), largest(y.detach()))
    agree(change[good], known[good], f"values by the kernels of backend {backend.name}", scale)
    if not (differentiable and bool(good.all()) and truth.requires_grad):
        return
    both = (*leaves[0], *leaves[1])
    wanted = [y, *(c for c in controls if c.requires_grad), *(t for t in own if t.requires_grad)]
    g = torch.randn(truth.shape, generator=random, dtype=torch.float32).to(truth)
    right = pulled([truth], wanted, [g])
    grad_ys = torch.stack([torch.zeros_like(g), g])
    flags = tuple(leaf.requires_grad for leaf in both)
    with torch.no_grad():
        a0, grads = backend.backward(step, capture, result.record, *kernel_leaves, flags, None, grad_ys)
    pairs = [(leaf, grad) for leaf, grad in zip(both, grads, strict=True) if leaf.requires_grad and grad is not None]
    got: list[Tensor | None] = [None] * len(wanted)
    if pairs:
        got = pulled([leaf for leaf, _ in pairs], wanted, [grad.reshape(leaf.shape) for leaf, grad in pairs])
    got[0] = a0 if got[0] is None else got[0] + a0
    scale = max((largest(grad) for grad in right if grad is not None), default=0.0)
    for x, mine, true in zip(wanted, got, right, strict=True):
        zero = torch.zeros_like(x)
        pair = zero if mine is None else mine, zero if true is None else true
        agree(*pair, f"gradients by the kernels of backend {backend.name}", scale)
