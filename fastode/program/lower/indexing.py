"""Components picked by tensors of integers, and written or added there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastode.program.ir import Value
from fastode.program.lower.lowering import Lowering, Rule
from fastode.program.trace import Call, Meta, Ref

_aten = torch.ops.aten


def _spots(low: Lowering, source: Meta, picks: Sequence[Ref | None]) -> NDArray[np.int64] | Value:
    """The components that x[picks] takes, where the code or the field's own integers name them."""
    positions: list[Any] = []
    for d, pick in enumerate(picks):
        if pick is None:
            positions.append(slice(None))
            continue
        fixed = low.fixed(pick.index)
        if fixed is None or fixed.dtype not in (torch.int64, torch.int32):
            return low.b.unsupported("indexing by a tensor that is neither a list of numbers nor held by the field")
        if d == source.batch_dim:
            return low.b.unsupported("indexing picks out samples")
        positions.append(fixed.long())
    table = torch.arange(int(np.prod(source.shape))).reshape(source.shape)
    return np.asarray(table[tuple(positions)].numpy())


def _index(low: Lowering, call: Call, meta: Meta) -> Value:
    """x[..., integers that do not change, ...]."""
    x, picks = call.args[0], call.args[1]
    spots = _spots(low, low.graph.metas[x.index], picks)
    if isinstance(spots, Value):
        return spots
    if spots.shape != meta.shape or (low.graph.metas[x.index].batch_dim is not None and meta.batch_dim is None):
        return low.b.unsupported("indexing picks out samples")
    value = low.read(x.index)
    return value if value.op == "unsupported" else low.b.gather(value, spots)


def _index_select(low: Lowering, call: Call, meta: Meta) -> Value:
    x, dim, pick = call.args
    picks: list[Any] = [None] * (int(dim) % len(meta.shape)) + [pick]
    return _index(low, Call(call.func, (x, picks), {}, call.outputs, call.grad, call.where), meta)


def _index_put(low: Lowering, call: Call, meta: Meta) -> Value:
    """x[mask] = number, or x[..., integers that do not change, ...] = values."""
    x, picks, values = call.args[:3]
    own, value = low.read(x.index), low.read(values.index)
    if "unsupported" in (own.op, value.op):
        return own if own.op == "unsupported" else value
    first = picks[0]
    if first is not None and low.graph.metas[first.index].dtype == torch.bool:
        if (
            len(picks) > 1
            or low.graph.metas[values.index].shape != ()
            or low.graph.metas[first.index].shape != meta.shape
        ):
            return low.b.unsupported("what is written where a mask is true has to be a number")
        return low.b.pointwise("where", low.aligned(first, meta), value, own)
    spots = _spots(low, meta, picks)
    if isinstance(spots, Value):
        return spots
    given = low.graph.metas[values.index]
    if given.batch_dim is not None and given.batch_dim + spots.ndim - len(given.shape) != meta.batch_dim:
        return low.b.unsupported("combines the batch dimension of one tensor with another dimension")
    if value.size != 1:
        value = low.b.gather(value, np.broadcast_to(np.arange(value.size).reshape(given.shape), spots.shape))
    elif spots.size != 1:
        value = low.b.gather(value, np.zeros(spots.size, dtype=np.int64))
    accumulate = call.args[3] if len(call.args) > 3 else call.kwargs.get("accumulate", False)
    return low.put(own, value, spots, int(np.prod(meta.shape)), bool(accumulate))


def _index_add(low: Lowering, call: Call, meta: Meta) -> Value:
    x, dim, pick, source = call.args
    picks: list[Any] = [None] * (int(dim) % len(meta.shape)) + [pick]
    own, value = low.read(x.index), low.read(source.index)
    if "unsupported" in (own.op, value.op):
        return own if own.op == "unsupported" else value
    spots = _spots(low, meta, picks)
    if isinstance(spots, Value):
        return spots
    given = low.graph.metas[source.index]
    if given.shape != spots.shape or (given.batch_dim is not None and given.batch_dim != meta.batch_dim):
        return low.b.unsupported("combines the batch dimension of one tensor with another dimension")
    value = low.b.pointwise("mul", value, float(call.kwargs.get("alpha", 1)))
    if value.size == 1 and spots.size != 1:
        value = low.b.gather(value, np.zeros(spots.size, dtype=np.int64))
    return low.put(own, value, spots, int(np.prod(meta.shape)), True)


RULES: dict[Any, Rule] = {
    _aten.index.Tensor: _index,
    _aten.index_select.default: _index_select,
    _aten.index_put.default: _index_put,
    _aten.index_add.default: _index_add,
}
