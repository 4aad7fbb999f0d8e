"""What a field's objects held before it was called on trial, so that the trial leaves no trace."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ABSENT: Any = object()
"""Stands for an entry or attribute that is not there."""


@dataclass
class _Held:
    """A dictionary, list, set, deque or array, and a copy of its content."""

    path: str
    value: Any
    content: Any

    def changed(self) -> str | None:
        """The path of what has changed, or None."""
        if isinstance(self.value, dict):
            now: Any = self.value
            for key in (*self.content, *now):
                if now.get(key, ABSENT) is not self.content.get(key, ABSENT):
                    return f"{self.path}.{key}" if isinstance(key, str) else f"{self.path}[{key!r}]"
            return self.path if list(now) != list(self.content) else None
        if isinstance(self.value, np.ndarray):
            return None if self.value.tobytes() == self.content.tobytes() else self.path
        now = list(self.value)
        same = len(now) == len(self.content) and all(a is b for a, b in zip(now, self.content, strict=True))
        return None if same else self.path

    def restore(self) -> None:
        value = self.value
        if isinstance(value, dict):
            kind = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
            kind.clear(value)
            kind.update(value, self.content)
        elif isinstance(value, list):
            list.__setitem__(value, slice(None), self.content)
        elif isinstance(value, np.ndarray):
            value[...] = self.content
        else:
            value.clear()
            (value.update if isinstance(value, set) else value.extend)(self.content)


@dataclass
class _Attribute:
    """An attribute outside of a dictionary of the object: a slot, a cell, the defaults of a function, of a class."""

    path: str
    owner: Any
    name: str
    content: Any

    def now(self) -> Any:
        if isinstance(self.owner, type):
            return vars(self.owner).get(self.name, ABSENT)
        try:
            return getattr(self.owner, self.name)
        except (AttributeError, ValueError):  # ValueError: an empty cell
            return ABSENT

    def changed(self) -> str | None:
        return None if self.now() is self.content else self.path

    def restore(self) -> None:
        if self.content is ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.content)


@dataclass
class _Entry:
    """A global variable."""

    path: str
    names: dict[str, Any]
    name: str
    content: Any

    def changed(self) -> str | None:
        return None if self.names.get(self.name, ABSENT) is self.content else self.path

    def restore(self) -> None:
        if self.content is ABSENT:
            self.names.pop(self.name, None)
        else:
            self.names[self.name] = self.content


@dataclass
class _Class:
    """The names of a class's attributes."""

    path: str
    kind: type
    content: frozenset[str]

    def changed(self) -> str | None:
        new = vars(self.kind).keys() - self.content
        return f"{self.path}.{min(new)}" if new else None

    def restore(self) -> None:
        for name in vars(self.kind).keys() - self.content:
            delattr(self.kind, name)


@dataclass
class Snapshot:
    """The content of everything that a field was found to refer to."""

    entries: dict[Any, _Held | _Attribute | _Entry | _Class] = field(default_factory=dict)

    def held(self, path: str, value: Any) -> None:
        """Remembers a container's content."""
        if id(value) not in self.entries:
            kind = dict if isinstance(value, dict) else np.array if isinstance(value, np.ndarray) else list
            self.entries[id(value)] = _Held(path, value, kind(value))

    def attribute(self, path: str, owner: Any, name: str, content: Any) -> None:
        """Remembers an attribute that is in no dictionary."""
        self.entries.setdefault((id(owner), name), _Attribute(path, owner, name, content))

    def of_class(self, path: str, kind: type) -> None:
        """Remembers which attributes a class has."""
        self.entries.setdefault(id(kind), _Class(path, kind, frozenset(vars(kind))))

    def entry(self, path: str, names: dict[str, Any], name: str, content: Any) -> None:
        """Remembers a global variable."""
        self.entries.setdefault((id(names), name), _Entry(path, names, name, content))

    def add(self, other: Snapshot) -> None:
        """Remembers what another one remembers, but for what is known here already: that is older."""
        for key, entry in other.entries.items():
            self.entries.setdefault(key, entry)

    def restore(self) -> Sequence[str]:
        """Puts back what was there; returns the paths of what had changed."""
        paths = []
        for entry in self.entries.values():
            path = entry.changed()
            if path is not None:
                paths.append(path)
                entry.restore()
        return paths
