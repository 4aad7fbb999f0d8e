"""The walk through the recorded calls: storages, views into them, what is written, what is left to the prologue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastode.program.ir import SAMPLE, SHARED, STATE, TIME, Builder, Map, Value
from fastode.program.lower.prologue import needed, run_prologue
from fastode.program.lower.views import (
    EXPANDS,
    RESHAPES,
    RESHAPES_IN_PLACE,
    VIEWS,
    for_batch,
    same_prefix,
    stays_with_samples,
)
from fastode.program.rules import EMPTY, FILLS, POINTWISE, TRUTH_ONLY
from fastode.program.trace import Batch, Call, Graph, Meta, NotAProgram, Ref

_aten = torch.ops.aten
_HALVES = (torch.bfloat16, torch.float16)
MAX_PRODUCTS = 64
"""Batched products of one sample are written out; more than this are left to torch."""


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


class Lowering:
    """The recorded calls, turned into values of a program one after another.

    Args:
        graph: the recorded operations.
        dim: number of components of the state.
        dtype, device: of the state.
        name_of: names of controls and externals, by number.
        rules: of operations that are neither pointwise nor views.
    """

    def __init__(
        self,
        graph: Graph,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        name_of: Callable[[int], str],
        rules: Mapping[Any, Rule],
    ) -> None:
        self.rules = rules
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
        calls = needed(self.prologue, {number})
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
        if func in RESHAPES_IN_PLACE and level == 2:
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
        apart = call.func in RESHAPES or call.func in EXPANDS or stays_with_samples(call, source_meta, metas)
        for number, meta, index in zip(call.outputs, metas, self.moved(call, source, metas), strict=True):
            lost = source_meta.batch_dim is not None and meta.batch_dim is None
            crossed = not apart or (call.func in RESHAPES and not same_prefix(source_meta, meta))
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
        if func in RESHAPES:
            return [source.index.reshape(metas[0].shape)]
        if func in EXPANDS:
            return [np.broadcast_to(source.index, metas[0].shape)]
        index = torch.from_numpy(np.ascontiguousarray(source.index))
        out = func(index, *for_batch(call.args[1:], 1), **for_batch(call.kwargs, 1))
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
        rule = self.rules.get(func)
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


Rule = Callable[[Lowering, Call, Meta], Value]
"""From a call that depends on time or state, and the description of its first result, to the value of that."""
