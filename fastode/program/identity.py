"""Recognises a field that has been captured before, and finds the tensors that it holds now.

A field is described by what its callable refers to: code, numbers, structure, and for every tensor its place, shape and
dtype, but not its values. Two closures made from the same lines over new tensors have the same description.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_MAX_OBJECTS = 20_000
KEPT_ON_FIELDS = "_fastode_captures"
"""Attribute under which captures are kept on the objects that they belong to."""


@dataclass
class Description:
    """What a callable refers to.

    Attributes:
        parts: (path, token) pairs; the tokens, in order, identify the field but for tensor values.
        tensors: all tensors found, each once, and their paths.
        watched: dictionaries and lists of the field, with the entries that they had, for ``unchanged``.
        held: foreign objects whose ids are among the tokens, to be kept alive as long as these are a key.
        complete: False if something was found that may change unseen.
    """

    parts: list[tuple[str, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    watched: list[tuple[Any, tuple[Any, ...]]] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)
    complete: bool = True

    @property
    def key(self) -> tuple[Any, ...]:
        """The tokens."""
        return tuple(token for _, token in self.parts)


def difference(before: Description, after: Description) -> str | None:
    """The path of the first thing in which two descriptions of the same callable differ, None if they agree."""
    for (path, token), (other, now) in zip(before.parts, after.parts, strict=False):
        if path != other or token != now:
            return path
    return None if len(before.parts) == len(after.parts) else "what it refers to"


def describe(callable_: Callable[..., Any]) -> Description:
    """Walks everything that a callable refers to: closures, globals it names, attributes of objects, modules."""
    found = Description()
    seen: dict[int, int] = {}
    stack: list[tuple[str, Any]] = [("field", callable_)]
    while stack:
        path, value = stack.pop()
        token, children = _token(value, seen, found, path)
        found.parts.append((path, token))
        stack.extend(reversed([(f"{path}{name}", child) for name, child in children]))
        if len(found.parts) > _MAX_OBJECTS:
            found.complete = False
            break
    return found


def _token(value: Any, seen: dict[int, int], found: Description, path: str) -> tuple[Any, list[tuple[str, Any]]]:
    kind = type(value)
    if kind in _PLAIN:
        return (kind, repr(value) if kind in (float, complex) else value), []
    number = seen.get(id(value))
    if number is not None:
        return ("again", number), []
    seen[id(value)] = len(seen)
    if isinstance(value, Tensor):
        found.tensors.append(value)
        found.paths.append(path)
        return ("tensor", kind, value.dtype, tuple(value.shape), value.device, value.layout), []
    if kind in (list, tuple, set, frozenset):
        if kind is list:
            found.watched.append((value, tuple(value)))
        items = list(value) if kind in (list, tuple) else sorted(value, key=repr)
        return (kind, len(items)), [(f"[{i}]", item) for i, item in enumerate(items)]
    if isinstance(value, dict):
        found.watched.append((value, tuple(value.values())))
        return (kind, tuple(map(_dict_key, value))), [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, types.FunctionType) and not (value.__module__ or "").startswith("torch."):
        return ("function", value.__code__), list(_of_function(value, found))
    if isinstance(value, types.MethodType):
        return ("method",), [(".__self__", value.__self__), (f".{value.__func__.__name__}", value.__func__)]
    if isinstance(value, functools.partial):
        return ("partial",), [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    if isinstance(value, np.ndarray):
        found.complete = False  # may be written into at any time
        return ("array", value.dtype.str, value.shape, value.tobytes() if value.size <= 4096 else id(value)), []
    plain = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
    if isinstance(value, plain) or _is_foreign(kind):
        if isinstance(value, nn.Module):
            return _of_object(value, found)
        found.held.append(value)
        return ("object", kind, id(value)), []
    if hasattr(value, "__dict__"):
        return _of_object(value, found)
    if not isinstance(value, (torch._C.Generator, types.MethodWrapperType, types.WrapperDescriptorType)):
        found.complete = found.complete and not hasattr(kind, "__setitem__")
    found.held.append(value)
    return ("object", kind, id(value)), []


def _dict_key(key: Any) -> Any:
    return key if isinstance(key, (str, int, bool, type(None))) else repr(key)


def _is_foreign(kind: type) -> bool:
    return kind.__module__.split(".")[0] in ("torch", "numpy", "builtins")


def _of_object(value: Any, found: Description) -> tuple[Any, list[tuple[str, Any]]]:
    attributes = vars(value)
    plain = {k: v for k, v in attributes.items() if k != KEPT_ON_FIELDS}
    found.watched.append((attributes, tuple(plain.values())))
    children: list[tuple[str, Any]] = []
    for name, item in plain.items():
        if isinstance(value, nn.Module) and name in ("_parameters", "_buffers", "_modules"):
            found.watched.append((item, tuple(item.values())))
            children += [(f".{key}", child) for key, child in item.items()]
        elif isinstance(value, nn.Module) and name.endswith("_hooks") and not item:
            found.watched.append((item, ()))
        elif not (isinstance(value, nn.Module) and name.startswith("_") and isinstance(item, (set, bool))):
            children.append((f".{name}", item))
    if not _is_foreign(type(value)):
        children += list(_of_class(type(value), found))
    return ("instance", type(value), tuple(plain)), children


def _of_class(kind: type, found: Description) -> Iterator[tuple[str, Any]]:
    """Globals that the methods of a user's class name: numbers and tensors among them may change."""
    for base in kind.__mro__:
        if _is_foreign(base):
            continue
        for function in vars(base).values():
            if isinstance(function, types.FunctionType):
                for name, item in _of_function(function, found):
                    if isinstance(item, (*_PLAIN, Tensor)):
                        yield f" in {base.__name__}: {name}", item


