"""Fields that have been recorded, recognised by what they refer to; nothing here keeps a user's object alive."""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastode._environment import _C
from fastode.program.captures import Capture, Refusal
from fastode.program.describe import Description, Executed, describe, shown

_KINDS = 256
"""Kinds of fields that are remembered; those not seen for longest are dropped."""
_EACH = 16
"""Programs and refusals that are remembered for one kind of field."""
_CHANGING, _FEW = 4, 3
"""So many programs of one field, told apart by nothing but numbers and used fewer times than a few, and no more."""
_AGAIN = 100
"""Solves after which a field whose numbers changed each time is recorded again."""


class Learned:
    """A program or a refusal, and what it was made of.

    Attributes:
        found: the program or refusal.
        description: of the field.
        executed: the code of it that ran.
        skipped: paths of what it changes itself.
        numbers: the numbers that it can have read, as text, by path.
        make: what it is but for these numbers.
    """

    def __init__(
        self,
        found: Capture | Refusal,
        description: Description,
        executed: Executed,
        skipped: frozenset[str] = frozenset(),
    ) -> None:
        self.found, self.description, self.executed, self.skipped = found, description, executed, skipped
        self.numbers = {path: repr(value) for path, value in description.numbers.items()}
        meta = tuple((t.shape, t.dtype) for t in description.tensors)
        self.make = frozenset(executed.codes), meta, tuple(self.numbers)

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Those that the field holds, as the program reads them."""
        return self.description.tensors if isinstance(self.found, Capture) else ()


class _Entry:
    def __init__(self, matcher: _C.Matcher, found: Capture | Refusal, learned: Learned, most: int | None) -> None:
        self.matcher, self.found = matcher, found
        self.numbers, self.make = learned.numbers, learned.make
        self.uses, self.most = 0, most  # after the most uses it is forgotten


@dataclass
class KnownFields:
    """What is known of fields, by kind, the latest first."""

    entries: OrderedDict[Any, list[_Entry]] = field(default_factory=OrderedDict)

    def find(
        self, root: Callable[..., Any], shapes: Any, batch: int
    ) -> tuple[Capture | Refusal, Sequence[Tensor]] | None:
        """What is known of a field as it is now, and the tensors that it holds; None if it has to be recorded."""
        key = (kind_of(root), shapes)
        known = self.entries.get(key)
        if known is None:
            return None
        for i, entry in enumerate(known):
            tensors = entry.matcher.match(root)
            if tensors is None or (isinstance(entry.found, Capture) and not entry.found.fits(tensors, batch)):
                continue
            entry.uses += 1
            if entry.most is not None and entry.uses > entry.most:
                self.entries[key] = [each for each in known if each is not entry]
                return None
            if i > 0 and isinstance(entry.found, Capture):
                self.entries[key] = [entry, *known[:i], *known[i + 1 :]]
            with suppress(KeyError):  # dropped by another thread
                self.entries.move_to_end(key)
            return entry.found, tensors
        return None

    def keep(self, root: Callable[..., Any], shapes: Any, learned: Learned) -> Capture | Refusal:
        """Remembers what was learned of a field; returns it, or a refusal if its numbers never stay the same."""
        key = (kind_of(root), shapes)
        known = self.entries.get(key, [])
        found, description = learned.found, learned.description
        most = None
        if isinstance(found, Capture):
            numbers = _changing(learned, known)
            if numbers:
                found, most = (
                    Refusal(
                        f"{shown(numbers[0])} is another number at every solve",
                        None,
                        "hold it in a tensor, which may change: a buffer, or an entry of controls",
                        numbers_change=True,
                    ),
                    _AGAIN,
                )
        if isinstance(found, Refusal) and (most or any(_same_refusal(found, each.found) for each in known)):
            # Whatever numbers and containers hold: to record again and again would be slower than to refuse is.
            description = describe(root, learned.executed, relaxed=True, skip=learned.skipped)
        entry = _Entry(description.matcher(), found, learned, most=most)
        first = isinstance(found, Capture)  # refusals may hold for other numbers, too, that have a program
        self.entries[key] = [entry, *known][:_EACH] if first else [*known[: _EACH - 1], entry]
        while len(self.entries) > _KINDS:
            with suppress(KeyError):
                self.entries.popitem(last=False)
        return found


def _same_refusal(found: Refusal, other: Capture | Refusal) -> bool:
    return isinstance(other, Refusal) and (other.reason, other.where) == (found.reason, found.where)


def _changing(learned: Learned, known: Sequence[_Entry]) -> list[str]:
    """Paths of numbers that were others in every one of several programs that were used once or twice."""
    alike = [e.numbers for e in known if e.uses < _FEW and isinstance(e.found, Capture) and e.make == learned.make]
    alike = [numbers for numbers in alike if numbers != learned.numbers]
    if len(alike) < _CHANGING:
        return []
    return [path for path, value in learned.numbers.items() if any(n[path] != value for n in alike)]


KNOWN_FIELDS = KnownFields()


def kind_of(root: Any) -> Any:
    """What two callables that may have the same program have in common: their code, or their class."""
    if isinstance(root, types.FunctionType):
        compiled = getattr(root, "_torchdynamo_orig_callable", None)
        return root.__code__ if compiled is None else ("compiled", kind_of(compiled))
    if isinstance(root, types.MethodType):
        return kind_of(root.__func__), weakref.ref(type(root.__self__))
    if isinstance(root, functools.partial):
        return "partial", kind_of(root.func), *map(kind_of, root.args[:1])
    return weakref.ref(type(root))
