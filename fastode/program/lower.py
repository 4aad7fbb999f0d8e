"""From recorded torch operations to a program: what depends on time or state becomes arithmetic on one sample.

What depends only on parameters and controls is left to torch: it is the prologue, run once per solve on whole tensors,
with torch's own gradient. Its results are leaves of the program.

Every tensor is a storage and an index into it, so that views, and writing through them, come out right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from fastode.program.ir import SAMPLE, SHARED, STATE, TIME, Builder, Leaf, Map, Program, Value, in_order
from fastode.program.rules import EMPTY, FILLS, POINTWISE, TRUTH_ONLY
from fastode.program.trace import Batch, Call, Graph, Meta, NotAProgram, Ref

_aten = torch.ops.aten
_HALVES = (torch.bfloat16, torch.float16)
_MAX_PRODUCTS = 64
"""Batched products of one sample are written out; more than this are left to torch."""

VIEWS = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.reshape.default,
    _aten._reshape_alias.default,
    _aten.t.default,
    _aten.transpose.int,
    _aten.permute.default,
    _aten.unsqueeze.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.slice.Tensor,
    _aten.select.int,
    _aten.expand.default,
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
    _aten.unbind.int,
    _aten.detach.default,
    _aten.alias.default,
    _aten.diagonal.default,
    _aten.unfold.default,
    _aten.movedim.int,
    _aten.lift_fresh.default,
    _aten.chunk.default,
    _aten.tensor_split.sections,
    _aten.tensor_split.indices,
    _aten.numpy_T.default,
    _aten.mT.default,
    _aten.view_as.default,
    _aten.expand_as.default,
}
"""Operations whose result looks at the storage of their first argument."""

_RESHAPES = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.reshape.default,
    _aten._reshape_alias.default,
    _aten.view_as.default,
    _aten.unsqueeze.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
}
_EXPANDS = {_aten.expand.default, _aten.expand_as.default}
_RESHAPES_IN_PLACE = {
    _aten.squeeze_.default,
    _aten.squeeze_.dim,
    _aten.squeeze_.dims,
    _aten.unsqueeze_.default,
}
"""They change the shape of their argument; a recording has the last shape of a tensor, which is as good for reading."""
_COPIES = {
    _aten.clone.default,
    _aten.contiguous.default,
    _aten._to_copy.default,
    _aten.to.dtype,
    _aten.positive.default,
}
_MOVES = {  # new tensors made of components of one; the argument that names dimensions
    _aten.flip.default: 1,
    _aten.roll.default: 2,
    _aten.tril.default: None,
    _aten.triu.default: None,
}


@dataclass
class Storage:
    """Components behind tensors: a value per sample, or a constant."""

    base: int
    level: int  # 0 shared, 1 constant of a sample, 2 dynamic
    value: Value | None = None


@dataclass
class View:
    """A tensor of one sample: ``index``, of the tensor's shape, into the storage."""

    storage: Storage
    index: Map


@dataclass
class Origin:
    """Where a program's leaves come from.

    Attributes:
        shared, sample: numbers of the graph's tensors that are its leaves.
        prologue: the calls that compute them from the graph's inputs and externals.
    """

    shared: list[int]
    sample: list[int]
    prologue: list[Call]


@dataclass
class Lowered:
    """A program and where its leaves come from.

    Attributes:
        program: the program.
        origin: of its leaves in the state's dtype.
        stored: of its leaves as they are stored, where that is in half precision; None if none is.
        indices: numbers of externals whose values, integers, are part of the program.
    """

    program: Program
    builder: Builder
    origin: Origin
    stored: Origin | None
    indices: set[int]


