"""The autograd node of ``gradient="checkpoint"``: any backend's forward solve, and its discrete adjoint.

Kernels compute first derivatives. Where these are differentiated again, the accepted steps are replayed by the
reference, and their gradient is taken in a graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastode.backends.base import Backend, Forward
from fastode.backends.healthy import healthy_index
from fastode.backends.implicit.replay import step_rule
from fastode.backends.steps import steps_of
from fastode.batched_grads import one_by_one
from fastode.checkpoint import Checkpoint
from fastode.externals import Externals, owned_tensors, watch
from fastode.fixed_clock import fixed_clock
from fastode.problem import Inputs, Plan
from fastode.reference import integrate, replay
from fastode.solution import DenseOutput
from fastode.status import Status
from fastode.vjp import FieldVjp, Substitute, reaches


def once_only(gradient: str) -> Callable[[Callable[..., tuple[Any, ...]]], Callable[..., tuple[Any, ...]]]:
    """Marks a backward pass, which has no derivative itself: to ask for one raises ``RuntimeError``.

    ``once_differentiable`` would raise only where the incoming gradient requires grad, and leave a loss like
    ``ys.sum() + y0.square().sum()`` with a part of its second derivative. Expects the inputs in ``ctx.sources``.
    """

    def decorate(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        def marked(ctx: Any, *incoming: Any) -> tuple[Any, ...]:
            return one_by_one(functools.partial(single, ctx), incoming)

        def single(ctx: Any, *incoming: Any) -> tuple[Any, ...]:
            if not torch.is_grad_enabled():  # the usual case
                return backward(ctx, *incoming)
            with torch.no_grad():
                grads = backward(ctx, *incoming)
            return guard(gradient, grads, [t for t in (*ctx.sources, *incoming) if isinstance(t, Tensor)])

        return marked

    return decorate


def guard(gradient: str, grads: Sequence[Tensor | None], sources: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients as they are; where a graph is recorded, to differentiate them raises ``RuntimeError``."""
    found = [grad for grad in grads if grad is not None]
    if not torch.is_grad_enabled() or not found:
        return tuple(grads)
    watched = [t for t in sources if t.requires_grad]
    guarded = iter(_OnceOnly.apply(gradient, len(found), *found, *watched))
    return tuple(None if grad is None else next(guarded) for grad in grads)


Replay = Callable[[Any, Sequence[Tensor]], Sequence[Tensor | None]]
"""From a node's ctx and its sources to its differentiable results, in a graph."""


