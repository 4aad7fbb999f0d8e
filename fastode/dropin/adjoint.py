"""``odeint_adjoint`` with torchdiffeq's signature: the exact gradient of the steps taken, or the continuous adjoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastode.autograd import guard
from fastode.backends.compare import NotRepeatable
from fastode.dropin import batched, programs, torch_engine
from fastode.dropin.adjoint_norms import adjoint_norm, state_norm
from fastode.dropin.arguments import Arguments, check, flat_tolerance, is_several
from fastode.dropin.compiled import outside_of_graphs
from fastode.dropin.crossing import with_time_gradient
from fastode.dropin.functions import ADJOINT_CALLBACKS, CALLBACKS, flatten
from fastode.dropin.graph import pull
from fastode.dropin.methods import is_adaptive, is_implicit
from fastode.dropin.odeint import by_program, run
from fastode.externals import Externals, computed_weights, depend_on_each_other
from fastode.hostflags import differentiation_hidden
from fastode.vjp import Substitute, UnknownLeafError

GRADIENTS = ("exact", "adjoint")


@outside_of_graphs
def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """Solves dy/dt = func(t, y); a drop-in for ``torchdiffeq.odeint_adjoint``.

    The gradient is by default that of the steps that were taken, from a record of one state per step: exact, and
    cheaper than to solve the adjoint equation. ``adjoint_options``, or ``options={"gradient": "adjoint"}``, ask for the
    continuous adjoint, solved backward in time in constant memory. It is also taken where there is no record:
    ``scipy_solver``, solvers of the user's own, norms, prescribed steps or sides of them (``perturb``) and callbacks.

    Gradients reach y0, t and the parameters; those that ``func`` does not use get zeros.

    Args:
        func: as for ``odeint``; an ``nn.Module`` unless ``adjoint_params`` is given.
        y0: as for ``odeint``.
        t: as for ``odeint``.
        rtol: as for ``odeint``.
        atol: as for ``odeint``.
        method: as for ``odeint``.
        options: as for ``odeint``; and ``gradient``, ``"exact"`` or ``"adjoint"``.
        event_fn: as for ``odeint``.
        adjoint_rtol: relative tolerance of the adjoint equation; rtol by default.
        adjoint_atol: absolute tolerance of the adjoint equation; atol by default.
        adjoint_method: method for the adjoint equation; ``method`` by default.
        adjoint_options: options for the adjoint equation; ``options`` without their norm by default. Other than a norm
            they ask for that equation to be solved, and so does a norm of one's own. ``norm`` may be
            ``"seminorm"``, which leaves the gradients by the parameters out of step control, or a callable of
            ``(t, y, adj_y, *params)``, y and adj_y unpacked where the state is a tuple. The norm in force is
            ``solution.grad_fn.adjoint_options["norm"]``; it may be replaced there, which asks for the adjoint equation.
        adjoint_params: tensors to differentiate by; ``func.parameters()`` by default.

    Returns:
        As ``odeint``.

    Raises:
        ValueError: no module and no ``adjoint_params``; another ``adjoint_method`` with options but without
            ``adjoint_options``; and as ``odeint``.
    """
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise ValueError(
            "func must be an instance of nn.Module to specify the adjoint parameters; alternatively they can be "
            "specified explicitly via the `adjoint_params` argument. If there are no parameters then it is allowable "
            "to set `adjoint_params=()`."
        )
    adjoint_method = method if adjoint_method is None else adjoint_method
    if adjoint_method != method and options is not None and adjoint_options is None:
        raise ValueError(
            "If `adjoint_method != method` then we cannot infer `adjoint_options` from `options`. So as `options` has "
            "been passed then `adjoint_options` must be passed as well."
        )
    options = dict(options or {})
    gradient = options.pop("gradient", "adjoint" if _asks_for_equation(adjoint_options) else "exact")
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {GRADIENTS}, got {gradient!r}")
    if adjoint_options is None:
        adjoint_options = {key: value for key, value in options.items() if key not in ("norm", "step_control")}
    params = tuple(find_parameters(func) if adjoint_params is None else adjoint_params)  # type: ignore[arg-type]
    wanted = tuple(p for p in params if p.requires_grad)
    if len(wanted) != len(params) and callable(adjoint_options.get("norm")):
        warnings.warn(
            "An adjoint parameter was passed without requiring gradient. For efficiency this will be excluded from the "
            "adjoint pass, and will not appear as a tensor in the adjoint norm.",
            stacklevel=2,
        )
    args = check(func, y0, t, rtol, atol, method, options, event_fn)
    owned = adjoint_params is None
    result = _solve(args, wanted, owned, gradient, adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options)
    return result if event_fn is None else with_time_gradient(args, result)


def _solve(
    args: Arguments,
    wanted: tuple[Tensor, ...],
    owned: bool,
    gradient: str,
    adjoint_rtol: Any,
    adjoint_atol: Any,
    adjoint_method: str | None,
    adjoint_options: dict[str, Any],
) -> Any:
    """The result of ``odeint_adjoint``; the time of an event is without graph."""
    if differentiation_hidden() or args.steps_vary:  # a graph of its own would not know what the steps depend on
        return run(args)
    sources = (*args.parts, args.t, *wanted)
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in sources):
        with torch.no_grad():
            return run(args)
    tied = depend_on_each_other(list(wanted))
    if tied and gradient == "exact":
        return run(args)  # in a graph of its own a parameter that comes from another would count twice
    settings = dict(adjoint_options)
    settings["norm"] = adjoint_norm(settings.get("norm"), state_norm(args), args.shapes)
    job = AdjointJob(
        args,
        wanted,
        owned,
        args.rtol if adjoint_rtol is None else adjoint_rtol,
        args.atol if adjoint_atol is None else adjoint_atol,
        args.method if adjoint_method is None else adjoint_method,
        settings,
    )
    job.solve(exact=gradient == "exact" and _has_record(args))
    return job.tie()


def _asks_for_equation(adjoint_options: dict[str, Any] | None) -> bool:
    """Whether options prescribe how the adjoint equation is solved, more than that its parameters need no control."""
    if adjoint_options is None:
        return False
    norm = adjoint_options.get("norm")
    return set(adjoint_options) - {"norm"} != set() or not (norm is None or norm == "seminorm")


def find_parameters(module: nn.Module) -> list[Tensor]:
    """Parameters of a module; of a replica that ``nn.DataParallel`` has made, the tensors in their place."""
    if not isinstance(module, nn.Module):
        raise AssertionError("func must be an nn.Module")
    if not getattr(module, "_is_replica", False):
        return list(module.parameters())
    found: dict[int, Tensor] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and value.requires_grad:
                found[id(value)] = value
    return list(found.values())


def _has_record(args: Arguments) -> bool:
    """Whether the steps can be differentiated at a price in memory of a state per step, or of small states."""
    callbacks = args.callbacks or any(hasattr(args.func, name) for name in ADJOINT_CALLBACKS)
    return args.is_own and args.method != "scipy_solver" and not callbacks


@dataclass
class AdjointJob:
    """One solve and what its gradient needs.

    Attributes:
        args: the solve.
        params: what to differentiate by besides y0 and t.
        owned: whether they are the parameters of ``args.func``.
        rtol, atol, method: of the adjoint equation.
        settings: its options, the norm among them.
        inner: (inputs, outputs) of the graph of the steps; None where the adjoint equation is to be solved.
        event_t: the time of the event, or None.
        outputs: parts (T, *state) of the solution, without graph.
        held: the parameters where modules held them during the solve; for the adjoint equation.
    """

    args: Arguments
    params: tuple[Tensor, ...]
    owned: bool
    rtol: Any
    atol: Any
    method: str
    settings: dict[str, Any]
    inner: tuple[list[Tensor], list[Tensor]] | None = None
    event_t: Tensor | None = None
    outputs: tuple[Tensor, ...] = ()
    held: Externals | None = None

    def solve(self, exact: bool) -> None:
        """Solves forward, with a graph of its own if the gradient is to be exact."""
        args = self.args
        if not exact or not all(p.is_leaf for p in self.params):  # the latter are put there for the time of a call
            self.held = Externals(self.params, args.func)
        if not exact:
            with torch.no_grad(), computed_weights():
                self._take(run(args))
            return
        parts = [part.detach().requires_grad_(part.requires_grad) for part in args.parts]
        t = args.t.detach().requires_grad_(args.t.requires_grad)
        solution = _solve_recorded(args.replace(y0=parts[0] if args.shapes is None else tuple(parts), t=t))
        if solution is None:
            self.solve(exact=False)
            return
        self._take(solution)
        self.inner = [*parts, t, *self.params], list(self.outputs)
        self.outputs = tuple(x.detach() for x in self.outputs)

    def _take(self, result: Any) -> None:
        if self.args.event_fn is not None:
            self.event_t, result = result
        self.outputs = (result,) if self.args.shapes is None else result

    def tie(self) -> Any:
        """The result with its node in the graph."""
        outputs = _OdeintAdjoint.apply(self, *self.args.parts, self.args.t, *self.params)
        solution = outputs[0] if self.args.shapes is None else outputs
        return solution if self.event_t is None else (self.event_t.detach(), solution)

    def require_parameters(self) -> None:
        """Raises unless the function has, or is given back, the parameters of the solve.

        Raises:
            RuntimeError: it has others.
        """
        func = self.args.func
        if self.owned and self.held is None and isinstance(func, nn.Module):
            now = {id(p) for p in find_parameters(func)}
            if any(id(p) not in now for p in self.params):
                raise RuntimeError(
                    "the parameters of func are no longer those of the solve (torch.func.functional_call?), so that "
                    "its adjoint equation cannot be solved: ask for it beforehand by options={'gradient': 'adjoint'}"
                )

    def exact_gradients(self, sources: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients by y0, t and the parameters, through the graph of the steps."""
        assert self.inner is not None
        leaves, values = self.inner
        found = pull(values, leaves, sources, grads)
        return [torch.zeros_like(x) if g is None and x.requires_grad else g for x, g in zip(leaves, found, strict=True)]


