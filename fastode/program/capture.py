"""From a field to its program, once: recorded, compared with the field, and known by what its code can read."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastode.field import FlatField
from fastode.program.autodiff import pullback
from fastode.program.captures import Capture, Places, Refusal
from fastode.program.describe import Description, Executed, describe, shown
from fastode.program.known import KNOWN_FIELDS, Learned
from fastode.program.lower import KNOWN, Origin, fold_prologue, lower
from fastode.program.snapshot import Snapshot
from fastode.program.trace import Graph, NotAProgram, Ref, Written, record
from fastode.program.verify import verify
from fastode.program.watch import Watch
from fastode.uncompiled import uncompiled

_FLOATS = (torch.float32, torch.float64)
_ROUNDS = 3
"""Times that a program is compared with the field at most, if the comparison runs code that the recording did not."""


def capture_field(
    field: FlatField, times: Tensor, y0: Tensor, controls: Sequence[Tensor]
) -> tuple[Capture | Refusal, Sequence[Tensor]]:
    """The program of a field, or why there is none, and the tensors that the field holds now.

    Args:
        field: the vector field on rows.
        times: (T, B) or (T,), output times; the program is compared with the field between the first and the last.
        y0: (B, D).
        controls: leaves (B, ...).
    """
    shapes = (
        field.state,
        field.controls_spec,
        tuple((c.shape[1:], c.dtype) for c in controls),
        y0.device.type,
        field.autocast[0],
        torch.get_default_dtype(),
    )
    known = KNOWN_FIELDS.find(field.field, shapes, y0.shape[0])
    if known is not None:
        return known
    with torch.inference_mode(False):
        learned = _capture(field, times, y0, controls)
    return KNOWN_FIELDS.keep(field.field, shapes, learned), learned.tensors


class _Trial:
    """Calls of the field on trial: watched, and without a trace in what it refers to.

    Before code runs that has not run before, what it can reach is looked at: nothing of it may be opaque, and the
    content of all of it is kept, to be put back after the call.
    """

    def __init__(self, field: FlatField) -> None:
        self.executed = Executed()
        self.changed: frozenset[str] = frozenset()
        self._field = field.field
        self._snapshot = Snapshot()
        self._last: Watch | None = None

    def __call__(self) -> Watch:
        """A context for one call."""
        self._last = Watch(self.executed, self._arrive, self._restore)
        return self._last

    @property
    def refused(self) -> bool:
        """Whether the last call did, or was about to do, what is not known to be harmless."""
        return self._last is not None and self._last.refusal is not None

    def _arrive(self) -> str | None:
        try:
            found = describe(self._field, self.executed)
        except Exception as error:  # of an object that does not let itself be looked at
            return f"what the field refers to cannot be looked through: {error!r}"
        self._snapshot.add(found.snapshot)
        return f"it reads {found.opaque[0]}" if found.opaque else None

    def _restore(self) -> str | None:
        changed = self._snapshot.restore()
        self.changed |= frozenset(changed)
        return changed[0] if changed else None


@uncompiled()
def _capture(field: FlatField, times: Tensor, y0: Tensor, controls: Sequence[Tensor]) -> Learned:
    trial = _Trial(field)
    refusal: Refusal
    try:
        if field.autocast[0]:
            raise NotAProgram("autocast is on")
        if field.state.dtype not in _FLOATS:
            raise NotAProgram(f"the state is {field.state.dtype}, programs compute in float32 or float64")
        if y0.shape[0] == 0:
            raise NotAProgram("there are no samples")
        graph, stand_ins = _record(field, times, y0, controls, trial)
        for _ in range(_ROUNDS):
            codes = set(trial.executed.codes)
            found = _described(field, trial.executed)
            made = _build(field, found, graph, stand_ins, y0, controls)
            asks = graph.asks_for_gradient or trial.executed.asks_for_gradient
            verify(field, made, found.tensors, times, y0, controls, asks, trial)
            if trial.executed.codes == codes:
                return Learned(made, found, trial.executed)
        raise NotAProgram("other code of the field runs from call to call")
    except Written as written:
        what = _owner(describe(field.field, trial.executed), written.tensor)
        refusal = Refusal(f"the field writes into {what}", written.where, written.cure)
    except NotAProgram as reason:
        refusal = Refusal(reason.reason, reason.where, reason.cure)
    except Exception as error:  # a field that fails says so when it is solved; anything else must not stop a solve
        refusal = Refusal(f"capture fails with {type(error).__name__}: {error}", None)
    if trial.changed and "calling the field changes" not in refusal.reason:
        refusal = replace(refusal, reason=f"{refusal.reason}; it also changes {shown(min(trial.changed))}")
    try:
        description = describe(field.field, trial.executed, skip=trial.changed)
    except Exception:
        description = describe(len, trial.executed)  # no field: it will be looked at again
    return Learned(refusal, description, trial.executed, trial.changed)


def _described(field: FlatField, executed: Executed) -> Description:
    """What the code that ran can have read.

    Raises:
        NotAProgram: something of it cannot be watched.
    """
    found = describe(field.field, executed)
    if found.opaque:
        raise NotAProgram(f"the field reads {found.opaque[0]}")
    unknown = next(iter(executed.codes - found.codes), None)
    if unknown is not None:
        where = f"{os.path.basename(unknown.co_filename)}:{unknown.co_firstlineno}"
        raise NotAProgram(f"the field calls {unknown.co_name}(), which is in nothing that it refers to", where)
    return found


def _record(
    field: FlatField,
    times: Tensor,
    y0: Tensor,
    controls: Sequence[Tensor],
    trial: _Trial,
) -> tuple[Graph, bool]:
    """The graph, and whether the field holds tensors per sample."""
    batch = y0.shape[0]
    start = times[0].expand(batch).to(y0.dtype)
    per_sample: list[Tensor] = []

    def samples(stand_in: bool) -> Callable[[int], Any]:
        def take(n: int) -> Any:
            rows = torch.arange(n, device=y0.device) % batch
            replaced = [(t, t.detach()[rows.to(t.device)]) for t in per_sample] if stand_in else []
            return start[rows].clone(), y0.detach()[rows], [c.detach()[rows] for c in controls], replaced

        return take

    reason: NotAProgram | None = None
    for stand_in in (False, True):
        try:
            if stand_in:
                held = describe(field.field, trial.executed).tensors
                per_sample = [t for t in held if t.ndim and t.shape[0] == batch]
                if not per_sample:
                    break
            return record(field, samples(stand_in), _simpler, trial), stand_in
        except NotAProgram as refusal:
            if trial.changed or trial.refused:
                raise
            reason = reason or refusal.with_traceback(None)
        except Exception as raised:  # the field's own affair, reported when it is called on the whole batch
            text = f"the field raises {type(raised).__name__} for fewer samples: {raised}"
            reason = reason or NotAProgram(text)
    assert reason is not None
    try:
        raise reason
    finally:
        reason = None  # the traceback refers to this frame


def _simpler(func: Any) -> Callable[..., Any] | None:
    """Torch's own expression of an operation by simpler ones, where lowering does not know it."""
    name = func.overloadpacket.__name__
    if func.namespace == "prims":  # what some decompositions are made of
        written: Callable[..., Any] | None = getattr(func, "impl_aten", None)
        return written
    if func in KNOWN or name.endswith("_") or func.namespace != "aten":
        return None
    from torch._decomp import decomposition_table  # takes a while to import, and is seldom needed

    found: Callable[..., Any] | None = decomposition_table.get(func)
    if found is None and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return functools.partial(_decompose, func)  # such arrive here from within other decompositions only
    return found


