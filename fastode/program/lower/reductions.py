"""Sums, means, extremes, products and variances over dimensions; cumulative sums and products."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from fastode.program.ir import Builder, Value
from fastode.program.lower.lowering import MAX_PRODUCTS, Lowering, Rule
from fastode.program.trace import Call, Meta

_aten = torch.ops.aten


def dims_of(argument: Any, rank: int) -> list[int]:
    """Dimensions as an operation takes them, counted from the front; all where none are named."""
    if argument is None or argument == []:
        return list(range(rank))
    dims = [argument] if isinstance(argument, int) else list(argument)
    return [d % rank if rank else 0 for d in dims]


def reduce_by(kind: str) -> Rule:
    """The rule of a reduction, by its name among ``_REDUCTIONS``."""

    def lower(low: Lowering, call: Call, meta: Meta) -> Value:
        own = low.graph.metas[call.args[0].index]
        x = low.read(call.args[0].index)
        if x.op == "unsupported":
            return x
        if low.graph.metas[call.args[0].index].dtype == torch.bool and kind not in ("any", "all"):
            return low.b.unsupported(f"{call.func} of truth values")
        given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
        dims = dims_of(given, len(own.shape))
        if own.batch_dim in dims:
            return low.b.unsupported(f"{call.func} over the samples")
        if not own.shape:
            return x
        kept = [d for d in range(len(own.shape)) if d not in dims]
        index = np.arange(x.size).reshape(own.shape).transpose([*kept, *dims])
        reduced = int(np.prod([own.shape[d] for d in dims]))
        moved = low.b.gather(x, index)
        return _REDUCTIONS[kind](low.b, moved, x.size // reduced if reduced else 0, reduced, call)

    return lower


def _mean(b: Builder, x: Value, outer: int, reduced: int, call: Call) -> Value:
    return b.pointwise("div", b.sum(x, outer, reduced, 1), float(reduced))


def _amin(b: Builder, x: Value, outer: int, reduced: int, call: Call) -> Value:
    return b.pointwise("neg", b.amax(b.pointwise("neg", x), outer, reduced, 1))


def first_of(kind: str) -> Callable[[Builder, Value, int, int, Call], Value]:
    """The largest or smallest, with its gradient to the first such component, whose index torch returns."""

    def reduce(b: Builder, x: Value, outer: int, reduced: int, call: Call) -> Value:
        value = b.amax(x, outer, reduced, 1) if kind == "max" else _amin(b, x, outer, reduced, call)

        def gradient(g: Value) -> Iterable[tuple[Value, Value]]:
            spread = np.repeat(np.arange(outer), reduced)
            unknown = b.pointwise("ne", x, x)
            hit = b.pointwise("logical_or", b.pointwise("eq", x, b.gather(value, spread)), unknown)
            place = np.arange(outer * reduced).reshape(outer, reduced)

            def shifted(seen: Value, by: int) -> Value:
                return b.gather(seen, np.concatenate([np.full((outer, by), -1), place[:, :-by]], axis=1))

            before, step = shifted(hit, 1), 1  # whether one of the components in front is a hit, by doubling
            while step < reduced:
                before, step = b.pointwise("maximum", before, shifted(before, step)), 2 * step
            chosen = b.pointwise("where", before, 0.0, hit)
            return ((x, b.pointwise("where", chosen, b.gather(g, spread), 0.0)),)

        return b.with_gradient(value, ("first", id(x)), gradient) if reduced > 1 else value

    return reduce


def _prod(b: Builder, x: Value, outer: int, reduced: int, call: Call) -> Value:
    if reduced > MAX_PRODUCTS:
        return b.unsupported(f"a product of {reduced} components")
    out = b.gather(x, np.arange(outer) * reduced)
    for r in range(1, reduced):
        out = b.pointwise("mul", out, b.gather(x, np.arange(outer) * reduced + r))
    return out


def _variance(b: Builder, x: Value, outer: int, reduced: int, call: Call) -> Value:
    correction = call.kwargs.get("correction")
    degrees = reduced - (1.0 if correction is None else float(correction))
    if degrees <= 0:
        return b.unsupported("a variance of too few components")
    spread = np.repeat(np.arange(outer), reduced)
    centred = b.pointwise("sub", x, b.gather(_mean(b, x, outer, reduced, call), spread))
    value = b.pointwise("div", b.sum(b.pointwise("square", centred), outer, reduced, 1), degrees)

    def gradient(g: Value) -> Iterable[tuple[Value, Value]]:
        return ((x, b.pointwise("mul", b.pointwise("mul", centred, 2 / degrees), b.gather(g, spread))),)

    return b.with_gradient(value, ("variance", degrees), gradient)


def _root(b: Builder, x: Value) -> Value:
    """The square root, with 0 for its derivative at 0, as torch has it for norms and standard deviations."""
    zero = b.pointwise("eq", x, 0.0)
    return b.pointwise("where", zero, 0.0, b.pointwise("sqrt", b.pointwise("where", zero, 1.0, x)))


_REDUCTIONS: dict[str, Callable[[Builder, Value, int, int, Call], Value]] = {
    "sum": lambda b, x, outer, reduced, call: b.sum(x, outer, reduced, 1),
    "mean": _mean,
    "amax": lambda b, x, outer, reduced, call: b.amax(x, outer, reduced, 1),
    "amin": _amin,
    "max": first_of("max"),
    "min": first_of("min"),
    "prod": _prod,
    "var": _variance,
    "std": lambda b, x, outer, reduced, call: _root(b, _variance(b, x, outer, reduced, call)),
    "any": lambda b, x, outer, reduced, call: b.amax(b.pointwise("ne", x, 0.0), outer, reduced, 1),
    "all": lambda b, x, outer, reduced, call: _amin(b, b.pointwise("ne", x, 0.0), outer, reduced, call),
}
"""Builder, value (outer, reduced), its sizes, call -> (outer,)."""


def _cumulative(op: str) -> Rule:
    def lower(low: Lowering, call: Call, meta: Meta) -> Value:
        x = low.read(call.args[0].index)
        if x.op == "unsupported":
            return x
        dim = int(call.args[1]) % len(meta.shape) if meta.shape else 0
        if dim == meta.batch_dim:
            return low.b.unsupported(f"{call.func} over the samples")
        count = meta.shape[dim] if meta.shape else 1
        if count > MAX_PRODUCTS:
            return low.b.unsupported(f"{call.func} of {count} components")
        index = np.moveaxis(np.arange(x.size).reshape(meta.shape), dim, 0).reshape(count, -1)
        parts = [low.b.gather(x, index[0])]
        for row in index[1:]:
            parts.append(low.b.pointwise(op, parts[-1], low.b.gather(x, row)))
        back = np.empty(x.size, dtype=np.int64)
        back[index.reshape(-1)] = np.arange(x.size)
        return low.b.gather(low.b.cat(parts), back)

    return lower


RULES: dict[Any, Rule] = {
    _aten.sum.dim_IntList: reduce_by("sum"),
    _aten.sum.default: reduce_by("sum"),
    _aten.mean.dim: reduce_by("mean"),
    _aten.mean.default: reduce_by("mean"),
    _aten.amax.default: reduce_by("amax"),
    _aten.amin.default: reduce_by("amin"),
    _aten.max.dim: reduce_by("max"),
    _aten.min.dim: reduce_by("min"),
    _aten.prod.dim_int: reduce_by("prod"),
    _aten.var.correction: reduce_by("var"),
    _aten.std.correction: reduce_by("std"),
    _aten.any.dim: reduce_by("any"),
    _aten.any.dims: reduce_by("any"),
    _aten.all.dim: reduce_by("all"),
    _aten.all.dims: reduce_by("all"),
    _aten.cumsum.default: _cumulative("add"),
    _aten.cumprod.default: _cumulative("mul"),
}