class _OdeintAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, job: AdjointJob, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.job = job
        ctx.adjoint_options, ctx.norm = job.settings, job.settings["norm"]
        ctx.save_for_backward(*job.outputs, *inputs)
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for x in job.outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        job: AdjointJob = ctx.job
        saved = ctx.saved_tensors
        outputs, inputs = saved[: len(grads)], saved[len(grads) :]
        if job.inner is not None and ctx.adjoint_options["norm"] is ctx.norm:
            try:
                return None, *job.exact_gradients(inputs, grads)
            except UnknownLeafError:
                pass  # the adjoint equation differentiates by what was named, and by nothing else
            except NotRepeatable:
                warnings.warn(
                    "the function gives other values when it is called again (dropout?), so that its gradient is taken "
                    "from the adjoint equation",
                    stacklevel=2,
                )
        job.require_parameters()
        with torch.no_grad(), nullcontext() if job.held is None else job.held.in_place(), computed_weights():
            given = [torch.zeros_like(y) if g is None else g for y, g in zip(outputs, grads, strict=True)]
            found = adjoint_gradients(job, outputs, given)
        return None, *guard("adjoint", found, [*inputs, *given])


def _solve_recorded(args: Arguments) -> Any:
    """The solve with a graph that keeps a state per step; None where there is no such."""
    if args.event_fn is not None or args.step_control == "per_sample":
        return run(args)
    found = by_program(args)
    if found is None and not is_implicit(args.solver_class):
        names = ("norm", "step_t", "jump_t", "min_step") if is_adaptive(args.solver_class) else ("perturb",)
        if any(args.options.get(name) is not None for name in names):
            return None  # they prescribe steps, or sides of them, of the adjoint equation, too
        if programs.can_run(args) and args.step_control == "auto":
            found = batched.whole_state(args)
    return run(args) if found is None else found


