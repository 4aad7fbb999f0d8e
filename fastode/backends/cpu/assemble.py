"""From a program to the instruction lists that the compiled tile machine executes (csrc/cpu/tile/instruction.h).

Values get places in a tile. Slices and reshapes are places inside other places; the pieces of a joined value are
computed where they are wanted; a solve forward reuses the place of a value that is needed no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastode._environment import _C
from fastode.program.ir import (
    COTANGENT,
    POINTWISE,
    SAMPLE,
    SHARED,
    STATE,
    TIME,
    Accumulation,
    Map,
    Program,
    Pullback,
    Value,
    affine,
    in_order,
    is_constant,
)

OPS: dict[str, int] = getattr(_C, "tile_ops", dict)()
NONE, IMM, IN, TIME_BASE, OUT, TMP, SHARED_BASE, PARAM, GOUT, GIN, ADJ, GSHARED, GPARAM = range(13)
_COLUMNS = 24
_MAX_ROWS = 64  # products of so many rows with a constant matrix are written out, one vector each


@dataclass(frozen=True)
class Place:
    """Where a value's components are: component i at offset + i * stride of a base, or the number itself."""

    base: int
    offset: int = 0
    stride: int = 1
    number: float = 0.0


@dataclass
class Code:
    """An instruction list."""

    rows: list[list[int]] = field(default_factory=list)
    immediates: list[tuple[float, float]] = field(default_factory=list)

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """(n, 24) int32 and (n, 2) float64."""
        rows = np.array(self.rows, dtype=np.int32).reshape(-1, _COLUMNS)
        return rows, np.array(self.immediates, dtype=np.float64).reshape(-1, 2)

    def add(
        self,
        op: str,
        sizes: tuple[int, int, int],
        out: tuple[int, int, int, int],
        a: tuple[int, int, int, int] = (NONE, 0, 0, 0),
        b: tuple[int, int, int, int] = (NONE, 0, 0, 0),
        c: tuple[int, int, int, int] = (NONE, 0, 0, 0),
        index: int = 0,
        numbers: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Appends an instruction; operands are (base, offset, s0, s1)."""
        self.rows.append([OPS[op], *sizes, *out, *a, *b, *c, index, 0, 0, 0])
        self.immediates.append(numbers)


@dataclass
class Constants:
    """Packing of leaves: which components of which leaf go where, once per call or per sample."""

    transposing: bool
    rows: list[list[int]] = field(default_factory=list)
    known: dict[tuple[int, ...], int] = field(default_factory=dict)
    size: int = 0

    def pack(self, leaf: int, offset: int, rows: int, cols: int, rs: int, cs: int) -> int:
        """Place of element (0, 0) of a strided part of a leaf, packed row by row."""
        key = (leaf, offset, rows, cols, rs, cs)
        if key not in self.known:
            self.known[key] = self.size
            self.rows.append([*key, self.size])
            self.size += rows * cols
        return self.known[key]

    def array(self) -> NDArray[np.int64]:
        """(m, 7) int64."""
        return np.array(self.rows, dtype=np.int64).reshape(-1, 7)


def unaliased(value: Value) -> Value:
    """The value that an alias stands for."""
    while value.op == "stop":
        value = value.args[0]
    return value


class Routine:
    """One instruction list: places for values, and the instructions that fill them."""

    def __init__(
        self,
        shared: Constants,
        sample: Constants,
        maps: list[int],
        base: int,
        reuse: bool,
        known: dict[int, Place] | None = None,
    ) -> None:
        self.constants = {SHARED: shared, SAMPLE: sample}
        self.maps = maps
        self.base, self.reuse = base, reuse
        self.places: dict[int, Place] = dict(known or {})
        self.code = Code()
        self.size = 0
        self._free: list[tuple[int, int]] = []  # (offset, size) of places that are needed no more
        self._inside: dict[int, tuple[Value, int]] = {}  # piece -> (the value it is part of, offset)
        self._last: dict[int, int] = {}
        self._blocks: dict[int, tuple[int, int]] = {}  # root -> its block
        self._fused: dict[int, tuple[Value, Value]] = {}  # sum -> (the product that it is computed with, what is added)
        self._absorbed: set[int] = set()  # these products

    # -- places

    def plan(self, order: Sequence[Value], fixed: dict[int, Place], elsewhere: Sequence[Value] = ()) -> None:
        """Decides which values are computed inside others, and when each place is free again.

        Args:
            order: what this routine computes, operands first.
            fixed: places given beforehand, by the id of the value.
            elsewhere: values that are read outside this routine.
        """
        uses = {id(value): 1 for value in elsewhere}
        for value in order:
            for arg in value.args:
                uses[id(arg)] = uses.get(id(arg), 0) + 1
        for value in order:
            if value.op == "add":
                for product, added in (value.args, value.args[::-1]):
                    fits = product.op == "matmul" or (product.op == "mul" and added.op != "const")
                    if fits and uses[id(product)] == 1 and product.size == value.size and id(product) not in fixed:
                        self._fused[id(value)] = product, added
                        self._absorbed.add(id(product))
                        break
        computed = {id(v) for v in order if self.own(v)}
        self.places.update(fixed)
        for value in order:
            if value.op == "cat" and id(value) in computed:
                start = 0
                for piece in map(unaliased, value.args):
                    free = id(piece) in computed and id(piece) not in self._inside and id(piece) not in fixed
                    if free and piece.op != "cat":
                        self._inside[id(piece)] = (value, start)
                    start += piece.size
        for step, value in enumerate(order):
            for arg in value.args:
                self._touch(arg, step)
            for arg in self._fused[id(value)][0].args if id(value) in self._fused else ():
                self._touch(arg, step)
            if id(value) in self._inside:
                self._touch(self._inside[id(value)][0], step)

    def _touch(self, value: Value, step: int) -> None:
        while True:
            self._last[id(value)] = max(step, self._last.get(id(value), 0))
            if value.op in ("gather", "stop") and value.args:
                value = value.args[0]
            elif id(value) in self._inside:
                value = self._inside[id(value)][0]
            else:
                return

    def own(self, value: Value) -> bool:
        """Whether the value needs an instruction of its own."""
        if value.op in (STATE, TIME, COTANGENT, SHARED, SAMPLE, "const", "stop") or id(value) in self._absorbed:
            return False
        return value.op != "gather" or self.viewed(value) is None

    def viewed(self, value: Value) -> tuple[int, int] | None:
        """(start, stride 0 or 1) of a gather that is a slice of, or one component repeated from, its operand."""
        index = value.index
        assert index is not None
        if not len(index) or index[0] < 0:
            return None
        if len(index) == 1 or np.array_equal(index, np.arange(index[0], index[0] + len(index))):
            return int(index[0]), 1
        return (int(index[0]), 0) if bool((index == index[0]).all()) else None

    def place(self, value: Value) -> Place:
        """Where a value is; constants are packed when they are first asked for."""
        found = self.places.get(id(value))
        if found is not None:
            return found
        if value.op == "const":
            made = Place(IMM, 0, 0, value.data[0])
        elif value.op == "stop":
            made = self.place(value.args[0])
        elif value.op in (SHARED, SAMPLE):
            base = SHARED_BASE if value.op == SHARED else PARAM
            made = Place(base, self.constants[value.op].pack(value.data[0], 0, value.size, 1, 1, 1))
        elif value.op == "gather" and (view := self.viewed(value)) is not None:
            inner = self.place(value.args[0])
            start, stride = view
            made = inner if inner.base == IMM else Place(inner.base, inner.offset + start * inner.stride, stride)
            if inner.stride == 0 and inner.base != IMM:
                made = inner
        else:
            made = self.allocate(value)
        self.places[id(value)] = made
        return made

    def allocate(self, value: Value) -> Place:
        whole = self._inside.get(id(value))
        if whole is not None:
            outer = self.place(whole[0])
            return Place(outer.base, outer.offset + whole[1])
        for i, (offset, size) in enumerate(self._free):
            if size >= value.size:
                self._free[i] = (offset + value.size, size - value.size)
                break
        else:
            offset = self.size
            self.size += value.size
        self._blocks[id(value)] = (offset, value.size)
        return Place(self.base, offset)

    def release(self, order: Sequence[Value], step: int) -> None:
        if not self.reuse:
            return
        done = order[step]
        product = self._fused[id(done)][0].args if id(done) in self._fused else ()
        for value in {id(v): v for v in (*done.args, *product, done)}.values():
            root = value
            while id(root) not in self._blocks and (root.op in ("gather", "stop") or id(root) in self._inside):
                root = self._inside[id(root)][0] if id(root) in self._inside else root.args[0]
            block = self._blocks.get(id(root))
            if block is not None and self._last.get(id(root), -1) <= step:
                del self._blocks[id(root)]
                self._free.append(block)
                self._merge()

    def _merge(self) -> None:
        merged: list[tuple[int, int]] = []
        for offset, size in sorted(block for block in self._free if block[1]):
            if merged and merged[-1][0] + merged[-1][1] == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((offset, size))
        self._free = merged

    # -- instructions

    def emit(self, order: Sequence[Value]) -> None:
        """Instructions for all values in order."""
        for step, value in enumerate(order):
            if self.own(value):
                self.instruction(value)
            self.release(order, step)

    def operand(self, value: Value, size: int) -> tuple[int, int, int, int]:
        """A pointwise operand of an operation of this size."""
        place = self.place(value)
        return place.base, place.offset, 0 if size != 1 and value.size == 1 else place.stride if size != 1 else 1, 0

    def solid(self, value: Value) -> Place:
        """The place of a value as contiguous components of the tile, copied there if it is no such thing."""
        place = self.place(value)
        if place.base not in (IMM, SHARED_BASE) and (place.stride == 1 or value.size == 1):
            return place
        offset = self.size
        self.size += value.size
        made = Place(self.base, offset)
        self.copy(value, made)
        return made

    def copy(self, value: Value, to: Place) -> None:
        """Writes a value into another place."""
        place = self.place(value)
        out = (to.base, to.offset, 1, 0)
        if place.base == IMM:
            self.code.add("fill", (value.size, 0, 0), out, numbers=(place.number, 0.0))
        else:
            self.code.add("copy", (value.size, 0, 0), out, self.operand(value, value.size))

    def index(self, index: Map) -> int:
        """Offset of a map in the pool."""
        start = len(self.maps)
        self.maps.extend(index.tolist())
        return start

    def instruction(self, value: Value) -> None:
        op, size = value.op, value.size
        product, added = self._fused.get(id(value), (value, None))
        if product.op == "matmul":
            self.matmul(product, value, added)
            return
        if op == "cat":
            start = 0
            whole = self.place(value)
            for piece in map(unaliased, value.args):
                if self._inside.get(id(piece)) != (value, start):
                    self.copy(piece, Place(whole.base, whole.offset + start))
                start += piece.size
            return
        if op in POINTWISE:
            terms = value.args if added is None else (*product.args, added)
            op = op if added is None else "fma"
            args = [self.operand(arg, size) for arg in terms]
            numbers = [self.place(arg).number for arg in terms]
            if op in ("where", "fma") and args[1][0] == IMM and args[2][0] == IMM:
                filled = Place(self.base, self.size)
                self.size += 1
                self.code.add("fill", (1, 0, 0), (filled.base, filled.offset, 1, 0), numbers=(numbers[2], 0.0))
                args[2] = (filled.base, filled.offset, 0 if size != 1 else 1, 0)
            second = next((n for a, n in zip(args[1:], numbers[1:], strict=True) if a[0] == IMM), 0.0)
            out = self.place(value)
            a, b, c = [*args, (NONE, 0, 0, 0), (NONE, 0, 0, 0)][:3]
            self.code.add(op, (size, 0, 0), (out.base, out.offset, 1, 0), a, b, c, numbers=(numbers[0], second))
            return
        if op == "gather" and value.args[0].op == "const":
            assert value.index is not None
            number = value.args[0].data[0]
            if number == 0.0 or bool((value.index >= 0).all()):
                out = self.place(value)
                self.code.add("fill", (size, 0, 0), (out.base, out.offset, 1, 0), numbers=(number, 0.0))
                return
        source = self.source(value.args[0])
        out = self.place(value)
        sizes = (size, 0, 0) if op == "gather" else (value.args[0].size, size, 0) if op == "scatter" else value.data
        index = 0 if value.index is None else self.index(value.index)
        self.code.add(op, sizes, (out.base, out.offset, 1, 0), (source.base, source.offset, 1, 0), index=index)

    def source(self, value: Value) -> Place:
        """A place that is read without strides: anything contiguous, constants included."""
        place = self.place(value)
        return place if place.base != IMM and (place.stride == 1 or value.size == 1) else self.solid(value)

    def matrix(self, value: Value, rows: int, cols: int, at: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """The left operand of a product; a constant is packed as the kernels like to read it."""
        offset, rs, cs = at
        root = value
        if root.op in (SHARED, SAMPLE):
            constants = self.constants[root.op]
            base = SHARED_BASE if root.op == SHARED else PARAM
            if constants.transposing and rs != 1:
                start = constants.pack(root.data[0], offset, cols, rows, cs, rs)
                return base, start, 1, rows
            return base, self.place(root).offset + offset, rs, cs
        place = self.source(value)
        return place.base, place.offset + offset, rs, cs

    def matmul(self, value: Value, target: Value, added: Value | None) -> None:
        """A product, plus ``added`` where that is given, into the place of ``target``."""
        a, b = value.args
        m, k, n = value.data[:3]
        a_at, b_at = value.data[3:6], value.data[6:9]
        out = self.place(target)
        bias = (NONE, 0, 0, 0) if added is None else self.strided(added, m, n)
        if is_constant(a) or not is_constant(b):
            left = self.matrix(a, m, k, a_at)
            right = self.source(b)
            operand = (right.base, right.offset + b_at[0], b_at[1], b_at[2])
            self.code.add("matmul", (m, k, n), (out.base, out.offset, n, 1), left, operand, bias)
            return
        # out^T = b^T a^T: the constant on the left, the rows of a as vectors
        left = self.matrix(b, n, k, (b_at[0], b_at[2], b_at[1]))
        right = self.source(a)
        start = right.offset + a_at[0]
        base, at, row_stride, stride = bias
        if m > _MAX_ROWS:
            operand = (right.base, start, a_at[2], a_at[1])
            bias = (base, at, stride, row_stride)
            self.code.add("matmul", (n, k, m), (out.base, out.offset, 1, n), left, operand, bias)
            return
        for row in range(m):
            operand = (right.base, start + row * a_at[1], a_at[2], 1)
            bias = (base, at + row * row_stride, stride, 1)
            self.code.add("matmul", (n, k, 1), (out.base, out.offset + row * n, 1, 1), left, operand, bias)

    def strided(self, value: Value, rows: int, cols: int) -> tuple[int, int, int, int]:
        """A value as the (rows, cols) operand that is added to a product."""
        if value.size == 1 and rows * cols != 1:
            place = self.source(value)
            return place.base, place.offset, 0, 0
        if value.op == "gather" and value.index is not None and self.own(value) and id(value) not in self.places:
            found = affine(value.index, rows, cols)
            if found is not None:
                place = self.source(value.args[0])
                return place.base, place.offset + found[0], found[1], found[2]
        place = self.source(value)
        return place.base, place.offset, cols, 1


@dataclass(frozen=True)
class Assembly:
    """What ``_C.TileProgram32/64`` is made from, as its keyword arguments, but for the numbers of lanes."""

    arguments: dict[str, object]


def assemble(program: Program, pullback: Pullback | None, rows: bool) -> Assembly:
    """The instruction lists of a program and, if it is given, of its pullback.

    Args:
        program: the field.
        pullback: its vector-Jacobian product with the terms that are wanted; None makes a program that only solves.
        rows: row layout: per-sample matrices are packed by columns.
    """
    shared, sample = Constants(rows), Constants(rows)
    maps: list[int] = []
    order, output = program.values(), unaliased(program.output)

    def forward(reuse: bool, elsewhere: Sequence[Value] = ()) -> Routine:
        routine = Routine(shared, sample, maps, TMP, reuse)
        given = {id(v): Place(IN if v.op == STATE else TIME_BASE) for v in order if v.op in (STATE, TIME)}
        if routine.own(output):
            given[id(output)] = Place(OUT)
        routine.plan(order, given, elsewhere)
        routine.emit(order)
        if not routine.own(output):
            routine.copy(output, Place(OUT))
        return routine

    solve, keep, reverse, accumulate = forward(True), Routine(shared, sample, maps, TMP, False), None, Code()
    if pullback is not None:
        done = {id(v) for v in order}
        rest = [v for v in pullback.values() if id(v) not in done]
        read = [arg for v in rest for arg in v.args if id(arg) in done]
        read += [v for t in pullback.terms for v in (t.value, t.other) if v is not None and id(v) in done]
        keep = forward(False, read)
        reverse = Routine(shared, sample, maps, ADJ, False, keep.places)
        given = {id(v): Place(GOUT) for v in rest if v.op == COTANGENT}
        if reverse.own(pullback.state) and id(pullback.state) not in done:
            given[id(pullback.state)] = Place(GIN)
        read = [v for t in pullback.terms for v in (t.value, t.other) if v is not None]
        reverse.plan(rest, given, [*read, pullback.state])
        reverse.emit(rest)
        if given.get(id(pullback.state)) != Place(GIN):
            reverse.copy(pullback.state, Place(GIN))
        starts = {
            SHARED: np.cumsum([0, *(leaf.size for leaf in program.shared)]),
            SAMPLE: np.cumsum([0, *(leaf.size for leaf in program.sample)]),
        }
        for term in pullback.terms:
            base = GSHARED if term.leaf.op == SHARED else GPARAM
            _accumulate(accumulate, reverse, term, base, int(starts[term.leaf.op][term.leaf.data[0]]))
    empty = Code().arrays()
    return Assembly(
        {
            "dim": program.dim,
            "forward": solve.code.arrays(),
            "forward_keep": keep.code.arrays(),
            "reverse": empty if reverse is None else reverse.code.arrays(),
            "accumulate": accumulate.arrays(),
            "maps": np.array(maps, dtype=np.int32),
            "n_tmp": solve.size,
            "n_tmp_keep": keep.size,
            "n_adj": 0 if reverse is None else reverse.size,
            "shared_pack": shared.array(),
            "param_pack": sample.array(),
            "shared_sizes": [leaf.size for leaf in program.shared],
            "param_sizes": [leaf.size for leaf in program.sample],
            "n_shared": shared.size,
            "n_param": sample.size,
        }
    )


def _accumulate(code: Code, routine: Routine, term: Accumulation, base: int, start: int) -> None:
    value = routine.solid(term.value)
    if term.other is not None:
        other = routine.solid(term.other)
        m, k, n = term.sizes
        offset, s0, s1 = term.place
        left = (value.base, value.offset + term.value_strides[0], *term.value_strides[1:])
        right = (other.base, other.offset + term.other_strides[0], *term.other_strides[1:])
        if s0 == 1 and s1 != 1:  # the inner loop goes along what lies together
            m, k, s0, s1, left, right = k, m, s1, s0, right, left
        code.add("acc_outer", (m, k, n), (base, start + offset, s0, s1), left, right)
        return
    target = term.target
    assert target is not None
    operand = (value.base, value.offset, 1, 0)
    if np.array_equal(target, np.arange(target[0], target[0] + len(target))):
        code.add("acc", (len(target), 0, 0), (base, start + int(target[0]), 1, 0), operand)
    elif bool((target == target[0]).all()):
        code.add("acc", (len(target), 0, 0), (base, start + int(target[0]), 0, 0), operand)
    else:
        spread = Place(ADJ, routine.size)
        routine.size += term.leaf.size
        routine.code.add(
            "scatter",
            (term.value.size, term.leaf.size, 0),
            (spread.base, spread.offset, 1, 0),
            (value.base, value.offset, 1, 0),
            index=routine.index(target),
        )
        code.add("acc", (term.leaf.size, 0, 0), (base, start, 1, 0), (spread.base, spread.offset, 1, 0))


def with_terms(pullback: Pullback, wanted: Sequence[tuple[str, int]]) -> Pullback:
    """The pullback without the gradients of leaves that nobody wants."""
    kept = tuple(term for term in pullback.terms if (term.leaf.op, term.leaf.data[0]) in set(wanted))
    return Pullback(pullback.program, pullback.state, kept)


def largest_sample_matrix(program: Program) -> int:
    """Entries of the largest per-sample matrix in a product, 0 if there is none."""
    sizes = [0]
    for value in in_order([program.output]):
        if value.op == "matmul":
            m, k, n = value.data[:3]
            for arg, entries in zip(value.args, (m * k, k * n), strict=True):
                if is_constant(arg) and arg.op == SAMPLE:
                    sizes.append(entries)
    return max(sizes)
