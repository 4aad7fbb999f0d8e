"""Functions of one or two numbers that are made of simpler operations, with torch's own formulas for their derivatives.

Where a function bends, saturates or ends, its derivative is a convention, or lost in rounding where it is taken of the
simpler operations one by one. Formulas are those of torch's derivatives.yaml and FunctionsManual.cpp.
"""

from __future__ import annotations

import math
from typing import Any

from fastode.program.ir import Builder, Value


def silu(b: Builder, x: Value) -> Value:
    """The product of x and sigmoid(x)."""
    op, gate = b.pointwise, b.pointwise("sigmoid", x)
    slope = lambda: op("mul", gate, op("add", op("mul", x, op("sub", 1.0, gate)), 1.0))  # noqa: E731
    return b.with_gradient(op("mul", x, gate), ("silu",), lambda g: ((x, op("mul", g, slope())),))


def gelu(b: Builder, x: Value, approximate: str = "none") -> Value:
    """The product of x and the normal distribution function, or that by a hyperbolic tangent."""
    op = b.pointwise
    if approximate == "tanh":
        beta, kappa = math.sqrt(2 / math.pi), 0.044715
        gate = op("tanh", op("mul", op("add", x, op("mul", op("pow", x, 3.0), kappa)), beta))

        def bend() -> Value:
            inner = op("mul", op("add", op("mul", op("square", x), 3 * kappa), 1.0), beta)
            return op("mul", op("tanh_back", op("mul", x, 0.5), gate), inner)
    else:
        gate = op("erf", op("mul", x, math.sqrt(0.5)))

        def bend() -> Value:
            return op("mul", x, op("mul", op("exp", op("mul", op("square", x), -0.5)), 1 / math.sqrt(2 * math.pi)))

    whole = op("add", gate, 1.0)
    slope = lambda: op("add", op("mul", whole, 0.5), bend())  # noqa: E731
    value = op("mul", op("mul", x, 0.5), whole)
    return b.with_gradient(value, ("gelu",), lambda g: ((x, op("mul", g, slope())),))