def _of_function(function: types.FunctionType, found: Description) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        found.watched.append((cell, (content,)))
        yield f", variable {name}", content
    for i, item in enumerate(function.__defaults__ or ()):
        yield f", default {i}", item
    for name, item in (function.__kwdefaults__ or {}).items():
        yield f", default {name}", item
    names = set(_names(function.__code__))
    for name in sorted(names & function.__globals__.keys()):
        item = function.__globals__[name]
        if not isinstance(item, (type, types.ModuleType)):
            found.watched.append((_Global(function.__globals__, name), (item,)))
            yield f", global {name}", item


@dataclass(frozen=True)
class _Global:
    names: dict[str, Any]
    name: str


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


class Guard:
    """A quick test that nothing a field refers to has changed, but for the values of its tensors."""

    def __init__(self, description: Description) -> None:
        self.complete = description.complete
        self._dicts: list[tuple[dict[Any, Any], tuple[Any, ...]]] = []
        self._others: list[tuple[Any, tuple[Any, ...]]] = []
        for container, content in description.watched:
            if isinstance(container, dict):
                self._dicts.append((container, content))
            else:
                self._others.append((container, content))
        self._tensors = [(t, t.shape, t.dtype) for t in description.tensors]

    def holds(self) -> bool:
        """Whether the description is still that of the field."""
        if not self.complete:
            return False
        for names, content in self._dicts:
            values: Collection[Any] = names.values()
            if KEPT_ON_FIELDS in names:
                values = [v for k, v in names.items() if k != KEPT_ON_FIELDS]
            if len(values) != len(content):
                return False
            for x, y in zip(values, content, strict=False):
                if x is not y:
                    return False
        for container, content in self._others:
            if isinstance(container, list):
                if len(container) != len(content) or any(x is not y for x, y in zip(container, content, strict=True)):
                    return False
            elif isinstance(container, _Global):
                if container.names.get(container.name) is not content[0]:
                    return False
            elif container.cell_contents is not content[0]:
                return False
        return all(t.shape == shape and t.dtype is dtype for t, shape, dtype in self._tensors)
