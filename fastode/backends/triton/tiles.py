"""Values of programs as [samples, width] tiles, their width padded to a power of two.

Padding of a tile that is ``clean`` holds zeros; that of others holds anything, and is masked where components meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import numpy as np

from fastode.backends.triton.code import Routine
from fastode.backends.triton.pointwise import expression, folded, takes_plain_numbers
from fastode.backends.triton.text import in_kind, literal, power_of_two
from fastode.program.ir import (
    COTANGENT,
    POINTWISE,
    SAMPLE,
    SHARED,
    STATE,
    TIME,
    Builder,
    Map,
    Value,
    affine,
)

if TYPE_CHECKING:
    from fastode.backends.triton.tiled import TiledCode


@lru_cache(maxsize=1)
def last_axis_first() -> bool:
    """Whether Triton lays threads along the last of axes that are equally contiguous; 3.6 takes the first."""
    try:
        major, minor = version("triton").split(".")[:2]
    except PackageNotFoundError:
        return True
    return (int(major), int(minor)) >= (3, 7)


@dataclass(frozen=True)
class Tile:
    """A value of n components as [samples or 1, width]; width 1 where all components are the same.

    Attributes:
        text: a name, or a number.
        n: components.
        width: of the tile.
        clean: whether the padding is zero.
        rows: samples, or 1 for what all samples share.
        number: where it is known.
    """

    text: str
    n: int
    width: int
    clean: bool
    rows: int
    number: float | None = None


@dataclass(frozen=True)
class Matrix:
    """An operand of a product: [samples or 1, rows, columns], or [.., columns, rows] where ``flipped``; clean."""

    text: str
    rows: int
    cols: int
    flipped: bool
    shared: bool


def inverse_table(index: Map, size: int) -> Map:
    """(size, r): the places i with index[i] = j, for each j, -1 where there are fewer than r."""
    places: list[list[int]] = [[] for _ in range(size)]
    for i, j in enumerate(index.tolist()):
        if j >= 0:
            places[j].append(i)
    longest = max(map(len, places), default=1) or 1
    return np.array([row + [-1] * (longest - len(row)) for row in places], dtype=np.int64).reshape(size, longest)


class TileBody:
    """Writes values into a routine, one line each."""

    def __init__(self, code: TiledCode, routine: Routine) -> None:
        self.code, self.routine = code, routine
        self.known: dict[int, Tile] = {}
        self.cleaned: dict[str, str] = {}
        self.keep: list[Value] = []  # values made here: their ids must stay theirs
        self.builder = Builder()
        self.samples = code.samples
        self.loaded: set[str] = set()

    # -- lines

    def assign(self, text: str, comment: str = "", prefix: str = "v") -> str:
        name = self.routine.name(prefix)
        self.routine.body.add(f"{name} = {text}" + (f"  # {comment}" if comment else ""))
        return name

    def constant(self, name: str, load: str) -> str:
        """A constant loaded before the steps."""
        self.code.loads[name] = load
        self.routine.constants[name] = None
        return name

    def lanes(self, width: int) -> str:
        return self.constant(f"lane{width}", f"tl.arange(0, {width})[None, :]")

    def table(self, table: Map) -> str:
        """An index table as [1, len(table)], a power of two."""
        offset = self.code.pool.place(table)
        width = len(table)
        return self.constant(
            f"index{offset}_{width}", f"tl.load(tables_ptr + {offset} + tl.arange(0, {width}))[None, :]"
        )

    def pad(self, n: int) -> int:
        return self.code.pad(n)

    # -- values

    def tile(self, value: Value) -> Tile:
        found = self.known.get(id(value))
        if found is None:
            self.keep.append(value)
            found = self.known[id(value)] = self.compute(value)
        return found

    def clean(self, tile: Tile) -> str:
        """The tile with zeros in its padding."""
        if tile.clean or tile.width == tile.n or tile.width == 1:
            return tile.text
        if tile.text not in self.cleaned:
            self.cleaned[tile.text] = self.assign(f"tl.where({self.lanes(tile.width)} < {tile.n}, {tile.text}, 0.0)")
        return self.cleaned[tile.text]

    def whole(self, tile: Tile, rows: int | None = None) -> Tile:
        """The tile at its full width and, where asked for, for all samples; clean."""
        width, wanted = self.pad(tile.n), rows or tile.rows
        if tile.width == width and tile.rows == wanted and tile.number is None:
            return Tile(self.clean(tile), tile.n, width, True, tile.rows)
        if tile.number is not None:
            text = f"tl.full([{wanted}, {width}], {tile.text}, {self.code.kind})"
        else:
            text = f"tl.broadcast_to({tile.text}, [{wanted}, {width}])"
        made = Tile(self.assign(text), tile.n, width, tile.clean and tile.width == width, wanted)
        return Tile(self.clean(made), tile.n, width, True, wanted)

    def compute(self, value: Value) -> Tile:
        op, n = value.op, value.size
        if op == TIME:
            return Tile(self.assign("t[:, None]"), 1, 1, True, self.samples)
        if op in (STATE, COTANGENT):
            return Tile("y" if op == STATE else "g", n, self.pad(n), True, self.samples)
        if op in (SHARED, SAMPLE):
            return self.leaf(value, np.arange(n))
        if op == "const":
            return Tile(literal(value.data[0], self.code.dtype), 1, 1, False, 1, value.data[0])
        if op == "stop":
            return self.tile(value.args[0])
        if op == "gather":
            assert value.index is not None
            return self.gather(value.args[0], value.index)
        if op == "scatter":
            assert value.index is not None
            return self.tile(self.gathered_sum(value.args[0], value.index, n))
        if op == "cat":
            return self.cat(value)
        if op in ("sum", "amax"):
            return self.reduce(value)
        if op == "matmul":
            return self.matmul(value)
        assert op in POINTWISE, op
        return self.pointwise(op, [self.tile(arg) for arg in value.args], n)

    def gathered_sum(self, x: Value, index: Map, size: int) -> Value:
        """A scatter as a sum of what is gathered for each component."""
        table = inverse_table(index, size)
        made = self.builder.sum(self.builder.gather(x, table), size, table.shape[1], 1)
        self.keep.append(made)
        return made

    def pointwise(self, op: str, args: list[Tile], n: int) -> Tile:
        number = folded(op, [arg.number for arg in args])
        if number is not None:
            return Tile(literal(number, self.code.dtype), n, 1, False, 1, number)
        width, rows = max(arg.width for arg in args), max(arg.rows for arg in args)
        plain = takes_plain_numbers(op) and any(arg.number is None for arg in args)
        texts = [arg.text if arg.number is None or plain else self.typed(arg) for arg in args]
        return Tile(
            self.assign(expression(op, texts, self.code.kind), f"({n})"), n, width, self.stays_clean(op, args), rows
        )

    def typed(self, tile: Tile) -> str:
        return f"tl.full([1, 1], {tile.text}, {self.code.kind})"

    def stays_clean(self, op: str, args: list[Tile]) -> bool:
        """Whether zeros in the padding of the operands give zeros in that of the result."""
        padded = [arg.clean and arg.width > 1 for arg in args]
        if op in ("mul", "tanh_back", "sigmoid_back") and any(padded):
            # Of one that is the same for all components: if it is infinite, so is the result, which then is no use.
            return all(p or arg.width == 1 for p, arg in zip(padded, args, strict=True)) and (op == "mul" or padded[0])
        if op == "where":
            return all(p or arg.number == 0.0 for p, arg in zip(padded[1:], args[1:], strict=True))
        numbers = [0.0 if p else arg.number for p, arg in zip(padded, args, strict=True)]
        return folded(op, numbers) == 0.0

    # -- leaves

    def leaf(self, leaf: Value, index: Map, width: int | None = None) -> Tile:
        """Components of a leaf, 0 where the index is negative."""
        kind, number = leaf.op, leaf.data[0]
        n = len(index)
        width = width or self.pad(n)
        if n > 1 and bool((index == index[0]).all()) and index[0] >= 0:
            one = self.leaf(leaf, index[:1])
            return Tile(one.text, n, 1, False, one.rows)
        at = affine(index, 1, n) if bool((index >= 0).all()) else None
        if at is not None:
            offset, _, stride = at
            lane = f"tl.arange(0, {width})"
            place = lane if stride == 1 else f"{lane} * {stride}"
            place = place if offset == 0 else f"{place} + {offset}"
            name = f"{kind}{number}_{offset}_{stride}_{n}of{width}"
            mask = "" if width == n else f"{lane} < {n}"
        else:
            padded = np.full(width, -1, dtype=np.int64)
            padded[:n] = index
            offset = self.code.pool.place(padded)
            place = f"tl.load(tables_ptr + {offset} + tl.arange(0, {width}))"
            name = f"{kind}{number}_index{offset}_{n}"
            mask = f"{place} >= 0"
        return Tile(self.load(name, kind, number, [place], mask), n, width, True, 1 if kind == SHARED else self.samples)

    def load(self, name: str, kind: str, number: int, places: list[str], mask: str) -> str:
        """A tile of a leaf: [samples or 1, ...]; ``places``: one term for each axis after the first."""
        axes = len(places)
        expand = lambda i: "[" + ", ".join(["None"] * (i + 1) + [":"] + ["None"] * (axes - 1 - i)) + "]"  # noqa: E731
        place = " + ".join(f"({p}){expand(i)}" for i, p in enumerate(places))
        if kind == SAMPLE:
            own = "[:" + ", None" * axes + "]"
            place = f"(sample * sample{number}_stride){own} + {place}"
        other = f", mask={mask}, other=0.0" if mask else ""
        text = f"tl.load({kind}{number}_ptr + {place}{other})"
        if axes == 1 and mask:
            text = f"tl.load({kind}{number}_ptr + {place}, mask=({mask})[None, :], other=0.0)"
        text = in_kind(text, self.code.half(kind, number), self.code.kind)
        if kind == SHARED and not self.code.launch.hoist:
            self.routine.constants[f"shared{number}_ptr"] = None
            if "tables_ptr" in text:
                self.routine.constants["tables_ptr"] = None
            if name not in self.loaded:
                self.loaded.add(name)
                self.routine.body.add(f"{name} = {text}")
            return name
        return self.constant(name, text)

    # -- moves

    def gather(self, x: Value, index: Map) -> Tile:
        n = len(index)
        root = x
        while root.op == "stop":
            root = root.args[0]
        if root.op in (SHARED, SAMPLE):
            return self.leaf(root, index)
        tile = self.tile(x)
        holes = bool((index < 0).any())
        if bool((index < 0).all()):
            return Tile("0.0", n, 1, False, 1, 0.0)
        if (tile.width == 1) and not holes:
            return Tile(tile.text, n, 1, False, tile.rows, tile.number)
        if not holes and bool((index == index[0]).all()):
            part = f"tl.where({self.lanes(tile.width)} == {index[0]}, {tile.text}, 0.0)"
            return Tile(self.assign(f"tl.sum({part}, axis=1, keep_dims=True)", "(1)"), n, 1, False, tile.rows)
        width = self.pad(n)
        if width == tile.width and np.array_equal(index, np.arange(n)):
            return Tile(tile.text, n, width, False, tile.rows)
        return self.gathered(tile, index, "0.0")

    def gathered(self, tile: Tile, index: Map, fill: str, width: int | None = None) -> Tile:
        """tile[index], ``fill`` where the index is negative."""
        n = len(index)
        width = width or self.pad(n)
        holes = bool((index < 0).any())
        padded = np.full(width, -1 if holes else 0, dtype=np.int64)
        padded[:n] = index
        at = affine(index, 1, n) if not holes and tile.width > 1 else None
        if at is not None:
            offset, _, stride = at
            where = self.lanes(width) if stride == 1 else f"{self.lanes(width)} * {stride}"
            where = where if offset == 0 else f"{where} + {offset}"
            if offset + stride * (width - 1) >= tile.width:
                where = f"tl.minimum({where}, {tile.width - 1})"
        else:
            where = self.table(padded)
        if tile.width == 1:  # all components the same, but for the holes
            text = tile.text if tile.number is None else self.typed(tile)
        else:
            chosen = f"tl.maximum({where}, 0)" if holes else where
            text = f"tl.gather({tile.text}, tl.broadcast_to({chosen}, [{tile.rows}, {width}]), 1)"
        if holes:
            text = f"tl.where({where} >= 0, {text}, {fill})"
        return Tile(self.assign(text, f"({n})"), n, width, holes and fill == "0.0", tile.rows)

    def cat(self, value: Value) -> Tile:
        n = value.size
        width = self.pad(n)
        lane = self.lanes(width)
        total: str | None = None
        rows, start, clean = 1, 0, True
        for piece in value.args:
            tile = self.tile(piece)
            rows = max(rows, tile.rows)
            end = start + piece.size
            if tile.width == 1:
                text = tile.text if tile.number is None else self.typed(tile)
            elif start == 0 and tile.width == width:
                text = tile.text
            else:
                place = f"tl.minimum(tl.maximum({lane} - {start}, 0), {tile.width - 1})"
                text = f"tl.gather({tile.text}, tl.broadcast_to({place}, [{tile.rows}, {width}]), 1)"
            if total is None:
                # What comes after it is overwritten by the pieces that follow, but for the padding.
                total = self.assign(text if tile.width > 1 else f"tl.where({lane} < {end}, {text}, 0.0)")
                clean = tile.width == 1
            else:
                inside = f"{lane} == {start}" if piece.size == 1 else f"({lane} >= {start}) & ({lane} < {end})"
                total = self.assign(f"tl.where({inside}, {text}, {total})")
            start = end
        assert total is not None
        return Tile(total, n, width, clean, rows)

    def laid_out(self, value: Value, sizes: Sequence[int], index: Map | None = None, fill: str = "0.0") -> Tile:
        """The value, or its components ``index`` (sizes), as a tile of padded sizes with ``fill`` in the padding."""
        padded = [power_of_two(size) for size in sizes]
        full = np.full(padded, -1, dtype=np.int64)
        full[tuple(slice(size) for size in sizes)] = (
            np.arange(value.size).reshape(sizes) if index is None else index.reshape(sizes)
        )
        flat = full.reshape(-1)
        while value.op in ("gather", "stop"):
            if value.op == "gather":
                assert value.index is not None
                flat = np.where(flat < 0, -1, value.index[flat]) if value.size else flat
            value = value.args[0]
        if value.op in (SHARED, SAMPLE) and fill == "0.0":
            return self.widened(self.leaf(value, flat, len(flat)), len(flat))
        tile = self.tile(value)
        if tile.number is None and len(flat) == tile.width and np.array_equal(flat, np.arange(len(flat))):
            return Tile(tile.text, tile.width, tile.width, True, tile.rows)
        return self.widened(self.gathered(tile, flat, fill, len(flat)), len(flat))

    def widened(self, tile: Tile, width: int) -> Tile:
        if tile.width == width and tile.number is None:
            return tile
        if tile.number is not None:
            text = f"tl.full([{tile.rows}, {width}], {tile.text}, {self.code.kind})"
        else:
            text = f"tl.broadcast_to({tile.text}, [{tile.rows}, {width}])"
        return Tile(self.assign(text), width, width, True, tile.rows)

    def kept(self, value: Value) -> Value:
        self.keep.append(value)
        return value

    def flattened(self, text: str, sizes: tuple[int, int], padded: tuple[int, int], rows: int, clean: bool) -> Tile:
        """A padded [rows, .., ..] block as a tile of m n components."""
        (m, n), (high, wide) = sizes, padded
        block = self.assign(f"tl.reshape({text}, [{rows}, {high * wide}])")
        width = self.pad(m * n)
        if (wide == n or m == 1) and high * wide == width:
            return Tile(block, m * n, width, clean, rows)
        index = (np.arange(m)[:, None] * wide + np.arange(n)).reshape(-1)
        return self.gathered(Tile(block, high * wide, high * wide, True, rows), index, "0.0")

    def reduce(self, value: Value) -> Tile:
        outer, reduced, inner = value.data
        x, add = value.args[0], value.op == "sum"
        how = "tl.sum({0}, axis={1})" if add else "tl.reduce({0}, {1}, larger)"
        if outer == inner == 1:
            tile = self.tile(x)
            if tile.width == 1:
                tile = self.whole(tile)
            text = self.clean(tile)
            if not add and tile.width != tile.n:
                text = f'tl.where({self.lanes(tile.width)} < {tile.n}, {tile.text}, float("-inf"))'
            return Tile(self.assign(how.format(text, 1) + "[:, None]", "(1)"), 1, 1, False, tile.rows)
        tile = self.laid_out(x, (outer, reduced, inner), fill="0.0" if add else 'float("-inf")')
        o, r, i = (power_of_two(size) for size in (outer, reduced, inner))
        text = how.format(f"tl.reshape({tile.text}, [{tile.rows}, {o}, {r}, {i}])", 2)
        made = self.assign(text, f"({outer}x{inner})")
        return self.flattened(made, (outer, inner), (o, i), tile.rows, add or (o, i) == (outer, inner))

    # -- products

    def vector(self, value: Value, n: int, offset: int, stride: int) -> Tile:
        """Some components of a value, n at a stride; clean."""
        if (offset, stride, n) != (0, 1, value.size):
            value = self.kept(self.builder.gather(value, offset + stride * np.arange(n)))
        return self.whole(self.tile(value))

    def matrix(
        self, value: Value, rows: int, cols: int, at: tuple[int, int, int], pad: Callable[[int], int] = power_of_two
    ) -> Matrix:
        """A strided operand with more than one row and column."""
        offset, rs, cs = at
        root = value
        while root.op == "stop":
            root = root.args[0]
        shared = root.op == SHARED
        if root.op in (SHARED, SAMPLE):
            flipped = (cs, -cols) > (rs, -rows)  # one load for a matrix and its transpose
            if flipped:
                rows, cols, rs, cs = cols, rows, cs, rs
            high, wide = pad(rows), pad(cols)
            name = f"{root.op}{root.data[0]}_{offset}_{rows}x{cols}_{rs}_{cs}_in{high}x{wide}"
            row, col = f"tl.arange(0, {high})", f"tl.arange(0, {wide})"
            masks = [f"({row} < {rows})[None, :, None]"] if high != rows else []
            masks += [f"({col} < {cols})[None, None, :]"] if wide != cols else []
            places = [f"{row} * {rs} + {offset}" if offset else f"{row} * {rs}", col if cs == 1 else f"{col} * {cs}"]
            text = self.load(name, root.op, root.data[0], places, " & ".join(masks))
            return Matrix(text, high, wide, flipped, shared)
        index = offset + rs * np.arange(rows)[:, None] + cs * np.arange(cols)
        flipped = cs > rs
        if flipped:
            rows, cols, index = cols, rows, index.T
        tile = self.laid_out(value, (rows, cols), np.ascontiguousarray(index))
        high, wide = power_of_two(rows), power_of_two(cols)
        text = self.assign(f"tl.reshape({tile.text}, [{tile.rows}, {high}, {wide}])", f"({rows}x{cols})")
        return Matrix(text, high, wide, flipped, tile.rows == 1)

    def matmul(self, value: Value) -> Tile:
        m, k, n = value.data[:3]
        (a0, ars, acs), (b0, brs, bcs) = value.data[3:6], value.data[6:9]
        a, b = value.args
        note = f"{m}x{k} times {k}x{n}"
        if k == 1:
            left, right = self.vector(a, m, a0, ars), self.vector(b, n, b0, bcs)
            if m == 1 or n == 1:
                return self.pointwise("mul", [left, right], m * n)
            text = self.assign(f"{left.text}[:, :, None] * {right.text}[:, None, :]", note)
            return self.flattened(text, (m, n), (left.width, right.width), max(left.rows, right.rows), True)
        if m == 1 and n == 1:
            left, right = self.vector(a, k, a0, acs), self.vector(b, k, b0, brs)
            text = self.assign(f"tl.sum({left.text} * {right.text}, axis=1)[:, None]", note)
            return Tile(text, 1, 1, False, max(left.rows, right.rows))
        if n == 1:
            return self.times_vector(a, m, k, (a0, ars, acs), (b, b0, brs), note)
        if m == 1:
            return self.times_vector(b, n, k, (b0, bcs, brs), (a, a0, acs), note)
        return self.two_matrices(self.matrix(a, m, k, (a0, ars, acs)), self.matrix(b, k, n, (b0, brs, bcs)), m, k, n)

    def times_vector(
        self, value: Value, m: int, k: int, at: tuple[int, int, int], vector: tuple[Value, int, int], note: str
    ) -> Tile:
        """(M, K), strided, times K components of a value at (offset, stride)."""
        x = self.vector(vector[0], k, *vector[1:])
        matrix = self.columns(value, m, k, at)
        rows = x.rows if matrix.shared else self.samples
        inner, out = (matrix.cols, matrix.rows) if matrix.flipped else (matrix.rows, matrix.cols)
        if x.width != inner:  # padded for tl.dot on one side only
            x = Tile(self.resized(x, inner), x.n, inner, True, x.rows)
        if matrix.shared and x.rows == self.samples and self.code.dots(self.samples, inner, out):
            text = self.assign(self.code.dot(x.text, f"tl.reshape({matrix.text}, [{inner}, {out}])"), note)
        else:
            lanes, axis = ("[:, None, :]", 2) if matrix.flipped else ("[:, :, None]", 1)
            text = self.assign(f"tl.sum({matrix.text} * {x.text}{lanes}, axis={axis})", note)
        made = Tile(text, m, out, True, rows)
        return made if out == self.pad(m) else Tile(self.resized(made, self.pad(m)), m, self.pad(m), True, rows)

    def columns(self, value: Value, m: int, k: int, at: tuple[int, int, int]) -> Matrix:
        """The transpose [samples or 1, K, M] of a strided operand, for sums over K.

        Threads lie along M, and each sums its part of K by itself: partial sums of many threads would have to be
        exchanged for every row. So the compiler must not see that K is contiguous, or it would lay threads along K.
        """
        root = value
        while root.op == "stop":
            root = root.args[0]
        offset, rs, cs = at
        if root.op not in (SHARED, SAMPLE):
            made = self.matrix(value, k, m, (offset, cs, rs))
            if not made.flipped:
                return made
            return Matrix(self.assign(f"tl.permute({made.text}, [0, 2, 1])"), made.cols, made.rows, False, made.shared)
        hidden = cs == 1 and rs > 1 and not (self.code.launch.dot and root.op == SHARED)
        if hidden and (self.code.back is not None or not last_axis_first()):
            return self.rows_first(root, m, k, at)
        high, wide = self.pad(k), self.pad(m)
        name = f"{root.op}{root.data[0]}_{offset}_{k}x{m}_{cs}_{rs}_in{high}x{wide}"
        row, col = f"tl.arange(0, {high})", f"tl.arange(0, {wide})"
        masks = [f"({row} < {k})[None, :, None]"] if high != k else []
        masks += [f"({col} < {m})[None, None, :]"] if wide != m else []
        row = f"tl.max_contiguous({row}, 1)" if hidden else row if cs == 1 else f"{row} * {cs}"
        col = col if rs == 1 else f"{col} * {rs}"
        places = [f"{row} + {offset}" if offset else row, col]
        text = self.load(name, root.op, root.data[0], places, " & ".join(masks))
        return Matrix(text, high, wide, False, root.op == SHARED)

    def rows_first(self, leaf: Value, m: int, k: int, at: tuple[int, int, int]) -> Matrix:
        """As ``columns``, but [samples or 1, M, K].

        For compilers that lay threads along the first of equal axes, and for the adjoint: there the transposed product
        and the gradient want the matrix as it lies, and a second copy in another layout costs more than it saves.
        """
        offset, rs, _ = at
        high, wide = self.pad(m), self.pad(k)
        name = f"{leaf.op}{leaf.data[0]}_{offset}_rows{m}x{k}_{rs}_in{high}x{wide}"
        row, col = f"tl.arange(0, {high})", f"tl.arange(0, {wide})"
        masks = [f"({row} < {m})[None, :, None]"] if high != m else []
        masks += [f"({col} < {k})[None, None, :]"] if wide != k else []
        if self.code.back is None:
            col = f"tl.max_contiguous({col}, 1)"
        places = [f"{row} * {rs} + {offset}" if offset else f"{row} * {rs}", col]
        text = self.load(name, leaf.op, leaf.data[0], places, " & ".join(masks))
        return Matrix(text, high, wide, True, leaf.op == SHARED)

    def resized(self, tile: Tile, width: int) -> str:
        """A clean tile at another width that holds its components."""
        where = f"tl.minimum({self.lanes(width)}, {tile.width - 1})"
        text = f"tl.gather({tile.text}, tl.broadcast_to({where}, [{tile.rows}, {width}]), 1)"
        return self.assign(f"tl.where({self.lanes(width)} < {tile.n}, {text}, 0.0)")

    def two_matrices(self, a: Matrix, b: Matrix, m: int, k: int, n: int) -> Tile:
        rows = 1 if a.shared and b.shared else self.samples
        high, wide = (a.cols if a.flipped else a.rows), (b.rows if b.flipped else b.cols)
        inner = a.rows if a.flipped else a.cols
        if b.shared and not a.shared and not a.flipped and self.code.dots(rows * high, inner, wide):
            flat = f"tl.reshape({b.text}, [{b.rows}, {b.cols}])"
            product = self.code.dot(
                f"tl.reshape({a.text}, [{rows * high}, {inner}])", f"tl.trans({flat})" if b.flipped else flat
            )
            return self.flattened(self.assign(product, f"{m}x{k} times {k}x{n}"), (m, n), (high, wide), rows, True)
        # Axes in an order that both operands have.
        left = ("k", "m") if a.flipped else ("m", "k")
        right = ("n", "k") if b.flipped else ("k", "n")
        order = {
            (False, False): "mkn",
            (True, False): "kmn",
            (False, True): "mnk",
            (True, True): "nkm",
        }[a.flipped, b.flipped]
        expand = lambda own: "[:, " + ", ".join(":" if axis in own else "None" for axis in order) + "]"  # noqa: E731
        text = f"tl.sum({a.text}{expand(left)} * {b.text}{expand(right)}, axis={order.index('k') + 1})"
        kept = order.replace("k", "")
        text = self.assign(text, f"{m}x{k} times {k}x{n}")
        if kept == "nm":
            text = self.assign(f"tl.permute({text}, [0, 2, 1])")
        return self.flattened(text, (m, n), (high, wide), rows, True)
