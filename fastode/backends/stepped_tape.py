"""The graph of a solve with fixed steps, made on the way and kept for its gradient while it is small.

A record of steps takes less memory, but each stage is then evaluated a second time, and pulled back in a pass of
torch's engine of its own. For small fields those cost several times what the arithmetic does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastode.backends.base import Gradients
from fastode.backends.compare import check_repeatable
from fastode.checkpoint import Checkpoint
from fastode.field import HALF_DTYPES
from fastode.problem import Plan
from fastode.vjp import FieldVjp

_BUDGET = 2**26
_PER_EVALUATION = 2**13
"""Bytes: of all that is kept; of the nodes of one evaluation, beside the tensors that they hold."""


class _Stage(torch.autograd.Function):
    """A stage's state y + h sum_j a[j] k_j, whose numbers are known."""

    @staticmethod
    def forward(
        ctx: Any, sizes: list[Tensor], step: int, weights: list[float], numbers: Tensor, *sources: Tensor
    ) -> Tensor:
        ctx.sizes, ctx.step, ctx.weights = sizes, step, weights
        return numbers.clone()  # a buffer of the stepper's

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        scaled = g * ctx.sizes[ctx.step]
        rest = [scaled if weight == 1.0 else scaled * weight for weight in ctx.weights]
        return None, None, None, None, g, *rest


class Tape:
    """States and values of all stages with their graph.

    Attributes:
        controls: leaves of the controls, requiring a gradient where one may be wanted.
        sizes: signed sizes of the steps, each (B, 1), known in the backward pass.
    """

    def __init__(self, plan: Plan, y0: Tensor, controls: Sequence[Tensor], vary: Sequence[bool]) -> None:
        self.controls = [c.detach().requires_grad_(flag) for c, flag in zip(controls, vary, strict=True)]
        self.sizes: list[Tensor] = []  # nodes of the graph hold it, and must not hold the tape that holds them
        self._plan = plan
        self._y0 = y0.detach().clone().requires_grad_()  # the user may change it in place
        self._states: list[Tensor] = [self._y0]
        self._values: list[list[Tensor]] = []

    def start(self, most: int) -> Tensor | None:
        """The field at the start; None if that shows that the solve takes more than ``most`` bytes."""
        with torch.enable_grad():
            value = self._plan.field(self._plan.times[0].clone(), self._y0, self.controls).contiguous()
        row = self._y0.numel() * self._y0.element_size()
        if _evaluations(self._plan) * (_held_by(value) + 2 * row + _PER_EVALUATION) > most:
            return None
        self._values.append([value])
        return value

    def evaluate(self, i: int, t: Tensor, numbers: Tensor) -> Tensor:
        """The value of stage i of the present step, at times (B,) and a state whose numbers are given (B, D)."""
        stages, row = self._values[-1], self._plan.tableau.a[i, :i].tolist()
        used = [(weight, k) for weight, k in zip(row, stages, strict=True) if weight != 0.0]
        weights = [weight for weight, _ in used]
        with torch.enable_grad():
            step = len(self._values) - 1
            state: Tensor = _Stage.apply(self.sizes, step, weights, numbers, self._states[-1], *(k for _, k in used))
            value = self._plan.field(t.clone(), state, self.controls).contiguous()
        stages.append(value)
        if i + 1 == self._plan.tableau.n_stages:  # in first-same-as-last form the step's end, and the next one's start
            self._states.append(state)
            self._values.append([value])
        return value

    def pull(self, record: Any, vjp: FieldVjp, grad_ys: Tensor, grad_coefs: Tensor | None) -> Gradients | None:
        """The gradients, from a record of the steps of all samples; None if the stages must be evaluated again."""
        plan, tableau = self._plan, self._plan.tableau
        wanted = vjp.wanted(self.controls)
        if vjp.has_stand_ins or any(t.dtype in HALF_DTYPES for t in wanted):  # sums in half precision stand still
            return None
        _, start, _, size = record.table()
        check_repeatable(self._values[0][0], record.k1, self._y0.detach(), size[0], plan.field)
        self.sizes[:] = size.to(grad_ys.dtype)[..., None].unbind()
        walker = record.walk(plan, torch.arange(plan.batch, device=record.k1.device), grad_ys, grad_coefs)
        ends: list[Tensor] = []
        cotangents: list[Tensor] = []
        for j in reversed(range(len(start))):
            p = torch.zeros_like(self._y0)
            inner = walker.outputs(j, p)
            ends.append(self._states[j + 1])
            cotangents.append(p)
            if inner is None:
                continue
            ends.append(self._states[j])
            cotangents.append(inner[0])
            for i, value in enumerate(self._values[j][: tableau.n_stages]):
                terms = [(float(q), g) for q, g in zip(tableau.q[i], inner[1:], strict=True) if float(q) != 0.0]
                if terms:
                    ends.append(value)
                    cotangents.append(self.sizes[j] * sum(q * g for q, g in terms))
        pairs = [(end, g) for end, g in zip(ends, cotangents, strict=True) if end.requires_grad]
        try:
            grads = vjp.pull_known([end for end, _ in pairs], self._y0, self.controls, [g for _, g in pairs])
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            return None  # something that the field holds has changed, which matters only if it matters to its values
        if grads is None:
            return None
        y0 = grads[0]
        assert y0 is not None  # every step's end depends on its start
        return Gradients(y0, grads[1 : 1 + vjp.n_controls], grads[1 + vjp.n_controls :])


