"""Recognises programs that the kernels of backend ``cuda`` compute: one or two layers with per-sample weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fastode.program.ir import SAMPLE, STATE, Program, Value, affine

Matrix = tuple[int, int, int, int]
"""Which leaf, offset in it, row and column stride."""


@dataclass(frozen=True)
class Layer:
    """x -> activation(alpha W x + b), W (rows, cols) and b (rows) of each sample somewhere in its leaves.

    Attributes:
        rows, cols: size of W.
        activation: one of ``_C.net_activations``.
        alpha: a number.
        weight: place of W.
        bias: place of b, with column stride 0; None if there is none.
    """

    rows: int
    cols: int
    activation: str
    alpha: float
    weight: Matrix
    bias: Matrix | None

    def places(self) -> list[tuple[int, NDArray[np.int64]]]:
        """Leaf and components of the weights and of the bias."""
        leaf, offset, rs, cs = self.weight
        found = [(leaf, offset + rs * np.arange(self.rows)[:, None] + cs * np.arange(self.cols))]
        if self.bias is not None:
            leaf, offset, rs, _ = self.bias
            found.append((leaf, offset + rs * np.arange(self.rows)))
        return [(leaf, index.reshape(-1)) for leaf, index in found]


@dataclass(frozen=True)
class Net:
    """A field of layers.

    Attributes:
        layers: from the state on.
        covered: for each per-sample leaf, whether every component of it is a weight or a bias.
    """

    layers: tuple[Layer, ...]
    covered: tuple[bool, ...]

    @property
    def widest(self) -> int:
        """The largest number of rows or columns."""
        return max(max(layer.rows, layer.cols) for layer in self.layers)


@lru_cache(maxsize=256)
def recognise(program: Program) -> Net | str:
    """The layers of a program, or why it is not made of one or two."""
    layers: list[Layer] = []
    value = program.output
    while value.op != STATE:
        found = _layer(value)
        if isinstance(found, str):
            return found
        layer, value = found
        layers.insert(0, layer)
        if len(layers) > 2:
            return "it computes fields of one or two layers"
    if not layers:
        return "the field is the state itself"
    if layers[-1].rows != program.dim or layers[0].cols != program.dim:
        return "a layer does not take the whole state"
    seen = [np.zeros(leaf.size, dtype=np.int64) for leaf in program.sample]
    for layer in layers:
        for leaf, index in layer.places():
            np.add.at(seen[leaf], index, 1)
    if any(int(count.max(initial=0)) > 1 for count in seen):
        return "a weight is used twice"
    return Net(tuple(layers), tuple(bool((count == 1).all()) for count in seen))


def _layer(value: Value) -> tuple[Layer, Value] | str:
    """A layer whose output is ``value``, and its input."""
    activation, inner = _activation(value)
    bias: Matrix | None = None
    if inner.op == "add":
        for product, other in (inner.args, inner.args[::-1]):
            place = _vector(other)
            if place is not None and _scaled(product) is not None:
                inner, bias = product, place
                break
        else:
            return "it is no product with a per-sample matrix plus a per-sample vector, with an activation around it"
    scaled = _scaled(inner)
    if scaled is None:
        return "it is no product with a per-sample matrix plus a per-sample vector, with an activation around it"
    alpha, product = scaled
    m, k, n, a_offset, a_rows, a_cols, b_offset, b_rows, b_cols = product.data
    first, second = product.args
    # As a column, W x, or as a row, x W^T.
    if first.op == SAMPLE and n == 1 and b_offset == 0 and (b_rows == 1 or k == 1) and second.size == k:
        weight, x, rows, cols = (first.data[0], a_offset, a_rows, a_cols), second, m, k
    elif second.op == SAMPLE and m == 1 and a_offset == 0 and (a_cols == 1 or k == 1) and first.size == k:
        weight, x, rows, cols = (second.data[0], b_offset, b_cols, b_rows), first, n, k
    else:
        return "a product is not that of a per-sample matrix and a vector"
    if x.op in ("const", SAMPLE):
        return "a product does not depend on the state"
    return Layer(rows, cols, activation, alpha, weight, bias), x


def _scaled(value: Value, alpha: float = 1.0) -> tuple[float, Value] | None:
    """(alpha, product) if the value is alpha times a matrix product."""
    if value.op == "matmul":
        return alpha, value
    if value.op == "neg":
        return _scaled(value.args[0], -alpha)
    if value.op == "mul":
        for number, other in (value.args, value.args[::-1]):
            if number.constant is not None:
                return _scaled(other, alpha * number.constant)
    if value.op == "div" and value.args[1].constant:
        return _scaled(value.args[0], alpha / value.args[1].constant)
    return None


def _vector(value: Value) -> Matrix | None:
    """Place of a vector of a per-sample leaf."""
    if value.op == SAMPLE:
        return value.data[0], 0, 1, 0
    if value.op != "gather" or value.args[0].op != SAMPLE or value.index is None:
        return None
    found = affine(value.index, value.size, 1)
    return None if found is None else (value.args[0].data[0], found[0], found[1], 0)


def _number(value: Value, number: float) -> bool:
    return value.constant is not None and abs(value.constant - number) <= 1e-12 * max(1.0, abs(number))


def _either(value: Value, op: str, number: float) -> Value | None:
    """The operand x of op(x, number) or op(number, x)."""
    if value.op != op:
        return None
    for x, other in (value.args, value.args[::-1]):
        if _number(other, number):
            return x
    return None


def _activation(value: Value) -> tuple[str, Value]:
    """Name and operand of an activation, as lowering writes it; "identity" and the value itself if it is none."""
    if value.op == "stop" and value.gradient is not None:
        value = value.args[0]
    if value.op in ("tanh", "sigmoid", "relu", "sin", "softplus"):
        return value.op, value.args[0]
    if value.op == "mul":
        for x, gate in (value.args, value.args[::-1]):
            if gate.op == "sigmoid" and gate.args[0] is x:
                return "silu", x
            half, erf = _either(x, "mul", 0.5), _either(gate, "add", 1.0)
            if erf is not None and erf.op == "erf":
                scaled = _either(erf.args[0], "mul", 0.5**0.5)
                if scaled is not None and scaled is half:
                    return "gelu", half
    if value.op == "where" and value.args[0].op == "gt":
        condition, x, other = value.args
        if condition.args[0] is x and _number(condition.args[1], 0.0) and other.op == "expm1":
            inner = other.args[0]  # x, or x with zero where it is not used
            if inner is x or (inner.op == "where" and inner.args[0] is condition and inner.args[2] is x):
                return "elu", x
    return "identity", value
