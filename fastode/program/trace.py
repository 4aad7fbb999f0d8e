"""Records the torch operations of a field, at two batch sizes, and joins the two into one graph.

Whatever differs between the two recordings depends on the batch size; a dimension that is k times it in both is a batch
dimension, anything else in proportion to nothing is refused. This finds batch dimensions without guessing from numbers
that happen to be equal, and finds code that branches on the batch size. ``make_fx`` records in the same manner, but
tells neither the line of the user's code nor where gradient is off, which both matter here.
"""

from __future__ import annotations

import linecache
import os
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastode.program.trust import USER, is_of_torch_or_python, verdict

SIZES = (2, 3)
"""Batch sizes of the two recordings."""


KEEP_OUTSIDE = "count and collect outside of the field; Solution.stats has the number of evaluations"
"""What helps a field that changes something beside its value."""
_BY_TENSORS = "choose by torch.where and by indexing with tensors instead of Python's numbers"
"""What helps a field that looks at values of tensors in Python."""


class NotAProgram(Exception):  # noqa: N818 - not an error: the field is solved by other means
    """The field cannot be written as a program; says why, at which line of the user's code, and what would help."""

    def __init__(self, reason: str, where: str | None = None, cure: str | None = None) -> None:
        super().__init__(reason if where is None else f"{reason}, at {where}")
        self.reason, self.where, self.cure = reason, where, cure


class Written(NotAProgram):
    """The field would write into a tensor that is its own or that it was given; ``tensor`` shares its memory."""

    def __init__(self, tensor: Tensor, where: str | None) -> None:
        super().__init__("the field writes into a tensor that it was given or owns", where, KEEP_OUTSIDE)
        self.tensor = tensor


@dataclass(frozen=True)
class Ref:
    """A tensor in the arguments of a call, by its number."""

    index: int


@dataclass(frozen=True)
class Batch:
    """A number that is ``times`` the batch size."""

    times: int


@dataclass(frozen=True)
class Meta:
    """A tensor of the recording.

    Attributes:
        shape: of one sample: the batch dimension counts ``inner`` instead of ``inner`` times the batch size.
        batch_dim: the dimension that grows with the batch, None if there is none.
        dtype: its dtype.
        problem: why it has no such description, None if it has.
    """

    shape: tuple[int, ...]
    batch_dim: int | None
    dtype: torch.dtype
    problem: str | None = None