class _Lowering:
    def __init__(
        self, graph: Graph, dim: int, dtype: torch.dtype, device: torch.device, name_of: Callable[[int], str]
    ) -> None:
        self.graph, self.dtype, self.device, self.name_of = graph, dtype, device, name_of
        self.b = Builder()
        self.views: dict[int, View] = {}
        self.levels: dict[int, int] = {}
        self.unknown_views: set[int] = set()  # storages whose memory may be that of another one
        self.indices: set[int] = set()
        self.leaves: dict[str, list[int]] = {SHARED: [], SAMPLE: []}
        self.prologue: list[tuple[Call, list[int]]] = []  # and the storages that it writes into
        self._input(graph.time, 2, self.b.make(TIME, (), 1))
        self._input(graph.state, 2, self.b.make(STATE, (), dim))
        for number in graph.controls:
            self._input(number, 1, None)
        for number in (*graph.externals, *graph.literals):
            self._input(number, 0 if graph.metas[number].batch_dim is None else 1, None)

    def _input(self, number: int, level: int, value: Value | None) -> None:
        shape = self.graph.metas[number].shape
        storage = Storage(number, level, value)
        self.views[number] = View(storage, np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape))

    # -- reading and writing tensors

    def level(self, number: int) -> int:
        return self.views[number].storage.level

    def content(self, storage: Storage) -> Value:
        """The storage's components; a constant becomes a leaf when it is first read."""
        if storage.value is None:
            number, meta = storage.base, self.graph.metas[storage.base]
            literal = self.graph.literals.get(number)
            if literal is not None and literal.numel() == 1:
                storage.value = self.b.const(float(literal))
            elif meta.problem is not None:
                storage.value = self.b.unsupported(meta.problem)
            elif meta.dtype.is_complex:
                storage.value = self.b.unsupported(f"a tensor of {meta.dtype}", int(np.prod(meta.shape)))
            else:
                if meta.dtype != self.dtype:  # as torch promotes it: the result of what it is used in is the state's
                    given, number = number, max(self.graph.metas) + 1
                    self.graph.metas[number] = Meta(meta.shape, meta.batch_dim, self.dtype)
                    cast = {"dtype": self.dtype}
                    self.prologue.append(
                        (Call(_aten._to_copy.default, (Ref(given),), cast, [number], True, self.b.where), [])
                    )
                kind = SHARED if meta.batch_dim is None else SAMPLE
                if number not in self.leaves[kind]:
                    self.leaves[kind].append(number)
                size = int(np.prod(meta.shape))
                storage.value = self.b.make(kind, (), size, (self.leaves[kind].index(number),))
        return storage.value

    def read(self, number: int) -> Value:
        view = self.views[number]
        content = self.content(view.storage)
        if content.op == "unsupported":
            return self.b.unsupported(content.data[0], view.index.size, content.data[1])
        if content.op == "const":
            return content
        return self.b.gather(content, view.index)

    def set(self, number: int, value: Value, meta: Meta) -> None:
        """A new tensor."""
        size = int(np.prod(meta.shape))
        if value.op == "unsupported":
            size = value.size
        elif value.size == 1 and size != 1:
            value = self.b.gather(value, np.zeros(size, dtype=np.int64))
        elif value.size != size:
            value = self.b.unsupported(f"a value of {value.size} components where {size} are expected")
        index = np.arange(int(np.prod(meta.shape)), dtype=np.int64).reshape(meta.shape)
        self.views[number] = View(Storage(number, 2, value), index)

    def write(self, number: int, value: Value) -> None:
        """Overwrites an existing tensor, and with it whatever looks at the same storage."""
        view = self.views[number]
        storage = view.storage
        self.refuse_unknown_views(storage)
        if storage.level < 2 and storage.base in (*self.graph.externals, *self.graph.controls):
            self.refuse_writing(storage.base)
        content = self.content(storage)
        if "unsupported" in (content.op, value.op):
            storage.value = content if content.op == "unsupported" else value
            return
        size = self.storage_size(storage)
        if value.size == 1 and view.index.size != 1:
            value = self.b.gather(value, np.zeros(view.index.size, dtype=np.int64))
        storage.level = 2
        storage.value = self.put(content, value, view.index, size, False)

    def put(self, content: Value, value: Value, spots: Map, size: int, add: bool) -> Value:
        """``content`` with ``value`` in, or added to, the places ``spots``."""
        if content.size == 1 and size != 1:
            content = self.b.gather(content, np.zeros(size, dtype=np.int64))
        if add:
            return self.b.pointwise("add", content, self.b.scatter(value, spots, size))
        flat = spots.reshape(-1)
        if len(flat) == size and np.array_equal(np.sort(flat), np.arange(size)):
            return self.b.gather(value, np.argsort(flat))
        picks = np.arange(size)
        picks[flat] = size + np.arange(len(flat))
        return self.b.gather(self.b.cat([content, value]), picks)

    def fixed(self, number: int) -> Tensor | None:
        """A tensor made of numbers in the code, or of integers that the field holds; None if it is another one."""
        storage = self.views[number].storage
        if storage.level == 2 or self.graph.metas[number].batch_dim is not None:
            return None
        held = {n: t for n, t in self.graph.externals.items() if not (t.is_floating_point() or t.is_complex())}
        known = {**held, **self.graph.literals}
        calls = _needed(self.prologue, {number})
        made = {output for call in calls for output in call.outputs}
        read = {number}
        for call in calls:
            leaves = pytree.tree_leaves((call.args, call.kwargs))
            read |= {leaf.index for leaf in leaves if isinstance(leaf, Ref)}
            if any(isinstance(leaf, Batch) for leaf in leaves):
                return None
        if not read <= made | known.keys():
            return None
        self.indices |= read & held.keys()
        with torch.no_grad():
            return run_prologue(calls, known, 1).get(number)

    def storage_size(self, storage: Storage) -> int:
        return int(np.prod(self.graph.metas[storage.base].shape))

    def refuse_unknown_views(self, storage: Storage) -> None:
        if storage.base in self.unknown_views:
            raise NotAProgram("the field writes into memory that is seen through a view of another kind", self.b.where)

    def refuse_writing(self, number: int) -> None:
        raise NotAProgram(f"the field writes into {self.name_of(number)}, which it was given or owns", self.b.where)

    def halves(self) -> dict[int, int]:
        """Leaves that are nothing but a cast of a tensor in half precision, and these tensors, by number."""
        written = {base for _, bases in self.prologue for base in bases} | self.unknown_views
        made: dict[int, list[Call]] = {}
        for call, _ in self.prologue:
            for number in call.outputs:
                made.setdefault(number, []).append(call)
        found: dict[int, int] = {}
        for leaf in (*self.leaves[SHARED], *self.leaves[SAMPLE]):
            calls = made.get(leaf, [])
            # Under no_grad the cast has no gradient, its source may have one.
            if len(calls) != 1 or calls[0].func is not _aten._to_copy.default or not calls[0].grad:
                continue
            if not isinstance(calls[0].args[0], Ref):  # of a number, as vmap casts them
                continue
            source = calls[0].args[0].index
            given = self.graph.externals.get(source)
            known = source in self.graph.controls or (given is not None and given.device == self.device)
            if calls[0].kwargs.get("device") is not None and not known:
                continue  # it may be on another device
            bases = {self.views[number].storage.base for number in (leaf, source) if number in self.views}
            if self.graph.metas[source].dtype in _HALVES and not bases & written:
                found[leaf] = source
        return found

    # -- the calls

    def run(self) -> Value:
        for call in self.graph.calls:
            self.b.where = call.where
            self.call(call)
        self.b.where = None
        return self.read(self.graph.output)

    def call(self, call: Call) -> None:
        func = call.func
        if not call.outputs:
            return
        tensors = [leaf.index for leaf in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Ref)]
        if func in FILLS or func in EMPTY:
            self.fill(call)
            return
        level = max((self.level(n) for n in tensors), default=0)
        known = [n for n in call.outputs if n in self.views]
        in_place = known if func._schema.is_mutable else []
        if known and not in_place and func not in VIEWS:
            return  # it had nothing to do and gave back its argument: contiguous, say
        if func in VIEWS:
            if level < 2:
                self.prologue.append((call, []))
            self.view(call)
            return
        if func in _RESHAPES_IN_PLACE and level == 2:
            return
        if level < 2:
            if in_place and self.views[in_place[0]].storage.base in (*self.graph.externals, *self.graph.controls):
                self.refuse_writing(self.views[in_place[0]].storage.base)
            for number in in_place:
                self.refuse_unknown_views(self.views[number].storage)
            self.prologue.append((call, [self.views[n].storage.base for n in in_place]))
            if any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
                self.unknown_views.update(self.views[n].storage.base for n in tensors)
                self.unknown_views.update(call.outputs)
            for number in call.outputs:
                if number not in self.views:
                    meta = self.graph.metas[number]
                    shape = meta.shape
                    index = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
                    if level == 0 and meta.batch_dim is not None:
                        level = 1
                    self.views[number] = View(Storage(number, level), index)
                else:
                    storage = self.views[number].storage
                    storage.level, storage.value = max(level, storage.level), None
            return
        for number in call.outputs:
            problem = self.graph.metas[number].problem
            dtype = self.graph.metas[number].dtype
            if problem is not None:
                problem = f"{problem}, by {func}"
            elif dtype not in (self.dtype, torch.bool):
                problem = f"{func} makes a tensor of {dtype} of a state of {self.dtype}"
            if problem is None:
                continue
            if number in in_place:
                self.write(number, self.b.unsupported(problem))
            else:
                self.set(number, self.b.unsupported(problem), self.graph.metas[number])
            if number == call.outputs[0]:
                return
        value = self.dynamic(call)
        if not call.grad and value.op != "unsupported":
            old = self.read(call.outputs[0]) if in_place else None
            if old is not None and old.op != "unsupported":  # torch keeps the gradient of what was there
                value = self.b.pointwise("sub", value, old)
            value = self.b.make("stop", (value,), value.size)
            if old is not None and old.op != "unsupported":
                value = self.b.pointwise("add", old, value)
        output = call.outputs[0]
        if output in in_place:
            self.write(output, value)
        else:
            self.set(output, value, self.graph.metas[output])
        for number in call.outputs[1:]:
            another = self.b.unsupported(f"another result of {func} than the first")
            self.set(number, another, self.graph.metas[number])

    def fill(self, call: Call) -> None:
        (number,) = call.outputs
        meta = self.graph.metas[number]
        if meta.problem is not None:
            self.set(number, self.b.unsupported(meta.problem), Meta((), None, self.dtype))
            return
        # What empty memory holds is overwritten before it is read, or the field is in error.
        number_in_it = 0.0 if call.func in EMPTY else FILLS[call.func](call.args)
        number_in_it = float(torch.tensor(number_in_it, dtype=meta.dtype))
        shape = [Batch(n) if d == meta.batch_dim else n for d, n in enumerate(meta.shape)]
        made = Call(
            _aten.full.default,
            (shape, number_in_it),
            {"dtype": meta.dtype, "device": self.device},
            call.outputs,
            call.grad,
            call.where,
        )  # not the call itself: it may look at the shape of something dynamic
        self.prologue.append((made, []))
        size = int(np.prod(meta.shape))
        value = self.b.gather(self.b.const(number_in_it), np.zeros(size, dtype=np.int64))
        index = np.arange(size, dtype=np.int64).reshape(meta.shape)
        self.views[number] = View(Storage(number, 0, value), index)

    def view(self, call: Call) -> None:
        source = self.views[call.args[0].index]
        source_meta = self.graph.metas[call.args[0].index]
        metas = [self.graph.metas[n] for n in call.outputs]
        if any(m.problem is not None for m in (*metas, source_meta)):
            for number in call.outputs:
                reason = self.graph.metas[number].problem or source_meta.problem or ""
                self.set(number, self.b.unsupported(reason), Meta((), None, self.dtype))
            return
        apart = call.func in _RESHAPES or call.func in _EXPANDS or _stays_with_samples(call, source_meta, metas)
        for number, meta, index in zip(call.outputs, metas, self.moved(call, source, metas), strict=True):
            lost = source_meta.batch_dim is not None and meta.batch_dim is None
            crossed = not apart or (call.func in _RESHAPES and not _same_prefix(source_meta, meta))
            if (lost or crossed) and source.storage.level < 2:
                whole = np.arange(int(np.prod(meta.shape)), dtype=np.int64).reshape(meta.shape)
                self.views[number] = View(Storage(number, source.storage.level), whole)  # left to the prologue
                self.unknown_views.update((number, source.storage.base))
                continue
            if lost or crossed:
                reason, content = "picks out a sample" if lost else "mixes samples", self.content(source.storage)
                if content.op != "unsupported":
                    content = self.b.unsupported(f"{call.func} {reason}")
                self.set(number, content, Meta(meta.shape, None, self.dtype))
                continue
            storage = source.storage
            if number in self.graph.stopped and storage.level < 2 and storage.base not in self.graph.literals:
                whole = np.arange(int(np.prod(meta.shape)), dtype=np.int64).reshape(meta.shape)
                self.views[number] = View(Storage(number, storage.level), whole)  # a leaf of its own, without gradient
                self.unknown_views.update((number, storage.base))
                continue
            if number in self.graph.stopped and storage.level == 2:
                stop = self.b.make("stop", (self.content(storage),), self.content(storage).size)
                storage = Storage(storage.base, 2, stop)
                self.unknown_views.add(storage.base)  # both would have to see what is written into one
            self.views[number] = View(storage, index)

    def moved(self, call: Call, source: View, metas: Sequence[Meta]) -> list[Map]:
        """The view's indices: those of its source, moved as the operation moves components."""
        func = call.func
        if func in _RESHAPES:
            return [source.index.reshape(metas[0].shape)]
        if func in _EXPANDS:
            return [np.broadcast_to(source.index, metas[0].shape)]
        index = torch.from_numpy(np.ascontiguousarray(source.index))
        out = func(index, *_for_batch(call.args[1:], 1), **_for_batch(call.kwargs, 1))
        return [leaf.numpy() for leaf in pytree.tree_leaves(out)]

    def dynamic(self, call: Call) -> Value:
        """The value of a call that depends on time or state."""
        func = call.func
        meta = self.graph.metas[call.outputs[0]]
        name = func.overloadpacket.__name__
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and func not in POINTWISE and func is not _aten.copy_.default:
            plain = getattr(_aten, name[:-1], None)
            overload = getattr(plain, func._overloadname, None) if plain is not None else None
            func = overload if overload is not None else func
        if func is _aten.copy_.default:
            return self.aligned(call.args[1], meta)
        if func in POINTWISE:
            wider = self.wider(call)
            if wider is not None:
                return self.b.unsupported(f"{func} compares in {wider}")
            if func in TRUTH_ONLY and meta.dtype != torch.bool:
                return self.b.unsupported(f"{func} of numbers")
            args = [self.aligned(a, meta) for a in call.args]
            kwargs = {key: self.aligned(a, meta) for key, a in call.kwargs.items() if key != "dtype"}
            value = POINTWISE[func](self.b, *args, **kwargs)
            both = func is _aten.add.Tensor and meta.dtype == torch.bool  # of truth values: whether one is true
            return self.b.pointwise("ne", value, 0.0) if both else value
        rule = RULES.get(func)
        if rule is not None:
            return rule(self, call, meta)
        return self.b.unsupported(f"{func} is not among the operations that a program can have")

    def wider(self, call: Call) -> torch.dtype | None:
        """The type that torch compares in, which a truth value does not show, if it is not the state's."""
        metas = [self.graph.metas[a.index] for a in call.args if isinstance(a, Ref)]
        numbers = [torch.empty([0] * len(meta.shape), dtype=meta.dtype) for meta in metas]
        if len(numbers) < 2 or self.graph.metas[call.outputs[0]].dtype != torch.bool:
            return None
        common = torch.result_type(*numbers[:2])
        return common if common.is_floating_point and common != self.dtype else None

    def aligned(self, argument: Any, meta: Meta) -> Any:
        """An argument of a pointwise operation, brought to the shape of its result; of size 1 left as it is."""
        if isinstance(argument, bool):
            return float(argument)
        if isinstance(argument, Batch):
            return self.b.unsupported("the number of samples is an argument of an operation")
        if not isinstance(argument, Ref):
            return argument
        own = self.graph.metas[argument.index]
        value = self.read(argument.index)
        if value.op == "unsupported":
            return value
        if own.batch_dim is not None and meta.batch_dim is not None:
            if own.batch_dim + len(meta.shape) - len(own.shape) != meta.batch_dim:
                return self.b.unsupported("combines the batch dimension of one tensor with another dimension")
        elif own.batch_dim is not None:
            return self.b.unsupported("loses the batch dimension")
        elif meta.batch_dim is not None:
            at = meta.batch_dim - (len(meta.shape) - len(own.shape))
            if at >= 0 and own.shape[at] != 1:
                return self.b.unsupported("combines the samples with a dimension that is not the batch")
        if value.size == 1:
            return value
        index = np.arange(value.size).reshape(own.shape)
        return self.b.gather(value, np.broadcast_to(index, meta.shape))


