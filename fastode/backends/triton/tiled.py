"""Programs in the tiled shape: states are [samples, width] tiles, and threads share a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastode.backends.triton.code import Accumulator, Code, Routine
from fastode.backends.triton.text import power_of_two
from fastode.backends.triton.tiles import TileBody
from fastode.program.ir import POINTWISE, SAMPLE, SHARED, Accumulation, Map, Value, affine


class TiledCode(Code):
    """See ``Code``."""

    def pad(self, n: int) -> int:
        """Width of a tile of n components."""
        return 1 if n == 1 else max(16 if self.launch.dot else 1, power_of_two(n))

    def dots(self, rows: int, inner: int, cols: int) -> bool:
        """Whether a product with a shared matrix is done by ``tl.dot``."""
        return self.launch.dot and min(rows, inner, cols) >= 16

    def dot(self, left: str, right: str) -> str:
        """``tl.dot`` in the precision of the launch parameters."""
        return f'tl.dot({left}, {right}, input_precision="{self.launch.precision}", out_dtype={self.kind})'

    def parts(self, name: str) -> list[str]:
        return [name]

    def wide(self, name: str) -> str:
        return f"{name}[:, None]"

    @property
    def width(self) -> int:
        """Of a state's tile."""
        return self.pad(self.program.dim)

    def address(self, row: str) -> list[str]:
        return [f"({row})[:, None] * {self.program.dim} + tl.arange(0, {self.width})[None, :]"]

    def components(self) -> list[str]:
        return [f"tl.arange(0, {self.width})[None, :]"]

    def mask(self, condition: str | None) -> str:
        inside = f"(tl.arange(0, {self.width}) < {self.program.dim})[None, :]"
        if self.width == self.program.dim:
            return "" if condition is None else f"({condition})[:, None]"
        return inside if condition is None else f"({condition})[:, None] & {inside}"

    def sum_squares(self, parts: Sequence[str]) -> str:
        return f"tl.sum(({parts[0]}).to(tl.float64) * ({parts[0]}).to(tl.float64), axis=1)"

    def finite(self, parts: Sequence[str]) -> str:
        return f'tl.min((tl.abs({parts[0]}) < float("inf")).to(tl.int32), axis=1)'

    def zeros(self) -> str:
        return f"tl.zeros([{self.samples}, {self.width}], {self.kind})"

    def build_field(self, routine: Routine) -> list[str]:
        body = TileBody(self, routine)
        return [body.whole(body.tile(self.program.output), self.samples).text]

    def build_pull(self, routine: Routine) -> tuple[list[str], list[str]]:
        assert self.back is not None
        body = TileBody(self, routine)
        for value in self.back.values():  # in this order, so that few are alive at a time
            if value.op in POINTWISE or value.op == "matmul":
                body.tile(value)
        state = body.whole(body.tile(self.back.state), self.samples).text
        values = [value for term in self.back.terms for value in self.accumulate(body, term)]
        return [state], values

    def accumulate(self, body: TileBody, term: Accumulation) -> list[str]:
        kind, leaf = term.leaf.op, int(term.leaf.data[0])
        if term.other is None:
            assert term.target is not None
            return [self.accumulate_components(body, kind, leaf, term.value, term.target)]
        m, k, inner = term.sizes
        offset, s0, s1 = term.place
        target = (offset + s0 * np.arange(m)[:, None] + s1 * np.arange(k)).reshape(-1)
        if m == 1 or k == 1 or len(np.unique(target)) < len(target):
            product = body.builder.matmul_strided(
                term.value, term.other, m, inner, k, term.value_strides, self.flipped(term.other_strides)
            )
            return [self.accumulate_components(body, kind, leaf, body.kept(product), target)]
        return [self.accumulate_matrix(body, kind, leaf, term, target.reshape(m, k))]

    @staticmethod
    def flipped(at: tuple[int, int, int]) -> tuple[int, int, int]:
        """The strides of the transpose."""
        return at[0], at[2], at[1]

    def accumulate_components(self, body: TileBody, kind: str, leaf: int, value: Value, target: Map) -> str:
        """leaf[target[i]] += value[i]; kept by sample until the end, also where the leaf is shared."""
        unique, where = np.unique(target, return_inverse=True)
        if value.size == 1 and len(target) > 1:
            value = body.kept(body.builder.gather(value, np.zeros(len(target), dtype=np.int64)))
        if len(unique) < len(target):
            value = body.gathered_sum(value, where.reshape(-1), len(unique))
            positions = unique
        else:
            positions = target
        padded = np.full(self.pad(len(positions)), -1, dtype=np.int64)
        padded[: len(positions)] = positions
        made = self.add_accumulator(kind, leaf, padded)
        tile = body.whole(body.tile(value), self.samples)
        return body.assign(f"{made.name} + {tile.text}")

    def accumulate_matrix(self, body: TileBody, kind: str, leaf: int, term: Accumulation, target: Map) -> str:
        """leaf[target[i, j]] += sum_k value[i, k] other[j, k]."""
        assert term.other is not None
        m, k, inner = term.sizes
        if inner == 1:
            left = body.vector(term.value, m, term.value_strides[0], term.value_strides[1])
            right = body.vector(term.other, k, term.other_strides[0], term.other_strides[1])
            high, wide = left.width, right.width
            dotted = left.rows == right.rows == self.samples and self.dots(high, self.samples, wide)
            product = f"{left.text}[:, :, None] * {right.text}[:, None, :]"
            by_dot = self.dot(f"tl.trans({left.text})", right.text)
        else:
            # [samples, M, inner] and [samples, K, inner], or with the last two the other way round
            a = body.matrix(term.value, m, inner, term.value_strides)
            b = body.matrix(term.other, k, inner, term.other_strides)
            high, wide = (a.cols if a.flipped else a.rows), (b.cols if b.flipped else b.rows)
            x = a.text if a.flipped else f"tl.permute({a.text}, [0, 2, 1])"
            y = b.text if b.flipped else f"tl.permute({b.text}, [0, 2, 1])"  # [samples, inner, ...]
            x, y = body.assign(x), body.assign(y)
            depth = a.rows if a.flipped else a.cols
            product = f"tl.sum({x}[:, :, :, None] * {y}[:, :, None, :], axis=1)"
            dotted = not a.shared and not b.shared and self.dots(high, self.samples * depth, wide)
            rows = self.samples * depth
            by_dot = self.dot(f"tl.trans(tl.reshape({x}, [{rows}, {high}]))", f"tl.reshape({y}, [{rows}, {wide}])")
        positions = np.full((high, wide), -1, dtype=np.int64)
        positions[:m, :k] = target
        made = self.add_accumulator(kind, leaf, positions)
        if kind == SAMPLE:
            return body.assign(f"{made.name} + {product}", f"{m}x{k}")
        total = by_dot if dotted else f"tl.sum({product}, axis=0)"
        return body.assign(f"{made.name} + {total}", f"{m}x{k}")

    def accumulator_names(self, accumulator: Accumulator) -> list[str]:
        return [accumulator.name]

    def accumulator_start(self, accumulator: Accumulator) -> list[str]:
        sizes = list(accumulator.positions.shape)
        lanes = [] if accumulator.kind == SHARED and len(sizes) == 2 else [self.samples]
        return [f"tl.zeros({[*lanes, *sizes]}, {self.kind})"]

    def accumulator_places(self, accumulator: Accumulator) -> list[tuple[str, str, str]]:
        name, positions = accumulator.name, accumulator.positions
        if accumulator.kind == SHARED:
            if positions.ndim == 1:
                place = f"{accumulator.offset} + tl.arange(0, {len(positions)})"
                return [(f"tl.sum({name}, axis=0)", place, "")]
            high, wide = positions.shape
            place = f"{accumulator.offset} + tl.arange(0, {high})[:, None] * {wide} + tl.arange(0, {wide})[None, :]"
            return [(name, place, "")]
        size = self.program.sample[accumulator.leaf].size
        own = "sample" + "[:" + ", None" * positions.ndim + "]"
        valid = "valid" + "[:" + ", None" * positions.ndim + "]"
        offset, mask = self.positions(positions)
        return [(name, f"{own} * {size} + {offset}", valid + (f" & {mask}" if mask else ""))]

    def positions(self, positions: Map) -> tuple[str, str]:
        """Offsets of a tile's entries in a leaf, an axis for samples in front, and which of them are no padding."""
        inside = positions >= 0
        if positions.ndim == 1:
            n = int(inside.sum())
            lane = f"tl.arange(0, {len(positions)})"
            mask = "" if n == len(positions) else f"({lane} < {n})[None, :]"
            at = affine(positions[:n], 1, n)
            if at is not None:
                return f"({lane} * {at[2]} + {at[0]})[None, :]", mask
            table = f"tl.load(tables_ptr + {self.pool.place(positions)} + {lane})[None, :]"
            return table, f"({table} >= 0)"
        m, k = int(inside[:, 0].sum()), int(inside[0].sum())
        at = affine(positions[:m, :k].reshape(-1), m, k)
        high, wide = positions.shape
        row, col = f"tl.arange(0, {high})", f"tl.arange(0, {wide})"
        if at is not None:
            masks = [f"({row} < {m})[None, :, None]"] if m != high else []
            masks += [f"({col} < {k})[None, None, :]"] if k != wide else []
            return f"({row} * {at[1]} + {at[0]})[None, :, None] + ({col} * {at[2]})[None, None, :]", " & ".join(masks)
        place = self.pool.place(positions)
        table = f"tl.load(tables_ptr + {place} + {row}[:, None] * {wide} + {col}[None, :])[None, :, :]"
        return table, f"({table} >= 0)"