@dataclass
class Call:
    """One operation: arguments with tensors as ``Ref`` and batch-dependent numbers as ``Batch``."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[int]
    grad: bool
    where: str | None


@dataclass
class Graph:
    """A recording. Tensors are numbered; time, state and leaves of the controls come first.

    Attributes:
        calls: in the order in which they happened.
        metas: of all tensors.
        time, state: numbers of the inputs.
        controls: numbers of the leaves of the controls.
        externals: tensors that were read and are no inputs, by number, as the field holds them.
        literals: tensors that the field made from numbers, by number.
        stopped: numbers of tensors that came out of ``detach``.
        output: number of the result.
        asks_for_gradient: whether the field asks tensors if they require grad, as they do in a recording.
    """

    calls: list[Call] = field(default_factory=list)
    metas: dict[int, Meta] = field(default_factory=dict)
    time: int = 0
    state: int = 1
    controls: list[int] = field(default_factory=list)
    externals: dict[int, Tensor] = field(default_factory=dict)
    literals: dict[int, Tensor] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    output: int = -1
    asks_for_gradient: bool = False


class Watching(Protocol):
    """Makes a context in which a field is watched (``watch.Watch``)."""

    def __call__(self) -> Any:
        """The context, whose ``outside`` stops watching and returns what goes on with it."""
        ...


class _Functions(TorchFunctionMode):
    """Sees torch's functions and attributes of tensors as they are called, of which operations tell only a part.

    It tells detach as the user writes it from the one that autograd uses inside, and values or properties of tensors
    that leave torch.
    """

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda tensor: self._recorder.stand_ins.get(id(tensor), tensor), (args, kwargs or {})
        )
        name = getattr(func, "__name__", "")
        if name == "__get__" and verdict(sys._getframe(1).f_code) == USER:
            attribute = func.__self__.__name__
            if attribute in _ABOUT_GRADIENTS:
                self._recorder.asks_for_gradient = True
            elif attribute not in _ATTRIBUTES:
                raise NotAProgram(f"the field reads the attribute {attribute} of a tensor", _users_line(1))
        elif func in _ESCAPES:
            raise NotAProgram(
                f"{name}() brings a tensor's value to Python, so that code may depend on it", _users_line(1)
            )
        elif func in _FROM_DATA:
            data = args[1] if func is Tensor.new_tensor else args[0] if args else kwargs.get("data")
            if isinstance(data, Tensor):
                options = {key: kwargs[key] for key in ("dtype", "device") if kwargs.get(key) is not None}
                detached = data.detach()
                self._recorder.stopped.add(self._recorder.number(detached))
                return detached.clone().to(**options).requires_grad_(kwargs.get("requires_grad", False))
            if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(data)):
                raise NotAProgram(f"{name}() reads the values of tensors, so that a constant comes out", _users_line(1))
        elif func in (Tensor.detach_, torch.detach_):
            raise NotAProgram(
                "detach_() cuts a gradient off afterwards; detach() does it with a name of its own", _users_line(1)
            )
        out = func(*args, **kwargs)
        if func in _DETACHES:
            self._recorder.stopped.add(self._recorder.number(out))
        return out


class _Recorder(TorchDispatchMode):
    def __init__(
        self,
        inputs: Sequence[Tensor],
        stand_ins: Sequence[tuple[Tensor, Tensor]],
        expand: Callable[[Any], Any],
        outside: Callable[[], Callable[[], None]],
    ) -> None:
        super().__init__()
        self.asks_for_gradient = False
        self._outside = outside
        self.tensors: list[Tensor] = []  # keeps them alive: an id must not be reused
        self.numbers: dict[int, int] = {}
        self.calls: list[Call] = []
        self.externals: dict[int, Tensor] = {}
        self.literals: dict[int, Tensor] = {}
        self.stopped: set[int] = set()
        self.stand_ins = {id(old): new for old, new in stand_ins}
        self.originals = {id(new): old for old, new in stand_ins}
        self.dynamic: set[int] = {id(tensor) for tensor in inputs[:2]}  # what depends on time or state
        self.expand = expand
        self.expanding: list[Any] = []  # operations of whose decompositions this call is part
        for tensor in inputs:
            self.made(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler when the mode is first used: seconds

    def made(self, tensor: Tensor) -> int:
        number = len(self.tensors)
        self.tensors.append(tensor)
        self.numbers[id(tensor)] = number
        return number

    def number(self, tensor: Tensor) -> int:
        found = self.numbers.get(id(tensor))
        if found is None:
            found = self.made(tensor)
            self.externals[found] = tensor
        return found

    def forbid_writing(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], where: str | None) -> None:
        """A recording must leave no trace: what counts calls, or keeps running means, is refused beforehand."""
        memory = {t.untyped_storage()._cdata for t in self.externals.values()}
        for i, argument in enumerate(func._schema.arguments):
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            if (
                written
                and isinstance(given, Tensor)
                and (id(given) not in self.numbers or given.untyped_storage()._cdata in memory)
            ):
                raise Written(given, where)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        go_on = self._outside()  # what the recorder itself does need not be watched
        try:
            return self._dispatch(func, args, kwargs or {})
        finally:
            go_on()

    def _dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        dynamic = any(id(leaf) in self.dynamic for leaf in leaves if isinstance(leaf, Tensor))
        # Within a decomposition also what depends on neither time nor state: views must be known as views.
        simpler = self.expand(func) if (dynamic or self.expanding) and func not in self.expanding else None
        if simpler is not None:
            self.expanding.append(func)
            try:
                with self:
                    return simpler(*args, **kwargs)
            finally:
                self.expanding.pop()
        refs = lambda leaf: Ref(self.number(leaf)) if isinstance(leaf, Tensor) else leaf  # noqa: E731
        where = _users_line(2)
        if torch.Tag.nondeterministic_seeded in func.tags and not _without_chance(func, args, kwargs):
            raise NotAProgram(f"{func} is random", where)
        if func in _READS_VALUES or _returns_numbers(func):
            raise NotAProgram(
                f"{func} brings a tensor's value to Python, so that code may depend on it", where, _BY_TENSORS
            )
        if func._schema.is_mutable:
            self.forbid_writing(func, args, kwargs, where)
        literal = func is torch.ops.aten.lift_fresh.default
        known = literal and id(args[0]) not in self.numbers
        call_args, call_kwargs = pytree.tree_map(refs, (tuple(args), dict(kwargs))) if not known else ((), {})
        out = func(*args, **kwargs)
        outputs = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
        if dynamic:
            self.dynamic.update(map(id, outputs))
        # An operation that works in place returns its argument.
        numbers = [self.numbers[id(leaf)] if id(leaf) in self.numbers else self.made(leaf) for leaf in outputs]
        if known:
            self.literals[numbers[0]] = out.detach().clone() if out.ndim else out
        else:
            self.calls.append(Call(func, call_args, call_kwargs, numbers, torch.is_grad_enabled(), where))
        return out


_ATTRIBUTES = {
    "data", "shape", "dtype", "device", "layout", "ndim", "T", "mT", "H", "mH", "real", "imag", "itemsize", "nbytes",
    "is_cpu", "is_cuda", "is_meta", "is_sparse", "is_sparse_csr", "is_nested", "is_quantized", "is_mkldnn", "names",
}  # fmt: skip
"""Attributes of tensors that tell about shape and type only, or are operations."""
_ABOUT_GRADIENTS = {"requires_grad", "is_leaf"}
_ESCAPES = (Tensor.tolist, Tensor.numpy, Tensor.data_ptr, Tensor.__array__)
_FROM_DATA = (torch.tensor, Tensor.new_tensor)
_ABOUT_SHAPES = {"is_same_size", "size", "stride", "numel", "dim", "storage_offset", "is_contiguous", "layout"} | {
    "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "sym_is_contiguous", "is_non_overlapping_and_dense",
    "is_strides_like_format", "is_complex", "is_floating_point", "is_pinned",
}  # fmt: skip
_DETACHES = (Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]
_aten = torch.ops.aten
_READS_VALUES = {
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.unique_dim.default,
    _aten._unique2.default,
}


def _without_chance(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a random operation is told to take the mean: RReLU in evaluation mode."""
    rrelu = func in (_aten.rrelu_with_noise.default, _aten.rrelu_with_noise_.default)
    training = args[4] if len(args) > 4 else kwargs.get("training", False)
    return rrelu and not training


