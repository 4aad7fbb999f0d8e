"""Events of each sample: where a function of time and state changes its sign, found, differentiated and acted upon."""

from fastode.events.event import Event
from fastode.events.result import Events, Occurrences

__all__ = ["Event", "Events", "Occurrences"]
