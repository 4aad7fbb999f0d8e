"""``fastode.capture`` and ``fastode.explain``: a field's program, for those who want to see it or to be sure of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from fastode.backends.choose import choose, may_differentiate
from fastode.backends.triton.backend import TritonBackend
from fastode.problem import Inputs, Plan, make_problem
from fastode.program.capture import Refusal, capture_field
from fastode.program.ir import Program
from fastode.tree import StateSpec

_numbers = itertools.count()
_captured: WeakValueDictionary[int, CapturedField] = WeakValueDictionary()


def captured_field(number: int) -> CapturedField:
    """The captured field of a number."""
    return _captured[number]


class CapturedField:
    """A field whose program has been captured; callable like the field, and accepted by ``solve``.

    Made by ``fastode.capture``. The program holds for every batch size and for all values of the tensors that the field
    reads, unless the field holds tensors per sample.

    Attributes:
        field: the user's callable.
        program: its ``Program``; ``print`` shows it.
        state: layout of the state.
        controls_spec: structure of the controls, None where the field takes none.
        held: the tensors that the field held when it was captured; under ``torch.compile`` these are its parameters.
        number: by which operators know it.
    """

    def __init__(
        self, field: Callable[..., Any], program: Program, state: StateSpec, controls_spec: Any, held: Sequence[Tensor]
    ) -> None:
        self.field = field
        self.program = program
        self.state = state
        self.controls_spec = controls_spec
        self.held = list(held)
        self.number = next(_numbers)
        _captured[self.number] = self

    def __call__(self, *args: Any) -> Any:
        """The field itself."""
        return self.field(*args)

    def __repr__(self) -> str:
        return f"CapturedField({self.field!r})\n{self.program}"


def uncaptured(field: Callable[..., Any]) -> Callable[..., Any]:
    """The user's callable, whose program is known: a captured field is described by nothing but this."""
    return field.field if isinstance(field, CapturedField) else field


def _problem(field: Callable[..., Any], y0: Any, controls: Any, t: Any, **options: Any) -> tuple[Plan, Inputs]:
    settings: dict[str, Any] = {
        "method": "dopri5",
        "rtol": 1e-5,
        "atol": 1e-6,
        "step_size": None,
        "controller": None,
        "max_steps": 1,
        "dense": False,
        "step_to_outputs": None,
    }
    unknown = options.keys() - settings.keys()
    if unknown:
        raise TypeError(f"unknown options {sorted(unknown)}; known are {sorted(settings)}")
    return make_problem(uncaptured(field), y0, t, controls, **{**settings, **options})


def capture(field: Callable[..., Any], y0: Any, controls: Any = None, *, t: Any = (0.0, 1.0)) -> CapturedField:
    """Captures a field's program now, so that no later solve has to.

    Args:
        field: ``field(t, y)`` or ``field(t, y, controls)``, as for ``solve``.
        y0: example states (B, *state), a tensor or a tree; the program holds for any B.
        controls: example controls, where the field takes them.
        t: times between which the program is compared with the field.

    Raises:
        RuntimeError: the field has no program; the message says which operation prevents it, and where it stands.
        TypeError, ValueError: arguments that ``solve`` would refuse.
    """
    plan, inputs = _problem(field, y0, controls, t)
    found, tensors = capture_field(plan.field, plan.times, inputs.y0, inputs.controls)
    if isinstance(found, Refusal):
        raise RuntimeError(f"the field has no program: {found}")
    spec = plan.field.controls_spec
    return CapturedField(field, found.program, plan.field.state, spec, tensors)


@dataclass(frozen=True)
class Explanation:
    """What ``explain`` found; ``print`` it.

    Attributes:
        backend: name of the backend that ``solve`` takes.
        program: the field's program, None if it has none.
        reasons: (backend, why it is not taken) of those that ``solve`` tries before.
        source: of the GPU kernels that backend ``triton`` runs for this solve, where it was asked for.
    """

    backend: str
    program: Program | None
    reasons: tuple[tuple[str, str], ...]
    source: str | None = None

    def __str__(self) -> str:
        lines = [f"backend: {self.backend}"]
        lines += [f"not {name}: {reason}" for name, reason in self.reasons]
        if self.program is not None:
            lines.append(str(self.program))
        if self.source is not None:
            lines += ["", self.source]
        return "\n".join(lines)


def explain(
    field: Callable[..., Any],
    y0: Any,
    controls: Any = None,
    *,
    t: Any = (0.0, 1.0),
    backend: str = "auto",
    source: bool = False,
    **options: Any,
) -> Explanation:
    """Says which backend solves a field, shows its program, or names what prevents one.

    The answer is that for ``solve`` in the same place: a gradient that may be asked for counts, ``no_grad`` counts.

    Args:
        field: as for ``solve``.
        y0: as for ``solve``.
        controls: as for ``solve``.
        t: as for ``solve``.
        backend: as for ``solve``.
        source: whether to show the source of the GPU kernels, too: that of the forward solve and, where a gradient may
            be asked for, that of the adjoint. It takes neither Triton nor a GPU.
        **options: method, rtol, atol, step_size, controller, max_steps, dense and step_to_outputs of ``solve``.

    Raises:
        TypeError, ValueError: arguments that ``solve`` would refuse.
        RuntimeError: the backend asked for cannot run this.
    """
    plan, inputs = _problem(field, y0, controls, t, **options)
    choice = choose(backend, plan, inputs)
    found, tensors = capture_field(plan.field, plan.times, inputs.y0, inputs.controls)
    if isinstance(found, Refusal):
        return Explanation(choice.name, None, choice.reasons)
    text = TritonBackend().source(plan, found, may_differentiate(inputs, tensors)) if source else None
    return Explanation(choice.name, found.program, choice.reasons, text)
