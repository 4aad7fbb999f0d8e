"""The intermediate representation of a vector field: values of one sample, each a flat vector of components.

A batched tensor (B, 4, 5) of the user's code is here a value of 20 components, in row-major order. Leaves are the
state, the time, tensors that all samples share and per-sample constants. Views, slices, permutations and expansion are
all ``gather``, an index for every component; matrix products name their operands' strides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.int64]

STATE, TIME, SHARED, SAMPLE, COTANGENT = "state", "time", "shared", "sample", "cotangent"
LEAVES = (STATE, TIME, SHARED, SAMPLE, COTANGENT)

UNARY: dict[str, Callable[[float], float]] = {
    "neg": lambda x: -x,
    "abs": abs,
    "sign": lambda x: math.copysign(1.0, x) if x else x,
    "sqrt": math.sqrt,
    "rsqrt": lambda x: 1 / math.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "square": lambda x: x * x,
    "exp": math.exp,
    "exp2": lambda x: math.pow(2.0, x),
    "expm1": math.expm1,
    "log": math.log,
    "log1p": math.log1p,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "sinh": math.sinh,
    "cosh": math.cosh,
    "tanh": math.tanh,
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "asinh": math.asinh,
    "acosh": math.acosh,
    "atanh": math.atanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "softplus": lambda x: x if x > 20 else math.log1p(math.exp(x)),
    "relu": lambda x: max(x, 0.0),
    "erf": math.erf,
    "erfc": math.erfc,
    "floor": lambda x: float(math.floor(x)),
    "ceil": lambda x: float(math.ceil(x)),
    "round": lambda x: float(round(x)),
    "trunc": lambda x: float(math.trunc(x)),
    "logical_not": lambda x: float(not x),
}
BINARY: dict[str, Callable[[float, float], float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": math.pow,
    "minimum": min,
    "maximum": max,
    "atan2": math.atan2,
    "hypot": math.hypot,
    "fmod": math.fmod,
    "remainder": lambda a, b: a % b,
    "eq": lambda a, b: float(a == b),
    "ne": lambda a, b: float(a != b),
    "lt": lambda a, b: float(a < b),
    "le": lambda a, b: float(a <= b),
    "gt": lambda a, b: float(a > b),
    "ge": lambda a, b: float(a >= b),
    "logical_and": lambda a, b: float(bool(a) and bool(b)),
    "logical_or": lambda a, b: float(bool(a) or bool(b)),
    "tanh_back": lambda g, y: g * (1 - y * y),
    "sigmoid_back": lambda g, y: g * y * (1 - y),
    "softplus_back": lambda g, x: g if x > 20 else g / (1 + math.exp(-x)),
}
TERNARY = ("where", "fma")
POINTWISE = (*UNARY, *BINARY, *TERNARY)


@dataclass(eq=False)
class Value:
    """One value of a program; made by ``Builder`` only, which makes equal values once.

    Attributes:
        op: a leaf (``LEAVES``), ``const``, a name in ``POINTWISE``, ``gather``, ``scatter``, ``cat``, ``sum``,
            ``amax``, ``matmul``, ``stop`` (its operand, with ``gradient`` for its derivative, none if that is None)
            or ``unsupported``.
        args: operands; those of pointwise operations have this value's size, or 1.
        size: number of components.
        data: const: (number,). shared, sample: (index of the leaf,). sum, amax: (outer, reduced, inner) of the operand.
            matmul: (M, K, N, offset, row stride, column stride of each of the two operands in turn).
            unsupported: (reason, line of the user's code). stop: what tells equal ones apart.
        index: gather: the operand's component for each of this value's, -1 for zero; scatter: the component of
            this value that each of the operand's is added to, -1 for none.
        where: the line of the user's code it came from.
        gradient: stop: cotangent -> pairs of a value that the operand is made of and what is added to its cotangent.
    """

    op: str
    args: tuple[Value, ...]
    size: int
    data: tuple[Any, ...] = ()
    index: Map | None = None
    where: str | None = None
    gradient: Callable[[Value], Iterable[tuple[Value, Value]]] | None = None

    @property
    def constant(self) -> float | None:
        """The number, if this is one."""
        return self.data[0] if self.op == "const" else None


@dataclass(frozen=True)
class Leaf:
    """A tensor that a program reads besides time and state.

    Attributes:
        name: for printing.
        shape: of the tensor, without the batch dimension where it is per sample.
        half: ``bfloat16`` or ``float16`` where the field casts a tensor of this type to the state's: a backend may read
            it as it is stored. Others are given the result of the cast.
    """

    name: str
    shape: tuple[int, ...]
    half: str | None = None

    @property
    def size(self) -> int:
        """Number of components."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Program:
    """dy/dt of one sample.

    Attributes:
        dim: number of components of the state, D.
        output: value of size D.
        shared: leaves that all samples share.
        sample: leaves that differ from sample to sample.
    """

    dim: int
    output: Value
    shared: tuple[Leaf, ...]
    sample: tuple[Leaf, ...]

    def values(self) -> list[Value]:
        """Everything that the output depends on, operands first."""
        return in_order([self.output])

    def __str__(self) -> str:
        from fastode.program.printing import program_text  # printing needs these classes

        return program_text(self)


@dataclass(frozen=True)
class Accumulation:
    """A term of the gradient by a leaf; summed over evaluations, and over samples where the leaf is shared.

    leaf[target[i]] += value[i] for all i, or, where ``other`` is given, the outer product
    leaf[offset + i s0 + j s1] += sum_k value[i, k] other[j, k] with (M, K, N) = ``sizes`` and operands as strided
    (offset, row stride, column stride) as in ``matmul``.
    """

    leaf: Value
    value: Value
    target: Map | None = None
    other: Value | None = None
    sizes: tuple[int, int, int] = (0, 0, 0)
    place: tuple[int, int, int] = (0, 0, 0)
    value_strides: tuple[int, int, int] = (0, 0, 0)
    other_strides: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Pullback:
    """The vector-Jacobian product of a program: reads its values and the cotangent of its output.

    Attributes:
        program: the program.
        state: gradient by the state, (D,).
        terms: gradients by the leaves.
    """

    program: Program
    state: Value
    terms: tuple[Accumulation, ...]

    def values(self) -> list[Value]:
        """Everything that is needed, operands first; values of the program are among them."""
        roots = [self.state]
        for term in self.terms:
            roots += [term.value] if term.other is None else [term.value, term.other]
        return in_order(roots)


def in_order(roots: Iterable[Value]) -> list[Value]:
    """The values that the roots depend on, operands before what uses them, each once."""
    done: dict[int, None] = {}
    order: list[Value] = []
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        value, expanded = stack.pop()
        if id(value) in done:
            continue
        if expanded:
            done[id(value)] = None
            order.append(value)
        else:
            stack.append((value, True))
            stack.extend((arg, False) for arg in reversed(value.args))
    return order


def is_constant(value: Value) -> bool:
    """Whether the value is a leaf that does not change during a solve, or a view of one, or a number."""
    while value.op in ("gather", "stop"):
        value = value.args[0]
    return value.op in (SHARED, SAMPLE, "const")


def affine(index: Map, rows: int, cols: int) -> tuple[int, int, int] | None:
    """(offset, row stride, column stride) if index[i * cols + j] = offset + i * rs + j * cs for all i, j."""
    table = index.reshape(rows, cols)
    if table.size == 0:
        return 0, 0, 0
    offset = int(table[0, 0])
    rs = int(table[1, 0]) - offset if rows > 1 else cols
    cs = int(table[0, 1]) - offset if cols > 1 else 1
    expected = offset + rs * np.arange(rows)[:, None] + cs * np.arange(cols)
    if offset < 0 or rs < 0 or cs < 0 or not np.array_equal(table, expected):
        return None
    return offset, rs, cs


@dataclass
class Builder:
    """Makes values: equal ones once, with the simplifications that lowering and differentiation call for."""

    _known: dict[tuple[Any, ...], Value] = field(default_factory=dict)
    where: str | None = None

    def make(
        self, op: str, args: Sequence[Value], size: int, data: tuple[Any, ...] = (), index: Map | None = None
    ) -> Value:
        """A value as it stands."""
        key = (op, tuple(map(id, args)), size, data, None if index is None else index.tobytes())
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Value(op, tuple(args), size, data, index, self.where)
        return found

    def const(self, number: float) -> Value:
        """A number."""
        return self.make("const", (), 1, (float(number), math.copysign(1.0, number)))

    def unsupported(self, reason: str, size: int = 1, where: str | None = None) -> Value:
        """Something that no program can compute; an error only if the result depends on it."""
        return self.make("unsupported", (), size, (reason, where or self.where))

    def with_gradient(
        self, value: Value, key: tuple[Any, ...], gradient: Callable[[Value], Iterable[tuple[Value, Value]]]
    ) -> Value:
        """The value, with a derivative that is not that of the operations it is made of.

        Args:
            value: what executors compute.
            key: tells other derivatives of the same value apart.
            gradient: as ``Value.gradient``.
        """
        if value.op in ("const", "unsupported"):
            return value
        made = self.make("stop", (value,), value.size, key)
        made.gradient = gradient
        return made

    def pointwise(self, op: str, *args: Value | float) -> Value:
        """A pointwise operation, folded where its operands are numbers."""
        values = [arg if isinstance(arg, Value) else self.const(arg) for arg in args]
        size = max((v.size for v in values), key=lambda n: (n != 1, n)) if values else 1
        numbers = [v.constant for v in values]
        if op in UNARY or op in BINARY:
            known = [n for n in numbers if n is not None]
            if len(known) == len(numbers) and not any(map(math.isnan, known)):
                try:
                    return self.const(UNARY[op](*known) if op in UNARY else BINARY[op](*known))
                except (ArithmeticError, ValueError):
                    pass  # infinite or NaN: left to the kernels
            simpler = self._simplify(op, values, numbers, size)
            if simpler is not None:
                return simpler
        if op == "where" and numbers[0] is not None:
            chosen = values[1] if numbers[0] else values[2]
            if chosen.size == size:
                return chosen
        return self.make(op, values, size)

    def _simplify(self, op: str, values: list[Value], numbers: list[float | None], size: int) -> Value | None:
        first, second = numbers[0], numbers[1] if len(numbers) > 1 else None
        if op == "neg" and values[0].op == "neg":
            return values[0].args[0]
        if op in ("add", "mul"):
            neutral = 0.0 if op == "add" else 1.0
            if first == neutral and values[1].size == size:
                return values[1]
            if second == neutral and values[0].size == size:
                return values[0]
        if op in ("sub", "div") and second == (0.0 if op == "sub" else 1.0):
            return values[0]
        if op == "mul" and -1.0 in (first, second):
            return self.pointwise("neg", values[1] if first == -1.0 else values[0])
        if op == "pow" and second is not None:
            x = values[0]
            if second == 0.0:
                return self.gather(self.const(1.0), np.zeros(size, dtype=np.int64))
            if second == 1.0:
                return x
            if second == 2.0:
                return self.pointwise("square", x)
            if second == 0.5:
                return self.pointwise("sqrt", x)
            if second == -1.0:
                return self.pointwise("reciprocal", x)
            simpler = {
                3.0: lambda: self.pointwise("mul", x, self.pointwise("square", x)),
                4.0: lambda: self.pointwise("square", self.pointwise("square", x)),
                -2.0: lambda: self.pointwise("reciprocal", self.pointwise("square", x)),
                -0.5: lambda: self.pointwise("rsqrt", x),
            }.get(second)
            if simpler is not None:
                slope = lambda: self.pointwise("mul", self.pointwise("pow", x, second - 1.0), second)  # noqa: E731
                return self.with_gradient(
                    simpler(), ("pow", second), lambda g: ((x, self.pointwise("mul", g, slope())),)
                )
        return None

    def gather(self, x: Value, index: Map) -> Value:
        """out[i] = x[index[i]], 0 where the index is negative."""
        index = np.ascontiguousarray(index.reshape(-1), dtype=np.int64)
        if x.op == "gather":
            assert x.index is not None
            index = np.where(index < 0, -1, x.index[index]) if x.size else index
            return self.gather(x.args[0], index)
        if x.op == "const" and len(index) == 1 and index[0] == 0:
            return x
        if x.op == "cat":
            pieces = self._pieces(x, index)
            if pieces is not None:
                return self.cat(pieces)
        if len(index) == x.size and np.array_equal(index, np.arange(x.size)):
            return x
        return self.make("gather", (x,), len(index), index=index)

    def _pieces(self, x: Value, index: Map) -> list[Value] | None:
        """A gather from joined values as a joining of gathers from each, where that takes about as many pieces."""
        ends = np.cumsum([piece.size for piece in x.args])
        owner = np.where(index < 0, -1, np.searchsorted(ends, index, side="right"))
        cuts = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(index)]
        if len(cuts) - 1 > len(x.args) or not len(index):
            return None
        pieces = []
        for start, end in itertools.pairwise(cuts):
            which = int(owner[start])
            if which < 0:
                pieces.append(self.gather(self.const(0.0), np.zeros(end - start, dtype=np.int64)))
            else:
                first = int(ends[which]) - x.args[which].size
                pieces.append(self.gather(x.args[which], index[start:end] - first))
        return pieces

    def scatter(self, x: Value, index: Map, size: int) -> Value:
        """out[index[i]] += x[i] into zeros."""
        index = np.ascontiguousarray(index.reshape(-1), dtype=np.int64)
        kept = index[index >= 0]
        if len(np.unique(kept)) == len(kept):  # no two meet: a gather by the inverse
            inverse = np.full(size, -1, dtype=np.int64)
            inverse[kept] = np.flatnonzero(index >= 0)
            return self.gather(x, inverse)
        if size == 1 and len(kept) == len(index):
            return self.sum(x, 1, x.size, 1)
        return self.make("scatter", (x,), size, index=index)

    def cat(self, pieces: Sequence[Value]) -> Value:
        """All components of the pieces, one after another."""
        pieces = [piece for piece in pieces if piece.size]
        return pieces[0] if len(pieces) == 1 else self.make("cat", pieces, sum(piece.size for piece in pieces))

    def sum(self, x: Value, outer: int, reduced: int, inner: int) -> Value:
        """out[o, i] = sum_r x[o, r, i]."""
        if reduced == 1:
            return x
        return self.make("sum", (x,), outer * inner, (outer, reduced, inner))

    def amax(self, x: Value, outer: int, reduced: int, inner: int) -> Value:
        """out[o, i] = max_r x[o, r, i]."""
        if reduced == 1:
            return x
        return self.make("amax", (x,), outer * inner, (outer, reduced, inner))

    def matmul(self, a: Value, b: Value, m: int, k: int, n: int) -> Value:
        """(M, K) times (K, N), both in row-major order; strided views are read where they lie."""
        (a, a_at), (b, b_at) = self._strided(a, m, k), self._strided(b, k, n)
        return self.matmul_strided(a, b, m, k, n, a_at, b_at)

    def matmul_strided(
        self, a: Value, b: Value, m: int, k: int, n: int, a_at: tuple[int, int, int], b_at: tuple[int, int, int]
    ) -> Value:
        """As ``matmul``, of operands given by (offset, row stride, column stride)."""
        return self.make("matmul", (a, b), m * n, (m, k, n, *a_at, *b_at))

    def _strided(self, x: Value, rows: int, cols: int) -> tuple[Value, tuple[int, int, int]]:
        if x.op == "gather" and x.index is not None:
            found = affine(x.index, rows, cols)
            if found is not None:
                return x.args[0], found
        return x, (0, cols, 1)
