"""Events."""

from fastode.dropin.legacy import combine_event_functions, find_event

__all__ = ["combine_event_functions", "find_event"]
