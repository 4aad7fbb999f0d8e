"""From recorded torch operations to a program: what depends on time or state becomes arithmetic on one sample.

What depends only on parameters and controls is left to torch: it is the prologue, run once per solve on whole tensors,
with torch's own gradient. Its results are leaves of the program.

Every tensor is a storage and an index into it, so that views, and writing through them, come out right. Rules for
operations stand by subject in the modules here, those for pointwise ones in ``program/rules.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fastode.program.ir import SAMPLE, SHARED, Leaf, Program, in_order
from fastode.program.lower import indexing, norms, pooling, products, reductions, shapes, softmax
from fastode.program.lower.lowered import Lowered, Origin
from fastode.program.lower.lowering import Lowering
from fastode.program.lower.prologue import fold_prologue, needed, run_prologue
from fastode.program.lower.views import RESHAPES_IN_PLACE, VIEWS
from fastode.program.rules import EMPTY, FILLS, POINTWISE
from fastode.program.trace import Graph, Meta, NotAProgram

__all__ = ["KNOWN", "RULES", "Lowered", "Origin", "fold_prologue", "lower", "run_prologue"]

RULES = {
    **reductions.RULES,
    **products.RULES,
    **shapes.RULES,
    **indexing.RULES,
    **norms.RULES,
    **softmax.RULES,
    **pooling.RULES,
}
KNOWN = {*POINTWISE, *FILLS, *EMPTY, *VIEWS, *RULES, *RESHAPES_IN_PLACE, torch.ops.aten.copy_.default}
"""Operations that lowering understands; others are first tried by torch's decompositions."""


def lower(graph: Graph, dim: int, dtype: torch.dtype, device: torch.device, name_of: Callable[[int], str]) -> Lowered:
    """The program of a graph.

    Args:
        graph: the recorded operations.
        dim: number of components of the state.
        dtype: of the state.
        device: of the state.
        name_of: names of controls and externals, by number, for printing.

    Raises:
        NotAProgram: the result depends on something that no program can compute.
    """
    lowering = Lowering(graph, dim, dtype, device, name_of, RULES)
    output = lowering.run()
    for value in in_order([output]):
        if value.op == "unsupported":
            raise NotAProgram(value.data[0], value.data[1] if len(value.data) > 1 else None)
    if output.size == 1 and dim != 1:
        output = lowering.b.gather(output, np.zeros(dim, dtype=np.int64))
    halves = lowering.halves()

    def leaf(number: int) -> Leaf:
        source = halves.get(number, number)
        half = str(graph.metas[source].dtype).removeprefix("torch.") if number in halves else None
        return Leaf(name_of(source), _leaf_shape(graph.metas[number]), half)

    def origin(sources: dict[int, int]) -> Origin:
        shared, sample = ([sources.get(n, n) for n in lowering.leaves[kind]] for kind in (SHARED, SAMPLE))
        return Origin(shared, sample, needed(lowering.prologue, {*shared, *sample}))

    program = Program(dim, output, *(tuple(map(leaf, lowering.leaves[kind])) for kind in (SHARED, SAMPLE)))
    return Lowered(program, lowering.b, origin({}), origin(halves) if halves else None, lowering.indices)


def _leaf_shape(meta: Meta) -> tuple[int, ...]:
    return tuple(n for d, n in enumerate(meta.shape) if d != meta.batch_dim or n != 1)
