"""What single torch operations mean for one sample: pointwise operations, reductions and products.

Views and everything else that only moves data are in ``lower``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fastode.program import functions
from fastode.program.ir import Builder, Value

_aten = torch.ops.aten

Pointwise = Callable[..., Value]
"""Builder, then the operation's arguments with tensors as values, to the result."""


def _same(name: str) -> Pointwise:
    return lambda b, *args: b.pointwise(name, *args)


def _scaled(name: str) -> Pointwise:
    """A + alpha * b and the like."""

    def build(b: Builder, x: Any, y: Any, alpha: float = 1) -> Value:
        return b.pointwise(name, x, b.pointwise("mul", y, float(alpha)) if alpha != 1 else y)

    return build


def _rsub(b: Builder, x: Any, y: Any, alpha: float = 1) -> Value:
    return b.pointwise("sub", y, b.pointwise("mul", x, float(alpha)) if alpha != 1 else x)


def _div(b: Builder, x: Any, y: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode == "floor":
        return functions.floor_divide(b, x, y)
    quotient = b.pointwise("div", x, y)
    return quotient if rounding_mode is None else b.pointwise("trunc", quotient)


def _softplus(b: Builder, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    if beta == 1 and threshold == 20:
        return b.pointwise("softplus", x)
    scaled = b.pointwise("mul", x, float(beta))
    over = b.pointwise("gt", scaled, float(threshold))
    # The argument is replaced where the result is not used, so that no infinity meets the zero cotangent there.
    safe = b.pointwise("where", over, 0.0, scaled)
    soft = b.pointwise("div", b.pointwise("log1p", b.pointwise("exp", safe)), float(beta))
    return b.pointwise("where", over, x, soft)


def _softplus_backward(b: Builder, g: Value, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    if beta == 1 and threshold == 20:
        return b.pointwise("softplus_back", g, x)
    scaled = b.pointwise("mul", x, float(beta))
    slope = b.pointwise("mul", g, b.pointwise("sigmoid", scaled))
    return b.pointwise("where", b.pointwise("gt", scaled, float(threshold)), g, slope)


def _log_sigmoid(b: Builder, x: Value) -> Value:
    low = b.pointwise("minimum", x, 0.0)
    rest = b.pointwise("log1p", b.pointwise("exp", b.pointwise("neg", b.pointwise("abs", x))))
    return b.pointwise("sub", low, rest)


def _leaky_relu(b: Builder, x: Value, slope: float = 0.01) -> Value:
    return b.pointwise("where", b.pointwise("gt", x, 0.0), x, b.pointwise("mul", x, float(slope)))


def _threshold(b: Builder, x: Value, threshold: float, value: float) -> Value:
    return b.pointwise("where", b.pointwise("le", x, float(threshold)), float(value), x)


def _addcmul(b: Builder, x: Value, y: Value, z: Value, value: float = 1) -> Value:
    return b.pointwise("add", x, b.pointwise("mul", b.pointwise("mul", y, z), float(value)))


def _addcdiv(b: Builder, x: Value, y: Value, z: Value, value: float = 1) -> Value:
    return b.pointwise("add", x, b.pointwise("mul", b.pointwise("div", y, z), float(value)))


def _log_over(divisor: float) -> Pointwise:
    return lambda b, x: b.pointwise("mul", b.pointwise("log", x), 1 / divisor)


def _fmin(chosen: str) -> Pointwise:
    """The lesser, or greater, of two, NaN only where both are; at a tie the gradient goes to the first."""

    def build(b: Builder, x: Any, y: Any) -> Value:
        first = b.pointwise("logical_or", b.pointwise(chosen, x, y), b.pointwise("ne", y, y))
        return b.pointwise("where", first, x, y)

    return build


def _xor(b: Builder, x: Value, y: Value) -> Value:
    return b.pointwise("ne", *(b.pointwise("ne", v, 0.0) for v in (x, y)))


POINTWISE: dict[Any, Pointwise] = {}


def _register(packets: dict[str, Pointwise]) -> None:
    for name, build in packets.items():
        packet = getattr(_aten, name)
        for overload in packet.overloads():
            if "out" not in overload.split("_"):
                POINTWISE[getattr(packet, overload)] = build


_SAME = (
    *(
        "neg",
        "abs",
        "sign",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "square",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "sin",
        "cos",
    ),
    *("tan", "asinh", "acosh", "atanh", "erfc", "hypot"),
    *("sinh", "cosh", "tanh", "asin", "acos", "atan", "sigmoid", "relu", "erf", "floor", "ceil", "trunc", "mul", "pow"),
    *("minimum", "maximum", "atan2", "fmod", "eq", "ne", "lt", "le", "gt", "ge", "logical_and"),
    *("logical_or", "logical_not", "where"),
)
_register({name: _same(name) for name in _SAME})
_register(
    {
        "add": _scaled("add"),
        "sub": _scaled("sub"),
        "rsub": _rsub,
        "div": _div,
        "true_divide": _div,
        "clamp": functions.clamp,
        "clamp_min": functions.clamp,
        "clamp_max": lambda b, x, high: functions.clamp(b, x, None, high),
        "gelu": functions.gelu,
        "silu": functions.silu,
        "softplus": _softplus,
        "log_sigmoid_forward": _log_sigmoid,
        "elu": functions.elu,
        "celu": functions.celu,
        "rrelu_with_noise": lambda b, x, noise, lower=1 / 8, upper=1 / 3, training=False: _leaky_relu(
            b, x, (lower + upper) / 2
        ),
        "masked_fill": lambda b, x, mask, value: b.pointwise("where", mask, value, x),
        "leaky_relu": _leaky_relu,
        "threshold": _threshold,
        "hardtanh": functions.hardtanh,
        "hardsigmoid": functions.hardsigmoid,
        "hardswish": functions.hardswish,
        "mish": functions.mish,
        "lerp": functions.lerp,
        "addcmul": _addcmul,
        "addcdiv": _addcdiv,
        "logaddexp": functions.logaddexp,
        "remainder": functions.remainder,
        "sinc": functions.sinc,
        "logit": functions.logit,
        "xlogy": functions.xlogy("log", 0.0),
        "special_xlog1py": functions.xlogy("log1p", -1.0),
        "hardshrink": functions.hardshrink,
        "huber_loss": functions.loss("huber"),
        "smooth_l1_loss": functions.loss("smooth_l1"),
        "signbit": functions.signbit,
        "copysign": functions.copysign,
        "fmin": _fmin("le"),
        "fmax": _fmin("ge"),
        "isnan": lambda b, x: b.pointwise("ne", x, x),
        "log2": _log_over(math.log(2.0)),
        "log10": _log_over(math.log(10.0)),
        "special_expit": _same("sigmoid"),
        "tanh_backward": _same("tanh_back"),
        "sigmoid_backward": _same("sigmoid_back"),
        "softplus_backward": _softplus_backward,
        "threshold_backward": lambda b, g, x, threshold: b.pointwise(
            "where", b.pointwise("le", x, float(threshold)), 0.0, g
        ),
        "bitwise_and": _same("logical_and"),
        "bitwise_or": _same("logical_or"),
        "bitwise_not": _same("logical_not"),
        "bitwise_xor": _xor,
        "logical_xor": _xor,
    }
)
POINTWISE[_aten.round.default] = _same("round")
TRUTH_ONLY = {
    getattr(packet, overload)
    for packet in (_aten.bitwise_and, _aten.bitwise_or, _aten.bitwise_not, _aten.bitwise_xor, _aten.logical_xor)
    for overload in packet.overloads()
}
"""Operations whose rule holds for truth values only."""

FILLS: dict[Any, Callable[[tuple[Any, ...]], float]] = {
    _aten.zeros_like.default: lambda args: 0.0,
    _aten.ones_like.default: lambda args: 1.0,
    _aten.full_like.default: lambda args: float(args[1]),
    _aten.new_zeros.default: lambda args: 0.0,
    _aten.new_ones.default: lambda args: 1.0,
    _aten.new_full.default: lambda args: float(args[2]),
    _aten.zeros.default: lambda args: 0.0,
    _aten.ones.default: lambda args: 1.0,
    _aten.full.default: lambda args: float(args[1]),
    _aten.scalar_tensor.default: lambda args: float(args[0]),
}
"""Operations that fill a tensor with one number, which look at no tensor's values."""

EMPTY = {
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.new_empty.default,
    _aten.empty_strided.default,
    _aten.new_empty_strided.default,
}
"""Operations that leave a tensor's content undefined."""
