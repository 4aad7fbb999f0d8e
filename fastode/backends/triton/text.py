"""Small helpers to write Python source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


class Source:
    """Lines of Python with the right indentation."""

    def __init__(self, depth: int = 0) -> None:
        self.lines: list[str] = []
        self._depth = depth

    def add(self, *lines: str) -> None:
        """Lines at the present depth."""
        self.lines += [("    " * self._depth + line) if line else "" for line in lines]

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """A statement that ends in a colon; what is added inside ``with`` is its body."""
        self.add(head)
        self._depth += 1
        yield
        self._depth -= 1

    def include(self, other: Source) -> None:
        """The lines of another source at the present depth."""
        self.add(*other.lines)

    def __str__(self) -> str:
        return "\n".join(self.lines) + "\n"


def triton_type(dtype: torch.dtype) -> str:
    """How Triton's language calls a floating dtype."""
    return f"tl.{str(dtype).removeprefix('torch.')}"


def in_kind(text: str, half: str | None, kind: str) -> str:
    """What was loaded, as the type of the state: only what is stored in half precision needs a conversion."""
    return f"{text}.to({kind})" if half else text


def literal(number: float, dtype: torch.dtype) -> str:
    """A number as a Python expression; rounded to float32 where that is the dtype, as torch would round it."""
    value = float(np.float32(number)) if dtype == torch.float32 and abs(number) > 1e38 else number
    if math.isnan(value):
        return 'float("nan")'
    if math.isinf(value):
        return 'float("inf")' if value > 0 else 'float("-inf")'
    text = repr(value)
    return f"({text})" if text.startswith("-") else text


def joined(names: Iterable[str]) -> str:
    """Names as arguments or targets."""
    return ", ".join(names)


def weighted(weights: Iterable[float], terms: Sequence[str], dtype: torch.dtype) -> str:
    """sum_j weights[j] terms[j] without the zero weights, "" if none is left."""
    parts = []
    for weight, term in zip(weights, terms, strict=True):
        if weight == 0.0:
            continue
        parts.append(term if weight == 1.0 else f"{literal(float(weight), dtype)} * {term}")
    return " + ".join(parts)


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()