def _held_by(value: Tensor) -> int:
    """Bytes that the nodes of a graph hold, beside its leaves."""
    stack, seen = [value.grad_fn], set()
    leaves: set[int] = set()
    held: dict[int, int] = {}
    nodes = []  # held, so that ids stay theirs
    while stack:
        node: Any = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        nodes.append(node)
        stack.extend(edge for edge, _ in node.next_functions)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(variable.untyped_storage().data_ptr())
            continue
        kind: Any = type(node)
        saved = [getattr(node, name) for name in _names_of_saved(kind)]
        for tensor in pytree.tree_leaves(saved):
            if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
                continue
            try:
                storage = tensor.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
            except RuntimeError:  # wrapped by a transform, or zeros without memory: at most this
                nodes.append(tensor)
                held[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(size for storage, size in held.items() if storage not in leaves)


@functools.cache
def _names_of_saved(kind: Any) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors"]


def start_tape(
    plan: Plan, y0: Tensor, controls: Sequence[Tensor], policy: Checkpoint | None
) -> tuple[Tape, Tensor] | None:
    """A tape, and the field at the start with its graph, where a solve is one to be kept whole.

    It is where its steps are fixed and all samples take the same, and where neither the policy nor the hooks on saved
    tensors (activation checkpointing, offloading) say that memory is short.
    """
    vary = plan.field.controls_vary
    if policy is None or policy.every > 1 or vary is None or plan.controller is not None or not plan.batch:
        return None
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return None
    sizes = plan.step_size
    assert sizes is not None
    if bool((plan.times != plan.times[:, :1]).any()) or bool((sizes != sizes[0]).any()):
        return None
    most = _BUDGET if policy.max_bytes is None else min(policy.max_bytes, _BUDGET)
    if _evaluations(plan) * _PER_EVALUATION > most:
        return None
    tape = Tape(plan, y0, controls, vary)
    value = tape.start(most)
    return None if value is None else (tape, value)


def _evaluations(plan: Plan) -> float:
    """Of the field, or more where outputs are repeated or fall on ends of steps."""
    assert plan.step_size is not None
    outputs, size = len(plan.times) - 1, float(plan.step_size[0])
    steps = float(outputs)
    if math.isfinite(size):
        span = abs(float(plan.times[-1, 0] - plan.times[0, 0]))
        steps = math.ceil(span / size) + (outputs if plan.step_to_outputs else 0)
    return min(steps, plan.max_steps) * (plan.tableau.n_stages - 1)
