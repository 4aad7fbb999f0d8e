"""What a callable refers to, as statements that can be held against it again before every solve.

A statement says what an object is, or what is found at some place in another one: a number in an attribute, a tensor of
some shape in a closure. Nothing but plain values and code is kept, so that a description keeps no model alive, and
holds for every object that is made alike: for a closure that is made anew over new tensors, for another model of the
same make.

Of attributes, globals and classes only what is *named* in code that ran counts: a step counter beside the field does
not change it. Every kind of object is either looked into to the end, or is known never to change, or is ``opaque``:
then nobody can know whether it has changed, and what reads it has no program.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import dis
import enum
import fractions
import functools
import operator
import pathlib
import re
import sys
import types
import uuid
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastode._environment import _C
from fastode.program import trust
from fastode.program.snapshot import ABSENT, Snapshot

_NUMBERS = (int, float, complex)
_PLAIN = (*_NUMBERS, str, bytes, torch.dtype, torch.device, torch.Size)
_SINGLE = (type(None), bool, type(Ellipsis), type(NotImplemented))
_VALUES = (
    range, slice, decimal.Decimal, fractions.Fraction, re.Pattern, pathlib.PurePath, uuid.UUID, datetime.date,
    datetime.time, datetime.timedelta, datetime.tzinfo, np.dtype,
)  # fmt: skip
"""Types of objects that never change and are told apart by ``==``."""
_GETTERS = (operator.itemgetter, operator.attrgetter, operator.methodcaller)
_CONTENT = (list, tuple, dict, set, frozenset, collections.deque, int, float, complex, str, bytes)
"""C types whose content is looked at where a class derives from them."""
_MAX_OBJECTS = 20_000
_MAX_ARRAY = 1 << 20
"""Bytes of an array of numpy that are looked through for changes at every solve."""
_DYNAMIC = {
    "vars", "dir", "__dict__", "getattr", "setattr", "delattr", "hasattr", "attrgetter", "__getattribute__", "eval",
    "exec", "locals", "fields", "asdict", "astuple", "replace", "copy", "deepcopy", "__slots__", "__getstate__",
}  # fmt: skip
"""Names in code that may read attributes whose names are not in the code: then all attributes count."""
_LIBRARY_OF_CLASSES = ("collections", "contextlib", "functools", "string")
"""Trusted modules of Python with classes that keep something in attributes of their own, such as ``UserDict.data``."""
_MODULE_STATE = ("_parameters", "_buffers", "_modules")
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: of classes that are made by Python code, and of some made by C
_POINTER = tuple.__itemsize__
_IMPORT = dis.opmap["IMPORT_NAME"]


def _is_python_class(kind: type) -> bool:
    """Whether a class is made by Python code: its instances have nothing beside attributes and slots."""
    base = kind.__base__
    if not kind.__flags__ & _HEAP_TYPE or base is None:
        return False
    own = vars(kind)
    slots = own.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else [*slots, "__dict__", "__weakref__"]
    more = sum(name in own for name in ("__dict__", "__weakref__")) + len({*names} - {"__dict__", "__weakref__"})
    return kind.__itemsize__ == base.__itemsize__ and kind.__basicsize__ <= base.__basicsize__ + _POINTER * more


@functools.lru_cache(maxsize=8192)
def names_of(code: types.CodeType) -> frozenset[str]:
    """Names in the code and the code nested in it, and strings that may be names for ``getattr``."""
    found = {*code.co_names, *code.co_freevars, *code.co_cellvars}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= names_of(constant)
        elif isinstance(constant, str) and len(constant) < 200:
            found.update(part for part in constant.split(".") if part.isidentifier())
    return frozenset(found)


@functools.lru_cache(maxsize=8192)
def codes_of(code: types.CodeType) -> frozenset[types.CodeType]:
    """The code and the code nested in it."""
    found = {code}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= codes_of(constant)
    return frozenset(found)


@dataclass
class Executed:
    """The user's code that ran, the names in it, and whether it asked if gradients are wanted."""

    codes: set[types.CodeType] = field(default_factory=set)
    names: set[str] = field(default_factory=lambda: {"forward", "setup_context"})  # torch calls them by itself
    asks_for_gradient: bool = False

    def add(self, code: types.CodeType) -> None:
        """Some code has begun to run."""
        self.codes.add(code)
        self.names |= names_of(code)


