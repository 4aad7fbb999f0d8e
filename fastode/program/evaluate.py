"""Programs executed in torch, batched: the check at capture, and the oracle of kernels that execute programs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastode.program.ir import COTANGENT, SAMPLE, SHARED, STATE, TIME, Map, Program, Pullback, Value


class _Values:
    """Values by their torch tensors: per-sample ones (B, size), shared ones (1, size)."""

    def __init__(self, t: Tensor, y: Tensor, shared: Sequence[Tensor], sample: Sequence[Tensor]) -> None:
        self.batch, self.like = y.shape[0], y
        self.t, self.y = t.to(y.dtype).reshape(-1, 1), y
        self.shared = [x.reshape(1, -1).to(y.dtype) for x in shared]  # they may be as they are stored
        self.sample = [x.flatten(1).to(y.dtype) if x.ndim > 1 else x[:, None].to(y.dtype) for x in sample]
        self.cotangent: Tensor | None = None
        self.known: dict[int, Tensor] = {}

    def run(self, order: Sequence[Value]) -> None:
        for value in order:
            if id(value) not in self.known:
                self.known[id(value)] = self.compute(value)

    def index(self, index: Map) -> Tensor:
        return torch.from_numpy(index).to(self.like.device)

    def compute(self, value: Value) -> Tensor:
        args = [self.known[id(arg)] for arg in value.args]
        op = value.op
        if op == STATE:
            return self.y
        if op == TIME:
            return self.t
        if op == SHARED:
            return self.shared[value.data[0]]
        if op == SAMPLE:
            return self.sample[value.data[0]]
        if op == COTANGENT:
            assert self.cotangent is not None
            return self.cotangent
        if op == "const":
            return self.like.new_full((1, 1), value.data[0])
        if op == "stop":
            return args[0] if value.gradient is not None else args[0].detach()
        if op == "gather":
            assert value.index is not None
            index = self.index(value.index)
            return torch.where(index >= 0, args[0][:, index.clamp_min(0)], 0.0)
        if op == "scatter":
            assert value.index is not None
            index = self.index(value.index)
            kept = index >= 0
            zeros = args[0].new_zeros(args[0].shape[0], value.size)
            return zeros.index_add(1, index[kept], args[0][:, kept])
        if op == "cat":
            rows = max(arg.shape[0] for arg in args)
            return torch.cat([arg.expand(rows, -1) for arg in args], dim=1)
        if op in ("sum", "amax"):
            cube = args[0].reshape(-1, *value.data)
            return (cube.sum(2) if op == "sum" else cube.amax(2)).reshape(-1, value.size)
        if op == "matmul":
            m, k, n = value.data[:3]
            a, b = (
                strided(arg, *at) for arg, *at in ((args[0], m, k, *value.data[3:6]), (args[1], k, n, *value.data[6:9]))
            )
            return torch.matmul(a, b).reshape(-1, value.size)
        return pointwise(op, args)

    def leaf(self, value: Value) -> tuple[Tensor, bool]:
        shared = value.op == SHARED
        return (self.shared if shared else self.sample)[value.data[0]], shared


def strided(x: Tensor, rows: int, cols: int, offset: int, rs: int, cs: int) -> Tensor:
    """(n, size) read as (n, rows, cols) with strides in components."""
    at = offset + rs * torch.arange(rows, device=x.device)[:, None] + cs * torch.arange(cols, device=x.device)
    return x[:, at]


def pointwise(op: str, args: Sequence[Tensor]) -> Tensor:
    """A pointwise operation; truth values are numbers, 0 and 1."""
    if op == "where":
        return torch.where(args[0] != 0, args[1], args[2])
    if op == "fma":
        return args[0] * args[1] + args[2]
    if op == "tanh_back":
        return torch.ops.aten.tanh_backward(*torch.broadcast_tensors(*args))
    if op == "sigmoid_back":
        return args[0] * args[1] * (1 - args[1])
    if op == "softplus":
        return torch.nn.functional.softplus(args[0])
    if op == "softplus_back":
        return torch.where(args[1] > 20, args[0], args[0] * torch.sigmoid(args[1]))
    return getattr(torch, op)(*args).to(args[0].dtype)


def evaluate(program: Program, t: Tensor, y: Tensor, shared: Sequence[Tensor], sample: Sequence[Tensor]) -> Tensor:
    """dy/dt (B, D) at t (B,), y (B, D) for leaves shared (*shape) and sample (B, *shape). Differentiable."""
    values = _Values(t, y, shared, sample)
    values.run(program.values())
    return values.known[id(program.output)].expand(y.shape[0], program.dim)


def evaluate_pullback(
    pullback: Pullback, t: Tensor, y: Tensor, shared: Sequence[Tensor], sample: Sequence[Tensor], cotangent: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Gradients by state (B, D), shared leaves (*shape) and per-sample leaves (B, *shape)."""
    values = _Values(t, y, shared, sample)
    values.cotangent = cotangent
    values.run(pullback.values())
    grads = {(SHARED, i): torch.zeros_like(x).reshape(-1) for i, x in enumerate(values.shared)} | {
        (SAMPLE, i): torch.zeros_like(x) for i, x in enumerate(values.sample)
    }
    for term in pullback.terms:
        key = (term.leaf.op, term.leaf.data[0])
        x = values.known[id(term.value)].expand(y.shape[0], -1)
        if term.other is None:
            assert term.target is not None
            target = values.index(term.target)
        else:
            m, k, n = term.sizes
            left = strided(x, m, n, *term.value_strides)
            right = strided(values.known[id(term.other)].expand(y.shape[0], -1), k, n, *term.other_strides)
            x = torch.matmul(left, right.mT).reshape(y.shape[0], -1)
            offset, rs, cs = term.place
            at = offset + rs * torch.arange(m, device=y.device)[:, None] + cs * torch.arange(k, device=y.device)
            target = at.reshape(-1)
        if x.shape[1] == 1 and len(target) != 1:
            x = x.expand(-1, len(target))
        if term.leaf.op == SHARED:
            grads[key] = grads[key].index_add(0, target, x.sum(0))
        else:
            grads[key] = grads[key].index_add(1, target, x)
    state = values.known[id(pullback.state)].expand(y.shape[0], -1)
    return (
        state,
        [grads[SHARED, i].reshape(x.shape) for i, x in enumerate(shared)],
        [grads[SAMPLE, i].reshape(x.shape) for i, x in enumerate(sample)],
    )
