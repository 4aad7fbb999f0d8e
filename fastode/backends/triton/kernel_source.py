"""What the sources of the forward kernel and of the adjoint have in common."""

from __future__ import annotations

from collections.abc import Sequence

from fastode.backends.triton.code import Code
from fastode.backends.triton.method import Method
from fastode.backends.triton.text import Source, joined, weighted

HEADER = '''"""{title}

Generated; {shape}, {samples} samples of a program, {kind}.
{leaves}"""

import triton
import triton.language as tl

from fastode.backends.triton.functions import device_function, larger, libdevice, remainder, sign

'''


def header(code: Code, title: str) -> str:
    """The beginning of a generated module."""
    leaves = "".join(f"{line.removeprefix('# ')}\n" for line in code.leaf_comment())
    return HEADER.format(
        title=title, shape=code.launch.shape, samples=code.samples, kind=code.kind.removeprefix("tl."), leaves=leaves
    )


def jitted(arguments: Sequence[str]) -> str:
    """The decorator of a kernel: no number among its arguments is compiled into it."""
    numbers = [name for name in arguments if not name.endswith("_ptr") and ":" not in name]
    return f"@triton.jit(do_not_specialize={numbers!r})"


def stored(pointer: str, value: str, mask: str) -> str:
    """A store with or without a mask."""
    return f"tl.store({pointer}, {value}" + (f", mask={mask})" if mask else ")")


def loaded(pointer: str, mask: str, other: str = "0.0") -> str:
    """A load with or without a mask."""
    return f"tl.load({pointer}" + (f", mask={mask}, other={other})" if mask else ")")


class Kernel:
    """What the sources of both kernels share."""

    def __init__(self, code: Code, method: Method) -> None:
        self.code, self.method = code, method
        self.s = code.samples
        self.out = Source()

    def assign(self, target: str, *states: str, text: str) -> None:
        """Sets target to an expression, part by part; ``{0}``, ``{1}``, ... stand for parts of ``states``."""
        rows = [self.code.parts(state) for state in states]
        for i, part in enumerate(self.code.parts(target)):
            self.out.add(f"{part} = {text.format(*(row[i] for row in rows))}")

    def stages(self, i: int, prefix: str = "k") -> list[str]:
        """Names of the first i stages."""
        return [f"{prefix}{j + 1}" for j in range(i)]

    def load_state(self, target: str, pointer: str, row: str, condition: str | None = None) -> None:
        """A state from a row of an array of states; zero where the condition does not hold."""
        mask = self.code.mask(condition)
        for part, place in zip(self.code.parts(target), self.code.address(row), strict=True):
            self.out.add(f"{part} = {loaded(f'{pointer} + {place}', mask)}")

    def store_state(self, source: str, pointer: str, row: str, condition: str) -> None:
        """A state into a row of an array of states, where the condition holds."""
        mask = self.code.mask(condition)
        for part, place in zip(self.code.parts(source), self.code.address(row), strict=True):
            self.out.add(stored(f"{pointer} + {place}", part, mask))

    def field(self, target: str, time: str, state: str) -> None:
        """Evaluates the field."""
        self.out.add(f"{joined(self.code.parts(target))} = {self.code.call_field(time, state)}")

    def stage_states(self, last: int, y: str, k: str, u: str, step: str, size: str, first: int = 1) -> None:
        """Stages first..last (from 0) of a step from y: states u{i+1}, slopes k{i+1}."""
        for i in range(first, last):
            self.combination_of(f"{u}{i + 1}", list(self.method.a[i][:i]), self.stages(i, k), y, size)
            self.field(f"{k}{i + 1}", self.stage_time(i, step), f"{u}{i + 1}")

    def combination_of(self, target: str, weights: list[float], states: list[str], y: str, size: str) -> None:
        """Sets target to y + size (sum of weights times states)."""
        kept = [(w, s) for w, s in zip(weights, states, strict=True) if w != 0.0]
        total = weighted([w for w, _ in kept], [f"{{{i + 1}}}" for i in range(len(kept))], self.code.dtype)
        text = f"{{0}} + {self.code.wide(size)} * ({total})" if total else "{0}"
        self.assign(target, y, *(s for _, s in kept), text=text)

    def stage_time(self, i: int, step: str) -> str:
        """Time of stage i, in float64."""
        c = self.method.c[i]
        return "t" if c == 0.0 else f"t + {step}" if c == 1.0 else f"t + {c!r} * {step}"

    def constants(self) -> None:
        """Loads everything that does not change during the steps of a program."""
        for name, load in self.code.loads.items():
            self.out.add(f"{name} = {load}")