@dataclass
class Opaque:
    """Something whose changes cannot be noticed: where it is and what it is."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{shown(self.path)} ({self.what}) may change without being noticed"


def shown(path: str) -> str:
    """A path for the user."""
    return path.removeprefix("field").lstrip("., ") or "the field"


class Description:
    """What a callable refers to.

    Attributes:
        statements: for ``_C.Matcher``, in order: (name, slot, slot of the result, number, object).
        tensors, paths: all tensors found, each once, and where.
        opaque: what cannot be watched.
        numbers: the plain numbers found, by path.
        codes: the user's code that was found.
        snapshot: the content of everything found that can change.
    """

    def __init__(self, executed: Executed, relaxed: bool, skip: frozenset[str]) -> None:
        self.statements: list[tuple[str, int, int, int, Any]] = []
        self.tensors: list[Tensor] = []
        self.paths: list[str] = []
        self.opaque: list[Opaque] = []
        self.numbers: dict[str, Any] = {}
        self.codes: set[types.CodeType] = set()
        self.snapshot = Snapshot()
        self._executed, self._relaxed, self._skip = executed, relaxed, skip
        self._all = not _DYNAMIC.isdisjoint(executed.names)
        self._slots = 1
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # what an id in _seen belongs to, where nothing else may hold it
        self._distinct: list[int] = []
        self._stack: list[tuple[str, Any, int]] = []
        self._classes: set[type] = set()
        self.named = False  # whether names were found that some of the walk did without

    def matcher(self) -> _C.Matcher:
        """The statements, to be held against a callable."""
        return _C.Matcher(self.statements, self._slots, self._distinct)

    # -- the walk

    def _say(self, name: str, slot: int, out: int = 0, n: int = 0, what: Any = None) -> None:
        self.statements.append((name, slot, out, n, what))

    def _find(self, name: str, slot: int, n: int = 0, what: Any = None) -> int:
        """A statement that finds another object: the slot that it is put into."""
        out, self._slots = self._slots, self._slots + 1
        self._say(name, slot, out, n, what)
        return out

    def _child(self, path: str, value: Any, name: str, slot: int, n: int = 0, what: Any = None) -> None:
        if path not in self._skip:
            self._stack.append((path, value, self._find(name, slot, n, what)))

    def walk(self, root: Any) -> None:
        """Looks at everything that the root refers to."""
        hooks = nn.modules.module
        slot = self._find("attributes", self._find("load", 0, what=weakref.ref(hooks)))
        empty = tuple(name for name in trust.HOOKS_OF_ALL_MODULES if not vars(hooks)[name])
        self._say("empty", slot, what=empty)
        for name in (name for name in trust.HOOKS_OF_ALL_MODULES if name not in empty):
            self._child(f"hooks of all modules, {name}", vars(hooks)[name], "item", slot, what=name)
        self._stack.append(("field", root, 0))
        while self._stack:
            path, value, at = self._stack.pop()
            above = len(self._stack)
            self._visit(path, value, at)
            self._stack[above:] = self._stack[above:][::-1]  # in the order in which they were found
            if len(self._seen) > _MAX_OBJECTS:
                self.opaque.append(Opaque(path, f"after {_MAX_OBJECTS} other objects"))
                return

    def _counts(self, name: Any) -> bool:
        return self._all or name in self._executed.names

    def _visit(self, path: str, value: Any, slot: int) -> None:
        kind = type(value)
        if kind in _SINGLE:
            self._say("is", slot, what=value)
            return
        if kind in _PLAIN:
            if kind in _NUMBERS:
                self.numbers[path] = value
            if kind in _NUMBERS and self._relaxed:
                self._say("type", slot, what=weakref.ref(kind))
            else:
                self._say("equal", slot, what=value)
            return
        known = self._seen.get(id(value))
        if known is not None:
            self._say("same", slot, n=known)
            return
        self._seen[id(value)] = slot
        self._alive.append(value)
        for kinds, look in _LOOKS:
            if isinstance(value, kinds):
                look(self, path, value, slot)
                return
        self._instance(path, value, slot)

    def _refuse(self, path: str, value: Any) -> None:
        what = value if isinstance(value, str) else f"of type {type(value).__module__}.{type(value).__qualname__}"
        self.opaque.append(Opaque(path, what))

    def _is_of(self, value: Any, slot: int) -> None:
        self._say("type", slot, what=weakref.ref(type(value)))

    # -- kinds of objects

    def _tensor(self, path: str, value: Tensor, slot: int) -> None:
        self._distinct.append(slot)
        self._is_of(value, slot)
        meta = (value.dtype, value.shape, value.device, value.layout, value.requires_grad)
        self._say("tensor", slot, what=meta)
        self.tensors.append(value)
        self.paths.append(path)
        self._class(type(value), path)
        if vars(value):
            self._attributes(path, value, slot)

    def _sequence(self, path: str, value: Any, slot: int) -> None:
        self._content(path, value, slot)
        if self._relaxed and isinstance(value, list):
            return
        self._say("size", slot, n=len(value))
        for i, item in enumerate(tuple(value)):
            self._child(f"{path}[{i}]", item, "at", slot, n=i)

    def _dict(self, path: str, value: dict[Any, Any], slot: int) -> None:
        self._content(path, value, slot)
        if not all(_is_plain(key) for key in value):
            self._refuse(path, "a dictionary whose keys are objects")
            return
        if isinstance(value, collections.defaultdict):
            self._child(f"{path}.default_factory", value.default_factory, "get", slot, what="default_factory")
        if self._relaxed:
            return
        keys = tuple(dict.keys(value))
        self._say("keys", slot, what=keys)
        if isinstance(value, collections.OrderedDict):  # has an order of its own
            self._say("holds", slot, what=functools.partial(_has_order, tuple(value)))
        for key in keys:
            self._child(f"{path}[{key!r}]", dict.__getitem__(value, key), "item", slot, what=key)

    def _set(self, path: str, value: Any, slot: int) -> None:
        self._content(path, value, slot)
        if not all(_is_plain(item) for item in value):
            self._refuse(path, "a set or deque of objects")
        elif not self._relaxed:
            self._say("holds", slot, what=functools.partial(_has_content, _content_of(value)))

    def _content(self, path: str, value: Any, slot: int) -> None:
        """A container, also of a class of the user's."""
        if type(value) is not tuple:
            self._distinct.append(slot)
        self._is_of(value, slot)
        if not isinstance(value, (tuple, frozenset)):
            self.snapshot.held(path, value)
        if type(value) not in _CONTENT:
            self._class(type(value), path)
            if getattr(value, "__dict__", None):
                self._attributes(path, value, slot)

    def _function(self, path: str, value: types.FunctionType, slot: int) -> None:
        self._is_of(value, slot)
        code = value.__code__
        self._say("code", slot, what=code)
        for name in ("__defaults__", "__kwdefaults__"):
            self.snapshot.attribute(path, value, name, getattr(value, name))
        users = trust.verdict(code) == trust.USER
        if users:
            self.codes |= codes_of(code)
            if vars(value):
                self._attributes(path, value, slot)
            else:
                self.snapshot.held(path, vars(value))
            if code not in self._executed.codes:
                return  # it has not run, so nothing else of it was read
        for i, (name, cell) in enumerate(zip(code.co_freevars, value.__closure__ or (), strict=True)):
            if trust.is_of_compiled_function(code) and name != "fn":
                continue  # how it is compiled is of no interest: the function itself is recorded
            self._cell(f"{path}, variable {name}", cell, self._find("closure", slot, n=i))
        if value.__defaults__:
            self._child(f"{path}, defaults", value.__defaults__, "defaults", slot)
        else:
            self._say("is", self._find("defaults", slot), what=value.__defaults__)
        if users and value.__kwdefaults__:
            self._child(f"{path}, defaults", value.__kwdefaults__, "keyword_defaults", slot)
        if users:
            self._globals(path, value, slot)

    def _cell(self, path: str, cell: types.CellType, slot: int) -> None:
        try:
            content = cell.cell_contents
        except ValueError:
            self._say("empty_cell", slot)
            content = ABSENT
        else:
            self._child(path, content, "cell", slot)
        self.snapshot.attribute(path, cell, "cell_contents", content)

    def _globals(self, path: str, function: types.FunctionType, slot: int) -> None:
        scope = function.__globals__
        at = self._find("globals", slot)
        code = function.__code__
        for name in sorted(names_of(code)):
            item = scope.get(name, ABSENT)
            if item is ABSENT:
                self._say("absent", at, what=name)
                if name in sys.modules and _IMPORT in code.co_code and not hasattr(builtins, name):
                    found = self._find("load", 0, what=weakref.ref(sys.modules[name]))
                    self._stack.append((f"module {name}", sys.modules[name], found))
            else:
                self._child(f"{path}, global {name}", item, "item", at, what=name)
            self.snapshot.entry(f"{path}, global {name}", scope, name, item)

    def _module_of_python(self, path: str, value: types.ModuleType, slot: int) -> None:
        self._say("ref", slot, what=weakref.ref(value))
        if not trust.is_library(value):
            self._attributes(path, value, slot)

    def _method(self, path: str, value: types.MethodType, slot: int) -> None:
        self._is_of(value, slot)
        self._child(f"{path}.__self__", value.__self__, "self", slot)
        self._child(f"{path}.{value.__func__.__name__}", value.__func__, "function", slot)

    def _members(self, *names: str) -> Callable[[str, Any, int], None]:
        def look(path: str, value: Any, slot: int) -> None:
            self._is_of(value, slot)
            for name in names:
                self._child(f"{path}.{name}", getattr(value, name), "get", slot, what=name)

        return look

    def _partial(self, path: str, value: Any, slot: int) -> None:
        self._members("func", "args", "keywords")(path, value, slot)

    def _descriptor(self, path: str, value: Any, slot: int) -> None:
        is_property = isinstance(value, property)
        self._members("fget" if is_property else "func" if hasattr(value, "func") else "__func__")(path, value, slot)

    def _array(self, path: str, value: np.ndarray[Any, Any], slot: int) -> None:
        if value.nbytes > _MAX_ARRAY or value.dtype.hasobject or type(value) is not np.ndarray:
            self._refuse(path, f"an array of {value.nbytes} bytes")
            return
        self.snapshot.held(path, value)
        if not self._relaxed:
            self._say("holds", slot, what=functools.partial(_is_array, value.dtype, value.shape, value.tobytes()))

    def _value(self, path: str, value: Any, slot: int) -> None:
        self._say("holds", slot, what=functools.partial(_is_value, type(value), value))

    def _getter(self, path: str, value: Any, slot: int) -> None:
        content = repr(value.__reduce__()[1:])
        words = {part for word in re.findall(r"'([\w.]+)'", content) for part in word.split(".")}
        if isinstance(value, (operator.attrgetter, operator.methodcaller)) and not words <= self._executed.names:
            self._executed.names |= words  # it reads attributes of these names
            self.named = True
        self._say("holds", slot, what=functools.partial(_is_getter, type(value), value.__reduce__()[1:]))

    def _constant(self, path: str, value: Any, slot: int) -> None:
        """Something that is known to be the same for as long as it is the same object."""
        try:
            self._say("ref", slot, what=weakref.ref(value))
        except TypeError:
            self._say("is", slot, what=value)

    def _c_function(self, path: str, value: Any, slot: int) -> None:
        owner = getattr(value, "__self__", None)
        bound = owner is not None and not isinstance(owner, (types.ModuleType, type))
        if bound:
            self._is_of(value, slot)
            self._say("equal", self._find("get", slot, what="__name__"), what=value.__name__)
            self._child(f"{path}.__self__", owner, "get", slot, what="__self__")
        else:
            self._constant(path, value, slot)
        if not trust.is_pure(value):
            self._refuse(path, f"the C function {value.__qualname__}")

    def _class_object(self, path: str, value: type, slot: int) -> None:
        self._constant(path, value, slot)
        self._class(value, path)
        if not value.__flags__ & _HEAP_TYPE and not trust.is_pure_type(value):
            self._refuse(path, f"the C type {value.__qualname__}")

    def _class(self, kind: type, path: str) -> None:
        """The code and the other attributes of a class of the user's."""
        for base in kind.__mro__:
            if not base.__flags__ & _HEAP_TYPE or trust.is_trusted_class(base) or base in self._classes:
                continue
            self._classes.add(base)
            own, slot = vars(base), self._find("class_attributes", self._find("load", 0, what=weakref.ref(base)))
            self._say("size", slot, n=len(own))
            self.snapshot.of_class(f"{path}, class {base.__name__}", base)
            for name, item in tuple(own.items()):
                special = name.startswith("__") and isinstance(item, _FUNCTIONS)
                if name not in _OF_CLASSES and (special or self._counts(name)):
                    where = f"{path}, class {base.__name__}.{name}"
                    self.snapshot.attribute(where, base, name, item)
                    self._child(where, item, "item", slot, what=name)

    def _module(self, path: str, value: nn.Module, slot: int) -> None:
        self._distinct.append(slot)
        self._is_of(value, slot)
        self._class(type(value), path)
        if isinstance(value, torch.jit.ScriptModule):
            self._refuse(path, value)  # its attributes live outside of Python
            return
        own, at = vars(value), self._find("attributes", slot)
        self.snapshot.held(path, own)
        known: set[Any] = set()
        for name, item in own.items():
            if name in _MODULE_STATE:
                known.add(name)
                inner = self._find("item", at, what=name)
                self._say("keys", inner, what=tuple(item))
                self.snapshot.held(path, item)
                for key, child in item.items():
                    self._child(f"{path}.{key}", child, "item", inner, what=key)
        hooks = tuple(name for name, item in own.items() if "hook" in name and item == {})
        if hooks:
            self._say("empty", at, what=hooks)
        # Torch's own modules are not looked into: they read what they like.
        torchs = any(
            trust.module_of(base).startswith("torch.nn.") and base is not nn.Module for base in type(value).__mro__
        )
        known.update(hooks)
        for name, item in own.items():
            if (
                name not in known
                and name != "_non_persistent_buffers_set"
                and (torchs or "hook" in name or name in ("training", "_compiled_call_impl"))
            ):
                known.add(name)
                self._child(f"{path}.{name}", item, "item", at, what=name)
        if torchs:
            self._say("keys", at, what=tuple(own))
        else:
            self._named(path, own, at, known)

    def _instance(self, path: str, value: Any, slot: int) -> None:
        kind = type(value)
        if isinstance(value, enum.Enum):
            self._constant(path, value, slot)
            return
        solid = next(base for base in kind.__mro__ if not _is_python_class(base))
        slots = list(_slots(value))
        if solid not in (object, types.SimpleNamespace, *_CONTENT) or (kind.__flags__ & _HEAP_TYPE == 0 and not slots):
            if solid is object and kind is object:
                self._constant(path, value, slot)
            elif kind is not types.SimpleNamespace:
                self._refuse(path, value)
                return
        self._distinct.append(slot)
        self._is_of(value, slot)
        self._class(kind, path)
        if solid in _CONTENT:  # a number or text of a class of the user's
            self._say("holds", slot, what=functools.partial(_has_base_value, solid, solid(value)))
        for name in slots:
            item = getattr(value, name, ABSENT)
            self.snapshot.attribute(f"{path}.{name}", value, name, item)
            if item is ABSENT:
                self._say("missing", slot, what=name)
            else:
                self._child(f"{path}.{name}", item, "get", slot, what=name)
        if getattr(value, "__dict__", None) is not None:
            self._attributes(path, value, slot)

    def _attributes(self, path: str, value: Any, slot: int) -> None:
        own, at = value.__dict__, self._find("attributes", slot)
        if isinstance(value, types.ModuleType):
            for name in sorted({*self._executed.names, *(own if self._all else ())}):
                self.snapshot.entry(f"{path}.{name}", own, name, own.get(name, ABSENT))
        else:
            self.snapshot.held(path, own)
        self._named(path, own, at, set(), any(map(_reads_attributes, type(value).__mro__)))

    def _named(self, path: str, own: dict[str, Any], at: int, known: set[str], every: bool = False) -> None:
        """The attributes that are named in the code that ran, or every one, but for the known ones."""
        every = every or self._all
        named = [name for name in tuple(own) if every or self._counts(name)]
        if every:
            self._say("keys", at, what=tuple(own))
        else:
            self._say("named", at, n=len(named), what=(tuple(own), frozenset(self._executed.names)))
        for name in named:
            if name not in known:
                self._child(f"{path}.{name}", own[name], "item", at, what=name)


