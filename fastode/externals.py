"""Finds the tensors that a field closes over or owns, so that no gradient to them is lost.

Two searches are joined. Watching one evaluation with a dispatch mode finds every tensor that an operation read and that
no operation of the field made: parameters, tensors in closures and results of other networks alike. Walking what the
callable refers to (parameters of modules, closure cells, globals that the code names, arguments of partials) finds
leaves that this evaluation did not happen to read.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_MAX_DEPTH = 6


class _ReadTensors(TorchDispatchMode):
    """Collects tensors that require grad and are read, but not made, while the mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, Tensor] = {}
        self._made: dict[int, Tensor] = {}  # keeps them alive: an id must not be reused

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.requires_grad and id(leaf) not in self._made:
                self.read[id(leaf)] = leaf
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._made[id(leaf)] = leaf
        return out


def watch(evaluate: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Runs one evaluation without gradient; returns its value and the tensors with gradient that it read."""
    mode = _ReadTensors()
    with torch.no_grad(), mode:
        value = evaluate()
    return value, list(mode.read.values())


def owned_leaves(field: Callable[..., Any]) -> list[Tensor]:
    """Leaf tensors that require grad and that the callable owns or refers to."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()

    def visit(value: Any, depth: int) -> None:
        if depth > _MAX_DEPTH or id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.requires_grad and value.is_leaf:
                found[id(value)] = value
            return
        for child in _children(value):
            visit(child, depth + 1)

    visit(field, 0)
    return list(found.values())


def _children(value: Any) -> Iterator[Any]:
    """What an object that may be part of a field refers to; nothing for foreign or plain objects."""
    if isinstance(value, nn.Module):
        yield from value.parameters()
        for module in value.modules():
            yield from (v for v in vars(module).values() if isinstance(v, (Tensor, list, tuple, types.FunctionType)))
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        yield from _cells(value)
        yield from (value.__defaults__ or ())
        yield from (value.__kwdefaults__ or {}).values()
        yield getattr(value, "__wrapped__", None)
        yield from (value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__)
    elif _is_users_object(value):
        yield from vars(value).values()
        call = getattr(type(value), "__call__", None)  # noqa: B004 - the code of an object that is called
        if isinstance(call, types.FunctionType):
            yield from _cells(call)


def _is_users_object(value: Any) -> bool:
    foreign = type(value).__module__.startswith(("torch.", "numpy."))
    return hasattr(value, "__dict__") and not isinstance(value, (type, types.ModuleType)) and not foreign


def _cells(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that the code and the code nested in it refer to."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def depend_on_each_other(tensors: list[Tensor]) -> bool:
    """Whether one of the tensors was computed from another of them."""
    nodes = {id(t.grad_fn) for t in tensors if t.grad_fn is not None}
    leaves = {id(t) for t in tensors if t.grad_fn is None}
    if not nodes:
        return False
    alive = [t.grad_fn for t in tensors]  # holds the Python objects of the nodes, so that their ids stay theirs
    stack = [edge for node in alive if node is not None for edge, _ in node.next_functions]
    seen: dict[int, Any] = {}
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen[id(node)] = node
        if id(node) in nodes or id(getattr(node, "variable", None)) in leaves:
            return True
        stack.extend(edge for edge, _ in node.next_functions)
    return False
