"""New tensors made of the components of others: joined, moved, padded, copied, filled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastode.program.ir import Value
from fastode.program.lower.lowering import Lowering, Rule
from fastode.program.lower.reductions import dims_of
from fastode.program.trace import Batch, Call, Meta

_aten = torch.ops.aten
_COPIES = {
    _aten.clone.default,
    _aten.contiguous.default,
    _aten._to_copy.default,
    _aten.to.dtype,
    _aten.positive.default,
}


_MOVES = {  # new tensors made of components of one; the argument that names dimensions
    _aten.flip.default: 1,
    _aten.roll.default: 2,
    _aten.tril.default: None,
    _aten.triu.default: None,
}


def _cat(low: Lowering, call: Call, meta: Meta) -> Value:
    refs = call.args[0]
    metas = [low.graph.metas[ref.index] for ref in refs]
    values = [low.read(ref.index) for ref in refs]
    for value in values:
        if value.op == "unsupported":
            return value
    stacked = call.func is _aten.stack.default
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    dim = int(given) % len(meta.shape)
    offsets = np.cumsum([0] + [int(np.prod(m.shape)) for m in metas])
    if dim == meta.batch_dim:
        return low.b.unsupported(f"{call.func} along the batch")
    tables, pieces = [], []
    for value, m, start in zip(values, metas, offsets, strict=False):
        if m.shape == (0,) and len(meta.shape) > 1:
            continue
        shape = list(m.shape)
        table = np.arange(int(np.prod(m.shape))).reshape(shape) + start
        tables.append(np.expand_dims(table, dim) if stacked else table)
        size = int(np.prod(m.shape))
        pieces.append(low.b.gather(value, np.zeros(size, dtype=np.int64)) if value.size == 1 and size != 1 else value)
        batch = m.batch_dim
        if stacked and batch is not None and batch >= dim:
            batch += 1
        if batch != meta.batch_dim and low.level(refs[0].index) >= 0 and batch is not None:
            return low.b.unsupported(f"{call.func} along the batch")
        if batch is None and meta.batch_dim is not None and table.shape and not _is_one(m, meta, dim, stacked):
            return low.b.unsupported(f"{call.func} of samples with something that is not per sample")
    order = np.concatenate(tables, axis=dim)
    return low.b.gather(low.b.cat(pieces), order)


def _is_one(meta: Meta, target: Meta, dim: int, stacked: bool) -> bool:
    at = target.batch_dim if target.batch_dim is not None else 0
    if stacked and at > dim:
        at -= 1
    return meta.shape[at] == 1


def _copy(low: Lowering, call: Call, meta: Meta) -> Value:
    value = low.read(call.args[0].index)
    numbers = low.graph.metas[call.args[0].index].dtype != torch.bool
    return low.b.pointwise("ne", value, 0.0) if meta.dtype == torch.bool and numbers else value


def _move(low: Lowering, call: Call, meta: Meta) -> Value:
    source = low.graph.metas[call.args[0].index]
    which = _MOVES[call.func]
    if which is None:
        touched = list(range(len(source.shape)))[-2:]
    else:
        given = call.args[which] if len(call.args) > which else call.kwargs.get("dims", [])
        touched = dims_of(given, len(source.shape))
    if source.batch_dim in touched:
        return low.b.unsupported(f"{call.func} along the batch")
    x = low.read(call.args[0].index)
    if x.op == "unsupported":
        return x
    index = torch.arange(1, x.size + 1).reshape(source.shape)
    moved = call.func(index, *call.args[1:], **call.kwargs)
    return low.b.gather(x, moved.numpy() - 1)


def _pad(low: Lowering, call: Call, meta: Meta) -> Value:
    """constant_pad_nd; negative amounts cut off."""
    source = low.graph.metas[call.args[0].index]
    amounts = list(call.args[1])
    number = float(call.args[2]) if len(call.args) > 2 else float(call.kwargs.get("value", 0))
    if any(isinstance(n, Batch) for n in amounts):
        return low.b.unsupported(f"{call.func} by the number of samples")
    x = low.read(call.args[0].index)
    if x.op == "unsupported":
        return x
    if source.batch_dim is not None and any(amounts[2 * (len(source.shape) - 1 - source.batch_dim) :][:2]):
        return low.b.unsupported(f"{call.func} along the batch")
    index = torch.arange(1, int(np.prod(source.shape)) + 1).reshape(source.shape)
    padded = call.func(index, amounts, 0).numpy() - 1
    if x.size == 1 and index.numel() != 1:
        x = low.b.gather(x, np.zeros(index.numel(), dtype=np.int64))
    moved = low.b.gather(x, padded)
    if number == 0.0:
        return moved
    at_edge = np.flatnonzero(padded.reshape(-1) < 0)
    picks = np.arange(padded.size)
    picks[at_edge] = padded.size
    return low.b.gather(low.b.cat([moved, low.b.const(number)]), picks)


def _scattered(low: Lowering, call: Call, meta: Meta) -> Value:
    """select_backward and slice_backward: a gradient in the place of what was taken, zeros around it."""
    g = low.read(call.args[0].index)
    if g.op == "unsupported":
        return g
    spots = np.arange(int(np.prod(meta.shape))).reshape(meta.shape)
    rest = [a.times if isinstance(a, Batch) else a for a in call.args[2:]]
    dim = int(rest[0]) % len(meta.shape)
    own = low.graph.metas[call.args[0].index]
    if dim == meta.batch_dim and own.shape != meta.shape:
        return low.b.unsupported(f"{call.func} along the batch")
    if call.func is _aten.select_backward.default:
        taken = np.take(spots, int(rest[1]), axis=dim)
    else:
        start, end, step = rest[1], rest[2], rest[3]
        taken = torch.ops.aten.slice.Tensor(torch.from_numpy(spots), dim, start, end, step).numpy()
    if g.size == 1 and taken.size != 1:
        g = low.b.gather(g, np.zeros(taken.size, dtype=np.int64))
    return low.b.scatter(g, taken, int(np.prod(meta.shape)))


RULES: dict[Any, Rule] = {
    _aten.fill.Scalar: lambda low, call, meta: low.b.const(float(call.args[1])),
    _aten.fill.Tensor: lambda low, call, meta: low.aligned(call.args[1], meta),
    _aten.zero.default: lambda low, call, meta: low.b.const(0.0),
    _aten.cat.default: _cat,
    _aten.stack.default: _cat,
    _aten.constant_pad_nd.default: _pad,
    _aten.select_backward.default: _scattered,
    _aten.slice_backward.default: _scattered,
    **dict.fromkeys(_COPIES, _copy),
    **dict.fromkeys(_MOVES, _move),
}