def _returns_numbers(func: Any) -> bool:
    """Whether an operation tells Python something about values: it returns numbers and not tensors."""
    kinds = [str(returned.type) for returned in func._schema.returns]
    return func.overloadpacket.__name__ not in _ABOUT_SHAPES and any("Tensor" not in kind for kind in kinds)


def _users_line(depth: int) -> str | None:
    """``line_of`` the caller of the function that is ``depth`` calls up."""
    return line_of(sys._getframe(depth + 1))


def line_of(frame: types.FrameType | None) -> str | None:
    """File, line and text of the innermost frame, from this one on, that is the user's."""
    while frame is not None:
        name = frame.f_code.co_filename
        if verdict(frame.f_code) == USER and not is_of_torch_or_python(frame.f_code):
            text = linecache.getline(name, frame.f_lineno).strip()
            return f"{os.path.basename(name)}:{frame.f_lineno}" + (f": {text}" if text else "")
        frame = frame.f_back
    return None


def record(
    call: Callable[[Tensor, Tensor, list[Tensor]], Tensor],
    samples: Callable[[int], tuple[Tensor, Tensor, list[Tensor], list[tuple[Tensor, Tensor]]]],
    expand: Callable[[Any], Any],
    watch: Watching,
) -> Graph:
    """The graph of a field.

    Args:
        call: the field on (t (n,), y (n, D), leaves of the controls).
        samples: for n, arguments of n samples, and pairs of tensors that the field holds per sample and of
            stand-ins for them.
        expand: a simpler implementation of an operation, or None.
        watch: makes a context in which the field is watched, with a method ``outside`` that stops it for a while.

    Raises:
        NotAProgram: the field does something that no program can.
        Exception: whatever the field raises.
    """
    given = [samples(n) for n in SIZES]
    graph = _join(*[_record_once(call, *arguments, expand, watch) for arguments in given])
    graph.controls = list(range(2, 2 + len(given[0][2])))
    return graph