def differentiable(replay: Replay) -> Callable[[Callable[..., tuple[Any, ...]]], Callable[..., tuple[Any, ...]]]:
    """Makes a backward pass that kernels compute differentiable, to any order.

    Expects the node's last inputs in ``ctx.sources``. The gradients of gradients are those of ``replay``, which is
    called only when they are asked for.
    """

    def decorate(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        def marked(ctx: Any, *incoming: Any) -> tuple[Any, ...]:
            return one_by_one(functools.partial(single, ctx), incoming)

        def single(ctx: Any, *incoming: Any) -> tuple[Any, ...]:
            if not torch.is_grad_enabled():  # the usual case
                return backward(ctx, *incoming)
            with torch.no_grad():
                grads = backward(ctx, *incoming)
            before = len(grads) - len(ctx.sources)
            needed = ctx.needs_input_grad  # a pass may return the gradient of more than that
            grads = tuple(grad if flag else None for grad, flag in zip(grads, needed, strict=True))
            places = [i - before for i, grad in enumerate(grads) if grad is not None]
            given = [grad for grad in incoming if isinstance(grad, Tensor)]
            which = [isinstance(grad, Tensor) for grad in incoming]
            found = [grad for grad in grads if grad is not None]

            def results(sources: Sequence[Tensor]) -> list[Tensor | None]:
                outputs = replay(ctx, sources)
                return [out for out, flag in zip(outputs, which, strict=False) if flag]

            again = iter(_Again.apply(results, places, len(ctx.sources), *found, *ctx.sources, *given))
            return tuple(None if grad is None else next(again) for grad in grads)

        return marked

    return decorate


class _Again(torch.autograd.Function):
    """Gradients that are known, with a graph of how they come about that is made when it is needed."""

    @staticmethod
    def forward(
        ctx: Any, results: Callable[..., list[Tensor | None]], places: list[int], n_sources: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        n = len(places)
        ctx.results, ctx.places, ctx.n_sources = results, places, n_sources
        ctx.save_for_backward(*tensors[n:])
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Any, ...]:
        higher = torch.is_grad_enabled()
        with torch.enable_grad():
            aliases = [t.view_as(t) if t.requires_grad else t for t in ctx.saved_tensors]
            sources, incoming = aliases[: ctx.n_sources], aliases[ctx.n_sources :]
            pairs = [
                (out, grad)
                for out, grad in zip(ctx.results(sources), incoming, strict=True)
                if out is not None and out.requires_grad
            ]
            second: Any = [None] * len(aliases)
            inputs = [sources[i] for i in ctx.places]
            first: Any = [None] * len(inputs)
            if pairs:
                first = torch.autograd.grad(
                    [out for out, _ in pairs], inputs, [g for _, g in pairs], create_graph=True, allow_unused=True
                )
            used = [
                (grad, g)
                for grad, g in zip(first, outer, strict=True)
                if grad is not None and grad.requires_grad and g is not None
            ]
            wanted = [i for i, t in enumerate(aliases) if t.requires_grad]
            if used and wanted:
                found = torch.autograd.grad(
                    [grad for grad, _ in used],
                    [aliases[i] for i in wanted],
                    [g for _, g in used],
                    create_graph=higher,
                    allow_unused=True,
                )
                for i, grad in zip(wanted, found, strict=True):
                    second[i] = grad
        return None, None, None, *[None] * len(ctx.places), *second


def replayed(
    plan: Plan,
    field: Callable[[Tensor, Tensor, Tensor], Tensor],
    record: Any,
    solved: Tensor | None,
    y0: Tensor,
    times: Tensor,
    sizes: Sequence[Tensor],
) -> tuple[Tensor, DenseOutput | None]:
    """The outputs (T, B, D) of the steps of a record, and their polynomials, in a graph.

    Args:
        plan: the solve.
        field: dy/dt (n, D) at times (n,) float64, states (n, D) and of the samples (n,).
        record: of the steps.
        solved: (B,) bool, None if all are. The others are replaced by copies of one that is.
        y0: (B, D).
        times: (T, B) float64.
        sizes: the step size (B,) float64, where its graph matters.
    """
    index = torch.arange(plan.batch, device=y0.device)
    if solved is not None and not bool(solved.all()):
        index = healthy_index(solved)
        y0, times = y0[index], times[:, index]

    def of_samples(t: Tensor, y: Tensor) -> Tensor:
        return field(t, y, index)

    step_size = None if plan.step_size is None else plan.step_size[index]
    plan = replace(plan, times=plan.times[:, index], step_size=step_size)
    steps = steps_of(record, y0)
    if steps is None:  # a record of another kind: every backend takes the steps of the reference
        steps = integrate(plan, of_samples, y0, of_samples(plan.times[0], y0))
    else:
        steps = steps.select(index)
    return replay(plan, of_samples, steps, y0, times, step_rule(plan), sizes[0][index] if sizes else None)


def replayed_clock(
    plan: Plan,
    field: Callable[[Tensor, Tensor, Tensor], Tensor],
    record: Any,
    defined: Tensor,
    y0: Tensor,
    times: Tensor,
    sizes: Sequence[Tensor],
) -> tuple[Tensor, DenseOutput | None]:
    """As ``replayed``, of fixed steps whose sizes vary.

    ``defined`` (B,) are the samples that succeeded and whose field is finite. The outputs of the others are their
    start: of failed ones no gradient is asked for, and without a step a sample succeeds with any field.
    """
    still = y0.expand(len(times), *y0.shape)
    if not bool(defined.any()):
        return still, None
    ys, dense = replayed(plan, field, record, defined, y0, times, sizes)
    return torch.where(defined[:, None], ys, still), dense


class _OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: str, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.gradient = gradient
        return tuple(tensor.view_as(tensor) for tensor in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"gradient={ctx.gradient!r} can be differentiated only once; use gradient='backprop' for higher derivatives"
        )


def _replay_node(ctx: Any, sources: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The results of ``_CheckpointSolve`` in a graph."""
    y0, times, *tensors = sources
    sizes, tensors = tensors[: ctx.n_sizes], tensors[ctx.n_sizes :]
    controls, externals = tensors[: ctx.n_controls], tensors[ctx.n_controls :]
    stand_ins = {id(old): new for old, new in zip(ctx.externals.unchanged(), externals, strict=True)}
    solved: Tensor = ctx.solved

    def field(t: Tensor, y: Tensor, index: Tensor) -> Tensor:
        with Substitute(stand_ins):
            return ctx.plan.field(t, y, [c[index] for c in controls]).clone()

    with ctx.externals.in_place():
        ys, dense = replayed(ctx.plan, field, ctx.record, solved, y0, times, sizes)
    if reaches(ys, sources, [t for t in ctx.externals.unchanged() if t.requires_grad]):
        raise RuntimeError(
            "the field reads a tensor that requires grad inside of an autograd.Function, or keeps what it has computed "
            "from it: its second derivatives take gradient='backprop'"
        )
    ys = torch.where(solved[:, None], ys, 0.0)
    return ys, None if dense is None else _in_rows(ctx, dense.coefs, solved), None


def _in_rows(ctx: Any, coefs: Tensor, which: Tensor) -> Tensor:
    """Coefficients of a replay in the order of those of the backend; zero but for some samples (B,) bool."""
    taken = torch.arange(ctx.rows.shape[0], device=which.device)[:, None] < ctx.n_accepted
    taken = taken & which
    blank = torch.zeros_like(coefs[:1]).expand(ctx.n_rows, *coefs.shape[1:])
    return blank.index_put((ctx.rows[taken],), coefs[taken.flatten()])


class _CheckpointSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        plan: Plan,
        policy: Checkpoint,
        k1: Tensor,
        n_sizes: int,
        n_controls: int,
        y0: Tensor,
        times: Tensor,
        *sizes_and_tensors: Tensor,
    ) -> tuple[Tensor, Tensor | None, Forward]:
        tensors = sizes_and_tensors[n_sizes:]
        controls = [c.detach() for c in tensors[:n_controls]]
        result = backend.forward(plan, y0.detach().contiguous(), controls, k1, policy)
        ctx.backend, ctx.plan, ctx.n_sizes, ctx.n_controls = backend, plan, n_sizes, n_controls
        ctx.record, ctx.solved = result.record, result.status == Status.SUCCESS
        ctx.clock_varies = plan.controller is None and (n_sizes > 0 or times.requires_grad)
        ctx.save_for_backward(k1, result.ys if times.requires_grad else None, *tensors[:n_controls])
        ctx.externals = Externals(tensors[n_controls:], plan.field.field)
        dense = result.dense
        ctx.rows, ctx.n_rows = (None, 0) if dense is None else (dense.rows, dense.coefs.shape[0])
        ctx.n_accepted = result.stats.n_accepted
        ctx.sources = (y0, times, *sizes_and_tensors)
        ctx.set_materialize_grads(False)
        return result.ys, None if result.dense is None else result.dense.coefs, result

    @staticmethod
    @differentiable(_replay_node)
    def backward(ctx: Any, grad_ys: Tensor | None, grad_coefs: Tensor | None, _: None) -> tuple[Any, ...]:
        k1, ys, *controls = ctx.saved_tensors
        plan: Plan = ctx.plan
        externals = ctx.externals.unchanged()
        needed = ctx.needs_input_grad[8 + ctx.n_sizes :]
        if grad_ys is None:
            grad_ys = k1.new_zeros(plan.times.shape[0], *k1.shape)
        lam = torch.where(ctx.solved[:, None], grad_ys, 0.0)
        controls_needed = needed[: ctx.n_controls]
        external_wanted = [t for t, flag in zip(externals, needed[ctx.n_controls :], strict=True) if flag]
        vjp = FieldVjp(plan.field, controls_needed, external_wanted)
        if ctx.clock_varies:
            y0_and_clock, grads_of_rest = _pull_clock(ctx, vjp, controls, lam, grad_coefs, k1)
            vjp.require_found()
            rest = iter(grads_of_rest)
            return *[None] * 6, *y0_and_clock, *[next(rest) if flag else None for flag in needed]
        with ctx.externals.in_place():
            grads = ctx.backend.backward(plan, ctx.record, controls, vjp, lam, grad_coefs)
            grad_y0, grad_times = boundary_gradients(
                plan, lambda t, y: plan.field(t, y, controls), k1, ys, lam, grads.y0, ctx.solved
            )
        vjp.require_found()
        wanted = iter([*grads.controls, *grads.externals])
        grad_tensors = [next(wanted) if flag else None for flag in needed]
        return *[None] * 6, grad_y0, grad_times, *grad_tensors


def _pull_clock(
    ctx: Any, vjp: FieldVjp, controls: Sequence[Tensor], lam: Tensor, grad_coefs: Tensor | None, k1: Tensor
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients by y0, times and step size of fixed steps, and by what the vjp wants: through a graph of all steps.

    With fixed steps the sizes depend on the times; no backend's adjoint has that part.
    """
    y0, times, *others = ctx.sources
    with torch.enable_grad():
        sources = [x.detach().requires_grad_() for x in (y0, times, *others[: ctx.n_sizes])]
        rows = vjp.leaf_rows(controls)

        def field(t: Tensor, y: Tensor, index: Tensor) -> Tensor:
            return vjp(t, y, [row[index] for row in rows]).clone()

        with ctx.externals.in_place():
            defined = ctx.solved & torch.isfinite(k1).all(1)
            ys, dense = replayed_clock(ctx.plan, field, ctx.record, defined, sources[0], sources[1], sources[2:])
            loss = (ys * lam).sum()
            if dense is not None and grad_coefs is not None:
                loss = loss + (_in_rows(ctx, dense.coefs, defined) * grad_coefs).sum()
            grads = vjp.pull_by(loss, sources, rows, None)
    return grads[: len(sources)], grads[len(sources) :]


def boundary_gradients(
    plan: Plan,
    field: Callable[[Tensor, Tensor], Tensor],
    k1: Tensor,
    ys: Tensor | None,
    lam: Tensor,
    a0: Tensor,
    solved: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Gradients by the initial state, (B, D), and, where ys is given, by the output times, (T, B) float64.

    Args:
        plan: the solve.
        field: dy/dt (B, D) at times (B,) float64 and states (B, D).
        k1: (B, D), the field at the start.
        ys: (T, B, D), the outputs; None if no gradient by the times is wanted.
        lam: (T, B, D), gradients of the outputs, zero for failed samples.
        a0: (B, D), adjoint at the start from the outputs after it.
        solved: (B,) bool.
    """
    at_start = (plan.times[1:] == plan.times[0])[..., None]
    a0 = a0 + torch.where(at_start, lam[1:], 0.0).sum(0)
    if ys is None:
        return a0 + lam[0], None

    defined = solved & torch.isfinite(k1).all(1)  # a sample without a step succeeds with any field

    def inner(a: Tensor, slope: Tensor) -> Tensor:
        products = torch.where(a != 0, a * slope, 0.0)  # where nothing comes in, the field may be anything
        return torch.where(defined, products.double().sum(1), 0.0)

    later = zip(lam[1:], plan.times[1:], ys[1:], strict=True)
    grad_times = [-inner(a0, k1)] + [inner(a, field(t, y)) for a, t, y in later]
    return a0 + lam[0], torch.stack(grad_times)


def start_of(plan: Plan, inputs: Inputs) -> tuple[Tensor, list[Tensor] | None]:
    """The field at the start, (B, D), and the tensors outside the arguments that a gradient may be wanted for.

    None instead of the tensors means that there is nothing to differentiate.
    """
    # Arguments are other objects than the user's: those count as read only where the field also holds them by other
    # means. They have their graph, should the field keep what it makes of them. The state is copied, should the field
    # write into it, or ask for its gradient as those of continuous normalizing flows do.
    y0, controls = inputs.y0.clone(), [c.view_as(c) for c in inputs.controls]

    def start() -> Tensor:
        return plan.field(plan.times[0], y0, controls).clone()  # the field may return the same buffer every time

    if not torch.is_grad_enabled():
        return start(), None
    k1, read = watch(start)
    given = {id(t) for t in (y0, *controls)}
    externals = {id(t): t for t in [*read, *owned_tensors(plan.field.field)] if id(t) not in given}
    own = [inputs.y0, inputs.times, *inputs.controls]
    nothing = not externals and inputs.step_size is None and not any(t.requires_grad for t in own)
    if nothing:
        plan.field.controls_vary = None
    return k1, None if nothing else list(externals.values())


def checkpoint_solve(
    backend: Backend, plan: Plan, inputs: Inputs, policy: Checkpoint
) -> tuple[Tensor, Tensor | None, Forward]:
    """Solves with the exact discrete adjoint: ys (T, B, D) and dense coefficients with their graph, and the rest.

    Without anything to differentiate nothing is recorded.
    """
    k1, externals = start_of(plan, inputs)
    if externals is None:
        with torch.no_grad():
            result = backend.forward(plan, inputs.y0.detach().contiguous(), inputs.controls, k1, None)
        return result.ys, None if result.dense is None else result.dense.coefs, result
    ys, coefs, result = _CheckpointSolve.apply(
        backend,
        plan,
        policy,
        k1,
        0 if inputs.step_size is None else 1,
        len(inputs.controls),
        inputs.y0,
        inputs.times,
        *([] if inputs.step_size is None else [inputs.step_size]),
        *inputs.controls,
        *externals,
    )
    dense = result.dense
    if dense is not None and inputs.clock_varies(plan):
        t_next = torch.cat([dense.start[1:], dense.reached[None]])[: len(dense.start)]
        clock = fixed_clock(plan, dense.start, t_next, dense.size, inputs.times, inputs.step_size)
        result.dense = replace(dense, start=clock.start, size=clock.size)
    return ys, coefs, result
