"""Operations whose result is a view of their argument, and what they do to the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fastode.program.trace import Batch, Call, Meta

_aten = torch.ops.aten

VIEWS = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.reshape.default,
    _aten._reshape_alias.default,
    _aten.t.default,
    _aten.transpose.int,
    _aten.permute.default,
    _aten.unsqueeze.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.slice.Tensor,
    _aten.select.int,
    _aten.expand.default,
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
    _aten.unbind.int,
    _aten.detach.default,
    _aten.alias.default,
    _aten.diagonal.default,
    _aten.unfold.default,
    _aten.movedim.int,
    _aten.lift_fresh.default,
    _aten.chunk.default,
    _aten.tensor_split.sections,
    _aten.tensor_split.indices,
    _aten.numpy_T.default,
    _aten.mT.default,
    _aten.view_as.default,
    _aten.expand_as.default,
}
"""Operations whose result looks at the storage of their first argument."""


RESHAPES = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.reshape.default,
    _aten._reshape_alias.default,
    _aten.view_as.default,
    _aten.unsqueeze.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
}


EXPANDS = {_aten.expand.default, _aten.expand_as.default}


RESHAPES_IN_PLACE = {
    _aten.squeeze_.default,
    _aten.squeeze_.dim,
    _aten.squeeze_.dims,
    _aten.unsqueeze_.default,
}
"""They change the shape of their argument; a recording has the last shape of a tensor, which is as good for reading."""


def stays_with_samples(call: Call, source: Meta, targets: Sequence[Meta]) -> bool:
    """Whether a view takes the same components of every sample: of k rows for each x[::k] does, x[::k + 1] does not."""
    at = source.batch_dim
    dims = [d % len(source.shape) for name, d in _named(call) if name in ("dim", "dimension", "dim1", "dim2")]
    places = [meta.batch_dim for meta in targets if meta.batch_dim is not None]
    if at is None or at not in dims or len(places) < len(targets):
        return True
    n, rows = 5, source.shape[at]  # not a number of samples of the recording
    shape = [*source.shape[:at], n * rows, *source.shape[at + 1 :]]
    whole = torch.arange(int(np.prod(shape))).reshape(shape)
    together, *alone = (
        pytree.tree_leaves(call.func(part, *for_batch(call.args[1:], batch), **for_batch(call.kwargs, batch)))
        for part, batch in ((whole, n), *((part, 1) for part in whole.split(rows, at)))
    )
    parts = zip(places, together, zip(*alone, strict=True), strict=True)
    return all(torch.equal(out, torch.cat(own, place)) for place, out, own in parts)


def for_batch(arguments: Any, batch: int) -> Any:
    """A call's arguments for so many samples."""
    return pytree.tree_map(lambda a: a.times * batch if isinstance(a, Batch) else a, arguments)


def _named(call: Call) -> Iterator[tuple[str, Any]]:
    """Names of a call's arguments, and what they are, given or by default."""
    for i, argument in enumerate(call.func._schema.arguments):
        given = call.args[i] if i < len(call.args) else call.kwargs.get(argument.name, argument.default_value)
        yield argument.name, given


def same_prefix(source: Meta, target: Meta) -> bool:
    """Whether a reshape leaves the batch dimension the same number of components in front of it."""
    if source.batch_dim is None or target.batch_dim is None:
        return source.batch_dim == target.batch_dim
    before = [int(np.prod(meta.shape[: meta.batch_dim])) for meta in (source, target)]
    return before[0] == before[1]
