"""Arguments of ``solve`` checked and brought into the one form that backends read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastode.controllers import IController, PIDController
from fastode.field import FlatField, work_dtype
from fastode.hostflags import differentiation_hidden, host_any, may_vary
from fastode.tableaus import Tableau, get_tableau
from fastode.tracers import check_memory
from fastode.tree import StateSpec, flatten_state, tree_flatten

_CPU = torch.device("cpu")
_FEW = 128
_DEFAULT_CONTROLLER = IController()
_NO_AUTOCAST = (False, torch.float32)


@dataclass
class Plan:
    """Everything about a solve that is no differentiable input.

    Attributes:
        field: the vector field on rows.
        tableau: the method, in first-same-as-last form.
        controller: step-size control; None when the steps are fixed.
        rtol, atol: (D,) tolerances in the work dtype.
        step_size: (B,) float64, size of fixed steps; inf steps from output time to output time. None when adaptive.
        times: (T, B) float64, output times, detached; expanded from one column where they are common to all.
        starts_again: whether an output after the first is at the start, too, for any sample.
        max_steps: limit on attempted steps per sample.
        dense: whether the polynomial of each step is kept.
        step_to_outputs: whether steps end at every output time.
    """

    field: FlatField
    tableau: Tableau
    controller: PIDController | None
    rtol: Tensor
    atol: Tensor
    step_size: Tensor | None
    times: Tensor
    starts_again: bool
    max_steps: int
    dense: bool
    step_to_outputs: bool = False

    @property
    def batch(self) -> int:
        """Number of samples, B."""
        return self.times.shape[1]


@dataclass
class Inputs:
    """The differentiable inputs: y0 (B, D) in the work dtype, t (T, B) float64, leaves of the controls (B, ...).

    Attributes:
        step_size: (B,) float64, that of fixed steps where a derivative by it may be wanted, else None.
    """

    y0: Tensor
    times: Tensor
    controls: list[Tensor]
    step_size: Tensor | None = None

    def clock_varies(self, plan: Plan) -> bool:
        """Whether a derivative may be wanted by what the sizes of fixed steps are made of."""
        return plan.controller is None and (self.step_size is not None or may_vary(self.times))


def check_times(t: Any, batch: int, device: torch.device) -> Tensor:
    """Output times as (T, B) float64, differentiable in t.

    Raises:
        TypeError: not a tensor or sequence of real numbers.
        ValueError: wrong shape, no entries, entries that are not finite or not monotone.
    """
    if not isinstance(t, Tensor):
        try:
            t = torch.as_tensor(t, dtype=torch.float64, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"t must be a tensor or a sequence of numbers, got {type(t).__name__}") from error
    check_memory(t, "t")
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"t must be real, got {t.dtype}")
    if t.ndim not in (1, 2) or (t.ndim == 2 and t.shape[1] != batch):
        raise ValueError(f"t must have shape (T,) or (T, B) with B={batch}, got {tuple(t.shape)}")
    if t.shape[0] == 0:
        raise ValueError("t must have at least one entry, got none")
    if t.device != device:
        if t.device.type != "cpu":
            raise ValueError(f"t must be on the device of y0, {device}, or on the CPU; got {t.device}")
        t = t.to(device)
    times = t.double()
    known = times.detach()
    gaps = known[1:] - known[:-1]
    mixed = (gaps > 0).any(0) & (gaps < 0).any(0)
    _require(not host_any(~torch.isfinite(known)), not host_any(mixed))
    return times if times.ndim == 2 else times[:, None].expand(-1, batch)


def _require(finite: bool, monotone: bool) -> None:
    if not finite:
        raise ValueError("t must be finite, got NaN or infinity in it")
    if not monotone:
        raise ValueError("t must be monotone, increasing or decreasing (repeated entries are allowed), got both")


def few_times(t: Any, batch: int, device: torch.device) -> tuple[Tensor, bool] | None:
    """A few output times that no gradient is wanted for, as (T, B) float64, and whether the first comes twice.

    None if t is anything else.

    The same numbers give the same tensor: to check and to copy them each time would take as long as a small solve.
    """
    if device != _CPU:
        return None
    if isinstance(t, Tensor):
        check_memory(t, "t")
        plain = t.ndim == 1 and not t.requires_grad and (t.dtype is torch.float32 or t.dtype is torch.float64)
        if not plain or t.device != device or len(t) > _FEW or differentiation_hidden():
            return None
        return _few(tuple(t.tolist()), batch)
    if type(t) in (list, tuple) and 0 < len(t) <= _FEW and all(type(x) is float for x in t):
        return _few(tuple(t), batch)
    return None


@lru_cache(maxsize=1024)
def _few(values: tuple[float, ...], batch: int) -> tuple[Tensor, bool] | None:
    if not values:
        return None
    ordered = sorted(values)
    _require(all(map(math.isfinite, values)), list(values) in (ordered, ordered[::-1]))
    with torch.inference_mode(False):
        times = torch.tensor(values, dtype=torch.float64, device="cpu")[:, None].expand(-1, batch)
    return times, values[1:2] == values[:1]


def check_controls(controls: Any, batch: int, device: torch.device) -> tuple[list[Tensor], Any]:
    """The leaves of the controls, and their structure.

    Raises:
        TypeError: a leaf that is no tensor.
        ValueError: a leaf whose leading dimension is not the batch, or on another device.
    """
    parts, treespec = tree_flatten(controls)
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(f"controls must be a tensor or a tree of tensors, got a leaf of type {type(part).__name__}")
        check_memory(part, "controls")
        if part.ndim == 0 or part.shape[0] != batch:
            raise ValueError(f"controls must have the leading dimension B={batch} of y0, got {tuple(part.shape)}")
        if part.device != device:
            raise ValueError(f"controls must be on the device of y0, {device}; got {part.device}")
    return parts, treespec


def check_tolerance(value: Any, name: str, spec: StateSpec) -> Tensor:
    """A tolerance as (D,) in the work dtype: a number, a tensor that broadcasts to the state, or a tree of these.

    Raises:
        TypeError: not a number, tensor or tree of them.
        ValueError: negative or NaN, a shape that does not broadcast, or a tensor that a gradient would be lost by.
    """
    dtype = work_dtype(spec.dtype)
    if type(value) is float and 0.0 <= value < math.inf:
        return _same_tolerance(value, spec.width, dtype, spec.device)
    flat, treespec = tree_flatten(value)
    parts = flat if treespec == spec.treespec else flat * len(spec.shapes) if len(flat) == 1 else None
    if parts is None:
        raise TypeError(f"{name} must be a number, a tensor or a tree like the state, got {value!r}")
    rows = []
    for part, shape in zip(parts, spec.shapes, strict=True):
        if isinstance(part, bool) or not isinstance(part, (int, float, Tensor)):
            raise TypeError(f"{name} must consist of numbers or tensors, got {type(part).__name__}")
        if isinstance(part, Tensor) and part.is_complex():
            raise TypeError(f"{name} must be real, got {part.dtype}")
        if isinstance(part, Tensor) and part.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must not require grad: step sizes are constants of every gradient; detach it")
        tensor = torch.as_tensor(part, dtype=dtype, device=spec.device).detach()
        if host_any(~(tensor >= 0)):
            raise ValueError(f"{name} must be at least 0, got {part}")
        if name == "rtol" and host_any(torch.isinf(tensor)):  # an infinite atol leaves a component out of control
            raise ValueError(f"rtol must be finite, got {part}")
        try:
            rows.append(tensor.expand(shape).reshape(-1))
        except RuntimeError as error:
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} does not broadcast to the state of one sample, {tuple(shape)}"
            ) from error
    return torch.cat(rows).contiguous()


def _is_positive(tolerance: Any) -> bool:
    """Whether a tolerance is one positive number."""
    return type(tolerance) is float and tolerance > 0.0


@lru_cache(maxsize=256)
def _same_tolerance(value: float, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((width,), value, dtype=dtype, device=device)


def require_tolerance(rtol: Tensor, atol: Tensor) -> None:
    """Raises where both tolerances (D,) of a component are zero: no step is that good.

    Raises:
        ValueError: such a component.
    """
    if host_any((rtol == 0) & (atol == 0)):
        raise ValueError("rtol and atol must not both be 0 for a component of the state")


def check_step_size(step_size: Any, batch: int, device: torch.device) -> Tensor:
    """Fixed step sizes as (B,) float64.

    Raises:
        TypeError: not a number or tensor.
        ValueError: not positive and finite, or of another shape than () or (B,).
    """
    if isinstance(step_size, bool) or not isinstance(step_size, (int, float, Tensor)):
        raise TypeError(f"step_size must be a number or a tensor of shape (B,), got {type(step_size).__name__}")
    tensor = torch.as_tensor(step_size, dtype=torch.float64, device=device).detach()
    if tensor.shape not in ((), (batch,)):
        raise ValueError(f"step_size must be a number or have shape (B,) with B={batch}, got {tuple(tensor.shape)}")
    if host_any(~(torch.isfinite(tensor) & (tensor > 0))):
        raise ValueError(f"step_size must be positive and finite, got {step_size}")
    return tensor.expand(batch).clone(memory_format=torch.contiguous_format)


def _own(times: Tensor, given: Any) -> Tensor:
    """A copy (T, B) that later changes of the given times do not reach; times common to all samples stay one column."""
    times = times.detach()
    if not isinstance(given, Tensor) or given.dtype != torch.float64:
        return times  # it is one already
    if times.shape[1] > 0 and times.stride(1) == 0:
        return times[:, 0].clone()[:, None].expand_as(times)
    return times.clone(memory_format=torch.contiguous_format)


def make_problem(
    field: Callable[..., Any],
    y0: Any,
    t: Any,
    controls: Any,
    method: str | Tableau,
    rtol: Any,
    atol: Any,
    step_size: Any,
    controller: PIDController | None,
    max_steps: int,
    dense: bool,
    step_to_outputs: bool | None = None,
) -> tuple[Plan, Inputs]:
    """Checks everything that can be checked before the field is first called. Raises as ``solve`` documents."""
    if not callable(field) or isinstance(field, type):
        raise TypeError(f"field must be a callable field(t, y) or field(t, y, controls), got {field!r}")
    flat, spec = flatten_state(y0)
    batch = flat.shape[0]
    few = few_times(t, batch, spec.device)
    if few is not None:
        (times, starts_again), known = few, few[0]
    else:
        times = check_times(t, batch, spec.device)
        known = _own(times, t)
        starts_again = known.shape[0] > 1 and host_any(known[1] == known[0])
    parts, controls_spec = ([], None) if controls is None else check_controls(controls, batch, spec.device)
    tableau = get_tableau(method)
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be a positive integer, got {max_steps!r}")
    if step_to_outputs is not None and not isinstance(step_to_outputs, bool):
        raise TypeError(f"step_to_outputs must be True, False or None, got {step_to_outputs!r}")
    if controller is not None and not isinstance(controller, PIDController):
        raise TypeError(f"controller must be a PIDController, got {type(controller).__name__}")
    fixed: Tensor | None = None
    if step_size is not None:
        if controller is not None:
            raise ValueError("step_size asks for fixed steps and controller for adaptive ones; give one of them")
        fixed = check_step_size(step_size, batch, spec.device)
    elif not tableau.is_adaptive:
        if controller is not None:
            raise ValueError(f"method {tableau.name!r} has no error estimate, so a controller cannot be used with it")
        fixed = torch.full((batch,), math.inf, dtype=torch.float64, device=spec.device)
    device_type = spec.device.type
    autocast = (True, torch.get_autocast_dtype(device_type)) if torch.is_autocast_enabled(device_type) else _NO_AUTOCAST
    work = work_dtype(spec.dtype)
    tolerances = check_tolerance(rtol, "rtol", spec), check_tolerance(atol, "atol", spec)
    if fixed is None and not (_is_positive(rtol) or _is_positive(atol)):
        require_tolerance(*tolerances)
    plan = Plan(
        field=FlatField(field, spec, controls_spec, autocast),
        tableau=tableau,
        controller=(controller or _DEFAULT_CONTROLLER) if fixed is None else None,
        rtol=tolerances[0],
        atol=tolerances[1],
        step_size=fixed,
        times=known,
        starts_again=starts_again,
        max_steps=min(max_steps, 2**62),  # kernels count in 64 bits
        dense=dense,
        step_to_outputs=bool(step_to_outputs),
    )
    varying: Tensor | None = None
    if isinstance(step_size, Tensor) and may_vary(step_size) and (torch.is_grad_enabled() or differentiation_hidden()):
        varying = step_size.to(spec.device, torch.float64).expand(batch)
    return plan, Inputs(flat if flat.dtype is work else flat.to(work), times, parts, varying)
