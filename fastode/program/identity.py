"""Recognises a field that has been captured before, and finds the tensors that it holds now.

A field is described by what its callable refers to: code, numbers, structure, and for every tensor its place, shape and
dtype, but not its values. Two closures made from the same lines over new tensors have the same description.
"""

from __future__ import annotations

import builtins
import functools
import operator
import sys
import types
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastode._environment import _C

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_MAX_OBJECTS = 20_000
_MAX_ARRAY = 1 << 20
"""Bytes of an array of numpy that are looked through for changes at every solve."""
_LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "fastode"}
"""Modules of Python whose content is taken not to change."""
_GLOBAL_HOOKS = [
    (name, hooks)
    for name, hooks in vars(torch.nn.modules.module).items()
    if name.startswith("_global_forward") and isinstance(hooks, dict)
]
KEPT_ON_FIELDS = "_fastode_captures"
"""Attribute under which captures are kept on the objects that they belong to."""


@dataclass
class Description:
    """What a callable refers to.

    Attributes:
        parts: (path, token) pairs; the tokens, in order, identify the field but for tensor values.
        tensors: all tensors found, each once, and their paths.
        watched: what may change, and what it held, for ``Guard``.
        held: foreign objects whose ids are among the tokens, to be kept alive as long as these are a key.
        complete: False if something was found that ``Guard`` cannot watch, so that it has to be described anew.
        unseen: path of something that may change without being noticed at all, None if there is no such thing.
    """

    parts: list[tuple[str, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    watched: list[_Watched] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)
    complete: bool = True
    unseen: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """The tokens."""
        return tuple(token for _, token in self.parts)

    def __post_init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # what an id in _seen belongs to, where nothing else may hold it
        self._names: set[str] = {"forward", "setup_context"}  # torch calls them by itself
        self._classes: dict[type, tuple[str, set[str]]] = {}


def difference(before: Description, after: Description) -> str | None:
    """The path of the first thing in which two descriptions of the same callable differ, None if they agree."""
    for (path, token), (other, now) in zip(before.parts, after.parts, strict=False):
        if path != other or token != now:
            return path
    return None if len(before.parts) == len(after.parts) else "what it refers to"


def describe(callable_: Callable[..., Any]) -> Description:
    """Walks everything that a callable refers to: closures, globals it names, attributes of objects, modules.

    Of classes, and of modules of Python, only what the code that was found so far names.
    """
    found = Description()
    _walk(found, [("field", callable_), *((f"hooks of all modules, {name}", hooks) for name, hooks in _GLOBAL_HOOKS)])
    while found.unseen is None:
        new: list[tuple[str, Any]] = []
        for kind, (path, known) in list(found._classes.items()):
            for name, item in list(vars(kind).items()):
                special = name.startswith("__") and isinstance(item, (types.FunctionType, property))
                special = special or any(name in vars(b) for b in kind.__mro__ if b.__module__.startswith("torch."))
                if name not in known and (special or name in found._names):
                    known.add(name)
                    found.watched.append(_Entry(vars(kind), name, item))
                    new.append((f"{path}.{name}", item))
        if not new:
            break
        _walk(found, new)
    return found


def _walk(found: Description, roots: list[tuple[str, Any]]) -> None:
    stack = roots[::-1]
    while stack:
        path, value = stack.pop()
        token, children = _token(value, found, path)
        found.parts.append((path, token))
        stack.extend(reversed([(f"{path}{name}", child) for name, child in children]))
        if len(found.parts) > _MAX_OBJECTS:
            found.unseen = f"{path}, after {_MAX_OBJECTS} other things that it refers to,"
        if found.unseen is not None:
            return


def _token(value: Any, found: Description, path: str) -> tuple[Any, list[tuple[str, Any]]]:
    kind = type(value)
    if kind in _PLAIN:
        return (kind, repr(value) if kind in (float, complex) else value), []
    number = found._seen.get(id(value))
    if number is not None:
        return ("again", number), []
    found._seen[id(value)] = len(found._seen)
    found._alive.append(value)
    if isinstance(value, Tensor):
        return _of_tensor(value, found, path), []
    if kind in (list, tuple, set, frozenset):
        if kind in (list, set):
            found.watched.append(_Names(value, (), tuple(value)))
        items = list(value) if kind in (list, tuple) else sorted(value, key=repr)
        return (kind, len(items)), [(f"[{i}]", item) for i, item in enumerate(items)]
    if isinstance(value, dict):
        found.watched.append(_Names(value, tuple(value), tuple(value.values())))
        return (kind, tuple(map(_dict_key, value))), [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, types.FunctionType) and not _is_foreign(value):
        return ("function", value.__code__), list(_of_function(value, found))
    if isinstance(value, types.MethodType):
        return ("method",), [(".__self__", value.__self__), (f".{value.__func__.__name__}", value.__func__)]
    if isinstance(value, functools.partial):
        return ("partial",), [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    if isinstance(value, (property, staticmethod, classmethod, functools.cached_property)):
        names = ("fget",) if isinstance(value, property) else ("func",) if hasattr(value, "func") else ("__func__",)
        return ("descriptor", kind), [(f".{name}", getattr(value, name)) for name in names]
    if isinstance(value, np.ndarray):
        found.complete = False  # may be written into at any time
        if value.nbytes > _MAX_ARRAY or value.dtype.hasobject:
            found.unseen = path
        return ("array", value.dtype.str, value.shape, b"" if found.unseen else value.tobytes()), []
    if isinstance(value, torch.jit.ScriptModule):
        found.unseen = path  # its attributes live outside of Python
        return ("object", kind, id(value)), []
    if isinstance(value, type) and not _is_foreign(value):
        _of_class(value, found, path)
        found.held.append(value)
        return ("class", value), []
    plain = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
    if isinstance(value, plain) or _is_foreign(kind):
        if isinstance(value, nn.Module):
            return _of_object(value, found, path)
        found.held.append(value)
        return ("object", kind, id(value)), []
    slots = _slots(value)
    if hasattr(value, "__dict__") or slots:
        return _of_object(value, found, path, slots)
    if hasattr(kind, "__setitem__") or hasattr(kind, "append"):
        found.unseen = path  # a container of a kind that is not known
    found.held.append(value)
    return ("object", kind, id(value)), []


def _of_tensor(value: Tensor, found: Description, path: str) -> Any:
    found.tensors.append(value)
    found.paths.append(path)
    shape = (value.dtype, tuple(value.shape), value.device, value.layout)
    return ("tensor", type(value), *shape, value.requires_grad, value.is_inference())


def _slots(value: Any) -> list[str]:
    names = []
    for base in type(value).__mro__:
        own = vars(base).get("__slots__", ())
        names += [own] if isinstance(own, str) else list(own)
    return [name for name in names if name not in ("__dict__", "__weakref__") and hasattr(value, name)]


def _dict_key(key: Any) -> Any:
    return key if isinstance(key, (str, int, bool, type(None))) else repr(key)


def _is_foreign(kind: type | types.FunctionType) -> bool:
    """Whether a class or function belongs to a library: these are not looked into, they do not change.

    Nor are objects of such classes, but for modules: a trainer changes with every step, and is no part of a field.
    """
    name = kind.__module__ or ""
    top = name.split(".")[0]
    own = top == "fastode" and not name.startswith(("fastode.fields", "fastode.models"))
    if isinstance(kind, types.FunctionType):
        return own or top in _LIBRARIES
    return own or top in ("torch", "numpy", "builtins", "lightning", "pytorch_lightning")


def _of_object(
    value: Any, found: Description, path: str, slots: Collection[str] = ()
) -> tuple[Any, list[tuple[str, Any]]]:
    attributes = getattr(value, "__dict__", {})
    plain = {k: v for k, v in attributes.items() if k != KEPT_ON_FIELDS}
    found.watched.append(_Names(attributes, tuple(plain), tuple(plain.values())))
    children: list[tuple[str, Any]] = []
    for name, item in plain.items():
        if isinstance(value, nn.Module) and name in ("_parameters", "_buffers", "_modules"):
            found.watched.append(_Names(item, tuple(item), tuple(item.values())))
            children += [(f".{key}", child) for key, child in item.items()]
        elif isinstance(value, nn.Module) and name.endswith("_hooks") and not item:
            found.watched.append(_Names(item, (), ()))
        elif not (isinstance(value, nn.Module) and name.startswith("_") and isinstance(item, (set, bool))):
            children.append((f".{name}", item))
    for name in slots:
        found.watched.append(_Attribute(value, name, getattr(value, name)))
        children.append((f".{name}", getattr(value, name)))
    kind = type(value)
    found.watched.append(_Attribute(value, "__class__", kind))
    _of_class(kind, found, path)
    return ("instance", kind, tuple(plain), tuple(slots)), children


def _of_class(kind: type, found: Description, path: str) -> None:
    for base in kind.__mro__:
        if not _is_foreign(base) and base not in found._classes:
            found._classes[base] = (f"{path}, class {base.__name__}", set())
            found.watched.append(_Size(vars(base), len(vars(base))))


def _of_function(function: types.FunctionType, found: Description) -> Iterator[tuple[str, Any]]:
    code, defaults, named_defaults = function.__code__, function.__defaults__, function.__kwdefaults__
    found.watched.append(_Attribute(function, "__code__", code))
    found.watched.append(_Attribute(function, "__defaults__", defaults))
    found.watched.append(_Attribute(function, "__kwdefaults__", named_defaults))
    if named_defaults:
        found.watched.append(_Names(named_defaults, tuple(named_defaults), tuple(named_defaults.values())))
    own = {k: v for k, v in vars(function).items() if k != KEPT_ON_FIELDS}
    found.watched.append(_Names(vars(function), tuple(own), tuple(own.values())))
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            found.complete = False
            continue
        found.watched.append(_Attribute(cell, "cell_contents", content))
        yield f", variable {name}", content
    for i, item in enumerate(defaults or ()):
        yield f", default {i}", item
    for name, item in (named_defaults or {}).items():
        yield f", default {name}", item
    for name, item in own.items():
        yield f".{name}", item
    names = set(_names(code))
    found._names |= names
    for name in sorted(names):
        if name in function.__globals__:
            yield from _of_global(function.__globals__, name, f", global {name}", names, found, 0)
        elif hasattr(builtins, name):  # a global of this name would hide it
            found.watched.append(_Entry(function.__globals__, name, _ABSENT))


def _of_global(
    scope: dict[str, Any], name: str, path: str, names: set[str], found: Description, depth: int
) -> Iterator[tuple[str, Any]]:
    item = scope[name]
    found.watched.append(_Entry(scope, name, item))
    if not isinstance(item, types.ModuleType):
        yield path, item
    elif item.__name__.split(".")[0] not in _LIBRARIES and depth < 4:
        for inner in sorted(names & vars(item).keys()):
            yield from _of_global(vars(item), inner, f"{path}.{inner}", names, found, depth + 1)


def _names(code: types.CodeType) -> Iterator[str]:
    """Names in the code, and strings that may be names for ``getattr``."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant


_ABSENT: Any = object()


@dataclass(slots=True)
class _Names:
    """A dictionary, but for the captures that are kept in it; or a list or a set."""

    names: Any
    keys: tuple[Any, ...]
    content: tuple[Any, ...]


@dataclass(slots=True)
class _Entry:
    """A global, or an attribute of a class."""

    names: Any
    name: str
    content: Any


@dataclass(slots=True)
class _Size:
    """The number of attributes of a class: a new one may hide that of a base."""

    names: Any
    size: int


@dataclass(slots=True)
class _Attribute:
    """Of an object, of a function, or the variable of a closure."""

    value: Any
    name: str
    content: Any


_Watched = _Names | _Entry | _Size | _Attribute


class Guard:
    """A quick test that nothing a field refers to has changed, but for the values of its tensors.

    Quick, as it comes before every solve: hence lists of tuples, and what is empty is looked at in one go.
    """

    def __init__(self, description: Description | None) -> None:
        """Of a description, or one that always holds."""
        description = description or Description()
        self._complete = description.complete and description.unseen is None
        watched = description.watched
        names = [w for w in watched if isinstance(w, _Names)]
        self._empty = [w.names for w in names if not w.content and not _keeps_captures(w.names)]
        self._dicts = [(w.names, w.content, w.keys) for w in names if w.content and isinstance(w.names, dict)]
        self._dicts += [(w.names, (), ()) for w in names if not w.content and _keeps_captures(w.names)]
        self._lists = [(w.names, w.content) for w in names if w.content and not isinstance(w.names, dict)]
        self._entries = [(w.names, w.name, w.content) for w in watched if isinstance(w, _Entry)]
        self._sizes = [(w.names, w.size) for w in watched if isinstance(w, _Size)]
        attributes = [w for w in watched if isinstance(w, _Attribute)]
        self._owners, self._names = [w.value for w in attributes], [w.name for w in attributes]
        self._attributes = [w.content for w in attributes]
        self._tensors = [(t, t.shape, t.dtype, t.device, t.requires_grad) for t in description.tensors]

    def holds(self) -> bool:
        """Whether the description is still that of the field."""
        if not self._complete or any(self._empty):
            return False
        if not _C.same_items(self._dicts, KEPT_ON_FIELDS):
            return False
        for items, content in self._lists:
            if len(items) != len(content) or not all(map(operator.is_, items, content)):
                return False
        for names, name, content in self._entries:
            if names.get(name, _ABSENT) is not content:
                return False
        for names, size in self._sizes:
            if len(names) != size:
                return False
        try:
            if not all(map(operator.is_, map(getattr, self._owners, self._names), self._attributes)):
                return False
        except (AttributeError, ValueError):  # ValueError: a variable of a closure that has been deleted
            return False
        for t, shape, dtype, device, grad in self._tensors:
            if t.shape != shape or t.dtype is not dtype or t.requires_grad is not grad or t.device != device:
                return False
        return True


def _keeps_captures(names: Any) -> bool:
    return isinstance(names, dict) and KEPT_ON_FIELDS in names