_FUNCTIONS = (types.FunctionType, property, staticmethod, classmethod)
_OF_CLASSES = {"__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__"}


def describe(
    root: Callable[..., Any], executed: Executed, relaxed: bool = False, skip: frozenset[str] = frozenset()
) -> Description:
    """What a callable refers to.

    Args:
        root: the callable.
        executed: the user's code that has run: only what this code can have read counts.
        relaxed: whether numbers and the content of containers may be others.
        skip: paths at which anything may be.
    """
    while True:
        found = Description(executed, relaxed, skip)
        found.walk(root)
        if not found.named:
            return found


def _reads_attributes(kind: type) -> bool:
    """Whether methods of a class of Python's library read attributes whose names the user's code does not have."""
    return bool(kind.__flags__ & _HEAP_TYPE) and trust.module_of(kind) in _LIBRARY_OF_CLASSES


def _slots(value: Any) -> Iterator[str]:
    for base in type(value).__mro__:
        own = vars(base).get("__slots__", ()) if base.__flags__ & _HEAP_TYPE else ()
        yield from (n for n in ([own] if isinstance(own, str) else own) if n not in ("__dict__", "__weakref__"))


def _is_plain(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return type(value) in (*_PLAIN, *_SINGLE) or (isinstance(value, enum.Enum) and type(value).__hash__ is not None)


def _content_of(value: Any) -> Any:
    if isinstance(value, collections.deque):
        return [(type(item), item) for item in value]
    return {(type(item), item) for item in value}


def _has_content(content: Any, value: Any) -> bool:
    return bool(_content_of(value) == content)


def _has_order(keys: tuple[Any, ...], value: Any) -> bool:
    return tuple(value) == keys


def _has_base_value(solid: type, known: Any, value: Any) -> bool:
    return isinstance(value, solid) and repr(solid(value)) == repr(known)


def _is_value(kind: type, known: Any, value: Any) -> bool:
    return type(value) is kind and bool(value == known)


def _is_array(dtype: Any, shape: tuple[int, ...], content: bytes, value: Any) -> bool:
    return type(value) is np.ndarray and value.dtype == dtype and value.shape == shape and value.tobytes() == content


def _is_getter(kind: type, content: Any, value: Any) -> bool:
    return type(value) is kind and bool(value.__reduce__()[1:] == content)


def _is_scalar(dtype: Any, content: bytes, value: Any) -> bool:
    return isinstance(value, np.generic) and value.dtype == dtype and value.tobytes() == content


def _numpy_scalar(self: Description, path: str, value: Any, slot: int) -> None:
    self.numbers[path] = value
    if not self._relaxed:
        self._say("holds", slot, what=functools.partial(_is_scalar, value.dtype, value.tobytes()))


_LOOKS: list[tuple[Any, Callable[..., None]]] = [
    (Tensor, Description._tensor),
    (nn.Module, Description._module),
    (types.FunctionType, Description._function),
    (types.MethodType, Description._method),
    ((types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType), Description._c_function),
    ((types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType), Description._constant),
    ((types.CodeType, np.ufunc, torch.jit.ScriptFunction, torch._ops.OpOverload), Description._constant),
    ((torch._ops.OpOverloadPacket, type(torch.ops), type(torch.ops.aten)), Description._constant),
    ((type(list[int]), type(vars(collections.namedtuple("_Pair", "a"))["a"])), Description._constant),
    (types.ModuleType, Description._module_of_python),
    (type, Description._class_object),
    (functools.partial, Description._partial),
    ((property, staticmethod, classmethod, functools.cached_property), Description._descriptor),
    (np.ndarray, Description._array),
    (np.generic, _numpy_scalar),
    (enum.Enum, Description._instance),
    ((list, tuple), Description._sequence),
    (dict, Description._dict),
    ((set, frozenset, collections.deque), Description._set),
    (_VALUES, Description._value),
    (_GETTERS, Description._getter),
]
"""In this order, how an object of a type is looked at; everything else is an instance of some class."""