def _decompose(func: Any, *args: Any, **kwargs: Any) -> Any:
    return func.decompose(*args, **kwargs)


def _build(
    field: FlatField,
    description: Description,
    graph: Graph,
    per_sample: bool,
    y0: Tensor,
    controls: Sequence[Tensor],
) -> Capture:
    known = {id(t): i for i, t in enumerate(description.tensors)}
    externals = []
    for number, tensor in graph.externals.items():
        place = known.get(id(tensor))
        if place is None:
            raise NotAProgram(
                f"the field reads a tensor of shape {tuple(tensor.shape)} that is neither its parameter, buffer or "
                "attribute, nor in a closure or a global that its code names"
            )
        externals.append((number, place))
    names = {number: shown(description.paths[place]) for number, place in externals}
    names.update(
        (number, f"controls{i}" if len(controls) > 1 else "controls") for i, number in enumerate(graph.controls)
    )
    lowered = lower(graph, y0.shape[1], y0.dtype, y0.device, functools.partial(_name, graph, names))
    literals = dict(graph.literals)
    origins = [lowered.origin, lowered.stored or lowered.origin]
    for origin in origins:
        origin.prologue = fold_prologue(origin.prologue, literals)
    back = pullback(lowered.builder, lowered.program)
    metas = [graph.metas[n] for n in lowered.origin.sample]
    dims = tuple((m.batch_dim, m.shape[m.batch_dim]) for m in metas if m.batch_dim is not None)
    where = {number: i for i, number in enumerate(graph.controls)}
    where.update((number, len(controls) + place) for number, place in externals)

    def places(origin: Origin) -> Places:
        if any(place != (0, 1) for place in dims) or not all(n in where for n in (*origin.shared, *origin.sample)):
            return None
        return tuple(where[n] for n in origin.shared), tuple(where[n] for n in origin.sample)

    batch = y0.shape[0] if per_sample else None
    return Capture(
        lowered.program,
        back,
        lowered,
        tuple(graph.controls),
        tuple(externals),
        literals,
        batch,
        dims,
        (places(origins[0]), places(origins[1])),
        tuple((place, description.tensors[place].clone()) for n, place in externals if n in lowered.indices),
    )


def _owner(description: Description, tensor: Tensor) -> str:
    """Where the field holds a tensor in the same memory."""
    memory = _memory(tensor)
    owned = [p for t, p in zip(description.tensors, description.paths, strict=True) if _memory(t) == memory]
    return shown(owned[0]) if owned else "a tensor that it was given"


def _memory(tensor: Tensor) -> int | None:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else None


def _name(graph: Graph, names: dict[int, str], number: int, depth: int = 0) -> str:
    """Of a leaf: where it is from, or how torch computes it before a solve."""
    if number in names:
        return _short(names[number])
    call = next((call for call in reversed(graph.calls) if number in call.outputs), None)
    if call is not None and depth < 3:
        refs = [leaf.index for leaf in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Ref)]
        text = ", ".join(_name(graph, names, n, depth + 1) for n in refs if n != number)
        name = f"{call.func.overloadpacket.__name__.strip('_')}({text})"
        if text and len(name) <= 40:
            return name
    return f"p{number}"


def _short(path: str) -> str:
    return path.removeprefix("variable ").removeprefix("global ")