def adjoint_gradients(job: AdjointJob, outputs: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients by the parts of y0, by t and by the parameters, from the adjoint equation.

    With a(t) = dL/dy(t), the state (dL/dt, y, a, dL/dparams) is solved from each output time to the one before, where
    the state is set to the one of the forward solve and the gradient of that output is added to a (Chen, Rubanova,
    Bettencourt, Duvenaud, "Neural ordinary differential equations", 2018, appendix B).

    Args:
        job: the solve.
        outputs: parts (T, *state) of the solution.
        grads: their gradients.
    """
    args, params = job.args, job.params
    stand_ins: dict[int, Tensor] = {}
    if depend_on_each_other(list(params)):
        stand_ins = {id(p): p.detach().requires_grad_() for p in params}
        params = tuple(stand_ins[id(p)] for p in params)
    func, t_needs_grad = args.solver_function(), args.t.requires_grad
    t = args.solver_times().detach()
    if job.event_t is not None:
        event_t = job.event_t.detach()
        t = torch.stack([t[0], -event_t if args.backward else event_t])
    n = t.shape[0]
    ys = [flatten([x[i] for x in outputs]) if args.shapes is not None else outputs[0][i] for i in range(n)]
    gs = [flatten([x[i] for x in grads]) if args.shapes is not None else grads[0][i] for i in range(n)]
    dtype = ys[0].dtype

    def augmented(time: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        _, y, a, *_ = state
        with torch.enable_grad():
            time = time.detach().requires_grad_(t_needs_grad)
            y = y.detach().to(dtype).requires_grad_()
            with Substitute(stand_ins) if stand_ins else nullcontext():
                value = func(time, y)
            sources = ((time,) if t_needs_grad else ()) + (y, *params)
            found: Any = (None,) * len(sources)
            if value.requires_grad:
                found = torch.autograd.grad(value, sources, -a.to(value.dtype), allow_unused=True)
        found = [torch.zeros_like(x) if g is None else g for x, g in zip(sources, found, strict=True)]
        by_time = found.pop(0) if t_needs_grad else torch.zeros_like(time)
        return by_time, value.detach(), *found

    for name, own in zip(ADJOINT_CALLBACKS, CALLBACKS, strict=True):
        if hasattr(args.func, name):
            setattr(augmented, own, getattr(args.func, name))
    a = gs[-1]
    by_start = torch.zeros((), dtype=dtype, device=t.device)
    by_params = [torch.zeros_like(p) for p in params]
    by_times: list[Tensor] = []
    tols = [_augmented_tolerance(name, tol, job) for name, tol in (("rtol", job.rtol), ("atol", job.atol))]
    for i in range(n - 1, 0, -1):
        if t_needs_grad:
            moved = (func(t[i], ys[i]).conj() * gs[i]).sum().real
            by_start = by_start - moved
            by_times.append(moved)
        state = (by_start, ys[i], a, *by_params)
        backward = check(augmented, state, t[[i, i - 1]], tols[0], tols[1], job.method, job.settings, None)
        by_start, _, a, *by_params = [part[1] for part in torch_engine.integrate(backward)]
        a = a + gs[i - 1]
    by_t = None
    if t_needs_grad:
        by_times.append(by_start)
        if job.event_t is not None:
            by_times = [torch.zeros_like(by_start), by_start]
        by_t = torch.stack([x.real if x.is_complex() else x for x in by_times[::-1]]).to(args.t.dtype)
        by_t = -by_t if args.backward else by_t
    by_parts = [a] if args.shapes is None else args.restore(a[None])
    by_y0 = [_like(g.reshape(part.shape), part) for g, part in zip(by_parts, args.parts, strict=True)]
    return [*by_y0, by_t, *(_like(g, p) for g, p in zip(by_params, params, strict=True))]


def _like(grad: Tensor, source: Tensor) -> Tensor:
    """A gradient in the dtype of what it is by."""
    return (grad.real if grad.is_complex() and not source.is_complex() else grad).to(source.dtype)


def _augmented_tolerance(name: str, tol: Any, job: AdjointJob) -> Any:
    """A tolerance for (dL/dt, y, a, dL/dparams): that of the state for y and a, the smallest for the others."""
    if not is_several(tol):
        return tol
    count = 3 + len(job.params)
    if not isinstance(tol, Tensor) and len(tuple(tol)) == count and job.args.shapes is None:
        return tol
    flat = torch.as_tensor(flat_tolerance(name, tol, job.args.shapes))
    shape = job.args.flat_state().shape
    flat = flat.expand(shape).reshape(-1)
    least = flat.min()
    return (least, flat, flat, *[least] * len(job.params))