def elu(b: Builder, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    """Scale x, below zero alpha scale expm1(input_scale x)."""
    op, bent = b.pointwise, float(alpha * scale)
    positive = op("gt", x, 0.0)
    low = op("mul", op("where", positive, 0.0, x), float(input_scale))  # the other branch must not overflow
    value = op("where", positive, op("mul", x, float(scale)), op("mul", op("expm1", low), bent))

    def gradient(g: Value) -> Any:
        falling = op("mul", op("mul", g, bent * input_scale), op("exp", low))
        return ((x, op("where", positive, op("mul", g, float(scale)), falling)),)

    return b.with_gradient(value, ("elu",), gradient)


def celu(b: Builder, x: Value, alpha: float = 1) -> Value:
    """Elu with slope one at zero."""
    return elu(b, x, alpha, 1, 1 / alpha)


def mish(b: Builder, x: Value) -> Value:
    """The product of x and tanh(softplus(x))."""
    op = b.pointwise
    gate = op("tanh", op("softplus", x))

    def gradient(g: Value) -> Any:
        bend = op("tanh_back", op("mul", x, op("sigmoid", x)), gate)
        return ((x, op("mul", g, op("add", gate, bend))),)

    return b.with_gradient(op("mul", x, gate), ("mish",), gradient)


def between(b: Builder, x: Value, low: float, high: float) -> Value:
    """Whether x is strictly inside."""
    return b.pointwise("logical_and", b.pointwise("gt", x, float(low)), b.pointwise("lt", x, float(high)))


def hardtanh(b: Builder, x: Value, low: float = -1, high: float = 1) -> Value:
    """Clamped; the slope is 0 at the bounds themselves, unlike that of clamp."""
    op = b.pointwise
    value = op("minimum", op("maximum", x, float(low)), float(high))
    return b.with_gradient(value, ("hardtanh",), lambda g: ((x, op("where", between(b, x, low, high), g, 0.0)),))


def _relu6(b: Builder, x: Value) -> Value:
    return b.pointwise("minimum", b.pointwise("maximum", b.pointwise("add", x, 3.0), 0.0), 6.0)


def hardsigmoid(b: Builder, x: Value) -> Value:
    """relu6(x + 3) / 6."""
    op = b.pointwise
    value = op("div", _relu6(b, x), 6.0)
    return b.with_gradient(
        value, ("hardsigmoid",), lambda g: ((x, op("where", between(b, x, -3, 3), op("div", g, 6.0), 0.0)),)
    )


def hardswish(b: Builder, x: Value) -> Value:
    """The product of x and relu6(x + 3) / 6."""
    op = b.pointwise
    value = op("div", op("mul", x, _relu6(b, x)), 6.0)

    def gradient(g: Value) -> Any:
        bend = op("mul", g, op("add", op("div", x, 3.0), 0.5))
        return ((x, op("where", op("le", x, -3.0), 0.0, op("where", op("ge", x, 3.0), g, bend))),)

    return b.with_gradient(value, ("hardswish",), gradient)


def hardshrink(b: Builder, x: Value, lambd: float = 0.5) -> Value:
    """Numbers larger than lambd in size, 0 for others."""
    op = b.pointwise
    far = op("gt", op("abs", x), float(lambd))
    value = op("where", op("le", op("abs", x), float(lambd)), 0.0, x)  # a NaN stays
    return b.with_gradient(value, ("hardshrink",), lambda g: ((x, op("where", far, g, 0.0)),))


def clamp(b: Builder, x: Value, low: Any = None, high: Any = None) -> Value:
    """At the bounds the gradient is that of x; between bounds in the wrong order it is that of the upper one."""
    op, value = b.pointwise, x
    if low is not None:
        value = op("maximum", value, low)
    if high is not None:
        value = op("minimum", value, high)
    bounds = [bound for bound in (low, high) if isinstance(bound, Value)]

    def gradient(g: Value) -> Any:
        tests = [] if low is None else [op("ge", x, low)]
        tests += [] if high is None else [op("le", x, high)]
        inside = tests[0] if len(tests) == 1 else op("logical_and", *tests)
        pairs = [(x, op("where", inside, g, 0.0))]
        if isinstance(low, Value):
            under = op("lt", x, low)
            under = under if high is None else op("logical_and", op("lt", low, high), under)
            pairs.append((low, op("where", under, g, 0.0)))
        if isinstance(high, Value):
            over = op("gt", x, high)
            over = over if low is None else op("logical_or", op("lt", high, low), over)
            pairs.append((high, op("where", over, g, 0.0)))
        return pairs

    return value if value is x else b.with_gradient(value, ("clamp", low is None, *map(id, bounds), id(x)), gradient)


def floor_divide(b: Builder, x: Any, y: Any) -> Value:
    """The largest integer that is not above x / y, as Python and torch find it: by the remainder, not the quotient."""
    op = b.pointwise
    quotient, rest = op("div", x, y), op("fmod", x, y)
    negative = op("lt", rest, 0.0), op("lt", y, 0.0)
    whole = op("div", op("sub", x, rest), y)
    whole = op("sub", whole, op("logical_and", op("ne", rest, 0.0), op("ne", *negative)))
    floor = op("floor", whole)
    floor = op("add", floor, op("gt", op("sub", whole, floor), 0.5))
    signed = op("where", op("eq", whole, 0.0), op("mul", quotient, 0.0), floor)
    value = op("where", op("eq", y, 0.0), quotient, signed)
    return b.make("stop", (value,), value.size)


def lerp(b: Builder, x: Value, y: Value, weight: Any) -> Value:
    """From x to y by a weight, taken from the nearer end."""
    op = b.pointwise
    weight = weight if isinstance(weight, Value) else b.const(weight)
    gap, rest = op("sub", y, x), op("sub", 1.0, weight)
    near = op("lt", op("abs", weight), 0.5)
    value = op("where", near, op("add", x, op("mul", weight, gap)), op("sub", y, op("mul", gap, rest)))

    def gradient(g: Value) -> Any:
        return (x, op("mul", g, rest)), (y, op("mul", g, weight)), (weight, op("mul", g, gap))

    return b.with_gradient(value, ("lerp", id(x), id(y)), gradient)


def remainder(b: Builder, x: Any, y: Any) -> Value:
    """Rest of x / y, with the sign of y."""
    op = b.pointwise
    pairs = [v for v in (x, y) if isinstance(v, Value)]

    def gradient(g: Value) -> Any:
        by = [(x, g)] if isinstance(x, Value) else []
        if isinstance(y, Value) and y.constant is None:
            by.append((y, op("neg", op("mul", g, floor_divide(b, x, y)))))
        return by

    return b.with_gradient(op("remainder", x, y), ("remainder", *map(id, pairs)), gradient)


def sinc(b: Builder, x: Value) -> Value:
    """sin(pi x) / (pi x), 1 at 0."""
    op, scaled = b.pointwise, b.pointwise("mul", x, math.pi)
    value = op("where", op("eq", x, 0.0), 1.0, op("div", op("sin", scaled), scaled))

    def gradient(g: Value) -> Any:
        square = op("mul", op("square", x), math.pi)
        slope = op("div", op("sub", op("mul", scaled, op("cos", scaled)), op("sin", scaled)), square)
        return ((x, op("where", op("eq", square, 0.0), 0.0, op("mul", g, slope))),)

    return b.with_gradient(value, ("sinc",), gradient)


def logit(b: Builder, x: Value, eps: float | None = None) -> Value:
    """log(x / (1 - x)), of x clamped to [eps, 1 - eps] where eps is given."""
    op = b.pointwise
    low, high = (0.0, 1.0) if eps is None else (float(eps), 1 - float(eps))
    z = x if eps is None else op("where", op("lt", x, low), low, op("where", op("gt", x, high), high, x))
    value = op("log", op("div", z, op("sub", 1.0, z)))

    def gradient(g: Value) -> Any:
        inside = op("logical_and", op("ge", x, low), op("le", x, high))
        slope = op("div", g, op("mul", x, op("sub", 1.0, x)))
        return ((x, op("where", inside, slope, math.nan if eps is None else 0.0)),)

    return b.with_gradient(value, ("logit", low), gradient)


def _times_log(b: Builder, x: Any, y: Any, log: str) -> Value:
    """The product of x and log(y), 0 where x is 0, NaN where y is."""
    op = b.pointwise
    product = op("where", op("eq", x, 0.0), 0.0, op("mul", x, op(log, y)))
    return op("where", op("ne", y, y), math.nan, product)


def xlogy(log: str, pole: float) -> Any:
    """The product of x and log(y) or log1p(y), 0 where x is 0."""

    def build(b: Builder, x: Any, y: Any) -> Value:
        op = b.pointwise
        x, y = (v if isinstance(v, Value) else b.const(v) for v in (x, y))

        def gradient(g: Value) -> Any:
            none = op("logical_and", op("eq", x, 0.0), op("le", y, pole))
            by_y = op("div", op("mul", g, x), y if log == "log" else op("add", y, 1.0))
            return (x, op("where", none, 0.0, _times_log(b, g, y, log))), (y, by_y)

        return b.with_gradient(_times_log(b, x, y, log), (log, id(x), id(y)), gradient)

    return build


def logaddexp(b: Builder, x: Value, y: Value) -> Value:
    """log(e^x + e^y)."""
    op = b.pointwise
    gap = op("where", op("eq", x, y), 0.0, op("abs", op("sub", x, y)))  # of equal infinities too
    value = op("add", op("maximum", x, y), op("log1p", op("exp", op("neg", gap))))
    share = lambda g, other, own: op("div", g, op("add", op("exp", op("sub", other, own)), 1.0))  # noqa: E731
    return b.with_gradient(value, ("logaddexp", id(x), id(y)), lambda g: ((x, share(g, y, x)), (y, share(g, x, y))))


def loss(kind: str) -> Any:
    """Huber's loss or the smooth absolute difference, of every pair of numbers."""

    def build(b: Builder, x: Value, y: Value, reduction: int = 1, width: float = 1.0) -> Value:
        if reduction:
            return b.unsupported(f"{kind}_loss over the samples")
        op = b.pointwise
        gap = op("sub", x, y)
        size = op("abs", gap)
        near = op("mul", op("square", size), 0.5)
        far = op("sub", size, 0.5 * width)
        if kind == "huber":
            far = op("mul", far, float(width))
        else:
            near = op("div", near, float(width))
        value = op("where", op("lt", size, float(width)), near, far)

        def gradient(g: Value) -> Any:
            step = op("mul", g, float(width)) if kind == "huber" else g
            slope = op("mul", gap, g) if kind == "huber" else op("div", op("mul", gap, g), float(width))
            by = op("where", op("le", gap, -float(width)), op("neg", step), slope)
            by = op("where", op("ge", gap, float(width)), step, by)
            return (x, by), (y, op("neg", by))

        return b.with_gradient(value, (kind, id(x), id(y)), gradient)

    return build


def signbit(b: Builder, x: Value) -> Value:
    """Whether the sign is minus, of zeros too."""
    op = b.pointwise
    return op("logical_or", op("lt", x, 0.0), op("lt", op("reciprocal", x), 0.0))


def copysign(b: Builder, x: Value, y: Any) -> Value:
    """|x| with the sign of y; as torch has it, without a derivative at x = 0."""
    op = b.pointwise
    y = y if isinstance(y, Value) else b.const(y)
    size = op("abs", x)
    value = op("where", signbit(b, y), op("neg", size), size)

    def gradient(g: Value) -> Any:
        ratio = op("where", op("eq", x, 0.0), 0.0, op("div", value, x))
        return ((x, op("mul", g, ratio)),)

    return b.with_gradient(value, ("copysign", id(x), id(y)), gradient)
