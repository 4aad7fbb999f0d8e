"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastode.program.ir import Value
from fastode.program.lower.lowering import MAX_PRODUCTS, Lowering, Rule
from fastode.program.trace import Call, Meta, Ref

_aten = torch.ops.aten


def _product(low: Lowering, a: Ref, b: Ref, meta: Meta) -> Value:
    """(..., M, K) times (..., K, N) with at most one leading dimension."""
    ma, mb = low.graph.metas[a.index], low.graph.metas[b.index]
    xa, xb = low.read(a.index), low.read(b.index)
    for x in (xa, xb):
        if x.op == "unsupported":
            return x
    rank = len(ma.shape)
    if ma.batch_dim == rank - 1 or mb.batch_dim == rank - 2:
        return low.b.unsupported("a sum over the samples, by a matrix product")
    m, k, n = ma.shape[-2], ma.shape[-1], mb.shape[-1]
    if rank == 2:
        return low.b.matmul(xa, xb, m, k, n)
    count = max(ma.shape[0], mb.shape[0])
    if ma.shape[0] != mb.shape[0]:
        return low.b.unsupported("a batched product of a tensor with the samples in another dimension")
    if (ma.batch_dim == 0) != (mb.batch_dim == 0) and not {ma.batch_dim, mb.batch_dim} & {1, 2} and count != 1:
        return low.b.unsupported("a batched product over another dimension than the batch")
    if count > MAX_PRODUCTS:
        return low.b.unsupported(f"{count} matrix products for each sample")
    pieces = []
    for g in range(count):
        left = low.b.gather(xa, np.arange(g * m * k, (g + 1) * m * k))
        right = low.b.gather(xb, np.arange(g * k * n, (g + 1) * k * n))
        pieces.append(low.b.matmul(left, right, m, k, n))
    return low.b.cat(pieces)


def _mm(low: Lowering, call: Call, meta: Meta) -> Value:
    return _product(low, call.args[0], call.args[1], meta)


def _addmm(low: Lowering, call: Call, meta: Meta) -> Value:
    bias, a, b = call.args[:3]
    beta, alpha = float(call.kwargs.get("beta", 1)), float(call.kwargs.get("alpha", 1))
    product = _product(low, a, b, meta)
    if alpha != 1.0:
        product = low.b.pointwise("mul", product, alpha)
    added = low.aligned(bias, meta)
    if beta != 1.0:
        added = low.b.pointwise("mul", added, beta)
    return low.b.pointwise("add", product, added)


def _mv(low: Lowering, call: Call, meta: Meta) -> Value:
    a, x = call.args[:2]
    ma, mx = low.graph.metas[a.index], low.graph.metas[x.index]
    if ma.batch_dim == 1 or mx.batch_dim is not None:
        return low.b.unsupported("a sum over the samples, by a matrix product")
    left, right = low.read(a.index), low.read(x.index)
    for value in (left, right):
        if value.op == "unsupported":
            return value
    return low.b.matmul(left, right, ma.shape[0], ma.shape[1], 1)


RULES: dict[Any, Rule] = {
    _aten.mm.default: _mm,
    _aten.bmm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.baddbmm.default: _addmm,
    _aten.mv.default: _mv,
}
