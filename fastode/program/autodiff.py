"""Reverse-mode differentiation of programs, by the chain rule on their values.

The result is again made of ``ir`` values, so one set of kernels executes both, and it shares the values it needs.
Accumulations over samples are explicit terms, not patterns to be found again in a graph of batched operations. Capture
compares the result with torch's own gradient of the field.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastode.program.ir import (
    COTANGENT,
    POINTWISE,
    SAMPLE,
    SHARED,
    STATE,
    Accumulation,
    Builder,
    Program,
    Pullback,
    Value,
    is_constant,
)

Rule = Callable[[Builder, Value, Value, tuple[Value, ...]], tuple[Value | None, ...]]


def _rules() -> dict[str, Rule]:
    """For each pointwise operation: builder, cotangent, value, operands -> cotangents of the operands."""

    def one(f: Callable[[Builder, Value, Value, Value], Value]) -> Rule:
        return lambda b, g, out, args: (f(b, g, out, args[0]),)

    def op(b: Builder, name: str, *args: Value | float) -> Value:
        return b.pointwise(name, *args)

    def mul(b: Builder, x: Value | float, y: Value | float) -> Value:
        return b.pointwise("mul", x, y)

    def extremum(worse: str) -> Rule:
        """A half each at a tie, and the whole to both where one is NaN."""

        def rule(b: Builder, g: Value, out: Value, args: tuple[Value, ...]) -> tuple[Value | None, ...]:
            x, y = args
            share = op(b, "where", op(b, "eq", x, y), mul(b, g, 0.5), g)
            return op(b, "where", op(b, worse, x, y), 0.0, share), op(b, "where", op(b, worse, y, x), 0.0, share)

        return rule

    def pow_rule(b: Builder, g: Value, out: Value, args: tuple[Value, ...]) -> tuple[Value | None, ...]:
        x, p = args
        by_x = mul(b, g, mul(b, p, op(b, "pow", x, op(b, "sub", p, 1.0))))
        if p.constant is not None:
            return by_x, None
        by_x = op(b, "where", op(b, "eq", p, 0.0), 0.0, by_x)
        flat = op(b, "logical_and", op(b, "eq", x, 0.0), op(b, "ge", p, 0.0))
        return by_x, mul(b, g, op(b, "where", flat, 0.0, mul(b, out, op(b, "log", x))))

    def atan2_rule(b: Builder, g: Value, out: Value, args: tuple[Value, ...]) -> tuple[Value | None, ...]:
        y, x = args
        size = op(b, "add", op(b, "square", y), op(b, "square", x))
        scaled = op(b, "where", op(b, "eq", size, 0.0), 0.0, op(b, "div", g, size))
        return mul(b, scaled, x), op(b, "neg", mul(b, scaled, y))

    def div_rule(b: Builder, g: Value, out: Value, args: tuple[Value, ...]) -> tuple[Value | None, ...]:
        return op(b, "div", g, args[1]), op(b, "neg", mul(b, g, op(b, "div", out, args[1])))

    def where_rule(b: Builder, g: Value, out: Value, args: tuple[Value, ...]) -> tuple[Value | None, ...]:
        return None, op(b, "where", args[0], g, 0.0), op(b, "where", args[0], 0.0, g)

    def bell(b: Builder, x: Value) -> Value:
        return op(b, "exp", op(b, "neg", op(b, "square", x)))

    rules: dict[str, Rule] = {
        "neg": one(lambda b, g, out, x: op(b, "neg", g)),
        "abs": one(lambda b, g, out, x: mul(b, g, op(b, "sign", x))),
        "sqrt": one(lambda b, g, out, x: op(b, "div", g, mul(b, out, 2.0))),
        "rsqrt": one(lambda b, g, out, x: mul(b, mul(b, g, -0.5), mul(b, out, op(b, "square", out)))),
        "reciprocal": one(lambda b, g, out, x: op(b, "neg", mul(b, g, op(b, "square", out)))),
        "square": one(lambda b, g, out, x: mul(b, g, mul(b, x, 2.0))),
        "exp": one(lambda b, g, out, x: mul(b, g, out)),
        "exp2": one(lambda b, g, out, x: mul(b, g, mul(b, out, math.log(2.0)))),
        "expm1": one(lambda b, g, out, x: mul(b, g, op(b, "add", out, 1.0))),
        "log": one(lambda b, g, out, x: op(b, "div", g, x)),
        "log1p": one(lambda b, g, out, x: op(b, "div", g, op(b, "add", x, 1.0))),
        "sin": one(lambda b, g, out, x: mul(b, g, op(b, "cos", x))),
        "cos": one(lambda b, g, out, x: op(b, "neg", mul(b, g, op(b, "sin", x)))),
        "tan": one(lambda b, g, out, x: mul(b, g, op(b, "add", op(b, "square", out), 1.0))),
        "sinh": one(lambda b, g, out, x: mul(b, g, op(b, "cosh", x))),
        "cosh": one(lambda b, g, out, x: mul(b, g, op(b, "sinh", x))),
        "tanh": one(lambda b, g, out, x: op(b, "tanh_back", g, out)),
        "asin": one(lambda b, g, out, x: mul(b, g, op(b, "rsqrt", op(b, "sub", 1.0, op(b, "square", x))))),
        "acos": one(
            lambda b, g, out, x: op(b, "neg", mul(b, g, op(b, "rsqrt", op(b, "sub", 1.0, op(b, "square", x)))))
        ),
        "atan": one(lambda b, g, out, x: op(b, "div", g, op(b, "add", op(b, "square", x), 1.0))),
        "asinh": one(lambda b, g, out, x: mul(b, g, op(b, "rsqrt", op(b, "add", op(b, "square", x), 1.0)))),
        "acosh": one(lambda b, g, out, x: mul(b, g, op(b, "rsqrt", op(b, "sub", op(b, "square", x), 1.0)))),
        "atanh": one(lambda b, g, out, x: op(b, "div", g, op(b, "sub", 1.0, op(b, "square", x)))),
        "sigmoid": one(lambda b, g, out, x: op(b, "sigmoid_back", g, out)),
        "softplus": one(lambda b, g, out, x: op(b, "softplus_back", g, x)),
        "relu": one(lambda b, g, out, x: op(b, "where", op(b, "le", x, 0.0), 0.0, g)),
        "erf": one(lambda b, g, out, x: mul(b, g, mul(b, bell(b, x), 2 / math.sqrt(math.pi)))),
        "erfc": one(lambda b, g, out, x: mul(b, g, mul(b, bell(b, x), -2 / math.sqrt(math.pi)))),
        "add": lambda b, g, out, args: (g, g),
        "sub": lambda b, g, out, args: (g, op(b, "neg", g)),
        "mul": lambda b, g, out, args: (mul(b, g, args[1]), mul(b, g, args[0])),
        "div": div_rule,
        "pow": pow_rule,
        "minimum": extremum("gt"),
        "maximum": extremum("lt"),
        "atan2": atan2_rule,
        "hypot": lambda b, g, out, args: (mul(b, g, op(b, "div", args[0], out)), mul(b, g, op(b, "div", args[1], out))),
        "fmod": lambda b, g, out, args: (g, op(b, "neg", mul(b, g, op(b, "trunc", op(b, "div", *args))))),
        "remainder": lambda b, g, out, args: (g, op(b, "neg", mul(b, g, op(b, "floor", op(b, "div", *args))))),
        "where": where_rule,
        "fma": lambda b, g, out, args: (mul(b, g, args[1]), mul(b, g, args[0]), g),
        "tanh_back": lambda b, g, out, args: (
            op(b, "tanh_back", g, args[1]),
            mul(b, mul(b, g, args[0]), mul(b, args[1], -2.0)),
        ),
        "sigmoid_back": lambda b, g, out, args: (
            op(b, "sigmoid_back", g, args[1]),
            mul(b, mul(b, g, args[0]), op(b, "sub", 1.0, mul(b, args[1], 2.0))),
        ),
    }

    def softplus_back_rule(b: Builder, g: Value, out: Value, args: tuple[Value, ...]) -> tuple[Value | None, ...]:
        cotangent, x = args
        bent = op(b, "sigmoid_back", mul(b, g, cotangent), op(b, "sigmoid", x))
        return op(b, "softplus_back", g, x), op(b, "where", op(b, "gt", x, 20.0), 0.0, bent)

    rules["softplus_back"] = softplus_back_rule
    flat = ("sign", "floor", "ceil", "round", "trunc", "logical_not", "eq", "ne", "lt", "le", "gt", "ge")
    for name in (*flat, "logical_and", "logical_or"):
        rules[name] = lambda b, g, out, args: (None,) * len(args)
    assert set(rules) == set(POINTWISE), set(POINTWISE) ^ set(rules)
    return rules


RULES = _rules()


class _Reverse:
    def __init__(self, builder: Builder, program: Program) -> None:
        self.b = builder
        self.cotangents: dict[int, list[Value]] = {}
        self.terms: list[Accumulation] = []
        self.order = program.values()
        # What depends on nothing that a gradient is wanted for needs no cotangent.
        self.active: set[int] = set()
        for value in self.order:
            leaf = value.op in (STATE, SHARED, SAMPLE)
            passes = value.op != "stop" or value.gradient is not None
            if leaf or (passes and any(id(arg) in self.active for arg in value.args)):
                self.active.add(id(value))

    def add(self, value: Value, cotangent: Value | None) -> None:
        if cotangent is None or id(value) not in self.active:
            return
        if value.size == 1 and cotangent.size != 1:
            cotangent = self.b.sum(cotangent, 1, cotangent.size, 1)
        elif cotangent.size == 1 and value.size != 1:
            cotangent = self.b.gather(cotangent, np.zeros(value.size, dtype=np.int64))
        self.cotangents.setdefault(id(value), []).append(cotangent)

    def total(self, value: Value) -> Value | None:
        parts = self.cotangents.pop(id(value), None)
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = self.b.pointwise("add", total, part)
        return total

    def matmul(self, value: Value, g: Value) -> None:
        a, b = value.args
        m, k, n = value.data[:3]
        a_at, b_at = value.data[3:6], value.data[6:9]
        g_at = (0, n, 1)
        flipped = lambda at: (at[0], at[2], at[1])  # noqa: E731
        for operand, at, left, left_at, right, right_at, rows, cols, inner in (
            (a, a_at, g, g_at, b, flipped(b_at), m, k, n),  # dA = g B^T
            (b, b_at, a, flipped(a_at), g, g_at, k, n, m),  # dB = A^T g
        ):
            if id(operand) not in self.active:
                continue
            if is_constant(operand) and operand.op in (SHARED, SAMPLE):
                # sum over the inner index of left[i, .] right[., j]: both given with that index last
                self.terms.append(
                    Accumulation(
                        leaf=operand,
                        value=left,
                        other=right,
                        sizes=(rows, cols, inner),
                        place=at,
                        value_strides=left_at,
                        other_strides=flipped(right_at),
                    )
                )
                continue
            full = self.b.matmul_strided(left, right, rows, inner, cols, left_at, right_at)
            if operand.size == rows * cols and at == (0, cols, 1):
                self.add(operand, full)
            else:
                target = at[0] + at[1] * np.arange(rows)[:, None] + at[2] * np.arange(cols)
                self.add(operand, self.b.scatter(full, target, operand.size))

    def visit(self, value: Value, g: Value) -> None:
        b = self.b
        b.where = value.where
        if value.op in (SHARED, SAMPLE):
            self.terms.append(Accumulation(leaf=value, value=g, target=np.arange(value.size)))
        elif value.op == "gather":
            assert value.index is not None
            (x,) = value.args
            if x.op in (SHARED, SAMPLE) and bool((value.index >= 0).all()):
                self.terms.append(Accumulation(leaf=x, value=g, target=value.index))
            else:
                self.add(x, b.scatter(g, value.index, x.size))
        elif value.op == "scatter":
            assert value.index is not None
            self.add(value.args[0], b.gather(g, value.index))
        elif value.op == "cat":
            start = 0
            for piece in value.args:
                self.add(piece, b.gather(g, np.arange(start, start + piece.size)))
                start += piece.size
        elif value.op in ("sum", "amax"):
            outer, reduced, inner = value.data
            spread = np.broadcast_to(np.arange(outer * inner).reshape(outer, 1, inner), (outer, reduced, inner))
            if value.op == "sum":
                self.add(value.args[0], b.gather(g, spread))
            else:
                (x,) = value.args
                hit = b.pointwise("eq", x, b.gather(value, spread))
                share = b.pointwise("div", g, b.sum(hit, outer, reduced, inner))
                self.add(x, b.pointwise("mul", hit, b.gather(share, spread)))
        elif value.op == "matmul":
            self.matmul(value, g)
        elif value.gradient is not None:
            for operand, cotangent in value.gradient(g):
                self.add(operand, cotangent)
        elif value.op in RULES:
            grads = RULES[value.op](b, g, value, value.args)
            for arg, grad in zip(value.args, grads, strict=True):
                if grad is not None:
                    self.add(arg, grad)


def pullback(builder: Builder, program: Program) -> Pullback:
    """The vector-Jacobian product of a program by state and leaves; values are made by the program's builder."""
    reverse = _Reverse(builder, program)
    cotangent = builder.make(COTANGENT, (), program.dim)
    reverse.add(program.output, cotangent)
    state: Value | None = None
    for value in reversed(reverse.order):
        g = reverse.total(value)
        if g is None:
            continue
        if value.op == STATE:
            state = g
        else:
            reverse.visit(value, g)
    if state is None:
        state = builder.gather(builder.const(0.0), np.full(program.dim, -1, dtype=np.int64))
    return Pullback(program, state, tuple(reverse.terms))