def _stays_with_samples(call: Call, source: Meta, targets: Sequence[Meta]) -> bool:
    """Whether a view takes the same components of every sample: of k rows for each x[::k] does, x[::k + 1] does not."""
    at = source.batch_dim
    dims = [d % len(source.shape) for name, d in _named(call) if name in ("dim", "dimension", "dim1", "dim2")]
    places = [meta.batch_dim for meta in targets if meta.batch_dim is not None]
    if at is None or at not in dims or len(places) < len(targets):
        return True
    n, rows = 5, source.shape[at]  # not a number of samples of the recording
    shape = [*source.shape[:at], n * rows, *source.shape[at + 1 :]]
    whole = torch.arange(int(np.prod(shape))).reshape(shape)
    together, *alone = (
        pytree.tree_leaves(call.func(part, *_for_batch(call.args[1:], batch), **_for_batch(call.kwargs, batch)))
        for part, batch in ((whole, n), *((part, 1) for part in whole.split(rows, at)))
    )
    parts = zip(places, together, zip(*alone, strict=True), strict=True)
    return all(torch.equal(out, torch.cat(own, place)) for place, out, own in parts)


def _for_batch(arguments: Any, batch: int) -> Any:
    return pytree.tree_map(lambda a: a.times * batch if isinstance(a, Batch) else a, arguments)


