"""What an adapter of a library offers to the comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Protocol

from torch import Tensor

from bench.cases import MODES, Problem
from bench.cases.case import Solve


class DoesNotApply(Exception):  # noqa: N818
    """The library cannot run this case, for a reason that is in the nature of either."""


@dataclass(frozen=True)
class Work:
    """What one solve took, as far as the library tells.

    Attributes:
        steps_mean, steps_max: attempted steps over the samples; for libraries that step the whole batch at once, its.
        evals: evaluations of the field, per sample where samples differ.
        evals_total, accepted_total, steps_total: sums over the samples, from fastode only; the floor needs them.
    """

    steps_mean: float | None = None
    steps_max: float | None = None
    evals: float | None = None
    evals_total: float | None = None
    accepted_total: float | None = None
    steps_total: float | None = None


@dataclass(frozen=True)
class Run:
    """A case made ready for one library and mode.

    Attributes:
        call: the timed part; finished when it returns, except for work queued on torch's GPU stream.
        values: what ``call`` returned as tensors.
        work: the work of the last call, or of a call of its own; not timed.
    """

    call: Callable[[], Any]
    values: Callable[[Any], list[Tensor]]
    work: Callable[[], Work]


class Library(Protocol):
    """One way to solve: a library, or a part of it."""

    name: str
    package: str

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that it has."""
        ...

    def prepare(self, problem: Problem, mode: str) -> Run:
        """Everything that need not be repeated: conversions, compilation. Raises where it cannot be."""
        ...


class TorchLibrary:
    """A library whose solve is torch code: the problem's own ``forward``, ``gradient`` and ``train`` call it."""

    name: str
    package: str
    modes: tuple[str, ...] = MODES

    def __str__(self) -> str:
        return self.name

    def solver(self, problem: Problem, mode: str) -> Solve:
        """The solve to be timed."""
        raise NotImplementedError

    def work(self, problem: Problem, mode: str, solve: Solve) -> Work:
        """The work of a solve that was timed, or of another."""
        return Work()

    def prepare(self, problem: Problem, mode: str) -> Run:
        require(self.package)
        solve = self.solver(problem, mode)
        action = getattr(problem, mode)
        return Run(lambda: action(solve), list, lambda: self.work(problem, mode, solve))


def require(package: str) -> None:
    """ImportError with one clear line unless the package is there."""
    if find_spec(package) is None:
        raise ImportError(f"{package} is not installed")


def version_of(package: str) -> str | None:
    """The installed version, None if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
