"""One thing that people do in a field, as lines of source text.

In the text ``$name`` is something that the field owns (``self.name``, or a variable of the enclosing function),
``@name`` something at the top of its module; both are numbered, so that a feature can occur twice; ``@@`` is ``@``.
``{D}`` is the size of the state of a sample. ``h`` is what the lines of ``forward`` transform, (B, D); ``y`` and ``t``
are the field's arguments.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """Lines for the places of a program.

    Attributes:
        name: unique.
        area: which part of the engine answers for it.
        forward: in the field; transforms ``h``.
        init: where the field is made.
        top: at the top of the module.
        params: expression of an iterable of tensors to differentiate by.
        changes: statements, each made between two solves.
        effects: expression of what the field's calls leave behind, compared with a plain loop's.
        writes: names that ``forward`` and ``changes`` bind anew, of ``$name`` and ``@name``.
        pure: False if the value depends on the calls made before: compared without gradient only.
        controls: uses ``c``, (B, D).
    """

    name: str
    area: str
    forward: str = ""
    init: str = ""
    top: str = ""
    params: str = ""
    changes: tuple[str, ...] = ()
    effects: str = ""
    writes: tuple[str, ...] = ()
    pure: bool = True
    controls: bool = False


@dataclass(frozen=True)
class Place:
    """Where a Python number can live.

    Attributes:
        name: unique.
        read: expression.
        write: statement, ``{v}`` the new value.
        init, top, writes: as in ``Feature``; ``{v}`` the first value.
    """

    name: str
    read: str
    write: str
    init: str = ""
    top: str = ""
    writes: tuple[str, ...] = ()


def number_in(place: Place) -> Feature:
    """A factor."""
    return Feature(
        f"number in {place.name}",
        "core",
        forward=f"h = {place.read} * h",
        init=place.init.replace("{v}", "1.0"),
        top=place.top.replace("{v}", "1.0"),
        changes=(place.write.replace("{v}", "0.5"), place.write.replace("{v}", "1.5")),
        writes=place.writes,
    )


def flag_in(place: Place) -> Feature:
    """A number that decides."""
    return Feature(
        f"flag in {place.name}",
        "core",
        forward=f"if {place.read} > 1.0:\n    h = -0.5 * h",
        init=place.init.replace("{v}", "1.0"),
        top=place.top.replace("{v}", "1.0"),
        changes=(place.write.replace("{v}", "2.0"), place.write.replace("{v}", "0.0")),
        writes=place.writes,
    )


def counter_in(place: Place) -> Feature:
    """A number of calls."""
    return Feature(
        f"counter in {place.name}",
        "core",
        forward=place.write.replace("{v}", f"{place.read} + 1.0"),
        init=place.init.replace("{v}", "0.0"),
        top=place.top.replace("{v}", "0.0"),
        effects=place.read,
        writes=place.writes,
    )


def decaying_in(place: Place) -> Feature:
    """A factor that shrinks with every call."""
    return Feature(
        f"decay in {place.name}",
        "core",
        forward=place.write.replace("{v}", f"0.9 * {place.read}") + f"\nh = {place.read} * h",
        init=place.init.replace("{v}", "1.0"),
        top=place.top.replace("{v}", "1.0"),
        changes=(place.write.replace("{v}", "1.0"),),
        effects=place.read,
        writes=place.writes,
        pure=False,
    )
