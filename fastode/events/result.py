"""What ``Solution.events`` holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastode.solution import Stats


@dataclass(frozen=True)
class Occurrences:
    """Where one event happened.

    Attributes:
        name: of the event, None if it has none.
        t: (B, N) times, those of a sample one after another, padded with NaN; N is the largest count.
        y: the states there, before any reset, (B, N, *state), a tree like y0, padded with NaN.
        count: (B,) int64, how many there are.
    """

    name: str | None
    t: Tensor
    y: Any
    count: Tensor


@dataclass(frozen=True)
class Events:
    """The events of a solve, one ``Occurrences`` for each ``Event`` given: ``events[0]`` or ``events["name"]``.

    Times are in the dtype of t if that was a floating tensor, and otherwise float64. Times and states are
    differentiable like ys.

    Attributes:
        t_end: (B,) the time at which each sample ended: that of the event which ended it, or the last output time; for
            failed samples the time that they reached.
        y_end: the state there, (B, *state), a tree like y0; NaN for failed samples.
        ended_by: (B,) int64, number of the event that ended the sample; -1 if none did.
        search: what the search for the events cost, apart from ``Solution.stats``.
    """

    occurrences: tuple[Occurrences, ...]
    t_end: Tensor
    y_end: Any
    ended_by: Tensor
    search: Stats

    def __getitem__(self, which: int | str) -> Occurrences:
        """The occurrences of one event, by its place or name. Raises IndexError or KeyError."""
        if isinstance(which, str):
            for one in self.occurrences:
                if one.name == which:
                    return one
            raise KeyError(f"no event is called {which!r}; there are {[one.name for one in self.occurrences]}")
        return self.occurrences[which]

    def __len__(self) -> int:
        return len(self.occurrences)

    def __iter__(self) -> Iterator[Occurrences]:
        return iter(self.occurrences)
