"""From a field to its program, once: captures are kept by what the field is made of, not by its tensors' values."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastode.field import FlatField
from fastode.program.autodiff import pullback
from fastode.program.evaluate import evaluate, evaluate_pullback
from fastode.program.identity import KEPT_ON_FIELDS, Description, Guard, describe, difference
from fastode.program.ir import Program, Pullback
from fastode.program.lower import KNOWN, Lowered, Origin, fold_prologue, lower, run_prologue
from fastode.program.trace import Graph, NotAProgram, Ref, Written, record
from fastode.vjp import Substitute, need_stand_ins

_KEPT = 256
"""Captures that are remembered, the least recently used are dropped."""
_FLOATS = (torch.float32, torch.float64)
_PRECISION = {torch.float32: 3e-4, torch.float64: 1e-7, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Of the comparison with the field. Torch computes some gradients in float64 with constants in float32."""
_Places = tuple[tuple[int, ...], tuple[int, ...]] | None


@dataclass(frozen=True, eq=False)
class Capture:
    """A field's program, its pullback, and where the leaves come from.

    Attributes:
        program, pullback: what backends execute.
        lowered: with the prologue.
        controls: numbers of the leaves of the controls in the prologue.
        externals: (number in the prologue, place among ``Description.tensors``) of the tensors that the field holds.
        literals: tensors that the field makes from numbers in its code, by number.
        batch: the batch size that it holds for, None for any.
        batch_dims: of each per-sample leaf, the dimension of the tensor that the samples are in, and how many rows in
            a row each sample has there.
        plain: where no prologue is needed, the leaves' places among controls and externals; first of the leaves in the
            state's dtype, then of those as they are stored.
        indices: (place among ``Description.tensors``, integers there) that are part of the program.
        held: keeps alive what the key names by identity.
        compiled: what backends made of it, by keys of their own.
    """

    program: Program
    pullback: Pullback
    lowered: Lowered
    controls: tuple[int, ...]
    externals: tuple[tuple[int, int], ...]
    literals: dict[int, Tensor]
    batch: int | None
    batch_dims: tuple[tuple[int, int], ...]
    plain: tuple[_Places, _Places]
    held: tuple[Any, ...]
    indices: tuple[tuple[int, Tensor], ...] = ()
    compiled: dict[Any, Any] = field(default_factory=dict, repr=False)

    def fits(self, tensors: Sequence[Tensor], batch: int) -> bool:
        """Whether it holds for these tensors of the field, which are described alike, and for this batch size."""
        if self.indices and not all(torch.equal(tensors[i], known) for i, known in self.indices):
            return False
        return self.batch is None or self.batch == batch

    def is_plain(self, stored: bool) -> bool:
        """Whether the leaves are controls and externals themselves, in the state's dtype or as they are stored."""
        return self.plain[stored] is not None

    def leaves(
        self, tensors: Sequence[Tensor], controls: Sequence[Tensor], batch: int, stored: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The program's leaves, shared (*shape) and per sample (B, *shape), with their graph.

        Args:
            tensors: of the field's description, as they are now.
            controls: leaves (B, ...).
            batch: B.
            stored: leaves with ``half`` as they are stored; otherwise all are of the state's dtype.
        """
        places = self.plain[stored]
        if places is not None:
            pool = (*controls, *tensors)
            return [pool[i] for i in places[0]], [pool[i] for i in places[1]]
        origin = self.lowered.stored if stored and self.lowered.stored is not None else self.lowered.origin
        known = dict(zip(self.controls, controls, strict=True))
        known.update((number, tensors[place]) for number, place in self.externals)
        known.update(self.literals)
        known = run_prologue(origin.prologue, known, batch)
        shared = [known[n] for n in origin.shared]
        sample = [
            _by_sample(known[n], dim, rows, batch)
            for n, (dim, rows) in zip(origin.sample, self.batch_dims, strict=True)
        ]
        return shared, sample


def _by_sample(x: Tensor, dim: int, rows: int, batch: int) -> Tensor:
    """(B, ...) of a tensor with (B rows) in a dimension: row r is read by sample r // rows, whatever it is made of."""
    if rows != 1:
        x = x.unflatten(dim, (batch, rows))
    return x if dim == 0 else x.movedim(dim, 0)


@dataclass(frozen=True)
class Refusal:
    """Why a field has no program, and the line of the user's code where that is decided."""

    reason: str
    where: str | None
    held: tuple[Any, ...] = ()
    lasting: bool = False
    """Whether the field is refused from now on, whatever becomes of its attributes: it changes them by itself."""

    def __str__(self) -> str:
        return self.reason if self.where is None else f"{self.reason}, at {self.where}"


class _Kept(dict[Any, Any]):
    """What is kept on a field's own object, so that it goes when that goes; not copied or pickled with it."""

    home: dict[str, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, ()

    def __deepcopy__(self, memo: Any) -> _Kept:
        return _Kept()


_captures: OrderedDict[Any, Capture | Refusal] = OrderedDict()


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
    batch = y0.shape[0]
    shapes = (
        field.state,
        field.controls_spec,
        tuple((c.shape[1:], c.dtype) for c in controls),
        y0.device.type,
        field.autocast[0],
        torch.get_default_dtype(),
    )
    home, name = _home(field.field)
    kept: _Kept | None = None
    if home is not None:
        kept = home.get(KEPT_ON_FIELDS)
        if kept is not None and kept.home is not home:
            kept = None  # a shallow copy has brought it here
        entry = None if kept is None else kept.get((name, shapes))
        if entry is not None:
            guard, found, tensors = entry
            if guard.holds() and (not isinstance(found, Capture) or found.fits(tensors, batch)):
                return found, tensors
    try:
        description = describe(field.field)
    except Exception as error:  # of an object that does not let itself be looked at: no reason not to solve
        return Refusal(f"what the field refers to cannot be looked through: {error!r}", None), ()
    key = (description.key, shapes)
    if description.unseen is not None:
        what = description.unseen.removeprefix("field").lstrip("., ") or "the field"
        refusal = Refusal(f"{what} may change without being noticed", None)
        if home is not None:
            _keep(
                home, name, shapes, lambda: Guard(None), refusal, ()
            )  # to look again would take long, and refusing is safe
        return refusal, ()
    found = _recall(key) or _recall((*key, batch))
    if isinstance(found, Capture) and not found.fits(description.tensors, batch):
        found = None
    if found is None:
        with torch.inference_mode(False):
            found = _capture(field, description, times, y0, controls)
        whole = isinstance(found, Capture) and found.batch is not None
        _captures[(*key, batch) if whole else key] = found
        while len(_captures) > _KEPT:
            _captures.popitem(last=False)
    if home is not None:
        lasting = isinstance(found, Refusal) and found.lasting
        watched = None if lasting else description
        _keep(home, name, shapes, lambda: Guard(watched), found, () if lasting else tuple(description.tensors))
    return found, description.tensors


def _keep(
    home: dict[str, Any],
    method: Any,
    shapes: Any,
    guard: Callable[[], Guard],
    found: Capture | Refusal,
    tensors: tuple[Tensor, ...],
) -> None:
    """On the field's own object. The guard is made last: it looks at the dictionary that this is kept in."""
    kept = home.get(KEPT_ON_FIELDS)
    if kept is None or kept.home is not home:
        kept = home[KEPT_ON_FIELDS] = _Kept()
        kept.home = home
    if len(kept) > 16:
        kept.clear()
    kept[method, shapes] = (guard(), found, tensors)


def _recall(key: Any) -> Capture | Refusal | None:
    found = _captures.get(key)
    if found is not None:
        with suppress(KeyError):  # dropped by another thread
            _captures.move_to_end(key)
    return found


def keep_with(field: Callable[..., Any], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """``functools.partial(call, field)``, the same object every time, so that captures are found on it.

    It is kept on the field's own object under the name, and goes when that goes.
    """
    home, method = _home(field)
    if home is None:
        return functools.partial(call, field)
    kept = home.get(KEPT_ON_FIELDS)
    if kept is None or kept.home is not home:
        kept = home[KEPT_ON_FIELDS] = _Kept()
        kept.home = home
    found: Callable[..., Any] | None = kept.get((name, method))
    if found is None:
        found = kept[name, method] = functools.partial(call, field)
    return found


def _home(field: Callable[..., Any]) -> tuple[dict[str, Any] | None, Any]:
    """The dictionary of the object that a field is, or is a method of, and which method."""
    owner, method = (field.__self__, field.__func__) if isinstance(field, types.MethodType) else (field, None)
    home = getattr(owner, "__dict__", None)
    return (home if isinstance(home, dict) else None), method


def _capture(
    field: FlatField, description: Description, times: Tensor, y0: Tensor, controls: Sequence[Tensor]
) -> Capture | Refusal:
    held = tuple(description.held)
    enabled = field.autocast[0]
    try:
        if enabled:
            raise NotAProgram("autocast is on")
        if field.state.dtype not in _FLOATS:
            raise NotAProgram(f"the state is {field.state.dtype}, programs compute in float32 or float64")
        if y0.shape[0] == 0:
            raise NotAProgram("there are no samples")
        graph, stand_ins = _record(field, description, times, y0, controls)
        after = difference(description, describe(field.field))
        if after is not None:
            what = after.removeprefix("field").lstrip("., ") or "itself"
            return Refusal(f"calling the field changes {what}", None, held, lasting=True)
        return _build(field, description, graph, stand_ins, times, y0, controls)
    except Written as refusal:
        memory = refusal.tensor.untyped_storage()._cdata
        owned = [p for t, p in zip(description.tensors, description.paths, strict=True) if _memory(t) == memory]
        what = owned[0].removeprefix("field").lstrip("., ") if owned else "a tensor that it was given"
        return Refusal(f"the field writes into {what}", refusal.where, held)
    except NotAProgram as refusal:
        return Refusal(refusal.reason, refusal.where, held)
    except Exception as error:  # a field that fails says so when it is solved; anything else must not stop a solve
        return Refusal(f"capture fails with {type(error).__name__}: {error}", None, held)


def _record(
    field: FlatField, description: Description, times: Tensor, y0: Tensor, controls: Sequence[Tensor]
) -> tuple[Graph, bool]:
    """The graph, and whether the field holds tensors per sample."""
    batch = y0.shape[0]
    start = times[0].expand(batch).to(y0.dtype)
    per_sample = [t for t in description.tensors if t.ndim and t.shape[0] == batch]

    def samples(stand_in: bool) -> Callable[[int], Any]:
        def take(n: int) -> Any:
            rows = torch.arange(n, device=y0.device) % batch
            replaced = [(t, t.detach()[rows.to(t.device)]) for t in per_sample] if stand_in else []
            return start[rows].clone(), y0.detach()[rows], [c.detach()[rows] for c in controls], replaced

        return take

    error: Exception | None = None
    for stand_in in (False, True) if per_sample else (False,):
        try:
            return record(field, samples(stand_in), _simpler), stand_in
        except NotAProgram as refusal:
            if not stand_in and per_sample:
                error = refusal
                continue
            raise error if isinstance(error, NotAProgram) else refusal from None
        except Exception as raised:  # the field's own affair, reported when it is called on the whole batch
            error = error or raised
    if isinstance(error, NotAProgram):
        raise error
    raise NotAProgram(f"the field raises {type(error).__name__} for fewer samples: {error}")


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
    times: Tensor,
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
    names = {number: description.paths[place].removeprefix("field").lstrip("., ") for number, place in externals}
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

    def places(origin: Origin) -> _Places:
        if any(place != (0, 1) for place in dims) or not all(n in where for n in (*origin.shared, *origin.sample)):
            return None
        return tuple(where[n] for n in origin.shared), tuple(where[n] for n in origin.sample)

    batch = y0.shape[0] if per_sample else None
    made = Capture(
        lowered.program,
        back,
        lowered,
        tuple(graph.controls),
        tuple(externals),
        literals,
        batch,
        dims,
        (places(origins[0]), places(origins[1])),
        tuple(description.held),
        tuple((place, description.tensors[place].clone()) for n, place in externals if n in lowered.indices),
    )
    _verify(field, made, description.tensors, times, y0, controls)
    return made


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


def _verify(
    field: FlatField,
    made: Capture,
    tensors: Sequence[Tensor],
    times: Tensor,
    y0: Tensor,
    controls: Sequence[Tensor],
) -> None:
    """Compares program and pullback with the field and torch's gradient, on states and controls moved at random."""
    batch = y0.shape[0]
    n = batch if made.batch is not None else min(max(batch, 3), 5)
    rows = torch.arange(n, device=y0.device) % batch
    random = torch.Generator().manual_seed(0)
    sources = [t for t in tensors if t.requires_grad]
    replaced = {id(t): t.detach().requires_grad_() for t in sources} if need_stand_ins(sources) else {}
    own_tensors = [replaced.get(id(t), t) for t in tensors]

    def moved(x: Tensor) -> Tensor:
        x = x.detach()[rows]
        if not x.is_floating_point():
            return x
        noise = torch.randn(2, *x.shape, generator=random, dtype=torch.float32, device="cpu").to(x)
        size = x.abs().mean() if x.numel() else 0.0
        return (x * (1 + 0.1 * noise[0]) + 0.05 * size * noise[1]).contiguous()

    first, last = times[0].expand(batch)[rows], times[-1].expand(batch)[rows]
    t = (first + (last - first) * torch.rand(n, generator=random, device="cpu").to(first)).to(y0.dtype)
    for state, inputs in (
        (y0.detach()[rows], [c.detach()[rows] for c in controls]),
        (moved(y0), [moved(c) for c in controls]),
    ):
        state = state.clone().requires_grad_()
        inputs = [c.clone().requires_grad_(c.is_floating_point()) for c in inputs]
        with torch.enable_grad():
            with Substitute(replaced) if replaced else nullcontext():
                expected = field(t, state, inputs)
            shared, sample = made.leaves(own_tensors, inputs, n)
        value = evaluate(made.program, t, state.detach(), [x.detach() for x in shared], [x.detach() for x in sample])
        _agree(value, expected.detach(), "the values of the lowered program", _largest(expected.detach()))
        g = torch.randn(expected.shape, generator=random, dtype=torch.float32, device="cpu").to(expected)
        wanted = [state, *inputs, *[t for t in own_tensors if t.requires_grad]]
        wanted = [x for x in wanted if x.requires_grad]
        true: Sequence[Tensor | None] = (None,) * len(wanted)
        if expected.requires_grad:
            try:
                true = torch.autograd.grad(expected, wanted, g, allow_unused=True)
            except RuntimeError as error:
                raise NotAProgram(f"torch cannot differentiate the field: {error}") from None
        by_state, by_shared, by_sample = evaluate_pullback(
            made.pullback, t, state.detach(), [x.detach() for x in shared], [x.detach() for x in sample], g
        )
        pairs = [(x, grad) for x, grad in zip((*shared, *sample), (*by_shared, *by_sample), strict=True)]
        pairs = [(x, grad) for x, grad in pairs if x.requires_grad]
        own: list[Tensor | None] = [None] * len(wanted)
        if pairs:
            own = list(
                torch.autograd.grad(
                    [x for x, _ in pairs], wanted, [g.reshape(x.shape) for x, g in pairs], allow_unused=True
                )
            )
        own[0] = by_state if own[0] is None else own[0] + by_state
        scale = max((_largest(grad) for grad in true if grad is not None), default=0.0)
        for x, got, want in zip(wanted, own, true, strict=True):
            zero = torch.zeros_like(x)
            pair = zero if got is None else got, zero if want is None else want
            _agree(*pair, "the gradient of the lowered program", scale)


def _largest(x: Tensor) -> float:
    return float(torch.where(torch.isfinite(x), x, 0.0).abs().amax()) if x.numel() else 0.0


def _agree(value: Tensor, expected: Tensor, what: str, scale: float) -> None:
    """Compares, up to rounding.

    Args:
        value: of the program.
        expected: of the field.
        what: for the message.
        scale: the largest of all numbers that are compared. A gradient that is zero but for cancellation (of the bias
            of keys in attention, say) is rounding of numbers of this size.
    """
    finite = torch.isfinite(expected)
    same = torch.isfinite(value) == finite
    kind = torch.finfo(expected.dtype if expected.dtype in _FLOATS else torch.float32)
    difference = torch.where(finite & same, value - expected, 0.0).abs()
    bound = _PRECISION[expected.dtype] * _largest(expected) + 1000 * kind.eps * scale + kind.tiny
    if not bool(same.all()) or bool((difference > bound).any()):
        raise NotAProgram(
            f"{what} differ from those of the field: it is random, mixes samples, changes from call to call, or "
            "defines a gradient of its own"
        )
