"""``solve`` under ``torch.compile``: of a captured field as one operator inside the graph, of others outside of it.

Imported only while torch compiles. The operators are functional: what the backward pass needs is among the results of
the forward pass, as tensors. Settings are plain numbers and strings, and captured fields are known by their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch.utils import _pytree as pytree

from fastode.autograd import boundary_gradients
from fastode.backends import choose
from fastode.backends.base import ProgramBackend
from fastode.backends.leaves import leaves_for_kernels
from fastode.backends.packing import pack, unpack
from fastode.captured import CapturedField, captured_field
from fastode.checkpoint import Checkpoint
from fastode.controllers import IController, PIDController
from fastode.problem import Inputs, Plan, make_problem
from fastode.program.capture import Capture, Refusal, capture_field
from fastode.solution import Outcome, Solution, Stats
from fastode.solve import solve_now
from fastode.status import SolveError, Status
from fastode.tableaus import IMPLICIT_TABLEAUS, Tableau, get_tableau
from fastode.tracers import refuse_export

_NAMES = ("auto", *(backend.name for backend in choose.PROGRAMS))
_solve_outside = torch._dynamo.disable(solve_now, reason="only fields from fastode.capture are solved inside a graph")

_SETTINGS = (
    "int field, str backend, str method, float rtol, float atol, float step_size, str controller, int max_steps, "
    "bool step_to_outputs, int every, int max_bytes"
)


def solve(field: Any, y0: Any, t: Any, **options: Any) -> Solution:
    """``fastode.solve`` while torch compiles the code around it; the same arguments."""
    refuse_export("fastode.solve")
    if not isinstance(field, CapturedField) or options["events"] is not None or not _fits(t, options):
        return _solve_outside(field, y0, t, **options)
    gradient = options["gradient"]
    max_steps = min(options["max_steps"], 2**62)  # as in make_problem: the operator takes 64 bits
    policy = gradient.within(max_steps) if isinstance(gradient, Checkpoint) else Checkpoint()
    leaves, spec = pytree.tree_flatten(y0)
    controls = [] if options["controls"] is None else pytree.tree_leaves(options["controls"])
    times = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    ys, columns, reached, *_ = torch.ops.fastode.solve(
        leaves,
        times,
        controls,
        field.held,
        options["on_failure"] == "raise",
        field.number,
        options["backend"],
        options["method"],
        float(options["rtol"]),
        float(options["atol"]),
        math.nan if options["step_size"] is None else float(options["step_size"]),
        _controller_text(options["controller"]),
        max_steps,
        bool(options["step_to_outputs"]),
        policy.every,
        policy.max_bytes or 0,
    )
    sizes = [math.prod(leaf.shape[1:]) for leaf in leaves]
    parts = [
        part.reshape(*part.shape[:2], *leaf.shape[1:])
        for part, leaf in zip(ys.split(sizes, dim=2), leaves, strict=True)
    ]
    status, *counts = columns.unbind()
    outcome = Outcome(status, reached, Stats(*counts))
    return Solution(times, pytree.tree_unflatten(parts, spec), outcome, field.state, None, None, options["backend"])


def _fits(t: Any, options: dict[str, Any]) -> bool:
    numbers = all(isinstance(options[name], (int, float)) for name in ("rtol", "atol"))
    step = options["step_size"] is None or isinstance(options["step_size"], (int, float))
    gradient = options["gradient"] == "checkpoint" or isinstance(options["gradient"], Checkpoint)
    method = options["method"]
    explicit = isinstance(method, str) and method not in IMPLICIT_TABLEAUS
    fixed = options["step_size"] is not None or not (explicit and get_tableau(method).is_adaptive)
    if fixed and isinstance(t, Tensor) and t.requires_grad:
        return False  # the steps depend on t, which the operator's gradient does not know
    plain = not options["dense"] and explicit and options["backend"] in _NAMES
    plain = plain and (options["step_to_outputs"] is None or isinstance(options["step_to_outputs"], bool))
    return numbers and step and gradient and plain


def _controller_text(controller: PIDController | None) -> str:
    if controller is None:
        return ""
    c = controller
    first = math.nan if c.first_step is None else c.first_step
    numbers = [c.pcoeff, c.icoeff, c.dcoeff, c.safety, c.min_factor, c.max_factor, c.min_step, c.max_step, first]
    return ",".join([str(float(number)) for number in numbers])


def _problem(
    y0: Sequence[Tensor],
    times: Tensor,
    controls: Sequence[Tensor],
    field: int,
    backend: str,
    method: str | Tableau,
    rtol: float,
    atol: float,
    step_size: float,
    controller: str,
    max_steps: int,
    step_to_outputs: bool,
) -> tuple[Plan, Inputs, Capture, CapturedField, ProgramBackend]:
    captured = captured_field(field)
    given = None
    if controller:
        numbers = [float(text) for text in controller.split(",")]
        names = ("pcoeff", "icoeff", "dcoeff", "safety", "min_factor", "max_factor", "min_step", "max_step")
        first = None if math.isnan(numbers[8]) else numbers[8]
        values = dict(zip(names, numbers, strict=False))
        is_integral = (values["pcoeff"], values["icoeff"], values["dcoeff"]) == (0.0, 1.0, 0.0)
        given = (IController if is_integral else PIDController)(**values, first_step=first)
    plan, inputs = make_problem(
        captured.field,
        pytree.tree_unflatten(list(y0), captured.state.treespec),
        times,
        None if captured.controls_spec is None else pytree.tree_unflatten(list(controls), captured.controls_spec),
        method,
        rtol,
        atol,
        None if math.isnan(step_size) else step_size,
        given,
        max_steps,
        False,
        step_to_outputs,
    )
    found, _ = capture_field(plan.field, plan.times, inputs.y0.detach(), [c.detach() for c in inputs.controls])
    if isinstance(found, Refusal):
        raise RuntimeError(f"the field has no program any more: {found}")
    return plan, inputs, found, captured, choose.choose_for_program(backend, plan, found)


@torch.library.custom_op(
    "fastode::solve",
    mutates_args=(),
    schema=(
        f"(Tensor[] y0, Tensor times, Tensor[] controls, Tensor[] held, bool raises, {_SETTINGS}) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def _solve(
    y0: list[Tensor], times: Tensor, controls: list[Tensor], held: list[Tensor], raises: bool, *settings: Any
) -> tuple[Tensor, ...]:
    """(T, B, D) outputs; (4, B) status and counts; (B,) times reached; the record and its layout."""
    *numbers, every, max_bytes = settings
    plan, inputs, capture, _, backend = _problem(y0, times, controls, *numbers)
    leaves = capture.leaves(held, inputs.controls, plan.batch, backend.reads_halves)
    shared, sample = leaves_for_kernels(*leaves)
    policy = Checkpoint(every, max_bytes or None)
    result = backend.forward(plan, capture, inputs.y0.contiguous(), shared, sample, policy, None)
    if raises and result.failed:
        raise SolveError(result.status, result.reached, result.outcome.last_step, result.outcome.last_ratio)
    columns = torch.stack([result.status, result.stats.n_accepted, result.stats.n_rejected, result.stats.n_evals])
    return result.ys, columns, result.reached.clone(), *pack(result.record)


@_solve.register_fake
def _(
    y0: list[Tensor], times: Tensor, controls: list[Tensor], held: list[Tensor], raises: bool, *settings: Any
) -> tuple[Tensor, ...]:
    batch, width = y0[0].shape[0], sum(math.prod(leaf.shape[1:]) for leaf in y0)
    context = torch.library.get_ctx()
    n_words, n_numbers = context.new_dynamic_size(), context.new_dynamic_size()
    like = y0[0]
    return (
        like.new_empty(times.shape[0], batch, width),
        like.new_empty(4, batch, dtype=torch.int64),
        like.new_empty(batch, dtype=torch.float64),
        like.new_empty(n_words, dtype=torch.int64),
        torch.empty(n_numbers, dtype=torch.int64, device="cpu"),
    )


@torch.library.custom_op(
    "fastode::solve_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad_ys, Tensor ys, Tensor status, Tensor words, Tensor layout, Tensor[] y0, Tensor times, "
        f"Tensor[] controls, Tensor[] held, {_SETTINGS}) -> Tensor[]"
    ),
)
def _solve_backward(
    grad_ys: Tensor,
    ys: Tensor,
    status: Tensor,
    words: Tensor,
    layout: Tensor,
    y0: list[Tensor],
    times: Tensor,
    controls: list[Tensor],
    held: list[Tensor],
    *settings: Any,
) -> list[Tensor]:
    """Gradients by y0, times, controls and held, zeros where there is none."""
    plan, inputs, capture, captured, backend = _problem(y0, times, controls, *settings[:-2])
    solved = status == Status.SUCCESS
    with torch.enable_grad():
        sources = [x.detach().requires_grad_(x.is_floating_point()) for x in (*inputs.controls, *held)]
        own_controls, own_held = sources[: len(controls)], sources[len(controls) :]
        leaves = capture.leaves(own_held, own_controls, plan.batch, backend.reads_halves)
    kernel_leaves = leaves_for_kernels(*[[leaf.detach() for leaf in part] for part in leaves])
    record = unpack(words, layout, plan.batch, inputs.y0.shape[1], inputs.y0.dtype)
    both = [*leaves[0], *leaves[1]]
    wanted = tuple(leaf.requires_grad for leaf in both)
    a0, grads = backend.backward(plan, capture, record, *kernel_leaves, wanted, solved, grad_ys)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return backend.evaluate(capture, t, y, *kernel_leaves)

    lam = torch.where(solved[:, None], grad_ys, 0.0)
    k1 = field(plan.times[0], inputs.y0)
    grad_y0, grad_times = boundary_gradients(plan, field, k1, ys, lam, a0, solved)
    assert grad_times is not None
    pairs = [(leaf, grad) for leaf, grad in zip(both, grads, strict=True) if grad is not None]
    wanted_sources = [x for x in sources if x.requires_grad]
    found = torch.autograd.grad([p[0] for p in pairs], wanted_sources, [p[1] for p in pairs], allow_unused=True)
    by_source = dict(zip(map(id, wanted_sources), found, strict=True))
    rest = [by_source.get(id(x)) for x in sources]
    by_y0 = pytree.tree_leaves(captured.state.unflatten(grad_y0))
    grad_t = grad_times.sum(1) if times.ndim == 1 else grad_times
    return [
        *[g.to(x.dtype).clone().reshape(x.shape) for g, x in zip(by_y0, y0, strict=True)],
        grad_t.to(times.device, times.dtype) if times.is_floating_point() else torch.zeros_like(times),
        *[torch.zeros_like(x) if g is None else g.clone() for g, x in zip(rest, (*controls, *held), strict=True)],
    ]


@_solve_backward.register_fake
def _(grad_ys: Tensor, ys: Tensor, status: Any, words: Any, layout: Any, *rest: Any) -> list[Tensor]:
    y0, times, controls, held = rest[:4]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (*y0, times, *controls, *held)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y0, times, controls, held, _, *settings = inputs
    ys, columns, _, words, layout = output
    ctx.save_for_backward(ys, columns, words, layout, times, *y0, *controls, *held)
    ctx.counts = len(y0), len(controls), len(held)
    ctx.settings = settings


def _backward(ctx: Any, grad_ys: Tensor, *_: Any) -> tuple[Any, ...]:
    ys, columns, words, layout, times, *tensors = ctx.saved_tensors
    n, m, k = ctx.counts
    y0, controls, held = tensors[:n], tensors[n : n + m], tensors[n + m :]
    grads = torch.ops.fastode.solve_backward(
        grad_ys, ys, columns[0], words, layout, y0, times, controls, held, *ctx.settings
    )
    by_times = grads[n] if times.is_floating_point() else None
    rest = grads[n + 1 :]
    return grads[:n], by_times, rest[:m], rest[m : m + k], None, *[None] * len(ctx.settings)


_solve.register_autograd(_backward, setup_context=_setup_context)