def _record_once(
    call: Callable[[Tensor, Tensor, list[Tensor]], Tensor],
    t: Tensor,
    y: Tensor,
    controls: list[Tensor],
    stand_ins: Sequence[tuple[Tensor, Tensor]],
    expand: Callable[[Any], Any],
    watch: Watching,
) -> tuple[_Recorder, int]:
    # Requiring gradient, as fields ask for that take derivatives themselves; nothing is differentiated here.
    y = y.detach().clone().requires_grad_()
    watched = watch()
    recorder = _Recorder([t, y, *controls], stand_ins, expand, watched.outside)
    with torch.enable_grad(), _Functions(recorder), recorder, watched:
        out = call(t, y, controls)
    return recorder, recorder.number(out)


def _join(first: tuple[_Recorder, int], second: tuple[_Recorder, int]) -> Graph:
    (a, a_out), (b, b_out) = first, second
    if len(a.calls) != len(b.calls) or a_out != b_out or len(a.tensors) != len(b.tensors):
        raise NotAProgram("the operations that the field does depend on the values or the number of the samples")
    graph = Graph(stopped=a.stopped, output=a_out, asks_for_gradient=a.asks_for_gradient)
    for x, y in zip(a.calls, b.calls, strict=True):
        if x.func is not y.func or x.outputs != y.outputs or x.where != y.where:
            raise NotAProgram(
                "the operations that the field does depend on the values or the number of the samples", x.where
            )
        flat_x, spec_x = pytree.tree_flatten((x.args, x.kwargs))
        flat_y, spec_y = pytree.tree_flatten((y.args, y.kwargs))
        if spec_x != spec_y:
            raise NotAProgram("the arguments of an operation depend on the number of samples", x.where)
        args, kwargs = pytree.tree_unflatten(
            [_join_leaf(p, q, x.where) for p, q in zip(flat_x, flat_y, strict=True)], spec_x
        )
        graph.calls.append(Call(x.func, args, kwargs, x.outputs, x.grad, x.where))
    for number, (p, q) in enumerate(zip(a.tensors, b.tensors, strict=True)):
        graph.metas[number] = _meta(p, q)
    for number, tensor in a.externals.items():
        other = b.externals.get(number)
        original = a.originals.get(id(tensor))
        if other is None or (original is None and other is not tensor):
            raise NotAProgram(
                f"the field reads a tensor of shape {tuple(tensor.shape)} that it makes anew at every call by other "
                "means than torch operations"
            )
        graph.externals[number] = tensor if original is None else original
    for number, tensor in a.literals.items():
        if not torch.equal(tensor, b.literals[number]):
            raise NotAProgram("the field makes a tensor from numbers that change from call to call")
        graph.literals[number] = tensor
    return graph


def _join_leaf(x: Any, y: Any, where: str | None) -> Any:
    if type(x) is not type(y):
        raise NotAProgram("the arguments of an operation depend on the number of samples", where)
    if isinstance(x, int) and not isinstance(x, bool) and x != y:
        if x * SIZES[1] == y * SIZES[0] and x % SIZES[0] == 0:
            return Batch(x // SIZES[0])
        raise NotAProgram(f"an operation has the argument {x} for {SIZES[0]} samples and {y} for {SIZES[1]}", where)
    if isinstance(x, float) and (x == y or (x != x and y != y)):
        return x
    if not isinstance(x, float) and x == y:
        return x
    raise NotAProgram(f"an operation has an argument that changes from call to call, {x!r} and {y!r}", where)


def _meta(x: Tensor, y: Tensor) -> Meta:
    if x.dtype != y.dtype or x.ndim != y.ndim:
        return Meta((), None, x.dtype, "a tensor whose type depends on the number of samples")
    differing = [i for i, (p, q) in enumerate(zip(x.shape, y.shape, strict=True)) if p != q]
    shape = list(x.shape)
    if len(differing) > 1:
        return Meta((), None, x.dtype, "a product over pairs of samples")
    for i in differing:
        if x.shape[i] % SIZES[0] or x.shape[i] // SIZES[0] * SIZES[1] != y.shape[i]:
            return Meta((), None, x.dtype, "a tensor with another number of samples")
        shape[i] //= SIZES[0]
    return Meta(tuple(shape), differing[0] if differing else None, x.dtype)
