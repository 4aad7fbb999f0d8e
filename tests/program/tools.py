"""Captures a field and compares its program and pullback with the field and torch's gradient, on other data."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastode.problem import Inputs, Plan, make_problem
from fastode.program.capture import Capture, Refusal, capture_field
from fastode.program.evaluate import evaluate, evaluate_pullback
from fastode.tree import tree_map

F32, F64 = torch.float32, torch.float64
PRECISION = {F64: 1e-10, F32: 2e-4}


def problem(field: Callable[..., Any], y0: Any, controls: Any = None) -> tuple[Plan, Inputs]:
    """The arguments of a solve from t = 0.3 to t = 1.7, as backends see them."""
    return make_problem(field, y0, (0.3, 1.7), controls, "dopri5", 1e-6, 1e-6, None, None, 10, False)


def attempt(field: Callable[..., Any], y0: Any, controls: Any = None) -> Capture | Refusal:
    plan, inputs = problem(field, y0, controls)
    return capture_field(plan.field, plan.times, inputs.y0, inputs.controls)[0]


def program_of(field: Callable[..., Any], y0: Any, controls: Any = None) -> Capture:
    found = attempt(field, y0, controls)
    assert isinstance(found, Capture), found
    return found


def refusal_of(field: Callable[..., Any], y0: Any, controls: Any = None) -> Refusal:
    found = attempt(field, y0, controls)
    assert isinstance(found, Refusal), found.program
    return found


def moved(tree: Any, batch: int, scale: float = 0.3) -> Any:
    """Other data of another number of samples, shaped and sized like the given."""

    def leaf(x: Tensor) -> Tensor:
        rows = torch.arange(batch) % x.shape[0]
        return x.detach()[rows] + scale * torch.randn(batch, *x.shape[1:], dtype=x.dtype)

    return tree_map(leaf, tree)


def of(tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
    return [torch.zeros_like(x) if g is None else g for x, g in zip(tensors, grads, strict=True)]


def largest(x: Tensor) -> float:
    return float(x.detach().abs().max()) if x.numel() else 0.0


def assert_close(got: Tensor, expected: Tensor, precision: float, what: str, floor: float = 1e-3) -> None:
    """To a precision relative to the largest component, or to ``floor`` where that is larger."""
    assert got.shape == expected.shape, what
    scale = precision * max(largest(expected), floor)
    torch.testing.assert_close(got, expected, rtol=precision, atol=scale, equal_nan=True, msg=lambda m: f"{what}: {m}")


def check(
    field: Callable[..., Any],
    y0: Any,
    controls: Any = None,
    *,
    move: Callable[[Any, int], Any] = moved,
    precision: float | None = None,
) -> Capture:
    """Captures the field on ``y0`` and compares on other states, controls and times, two samples more where it can."""
    made = program_of(field, y0, controls)
    batch = problem(field, y0, controls)[1].y0.shape[0]
    compare(
        field,
        move(y0, made.batch or batch + 2),
        None if controls is None else move(controls, made.batch or batch + 2),
        precision,
    )
    return made


def compare(field: Callable[..., Any], y: Any, controls: Any = None, precision: float | None = None) -> Capture:
    """Compares the program, as it is known now, with the field on the given data: values and all gradients."""
    plan, inputs = problem(field, y, controls)
    made, tensors = capture_field(plan.field, plan.times, inputs.y0, inputs.controls)
    assert isinstance(made, Capture), made
    rows = inputs.y0.detach().clone().requires_grad_()
    given = [c.detach().clone().requires_grad_(c.is_floating_point()) for c in inputs.controls]
    batch = rows.shape[0]
    t = torch.linspace(0.4, 1.6, batch, dtype=rows.dtype)
    precision = precision or PRECISION[rows.dtype]

    expected = plan.field(t, rows, given)
    shared, sample = made.leaves(tensors, given, batch)
    fixed = [x.detach() for x in shared], [x.detach() for x in sample]
    value = evaluate(made.program, t, rows.detach(), *fixed)
    assert_close(value, expected.detach(), precision, "value")

    wanted = [rows, *(c for c in given if c.requires_grad), *(x for x in tensors if x.requires_grad)]
    names = [
        "state",
        *("controls" for c in given if c.requires_grad),
        *("parameter" for x in tensors if x.requires_grad),
    ]
    cotangent = torch.randn_like(expected)
    true: Sequence[Tensor | None] = [None] * len(wanted)
    if expected.requires_grad:
        true = torch.autograd.grad(expected, wanted, cotangent, allow_unused=True)
    by_state, by_shared, by_sample = evaluate_pullback(made.pullback, t, rows.detach(), *fixed, cotangent)
    leaves = [(x, g) for x, g in zip((*shared, *sample), (*by_shared, *by_sample), strict=True) if x.requires_grad]
    own: list[Tensor | None] = [None] * len(wanted)
    if leaves:
        own = list(torch.autograd.grad([x for x, _ in leaves], wanted, [g for _, g in leaves], allow_unused=True))
    got = of(wanted, own)
    got[0] = got[0] + by_state
    right = of(wanted, true)
    floor = 1e-3 * max(1.0, *map(largest, right))  # a gradient that is zero but for cancellation is rounding of others
    for name, x, y_ in zip(names, got, right, strict=True):
        assert_close(x, y_, precision, f"gradient by {name}", floor)
    return made
