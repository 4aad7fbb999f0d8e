"""The largest components of windows of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastode.program.ir import Value
from fastode.program.lower.lowering import Lowering, Rule
from fastode.program.lower.reductions import first_of
from fastode.program.trace import Call, Meta

_aten = torch.ops.aten


def _largest_of(low: Lowering, x: Value, windows: list[list[int]], call: Call) -> Value:
    """The largest component of each window, with the gradient to the first such."""
    longest = max(map(len, windows))
    table = np.array(
        [window + window[-1:] * (longest - len(window)) for window in windows]
    )  # the last again is no first
    return first_of("max")(low.b, low.b.gather(x, table), len(windows), longest, call)


def _max_pool(low: Lowering, call: Call, meta: Meta) -> Value:
    given = [*call.args[1:], *[None, 0, 1, False][len(call.args) - 2 :]]
    pair = lambda v: [int(v)] * 2 if isinstance(v, int) else [int(n) for n in v] * (2 // len(v))  # noqa: E731
    kernel, padding, dilation = pair(given[0]), pair(given[2]), pair(given[3])
    stride = pair(given[1]) if given[1] else kernel
    source = low.graph.metas[call.args[0].index]
    x = low.read(call.args[0].index)
    if x.op == "unsupported":
        return x
    if source.batch_dim is None or source.batch_dim >= len(source.shape) - 2:
        return low.b.unsupported(f"{call.func} over the samples")
    (height, width), (rows, cols) = source.shape[-2:], meta.shape[-2:]
    windows = []
    for start in range(0, x.size, height * width):
        for i, j in np.ndindex(rows, cols):
            ys = [i * stride[0] - padding[0] + k * dilation[0] for k in range(kernel[0])]
            xs = [j * stride[1] - padding[1] + k * dilation[1] for k in range(kernel[1])]
            windows.append([start + r * width + c for r in ys for c in xs if 0 <= r < height and 0 <= c < width])
    return _largest_of(low, x, windows, call)


def _adaptive_max_pool(low: Lowering, call: Call, meta: Meta) -> Value:
    source = low.graph.metas[call.args[0].index]
    x = low.read(call.args[0].index)
    if x.op == "unsupported":
        return x
    if source.batch_dim is None or source.batch_dim >= len(source.shape) - 2:
        return low.b.unsupported(f"{call.func} over the samples")
    (height, width), (rows, cols) = source.shape[-2:], meta.shape[-2:]
    part = lambda i, n, size: range(i * size // n, -(-(i + 1) * size // n))  # noqa: E731
    windows = [
        [start + r * width + c for r in part(i, rows, height) for c in part(j, cols, width)]
        for start in range(0, x.size, height * width)
        for i, j in np.ndindex(rows, cols)
    ]
    return _largest_of(low, x, windows, call)


RULES: dict[Any, Rule] = {
    _aten.max_pool2d_with_indices.default: _max_pool,
    _aten.adaptive_max_pool2d.default: _adaptive_max_pool,
}