def _named(call: Call) -> Iterator[tuple[str, Any]]:
    """Names of a call's arguments, and what they are, given or by default."""
    for i, argument in enumerate(call.func._schema.arguments):
        given = call.args[i] if i < len(call.args) else call.kwargs.get(argument.name, argument.default_value)
        yield argument.name, given


def _same_prefix(source: Meta, target: Meta) -> bool:
    """Whether a reshape leaves the batch dimension the same number of components in front of it."""
    if source.batch_dim is None or target.batch_dim is None:
        return source.batch_dim == target.batch_dim
    before = [int(np.prod(meta.shape[: meta.batch_dim])) for meta in (source, target)]
    return before[0] == before[1]


def _dims(argument: Any, rank: int) -> list[int]:
    if argument is None or argument == []:
        return list(range(rank))
    dims = [argument] if isinstance(argument, int) else list(argument)
    return [d % rank if rank else 0 for d in dims]


def _reduce(kind: str) -> Callable[[_Lowering, Call, Meta], Value]:
    def lower(low: _Lowering, call: Call, meta: Meta) -> Value:
        own = low.graph.metas[call.args[0].index]
        x = low.read(call.args[0].index)
        if x.op == "unsupported":
            return x
        if low.graph.metas[call.args[0].index].dtype == torch.bool and kind not in ("any", "all"):
            return low.b.unsupported(f"{call.func} of truth values")
        given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
        dims = _dims(given, len(own.shape))
        if own.batch_dim in dims:
            return low.b.unsupported(f"{call.func} over the samples")
        if not own.shape:
            return x
        kept = [d for d in range(len(own.shape)) if d not in dims]
        index = np.arange(x.size).reshape(own.shape).transpose([*kept, *dims])
        reduced = int(np.prod([own.shape[d] for d in dims]))
        moved = low.b.gather(x, index)
        return _REDUCTIONS[kind](low.b, moved, x.size // reduced if reduced else 0, reduced, call)

    return lower


def _mean(b: Builder, x: Value, outer: int, reduced: int, call: Call) -> Value:
    return b.pointwise("div", b.sum(x, outer, reduced, 1), float(reduced))


def _amin(b: Builder, x: Value, outer: int, reduced: int, call: Call) -> Value:
    return b.pointwise("neg", b.amax(b.pointwise("neg", x), outer, reduced, 1))


def _first(kind: str) -> Callable[[Builder, Value, int, int, Call], Value]:
    """The largest or smallest, with its gradient to the first such component, whose index torch returns."""

    def reduce(b: Builder, x: Value, outer: int, reduced: int, call: Call) -> Value:
        value = b.amax(x, outer, reduced, 1) if kind == "max" else _amin(b, x, outer, reduced, call)

        def gradient(g: Value) -> Iterable[tuple[Value, Value]]:
            spread = np.repeat(np.arange(outer), reduced)
            unknown = b.pointwise("ne", x, x)
            hit = b.pointwise("logical_or", b.pointwise("eq", x, b.gather(value, spread)), unknown)
            place = np.arange(outer * reduced).reshape(outer, reduced)

            def shifted(seen: Value, by: int) -> Value:
                return b.gather(seen, np.concatenate([np.full((outer, by), -1), place[:, :-by]], axis=1))

            before, step = shifted(hit, 1), 1  # whether one of the components in front is a hit, by doubling
            while step < reduced:
                before, step = b.pointwise("maximum", before, shifted(before, step)), 2 * step
            chosen = b.pointwise("where", before, 0.0, hit)
            return ((x, b.pointwise("where", chosen, b.gather(g, spread), 0.0)),)

        return b.with_gradient(value, ("first", id(x)), gradient) if reduced > 1 else value

    return reduce


def _prod(b: Builder, x: Value, outer: int, reduced: int, call: Call) -> Value:
    if reduced > _MAX_PRODUCTS:
        return b.unsupported(f"a product of {reduced} components")
    out = b.gather(x, np.arange(outer) * reduced)
    for r in range(1, reduced):
        out = b.pointwise("mul", out, b.gather(x, np.arange(outer) * reduced + r))
    return out


def _variance(b: Builder, x: Value, outer: int, reduced: int, call: Call) -> Value:
    correction = call.kwargs.get("correction")
    degrees = reduced - (1.0 if correction is None else float(correction))
    if degrees <= 0:
        return b.unsupported("a variance of too few components")
    spread = np.repeat(np.arange(outer), reduced)
    centred = b.pointwise("sub", x, b.gather(_mean(b, x, outer, reduced, call), spread))
    value = b.pointwise("div", b.sum(b.pointwise("square", centred), outer, reduced, 1), degrees)

    def gradient(g: Value) -> Iterable[tuple[Value, Value]]:
        return ((x, b.pointwise("mul", b.pointwise("mul", centred, 2 / degrees), b.gather(g, spread))),)

    return b.with_gradient(value, ("variance", degrees), gradient)


def _root(b: Builder, x: Value) -> Value:
    """The square root, with 0 for its derivative at 0, as torch has it for norms and standard deviations."""
    zero = b.pointwise("eq", x, 0.0)
    return b.pointwise("where", zero, 0.0, b.pointwise("sqrt", b.pointwise("where", zero, 1.0, x)))


_REDUCTIONS: dict[str, Callable[[Builder, Value, int, int, Call], Value]] = {
    "sum": lambda b, x, outer, reduced, call: b.sum(x, outer, reduced, 1),
    "mean": _mean,
    "amax": lambda b, x, outer, reduced, call: b.amax(x, outer, reduced, 1),
    "amin": _amin,
    "max": _first("max"),
    "min": _first("min"),
    "prod": _prod,
    "var": _variance,
    "std": lambda b, x, outer, reduced, call: _root(b, _variance(b, x, outer, reduced, call)),
    "any": lambda b, x, outer, reduced, call: b.amax(b.pointwise("ne", x, 0.0), outer, reduced, 1),
    "all": lambda b, x, outer, reduced, call: _amin(b, b.pointwise("ne", x, 0.0), outer, reduced, call),
}
"""Builder, value (outer, reduced), its sizes, call -> (outer,)."""


def _cumulative(op: str) -> Callable[[_Lowering, Call, Meta], Value]:
    def lower(low: _Lowering, call: Call, meta: Meta) -> Value:
        x = low.read(call.args[0].index)
        if x.op == "unsupported":
            return x
        dim = int(call.args[1]) % len(meta.shape) if meta.shape else 0
        if dim == meta.batch_dim:
            return low.b.unsupported(f"{call.func} over the samples")
        count = meta.shape[dim] if meta.shape else 1
        if count > _MAX_PRODUCTS:
            return low.b.unsupported(f"{call.func} of {count} components")
        index = np.moveaxis(np.arange(x.size).reshape(meta.shape), dim, 0).reshape(count, -1)
        parts = [low.b.gather(x, index[0])]
        for row in index[1:]:
            parts.append(low.b.pointwise(op, parts[-1], low.b.gather(x, row)))
        back = np.empty(x.size, dtype=np.int64)
        back[index.reshape(-1)] = np.arange(x.size)
        return low.b.gather(low.b.cat(parts), back)

    return lower


def _product(low: _Lowering, a: Ref, b: Ref, meta: Meta) -> Value:
    """(..., M, K) times (..., K, N) with at most one leading dimension."""
    ma, mb = low.graph.metas[a.index], low.graph.metas[b.index]
    xa, xb = low.read(a.index), low.read(b.index)
    for x in (xa, xb):
        if x.op == "unsupported":
            return x
    rank = len(ma.shape)
    if ma.batch_dim == rank - 1 or mb.batch_dim == rank - 2:
        return low.b.unsupported("a sum over the samples, by a matrix product")
    m, k, n = ma.shape[-2], ma.shape[-1], mb.shape[-1]
    if rank == 2:
        return low.b.matmul(xa, xb, m, k, n)
    count = max(ma.shape[0], mb.shape[0])
    if ma.shape[0] != mb.shape[0]:
        return low.b.unsupported("a batched product of a tensor with the samples in another dimension")
    if (ma.batch_dim == 0) != (mb.batch_dim == 0) and not {ma.batch_dim, mb.batch_dim} & {1, 2} and count != 1:
        return low.b.unsupported("a batched product over another dimension than the batch")
    if count > _MAX_PRODUCTS:
        return low.b.unsupported(f"{count} matrix products for each sample")
    pieces = []
    for g in range(count):
        left = low.b.gather(xa, np.arange(g * m * k, (g + 1) * m * k))
        right = low.b.gather(xb, np.arange(g * k * n, (g + 1) * k * n))
        pieces.append(low.b.matmul(left, right, m, k, n))
    return low.b.cat(pieces)


def _mm(low: _Lowering, call: Call, meta: Meta) -> Value:
    return _product(low, call.args[0], call.args[1], meta)


def _addmm(low: _Lowering, call: Call, meta: Meta) -> Value:
    bias, a, b = call.args[:3]
    beta, alpha = float(call.kwargs.get("beta", 1)), float(call.kwargs.get("alpha", 1))
    product = _product(low, a, b, meta)
    if alpha != 1.0:
        product = low.b.pointwise("mul", product, alpha)
    added = low.aligned(bias, meta)
    if beta != 1.0:
        added = low.b.pointwise("mul", added, beta)
    return low.b.pointwise("add", product, added)


def _mv(low: _Lowering, call: Call, meta: Meta) -> Value:
    a, x = call.args[:2]
    ma, mx = low.graph.metas[a.index], low.graph.metas[x.index]
    if ma.batch_dim == 1 or mx.batch_dim is not None:
        return low.b.unsupported("a sum over the samples, by a matrix product")
    left, right = low.read(a.index), low.read(x.index)
    for value in (left, right):
        if value.op == "unsupported":
            return value
    return low.b.matmul(left, right, ma.shape[0], ma.shape[1], 1)


def _cat(low: _Lowering, call: Call, meta: Meta) -> Value:
    refs = call.args[0]
    metas = [low.graph.metas[ref.index] for ref in refs]
    values = [low.read(ref.index) for ref in refs]
    for value in values:
        if value.op == "unsupported":
            return value
    stacked = call.func is _aten.stack.default
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    dim = int(given) % len(meta.shape)
    offsets = np.cumsum([0] + [int(np.prod(m.shape)) for m in metas])
    if dim == meta.batch_dim:
        return low.b.unsupported(f"{call.func} along the batch")
    tables, pieces = [], []
    for value, m, start in zip(values, metas, offsets, strict=False):
        if m.shape == (0,) and len(meta.shape) > 1:
            continue
        shape = list(m.shape)
        table = np.arange(int(np.prod(m.shape))).reshape(shape) + start
        tables.append(np.expand_dims(table, dim) if stacked else table)
        size = int(np.prod(m.shape))
        pieces.append(low.b.gather(value, np.zeros(size, dtype=np.int64)) if value.size == 1 and size != 1 else value)
        batch = m.batch_dim
        if stacked and batch is not None and batch >= dim:
            batch += 1
        if batch != meta.batch_dim and low.level(refs[0].index) >= 0 and batch is not None:
            return low.b.unsupported(f"{call.func} along the batch")
        if batch is None and meta.batch_dim is not None and table.shape and not _is_one(m, meta, dim, stacked):
            return low.b.unsupported(f"{call.func} of samples with something that is not per sample")
    order = np.concatenate(tables, axis=dim)
    return low.b.gather(low.b.cat(pieces), order)


def _is_one(meta: Meta, target: Meta, dim: int, stacked: bool) -> bool:
    at = target.batch_dim if target.batch_dim is not None else 0
    if stacked and at > dim:
        at -= 1
    return meta.shape[at] == 1


def _copy(low: _Lowering, call: Call, meta: Meta) -> Value:
    value = low.read(call.args[0].index)
    numbers = low.graph.metas[call.args[0].index].dtype != torch.bool
    return low.b.pointwise("ne", value, 0.0) if meta.dtype == torch.bool and numbers else value


def _move(low: _Lowering, call: Call, meta: Meta) -> Value:
    source = low.graph.metas[call.args[0].index]
    which = _MOVES[call.func]
    if which is None:
        touched = list(range(len(source.shape)))[-2:]
    else:
        given = call.args[which] if len(call.args) > which else call.kwargs.get("dims", [])
        touched = _dims(given, len(source.shape))
    if source.batch_dim in touched:
        return low.b.unsupported(f"{call.func} along the batch")
    x = low.read(call.args[0].index)
    if x.op == "unsupported":
        return x
    index = torch.arange(1, x.size + 1).reshape(source.shape)
    moved = call.func(index, *call.args[1:], **call.kwargs)
    return low.b.gather(x, moved.numpy() - 1)


def _pad(low: _Lowering, call: Call, meta: Meta) -> Value:
    """constant_pad_nd; negative amounts cut off."""
    source = low.graph.metas[call.args[0].index]
    amounts = list(call.args[1])
    number = float(call.args[2]) if len(call.args) > 2 else float(call.kwargs.get("value", 0))
    if any(isinstance(n, Batch) for n in amounts):
        return low.b.unsupported(f"{call.func} by the number of samples")
    x = low.read(call.args[0].index)
    if x.op == "unsupported":
        return x
    if source.batch_dim is not None and any(amounts[2 * (len(source.shape) - 1 - source.batch_dim) :][:2]):
        return low.b.unsupported(f"{call.func} along the batch")
    index = torch.arange(1, int(np.prod(source.shape)) + 1).reshape(source.shape)
    padded = call.func(index, amounts, 0).numpy() - 1
    if x.size == 1 and index.numel() != 1:
        x = low.b.gather(x, np.zeros(index.numel(), dtype=np.int64))
    moved = low.b.gather(x, padded)
    if number == 0.0:
        return moved
    at_edge = np.flatnonzero(padded.reshape(-1) < 0)
    picks = np.arange(padded.size)
    picks[at_edge] = padded.size
    return low.b.gather(low.b.cat([moved, low.b.const(number)]), picks)


def _scattered(low: _Lowering, call: Call, meta: Meta) -> Value:
    """select_backward and slice_backward: a gradient in the place of what was taken, zeros around it."""
    g = low.read(call.args[0].index)
    if g.op == "unsupported":
        return g
    spots = np.arange(int(np.prod(meta.shape))).reshape(meta.shape)
    rest = [a.times if isinstance(a, Batch) else a for a in call.args[2:]]
    dim = int(rest[0]) % len(meta.shape)
    own = low.graph.metas[call.args[0].index]
    if dim == meta.batch_dim and own.shape != meta.shape:
        return low.b.unsupported(f"{call.func} along the batch")
    if call.func is _aten.select_backward.default:
        taken = np.take(spots, int(rest[1]), axis=dim)
    else:
        start, end, step = rest[1], rest[2], rest[3]
        taken = torch.ops.aten.slice.Tensor(torch.from_numpy(spots), dim, start, end, step).numpy()
    if g.size == 1 and taken.size != 1:
        g = low.b.gather(g, np.zeros(taken.size, dtype=np.int64))
    return low.b.scatter(g, taken, int(np.prod(meta.shape)))


def _softmax(log: bool) -> Callable[[_Lowering, Call, Meta], Value]:
    def lower(low: _Lowering, call: Call, meta: Meta) -> Value:
        x = low.read(call.args[0].index)
        if x.op == "unsupported":
            return x
        dim = int(call.args[1]) % len(meta.shape)
        if dim == meta.batch_dim:
            return low.b.unsupported(f"{call.func} over the samples")
        outer, reduced = int(np.prod(meta.shape[:dim])), meta.shape[dim]
        inner = int(np.prod(meta.shape[dim + 1 :]))
        spread = np.broadcast_to(np.arange(outer * inner).reshape(outer, 1, inner), (outer, reduced, inner))
        b = low.b
        whole = lambda value: b.gather(value, spread)  # noqa: E731
        shifted = b.pointwise("sub", x, whole(b.amax(x, outer, reduced, inner)))
        powers = b.pointwise("exp", shifted)
        total = b.sum(powers, outer, reduced, inner)
        if log:
            out = b.pointwise("sub", shifted, whole(b.pointwise("log", total)))
        else:
            out = b.pointwise("div", powers, whole(total))

        def gradient(g: Value) -> Iterable[tuple[Value, Value]]:
            if log:
                by = b.pointwise("mul", b.pointwise("exp", out), whole(b.sum(g, outer, reduced, inner)))
                return ((x, b.pointwise("sub", g, by)),)
            common = b.sum(b.pointwise("mul", g, out), outer, reduced, inner)
            return ((x, b.pointwise("mul", out, b.pointwise("sub", g, whole(common)))),)

        return b.with_gradient(out, ("softmax", outer, reduced, inner, id(x)), gradient)

    return lower


def _spots(low: _Lowering, source: Meta, picks: Sequence[Ref | None]) -> NDArray[np.int64] | Value:
    """The components that x[picks] takes, where the code or the field's own integers name them."""
    positions: list[Any] = []
    for d, pick in enumerate(picks):
        if pick is None:
            positions.append(slice(None))
            continue
        fixed = low.fixed(pick.index)
        if fixed is None or fixed.dtype not in (torch.int64, torch.int32):
            return low.b.unsupported("indexing by a tensor that is neither a list of numbers nor held by the field")
        if d == source.batch_dim:
            return low.b.unsupported("indexing picks out samples")
        positions.append(fixed.long())
    table = torch.arange(int(np.prod(source.shape))).reshape(source.shape)
    return np.asarray(table[tuple(positions)].numpy())


def _index(low: _Lowering, call: Call, meta: Meta) -> Value:
    """x[..., integers that do not change, ...]."""
    x, picks = call.args[0], call.args[1]
    spots = _spots(low, low.graph.metas[x.index], picks)
    if isinstance(spots, Value):
        return spots
    if spots.shape != meta.shape or (low.graph.metas[x.index].batch_dim is not None and meta.batch_dim is None):
        return low.b.unsupported("indexing picks out samples")
    value = low.read(x.index)
    return value if value.op == "unsupported" else low.b.gather(value, spots)


def _index_select(low: _Lowering, call: Call, meta: Meta) -> Value:
    x, dim, pick = call.args
    picks: list[Any] = [None] * (int(dim) % len(meta.shape)) + [pick]
    return _index(low, Call(call.func, (x, picks), {}, call.outputs, call.grad, call.where), meta)


def _index_put(low: _Lowering, call: Call, meta: Meta) -> Value:
    """x[mask] = number, or x[..., integers that do not change, ...] = values."""
    x, picks, values = call.args[:3]
    own, value = low.read(x.index), low.read(values.index)
    if "unsupported" in (own.op, value.op):
        return own if own.op == "unsupported" else value
    first = picks[0]
    if first is not None and low.graph.metas[first.index].dtype == torch.bool:
        if (
            len(picks) > 1
            or low.graph.metas[values.index].shape != ()
            or low.graph.metas[first.index].shape != meta.shape
        ):
            return low.b.unsupported("what is written where a mask is true has to be a number")
        return low.b.pointwise("where", low.aligned(first, meta), value, own)
    spots = _spots(low, meta, picks)
    if isinstance(spots, Value):
        return spots
    given = low.graph.metas[values.index]
    if given.batch_dim is not None and given.batch_dim + spots.ndim - len(given.shape) != meta.batch_dim:
        return low.b.unsupported("combines the batch dimension of one tensor with another dimension")
    if value.size != 1:
        value = low.b.gather(value, np.broadcast_to(np.arange(value.size).reshape(given.shape), spots.shape))
    elif spots.size != 1:
        value = low.b.gather(value, np.zeros(spots.size, dtype=np.int64))
    accumulate = call.args[3] if len(call.args) > 3 else call.kwargs.get("accumulate", False)
    return low.put(own, value, spots, int(np.prod(meta.shape)), bool(accumulate))


def _index_add(low: _Lowering, call: Call, meta: Meta) -> Value:
    x, dim, pick, source = call.args
    picks: list[Any] = [None] * (int(dim) % len(meta.shape)) + [pick]
    own, value = low.read(x.index), low.read(source.index)
    if "unsupported" in (own.op, value.op):
        return own if own.op == "unsupported" else value
    spots = _spots(low, meta, picks)
    if isinstance(spots, Value):
        return spots
    given = low.graph.metas[source.index]
    if given.shape != spots.shape or (given.batch_dim is not None and given.batch_dim != meta.batch_dim):
        return low.b.unsupported("combines the batch dimension of one tensor with another dimension")
    value = low.b.pointwise("mul", value, float(call.kwargs.get("alpha", 1)))
    if value.size == 1 and spots.size != 1:
        value = low.b.gather(value, np.zeros(spots.size, dtype=np.int64))
    return low.put(own, value, spots, int(np.prod(meta.shape)), True)


def _layer_norm(low: _Lowering, call: Call, meta: Meta) -> Value:
    x, shape, weight, bias, eps = call.args[:5]
    inner = int(np.prod(shape))
    own = low.graph.metas[x.index]
    if own.batch_dim is not None and own.batch_dim >= len(own.shape) - len(shape):
        return low.b.unsupported(f"{call.func} over the samples")
    value = low.read(x.index)
    if value.op == "unsupported":
        return value
    out = _normalised(low, value, value.size // inner, inner, float(eps))
    if weight is not None:
        out = low.b.pointwise("mul", out, low.aligned(weight, meta))
    return out if bias is None else low.b.pointwise("add", out, low.aligned(bias, meta))


def _group_norm(low: _Lowering, call: Call, meta: Meta) -> Value:
    x, weight, bias, _, channels, _, groups, eps = call.args
    value = low.read(x.index)
    if value.op == "unsupported":
        return value
    if meta.batch_dim != 0:
        return low.b.unsupported(f"{call.func} over the samples")
    rows = meta.shape[0]  # each is normalised by itself
    out = _normalised(low, value, rows * groups, value.size // (rows * groups), float(eps))
    spread = np.tile(np.repeat(np.arange(channels), value.size // (rows * channels)), rows)
    if weight is not None:
        out = low.b.pointwise("mul", out, low.b.gather(low.read(weight.index), spread))
    return out if bias is None else low.b.pointwise("add", out, low.b.gather(low.read(bias.index), spread))


def _normalised(low: _Lowering, value: Value, outer: int, inner: int, eps: float) -> Value:
    """Of mean 0 and variance 1 over each of ``outer`` groups of ``inner`` components."""
    spread = np.repeat(np.arange(outer), inner)
    mean = low.b.pointwise("div", low.b.sum(value, outer, inner, 1), float(inner))
    centred = low.b.pointwise("sub", value, low.b.gather(mean, spread))
    variance = low.b.pointwise("div", low.b.sum(low.b.pointwise("square", centred), outer, inner, 1), float(inner))
    scale = low.b.pointwise("rsqrt", low.b.pointwise("add", variance, eps))
    return low.b.pointwise("mul", centred, low.b.gather(scale, spread))


def _batch_norm(low: _Lowering, call: Call, meta: Meta) -> Value:
    x, weight, bias, mean, var, training, _, eps = call.args
    if training or mean is None:
        return low.b.unsupported("batch normalisation in training mode mixes samples")
    if meta.batch_dim == 1:
        return low.b.unsupported(f"{call.func} over the samples")
    channels = np.broadcast_to(np.arange(meta.shape[1]).reshape(-1, *[1] * (len(meta.shape) - 2)), meta.shape)

    def spread(ref: Ref) -> Value:
        return low.b.gather(low.read(ref.index), channels)

    scale = low.b.pointwise("rsqrt", low.b.pointwise("add", spread(var), float(eps)))
    out = low.b.pointwise("mul", low.b.pointwise("sub", low.read(x.index), spread(mean)), scale)
    if weight is not None:
        out = low.b.pointwise("mul", out, spread(weight))
    return out if bias is None else low.b.pointwise("add", out, spread(bias))


def _norm(low: _Lowering, call: Call, meta: Meta) -> Value:
    args = [*call.args, *[2, None][len(call.args) - 1 :]]
    order, source = float(args[1]), low.graph.metas[args[0].index]
    x, b = low.read(args[0].index), low.b
    if x.op == "unsupported":
        return x
    if order == 0 or order == -np.inf:
        return b.unsupported(f"{call.func} of order {order}")
    low.graph.metas[-1] = source
    inner = Call(call.func, (Ref(-1), args[2]), {}, call.outputs, call.grad, call.where)

    def reduce(kind: str, value: Value) -> Value:
        low.set(-1, value, source)
        return _reduce(kind)(low, inner, meta)

    size = b.pointwise("abs", x)
    if x.size == int(np.prod(meta.shape)):  # of single numbers
        value = size
    elif order in (1.0, np.inf):
        value = reduce("sum" if order == 1.0 else "amax", size)
    elif order == 2.0:
        value = b.pointwise("sqrt", reduce("sum", b.pointwise("square", x)))
    else:
        value = b.pointwise("pow", reduce("sum", b.pointwise("pow", size, order)), 1 / order)
    dims = _dims(args[2], len(source.shape))
    kept = np.arange(int(np.prod(meta.shape))).reshape([1 if d in dims else n for d, n in enumerate(source.shape)])
    spread = np.broadcast_to(kept, source.shape)

    def gradient(g: Value) -> Iterable[tuple[Value, Value]]:
        op = b.pointwise
        whole, norm, sign = b.gather(g, spread), b.gather(value, spread), op("sign", x)
        if order == 1.0:
            return ((x, op("mul", sign, whole)),)
        if order == 2.0:
            return ((x, op("mul", whole, op("where", op("eq", norm, 0.0), 0.0, op("div", x, norm)))),)
        if order == np.inf:
            hit = op("logical_or", op("eq", size, norm), op("logical_and", op("ne", x, x), op("ne", norm, norm)))
            count = b.gather(reduce("sum", hit), spread)
            return ((x, op("mul", sign, op("mul", op("div", whole, count), hit))),)
        if order < 1.0:
            scaled = op("mul", sign, op("where", op("eq", x, 0.0), 0.0, op("pow", size, order - 1.0)))
            return ((x, op("mul", op("mul", scaled, whole), op("pow", norm, 1.0 - order))),)
        scaled = op("mul", sign, op("pow", size, order - 1.0))
        if order > 2.0:
            scaled = op("mul", x, op("pow", size, order - 2.0))
        common = op("where", op("eq", norm, 0.0), 0.0, op("div", whole, op("pow", norm, order - 1.0)))
        return ((x, op("mul", scaled, common)),)

    return b.with_gradient(value, ("norm", order, id(x)), gradient)


def _log_sum_exp(low: _Lowering, call: Call, meta: Meta) -> Value:
    x, b = low.read(call.args[0].index), low.b
    source = low.graph.metas[call.args[0].index]
    dims = _dims(call.args[1], len(source.shape))
    if x.op == "unsupported":
        return x
    if source.batch_dim in dims:
        return b.unsupported(f"{call.func} over the samples")
    kept = [d for d in range(len(source.shape)) if d not in dims]
    index = np.arange(x.size).reshape(source.shape).transpose([*kept, *dims]).reshape(-1)
    reduced = int(np.prod([source.shape[d] for d in dims]))
    outer = x.size // reduced
    moved = b.gather(x, index)
    spread = np.repeat(np.arange(outer), reduced)
    top = b.amax(moved, outer, reduced, 1)
    top = b.pointwise("where", b.pointwise("eq", b.pointwise("abs", top), np.inf), 0.0, top)
    powers = b.pointwise("exp", b.pointwise("sub", moved, b.gather(top, spread)))
    out = b.pointwise("add", b.pointwise("log", b.sum(powers, outer, reduced, 1)), top)

    def gradient(g: Value) -> Iterable[tuple[Value, Value]]:
        share = b.pointwise("exp", b.pointwise("sub", moved, b.gather(out, spread)))
        return ((moved, b.pointwise("mul", b.gather(g, spread), share)),)

    return b.with_gradient(out, ("log_sum_exp", id(moved)), gradient)


def _largest_of(low: _Lowering, x: Value, windows: list[list[int]], call: Call) -> Value:
    """The largest component of each window, with the gradient to the first such."""
    longest = max(map(len, windows))
    table = np.array(
        [window + window[-1:] * (longest - len(window)) for window in windows]
    )  # the last again is no first
    return _first("max")(low.b, low.b.gather(x, table), len(windows), longest, call)


def _max_pool(low: _Lowering, call: Call, meta: Meta) -> Value:
    given = [*call.args[1:], *[None, 0, 1, False][len(call.args) - 2 :]]
    pair = lambda v: [int(v)] * 2 if isinstance(v, int) else [int(n) for n in v] * (2 // len(v))  # noqa: E731
    kernel, padding, dilation = pair(given[0]), pair(given[2]), pair(given[3])
    stride = pair(given[1]) if given[1] else kernel
    source = low.graph.metas[call.args[0].index]
    x = low.read(call.args[0].index)
    if x.op == "unsupported":
        return x
    if source.batch_dim is None or source.batch_dim >= len(source.shape) - 2:
        return low.b.unsupported(f"{call.func} over the samples")
    (height, width), (rows, cols) = source.shape[-2:], meta.shape[-2:]
    windows = []
    for start in range(0, x.size, height * width):
        for i, j in np.ndindex(rows, cols):
            ys = [i * stride[0] - padding[0] + k * dilation[0] for k in range(kernel[0])]
            xs = [j * stride[1] - padding[1] + k * dilation[1] for k in range(kernel[1])]
            windows.append([start + r * width + c for r in ys for c in xs if 0 <= r < height and 0 <= c < width])
    return _largest_of(low, x, windows, call)


def _adaptive_max_pool(low: _Lowering, call: Call, meta: Meta) -> Value:
    source = low.graph.metas[call.args[0].index]
    x = low.read(call.args[0].index)
    if x.op == "unsupported":
        return x
    if source.batch_dim is None or source.batch_dim >= len(source.shape) - 2:
        return low.b.unsupported(f"{call.func} over the samples")
    (height, width), (rows, cols) = source.shape[-2:], meta.shape[-2:]
    part = lambda i, n, size: range(i * size // n, -(-(i + 1) * size // n))  # noqa: E731
    windows = [
        [start + r * width + c for r in part(i, rows, height) for c in part(j, cols, width)]
        for start in range(0, x.size, height * width)
        for i, j in np.ndindex(rows, cols)
    ]
    return _largest_of(low, x, windows, call)


RULES: dict[Any, Callable[[_Lowering, Call, Meta], Value]] = {
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_group_norm.default: _group_norm,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.constant_pad_nd.default: _pad,
    _aten.linalg_vector_norm.default: _norm,
    _aten.fill.Scalar: lambda low, call, meta: low.b.const(float(call.args[1])),
    _aten.fill.Tensor: lambda low, call, meta: low.aligned(call.args[1], meta),
    _aten.zero.default: lambda low, call, meta: low.b.const(0.0),
    _aten.mm.default: _mm,
    _aten.bmm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.baddbmm.default: _addmm,
    _aten.mv.default: _mv,
    _aten.cat.default: _cat,
    _aten.stack.default: _cat,
    _aten.sum.dim_IntList: _reduce("sum"),
    _aten.sum.default: _reduce("sum"),
    _aten.mean.dim: _reduce("mean"),
    _aten.mean.default: _reduce("mean"),
    _aten.amax.default: _reduce("amax"),
    _aten.amin.default: _reduce("amin"),
    _aten.max.dim: _reduce("max"),
    _aten.min.dim: _reduce("min"),
    _aten.max_pool2d_with_indices.default: _max_pool,
    _aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    _aten.prod.dim_int: _reduce("prod"),
    _aten.var.correction: _reduce("var"),
    _aten.std.correction: _reduce("std"),
    _aten.any.dim: _reduce("any"),
    _aten.any.dims: _reduce("any"),
    _aten.all.dim: _reduce("all"),
    _aten.all.dims: _reduce("all"),
    _aten.cumsum.default: _cumulative("add"),
    _aten.cumprod.default: _cumulative("mul"),
    _aten.index_select.default: _index_select,
    _aten.index_put.default: _index_put,
    _aten.index_add.default: _index_add,
    _aten.logsumexp.default: _log_sum_exp,
    _aten._softmax.default: _softmax(False),
    _aten._log_softmax.default: _softmax(True),
    _aten.select_backward.default: _scattered,
    _aten.slice_backward.default: _scattered,
    _aten.index.Tensor: _index,
    **dict.fromkeys(_COPIES, _copy),
    **dict.fromkeys(_MOVES, _move),
}

KNOWN = {*POINTWISE, *FILLS, *EMPTY, *VIEWS, *RULES, *_RESHAPES_IN_PLACE, _aten.copy_.default}
"""Operations that lowering understands; others are first tried by torch's decompositions."""


def lower(graph: Graph, dim: int, dtype: torch.dtype, device: torch.device, name_of: Callable[[int], str]) -> Lowered:
    """The program of a graph.

    Args:
        graph: the recorded operations.
        dim: number of components of the state.
        dtype: of the state.
        device: of the state.
        name_of: names of controls and externals, by number, for printing.

    Raises:
        NotAProgram: the result depends on something that no program can compute.
    """
    lowering = _Lowering(graph, dim, dtype, device, name_of)
    output = lowering.run()
    for value in in_order([output]):
        if value.op == "unsupported":
            raise NotAProgram(value.data[0], value.data[1] if len(value.data) > 1 else None)
    if output.size == 1 and dim != 1:
        output = lowering.b.gather(output, np.zeros(dim, dtype=np.int64))
    halves = lowering.halves()

    def leaf(number: int) -> Leaf:
        source = halves.get(number, number)
        half = str(graph.metas[source].dtype).removeprefix("torch.") if number in halves else None
        return Leaf(name_of(source), _leaf_shape(graph.metas[number]), half)

    def origin(sources: dict[int, int]) -> Origin:
        shared, sample = ([sources.get(n, n) for n in lowering.leaves[kind]] for kind in (SHARED, SAMPLE))
        return Origin(shared, sample, _needed(lowering.prologue, {*shared, *sample}))

    program = Program(dim, output, *(tuple(map(leaf, lowering.leaves[kind])) for kind in (SHARED, SAMPLE)))
    return Lowered(program, lowering.b, origin({}), origin(halves) if halves else None, lowering.indices)


def _leaf_shape(meta: Meta) -> tuple[int, ...]:
    return tuple(n for d, n in enumerate(meta.shape) if d != meta.batch_dim or n != 1)


def _needed(calls: list[tuple[Call, list[int]]], wanted: set[int]) -> list[Call]:
    """The calls that the wanted tensors depend on, in their order; each with the storages that it writes into."""
    kept: list[Call] = []
    wanted = set(wanted)
    for call, written in reversed(calls):
        if wanted.intersection((*call.outputs, *written)):
            kept.append(call)
            wanted.update(leaf.index for leaf in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Ref))
    return kept[::-1]


def _actual(x: Any, known: dict[int, Tensor], batch: int) -> Any:
    """Arguments of a call: as by ``pytree.tree_map``, which takes ten times as long for so few."""
    kind = type(x)
    if kind is tuple or kind is list:
        return kind([_actual(part, known, batch) for part in x])
    if kind is dict:
        return {key: _actual(value, known, batch) for key, value in x.items()}
    if kind is Ref:
        return known[x.index]
    return x.times * batch if kind is Batch else x


def run_prologue(calls: Sequence[Call], known: dict[int, Tensor], batch: int) -> dict[int, Tensor]:
    """Executes the prologue on whole tensors; adds its results to ``known``, tensors by number."""
    for call in calls:
        args, kwargs = _actual(call.args, known, batch), _actual(call.kwargs, known, batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and call.grad):
            out = call.func(*args, **kwargs)
        tensors = [out] if isinstance(out, Tensor) else [x for x in pytree.tree_leaves(out) if isinstance(x, Tensor)]
        known.update(zip(call.outputs, tensors, strict=True))
    return known


def fold_prologue(calls: Sequence[Call], literals: dict[int, Tensor]) -> list[Call]:
    """Executes now what depends on numbers in the code alone, into ``literals``; returns the other calls."""
    rest: list[Call] = []
    for call in calls:
        leaves = pytree.tree_leaves((call.args, call.kwargs))
        refs = {leaf.index for leaf in leaves if isinstance(leaf, Ref)}
        later = {number for other in calls for number in other.outputs if other is not call and _writes(other)}
        fixed = refs <= literals.keys() and not any(isinstance(leaf, Batch) for leaf in leaves)
        if not fixed or _writes(call) or later & (refs | set(call.outputs)):
            rest.append(call)
        else:
            with torch.no_grad():
                run_prologue([call], literals, 1)
    return rest


def _writes(call: Call) -> bool:
    return bool(call.func._schema.is_mutable)
