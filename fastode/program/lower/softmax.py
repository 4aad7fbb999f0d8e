"""Softmax, its logarithm, and the logarithm of a sum of exponentials."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from fastode.program.ir import Value
from fastode.program.lower.lowering import Lowering, Rule
from fastode.program.lower.reductions import dims_of
from fastode.program.trace import Call, Meta

_aten = torch.ops.aten


def _softmax(log: bool) -> Rule:
    def lower(low: Lowering, call: Call, meta: Meta) -> Value:
        x = low.read(call.args[0].index)
        if x.op == "unsupported":
            return x
        dim = int(call.args[1]) % len(meta.shape)
        if dim == meta.batch_dim:
            return low.b.unsupported(f"{call.func} over the samples")
        outer, reduced = int(np.prod(meta.shape[:dim])), meta.shape[dim]
        inner = int(np.prod(meta.shape[dim + 1 :]))
        spread = np.broadcast_to(np.arange(outer * inner).reshape(outer, 1, inner), (outer, reduced, inner))
        b = low.b
        whole = lambda value: b.gather(value, spread)  # noqa: E731
        shifted = b.pointwise("sub", x, whole(b.amax(x, outer, reduced, inner)))
        powers = b.pointwise("exp", shifted)
        total = b.sum(powers, outer, reduced, inner)
        if log:
            out = b.pointwise("sub", shifted, whole(b.pointwise("log", total)))
        else:
            out = b.pointwise("div", powers, whole(total))

        def gradient(g: Value) -> Iterable[tuple[Value, Value]]:
            if log:
                by = b.pointwise("mul", b.pointwise("exp", out), whole(b.sum(g, outer, reduced, inner)))
                return ((x, b.pointwise("sub", g, by)),)
            common = b.sum(b.pointwise("mul", g, out), outer, reduced, inner)
            return ((x, b.pointwise("mul", out, b.pointwise("sub", g, whole(common)))),)

        return b.with_gradient(out, ("softmax", outer, reduced, inner, id(x)), gradient)

    return lower


def _log_sum_exp(low: Lowering, call: Call, meta: Meta) -> Value:
    x, b = low.read(call.args[0].index), low.b
    source = low.graph.metas[call.args[0].index]
    dims = dims_of(call.args[1], len(source.shape))
    if x.op == "unsupported":
        return x
    if source.batch_dim in dims:
        return b.unsupported(f"{call.func} over the samples")
    kept = [d for d in range(len(source.shape)) if d not in dims]
    index = np.arange(x.size).reshape(source.shape).transpose([*kept, *dims]).reshape(-1)
    reduced = int(np.prod([source.shape[d] for d in dims]))
    outer = x.size // reduced
    moved = b.gather(x, index)
    spread = np.repeat(np.arange(outer), reduced)
    top = b.amax(moved, outer, reduced, 1)
    top = b.pointwise("where", b.pointwise("eq", b.pointwise("abs", top), np.inf), 0.0, top)
    powers = b.pointwise("exp", b.pointwise("sub", moved, b.gather(top, spread)))
    out = b.pointwise("add", b.pointwise("log", b.sum(powers, outer, reduced, 1)), top)

    def gradient(g: Value) -> Iterable[tuple[Value, Value]]:
        share = b.pointwise("exp", b.pointwise("sub", moved, b.gather(out, spread)))
        return ((moved, b.pointwise("mul", b.gather(g, spread), share)),)

    return b.with_gradient(out, ("log_sum_exp", id(moved)), gradient)


RULES: dict[Any, Rule] = {
    _aten._softmax.default: _softmax(False),
    _aten._log_softmax.default: _softmax(True),
    _aten.logsumexp.default: _log_sum_exp,
}
