"""Normalisations by layer, group and batch, and norms of vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from fastode.program.ir import Value
from fastode.program.lower.lowering import Lowering, Rule
from fastode.program.lower.reductions import dims_of, reduce_by
from fastode.program.trace import Call, Meta, Ref

_aten = torch.ops.aten


def _layer_norm(low: Lowering, call: Call, meta: Meta) -> Value:
    x, shape, weight, bias, eps = call.args[:5]
    inner = int(np.prod(shape))
    own = low.graph.metas[x.index]
    if own.batch_dim is not None and own.batch_dim >= len(own.shape) - len(shape):
        return low.b.unsupported(f"{call.func} over the samples")
    value = low.read(x.index)
    if value.op == "unsupported":
        return value
    out = _normalised(low, value, value.size // inner, inner, float(eps))
    if weight is not None:
        out = low.b.pointwise("mul", out, low.aligned(weight, meta))
    return out if bias is None else low.b.pointwise("add", out, low.aligned(bias, meta))


def _group_norm(low: Lowering, call: Call, meta: Meta) -> Value:
    x, weight, bias, _, channels, _, groups, eps = call.args
    value = low.read(x.index)
    if value.op == "unsupported":
        return value
    if meta.batch_dim != 0:
        return low.b.unsupported(f"{call.func} over the samples")
    rows = meta.shape[0]  # each is normalised by itself
    out = _normalised(low, value, rows * groups, value.size // (rows * groups), float(eps))
    spread = np.tile(np.repeat(np.arange(channels), value.size // (rows * channels)), rows)
    if weight is not None:
        out = low.b.pointwise("mul", out, low.b.gather(low.read(weight.index), spread))
    return out if bias is None else low.b.pointwise("add", out, low.b.gather(low.read(bias.index), spread))


def _normalised(low: Lowering, value: Value, outer: int, inner: int, eps: float) -> Value:
    """Of mean 0 and variance 1 over each of ``outer`` groups of ``inner`` components."""
    spread = np.repeat(np.arange(outer), inner)
    mean = low.b.pointwise("div", low.b.sum(value, outer, inner, 1), float(inner))
    centred = low.b.pointwise("sub", value, low.b.gather(mean, spread))
    variance = low.b.pointwise("div", low.b.sum(low.b.pointwise("square", centred), outer, inner, 1), float(inner))
    scale = low.b.pointwise("rsqrt", low.b.pointwise("add", variance, eps))
    return low.b.pointwise("mul", centred, low.b.gather(scale, spread))


def _batch_norm(low: Lowering, call: Call, meta: Meta) -> Value:
    x, weight, bias, mean, var, training, _, eps = call.args
    if training or mean is None:
        return low.b.unsupported("batch normalisation in training mode mixes samples")
    if meta.batch_dim == 1:
        return low.b.unsupported(f"{call.func} over the samples")
    channels = np.broadcast_to(np.arange(meta.shape[1]).reshape(-1, *[1] * (len(meta.shape) - 2)), meta.shape)

    def spread(ref: Ref) -> Value:
        return low.b.gather(low.read(ref.index), channels)

    scale = low.b.pointwise("rsqrt", low.b.pointwise("add", spread(var), float(eps)))
    out = low.b.pointwise("mul", low.b.pointwise("sub", low.read(x.index), spread(mean)), scale)
    if weight is not None:
        out = low.b.pointwise("mul", out, spread(weight))
    return out if bias is None else low.b.pointwise("add", out, spread(bias))


def _norm(low: Lowering, call: Call, meta: Meta) -> Value:
    args = [*call.args, *[2, None][len(call.args) - 1 :]]
    order, source = float(args[1]), low.graph.metas[args[0].index]
    x, b = low.read(args[0].index), low.b
    if x.op == "unsupported":
        return x
    if order == 0 or order == -np.inf:
        return b.unsupported(f"{call.func} of order {order}")
    low.graph.metas[-1] = source
    inner = Call(call.func, (Ref(-1), args[2]), {}, call.outputs, call.grad, call.where)

    def reduce(kind: str, value: Value) -> Value:
        low.set(-1, value, source)
        return reduce_by(kind)(low, inner, meta)

    size = b.pointwise("abs", x)
    if x.size == int(np.prod(meta.shape)):  # of single numbers
        value = size
    elif order in (1.0, np.inf):
        value = reduce("sum" if order == 1.0 else "amax", size)
    elif order == 2.0:
        value = b.pointwise("sqrt", reduce("sum", b.pointwise("square", x)))
    else:
        value = b.pointwise("pow", reduce("sum", b.pointwise("pow", size, order)), 1 / order)
    dims = dims_of(args[2], len(source.shape))
    kept = np.arange(int(np.prod(meta.shape))).reshape([1 if d in dims else n for d, n in enumerate(source.shape)])
    spread = np.broadcast_to(kept, source.shape)

    def gradient(g: Value) -> Iterable[tuple[Value, Value]]:
        op = b.pointwise
        whole, norm, sign = b.gather(g, spread), b.gather(value, spread), op("sign", x)
        if order == 1.0:
            return ((x, op("mul", sign, whole)),)
        if order == 2.0:
            return ((x, op("mul", whole, op("where", op("eq", norm, 0.0), 0.0, op("div", x, norm)))),)
        if order == np.inf:
            hit = op("logical_or", op("eq", size, norm), op("logical_and", op("ne", x, x), op("ne", norm, norm)))
            count = b.gather(reduce("sum", hit), spread)
            return ((x, op("mul", sign, op("mul", op("div", whole, count), hit))),)
        if order < 1.0:
            scaled = op("mul", sign, op("where", op("eq", x, 0.0), 0.0, op("pow", size, order - 1.0)))
            return ((x, op("mul", op("mul", scaled, whole), op("pow", norm, 1.0 - order))),)
        scaled = op("mul", sign, op("pow", size, order - 1.0))
        if order > 2.0:
            scaled = op("mul", x, op("pow", size, order - 2.0))
        common = op("where", op("eq", norm, 0.0), 0.0, op("div", whole, op("pow", norm, order - 1.0)))
        return ((x, op("mul", scaled, common)),)

    return b.with_gradient(value, ("norm", order, id(x)), gradient)


RULES: dict[Any, Rule] = {
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_group_norm.default: _group_norm,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.linalg_vector_norm.default: _norm,
}
