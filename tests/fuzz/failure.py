"""A case that failed."""

from __future__ import annotations


class Failure(AssertionError):
    """What differed.

    Args:
        kind: ``values``, ``gradients``, ``effects``, ``exception``, ``warning``, ``crash``, ``time``.
        text: where, what came out, and what is right.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text
