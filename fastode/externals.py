"""Finds the tensors that a field closes over or owns, so that no gradient to them is lost.

Two searches are joined. Watching one evaluation with a dispatch mode finds every tensor that an operation read and that
lives on when its value is dropped: parameters, tensors in closures, results of other networks, and what the field has
computed then and keeps. Walking what the callable refers to (parameters of modules, closure cells, globals that the
code names, arguments of partials) finds tensors that this evaluation did not happen to read.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastode.uncompiled import uncompiled

_MAX_DEPTH = 6
_CODE_OR_CONTAINER = (types.FunctionType, types.MethodType, functools.partial, list, tuple, set, frozenset, dict)


class _ReadTensors(TorchDispatchMode):
    """Remembers tensors that require grad and are read while the mode is on, without keeping them alive."""

    def __init__(self) -> None:
        super().__init__()
        self._read: dict[int, weakref.ref[Tensor]] = {}  # a reused id belongs to a tensor that is looked at anew

    def alive(self) -> list[Tensor]:
        """Those of them that somebody holds."""
        return [tensor for reference in self._read.values() if (tensor := reference()) is not None]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler when the mode is first used: seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                self._read[id(leaf)] = weakref.ref(leaf)
        return func(*args, **(kwargs or {}))


def watch(evaluate: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Runs one evaluation with its graph.

    Returns:
        Its value, without graph, and the tensors with gradient that it read and that somebody holds.
    """
    mode = _ReadTensors()
    with uncompiled(), torch.enable_grad(), mode:
        value = evaluate().detach()
    return value, mode.alive()


class Externals:
    """Tensors kept for the backward pass as the very objects that the field holds, and the modules that hold them.

    Saving them in the autograd node would let saved-tensor hooks (activation checkpointing, offloading) replace them.

    Args:
        tensors: that a gradient may be wanted for.
        field: the user's callable.
    """

    def __init__(self, tensors: Sequence[Tensor], field: Callable[..., Any]) -> None:
        self._tensors = tensors
        self._versions = [t._version for t in tensors]
        self._slots: list[tuple[dict[str, Any], str, Any]] = [
            (slots, name, tensor)
            for module in _modules(field)
            if not isinstance(module, torch.jit.ScriptModule)  # those hold them elsewhere
            for slots in (module._parameters, module._buffers)
            for name, tensor in slots.items()
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Modules that the field reaches hold the tensors that they held during the solve.

        ``torch.func.functional_call`` puts others there for the time of a call, and a backward pass comes later.
        """
        moved = [(slots, name, then) for slots, name, then in self._slots if slots.get(name) is not then]
        now = [slots.get(name) for slots, name, _ in moved]
        for slots, name, then in moved:
            slots[name] = then
        try:
            yield
        finally:
            for (slots, name, _), tensor in zip(moved, now, strict=True):
                slots[name] = tensor

    def unchanged(self) -> Sequence[Tensor]:
        """The tensors; RuntimeError if one of them has been modified in place since."""
        for tensor, version in zip(self._tensors, self._versions, strict=True):
            if tensor._version != version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(tensor.shape)} that the field depends on has been modified by an "
                    "inplace operation after the solve, so that its gradient cannot be computed"
                )
        return self._tensors


@contextmanager
def computed_weights() -> Iterator[None]:
    """Parametrized weights are computed at each use, also within ``torch.nn.utils.parametrize.cached()``.

    One that was cached without gradient has none, and one that was cached with its graph can be differentiated once.
    """
    depth = parametrize._cache_enabled
    parametrize._cache_enabled -= depth  # not to 0: other threads may enter and leave meanwhile
    try:
        yield
    finally:
        parametrize._cache_enabled += depth


def owned_tensors(field: Callable[..., Any]) -> list[Tensor]:
    """Tensors that require grad and that the callable owns or refers to.

    Leaves, and of the results of operations those in closures, defaults and arguments of partials: as attributes they
    may be left over from an earlier pass, whose graph is gone.
    """
    found: dict[int, Tensor] = {}
    for value, held in _reached(field):
        if isinstance(value, Tensor) and value.requires_grad and (held or value.is_leaf):
            found[id(value)] = value
    return list(found.values())


def _modules(field: Callable[..., Any]) -> list[nn.Module]:
    """Modules that the callable is, owns or refers to."""
    found: dict[int, nn.Module] = {}
    for value, _ in _reached(field):
        if isinstance(value, nn.Module):
            found.update((id(module), module) for module in value.modules())
    return list(found.values())


def _reached(field: Callable[..., Any]) -> Iterator[tuple[Any, bool]]:
    """What the callable refers to, and whether only code and containers lie between the two."""
    seen: set[int] = set()

    # A stack and no recursion: a function that refers to itself would keep what it found until garbage is collected.
    stack: list[tuple[Any, int, bool]] = [(field, 0, True)]
    while stack:
        value, depth, held = stack.pop()
        if isinstance(value, Tensor):
            yield value, held
            continue
        if depth > _MAX_DEPTH or id(value) in seen:
            continue
        seen.add(id(value))
        yield value, held
        held = held and isinstance(value, _CODE_OR_CONTAINER)
        stack.extend((child, depth + 1, held) for child in _children(value))
        if isinstance(value, types.FunctionType):
            stack.extend((value.__globals__.get(name), depth + 1, False) for name in _names(value.__code__))


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
    # The list holds the Python objects of the nodes: each is made when it is asked for, and an id lives as long as it.
    alive = [t.grad_fn for t in tensors if t.grad_fn is not None]
    nodes = {id(node) for node in alive}
    leaves = {id(t) for t in tensors if t.grad_fn is None}
    stack = [edge for node in alive for edge, _ in node.next_functions]
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
