"""Pointwise operations of programs as expressions of Triton's language."""

from __future__ import annotations

from collections.abc import Sequence

from fastode.program.ir import BINARY, UNARY

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LIBDEVICE = (
    *("exp", "exp2", "expm1", "log", "log1p", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asin", "acos", "atan"),
    *("asinh", "acosh", "atanh", "erf", "erfc", "trunc", "pow", "atan2", "hypot", "fmod"),
)
"""Accurate to a few units of the last place, which Triton's own exp, sin, ... are not."""
_UNARY = {
    "neg": "-{0}",
    "abs": "tl.abs({0})",
    "sign": "sign({0})",
    "reciprocal": "1.0 / {0}",
    "square": "{0} * {0}",
    "sigmoid": "1.0 / (1.0 + libdevice.exp(-{0}))",
    "softplus": "tl.where({0} > 20, {0}, libdevice.log1p(libdevice.exp({0})))",
    "relu": "tl.where({0} < 0, 0.0, {0})",
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
    "round": "libdevice.rint({0})",
    "logical_not": "({0} == 0).to({dtype})",
}
_OTHER = {
    "minimum": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "maximum": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "remainder": "remainder({0}, {1})",
    "logical_and": "(({0} != 0) & ({1} != 0)).to({dtype})",
    "logical_or": "(({0} != 0) | ({1} != 0)).to({dtype})",
    "tanh_back": "{0} * (1.0 - {1} * {1})",
    "sigmoid_back": "{0} * {1} * (1.0 - {1})",
    "softplus_back": "tl.where({1} > 20, {0}, {0} / (1.0 + libdevice.exp(-{1})))",
    "where": "tl.where({0} != 0, {1}, {2})",
    "fma": "{0} * {1} + {2}",
}


def takes_plain_numbers(op: str) -> bool:
    """Whether a Python number may stand as an operand; elsewhere Triton would round it to float32 first."""
    return op in _INFIX or op in _COMPARED or op in ("tanh_back", "sigmoid_back", "fma", "logical_and", "logical_or")


def expression(op: str, args: Sequence[str], dtype: str) -> str:
    """An operation on operands that are names or numbers.

    Args:
        op: a name in ``ir.POINTWISE``.
        args: operands.
        dtype: Triton's name of the result's dtype; truth values are numbers.
    """
    if op in _INFIX:
        return f"{args[0]} {_INFIX[op]} {args[1]}"
    if op in _COMPARED:
        return f"({args[0]} {_COMPARED[op]} {args[1]}).to({dtype})"
    if op in ("sqrt", "rsqrt"):
        root = f"tl.sqrt({args[0]})" if dtype == "tl.float64" else f"tl.sqrt_rn({args[0]})"
        return root if op == "sqrt" else f"1.0 / {root}"
    if op in _LIBDEVICE:
        return f"libdevice.{op}({', '.join(args)})"
    return (_UNARY | _OTHER)[op].format(*args, dtype=dtype)


def folded(op: str, numbers: Sequence[float | None]) -> float | None:
    """The result where all operands are known numbers and it is finite arithmetic."""
    known = [n for n in numbers if n is not None]
    if len(known) != len(numbers):
        return None
    try:
        if op in UNARY:
            return UNARY[op](*known)
        if op in BINARY:
            return BINARY[op](*known)
        if op == "where":
            return known[1] if known[0] else known[2]
        return known[0] * known[1] + known[2]
    except (ArithmeticError, ValueError):
        return None
