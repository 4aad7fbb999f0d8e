"""The prologue: what depends on parameters and controls alone, left to torch and run once per solve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastode.program.trace import Batch, Call, Ref


def needed(calls: list[tuple[Call, list[int]]], wanted: set[int]) -> list[Call]:
    """The calls that the wanted tensors depend on, in their order; each with the storages that it writes into."""
    kept: list[Call] = []
    wanted = set(wanted)
    for call, written in reversed(calls):
        if wanted.intersection((*call.outputs, *written)):
            kept.append(call)
            wanted.update(leaf.index for leaf in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Ref))
    return kept[::-1]


def _actual(x: Any, known: dict[int, Tensor], batch: int) -> Any:
    """Arguments of a call: as by ``pytree.tree_map``, which takes ten times as long for so few."""
    kind = type(x)
    if kind is tuple or kind is list:
        return kind([_actual(part, known, batch) for part in x])
    if kind is dict:
        return {key: _actual(value, known, batch) for key, value in x.items()}
    if kind is Ref:
        return known[x.index]
    return x.times * batch if kind is Batch else x


def run_prologue(calls: Sequence[Call], known: dict[int, Tensor], batch: int) -> dict[int, Tensor]:
    """Executes the prologue on whole tensors; adds its results to ``known``, tensors by number."""
    for call in calls:
        args, kwargs = _actual(call.args, known, batch), _actual(call.kwargs, known, batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and call.grad):
            out = call.func(*args, **kwargs)
        tensors = [out] if isinstance(out, Tensor) else [x for x in pytree.tree_leaves(out) if isinstance(x, Tensor)]
        known.update(zip(call.outputs, tensors, strict=True))
    return known


def fold_prologue(calls: Sequence[Call], literals: dict[int, Tensor]) -> list[Call]:
    """Executes now what depends on numbers in the code alone, into ``literals``; returns the other calls."""
    rest: list[Call] = []
    for call in calls:
        leaves = pytree.tree_leaves((call.args, call.kwargs))
        refs = {leaf.index for leaf in leaves if isinstance(leaf, Ref)}
        later = {number for other in calls for number in other.outputs if other is not call and _writes(other)}
        fixed = refs <= literals.keys() and not any(isinstance(leaf, Batch) for leaf in leaves)
        if not fixed or _writes(call) or later & (refs | set(call.outputs)):
            rest.append(call)
        else:
            with torch.no_grad():
                run_prologue([call], literals, 1)
    return rest


def _writes(call: Call) -> bool:
    return bool(call.func._schema.is_mutable)
