"""A field whose single evaluations can be pulled back."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fastode.externals import depend_on_each_other
from fastode.field import FlatField


class Substitute(TorchFunctionMode):
    """Replaces tensors in the arguments of every torch function."""

    def __init__(self, replacements: dict[int, Tensor]) -> None:
        super().__init__()
        self._replacements = replacements

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda tensor: self._replacements.get(id(tensor), tensor), (args, kwargs or {})
        )
        return func(*args, **kwargs)


def need_stand_ins(tensors: Sequence[Tensor]) -> bool:
    """Whether differentiating by these tensors would be seen: by hooks, retained gradients, or one of the others."""
    watched = any(t._backward_hooks or (t.retains_grad and not t.is_leaf) for t in tensors)
    return watched or depend_on_each_other(list(tensors))


def reaches(value: Tensor, ends: Sequence[Tensor], targets: Sequence[Tensor]) -> bool:
    """Whether the graph of a value leads to one of the targets on a way that does not pass one of ``ends``."""
    nodes = [t.grad_fn for t in (*ends, *targets)]  # held, so that ids stay theirs
    known = {(id(t.grad_fn), t.output_nr) for t in ends if t.grad_fn is not None}
    sought = {(id(t.grad_fn), t.output_nr) for t in targets if t.grad_fn is not None}
    leaves = {id(t) for t in targets if t.grad_fn is None}
    stack: list[tuple[Any, int]] = [(value.grad_fn, value.output_nr)]
    seen: set[int] = set()
    while stack:
        node, output = stack.pop()
        if node is None or id(node) in seen or (id(node), output) in known:
            continue
        if (id(node), output) in sought or id(getattr(node, "variable", None)) in leaves:
            return True
        seen.add(id(node))
        nodes.append(node)
        stack.extend(node.next_functions)
    return False


class UnknownLeafError(RuntimeError):
    """A field's value depends on a tensor that requires grad and that was not found when the solve began."""


class FieldVjp:
    """A field whose evaluations can be differentiated by state, controls and external tensors.

    Args:
        field: the vector field.
        controls_need_grad: for each leaf of the controls, whether its gradient is wanted.
        externals: tensors outside the field's arguments whose gradient is wanted.
    """

    def __init__(self, field: FlatField, controls_need_grad: Sequence[bool], externals: Sequence[Tensor]) -> None:
        self._field = field
        self._needed = list(controls_need_grad)
        self._externals = list(externals)
        self._substitutes: dict[int, Tensor] = {}
        self._unknown: list[tuple[tuple[int, ...], Any]] = []  # shapes of leaves, and weak references to them
        # A tensor computed from another would pass gradient on to it a second time, and a tensor's hooks would run, its
        # retained grad be added to, once per stage: then the field sees detached stand-ins.
        if need_stand_ins(self._externals):
            self._substitutes = {id(t): t.detach().requires_grad_() for t in self._externals}
        # Where a search for unknown tensors ends; the nodes are held so that ids stay theirs.
        self._known_nodes = [t.grad_fn for t in self._externals]
        self._edges = {(id(t.grad_fn), t.output_nr): i for i, t in enumerate(self._externals) if t.grad_fn is not None}
        self._leaves = {id(t): i for i, t in enumerate(self._externals) if t.grad_fn is None}

    @property
    def has_stand_ins(self) -> bool:
        """Whether the field is given other tensors in the place of external ones."""
        return bool(self._substitutes)

    @property
    def n_controls(self) -> int:
        """Number of controls whose gradient is wanted."""
        return sum(self._needed)

    def leaf_rows(self, controls: Sequence[Tensor]) -> list[Tensor]:
        """The controls as leaves: requiring grad where their gradient is wanted."""
        pairs = zip(controls, self._needed, strict=True)
        return [c.detach().requires_grad_() if needed else c.detach() for c, needed in pairs]

    def wanted(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """What to differentiate by besides the state: the wanted rows of ``leaf_rows``, then the externals."""
        externals = [self._substitutes.get(id(t), t) for t in self._externals]
        return [row for row, needed in zip(rows, self._needed, strict=True) if needed] + externals

    def __call__(self, t: Tensor, y: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """The field at t (n,), y (n, D) and rows from ``leaf_rows``, contiguous, with its graph."""
        with torch.enable_grad(), Substitute(self._substitutes) if self._substitutes else nullcontext():
            return self._field(t, y, rows).contiguous()

    def pull(self, value: Tensor, y: Tensor, rows: Sequence[Tensor], g: Tensor | None) -> list[Tensor | None]:
        """J^T g of a value of this field at the leaf y (n, D), for a cotangent g of the value's shape.

        The value may also be one number made of values of the field, and g then None.

        Returns:
            Gradients by y and by each of ``wanted(rows)``; None stands for an exact zero.
        """
        return self.pull_by(value, [y], rows, g)

    def pull_by(
        self, value: Tensor, sources: Sequence[Tensor], rows: Sequence[Tensor], g: Tensor | None
    ) -> list[Tensor | None]:
        """As ``pull``, by other leaves in the place of the state."""
        wanted = [*sources, *self.wanted(rows)]
        if not value.requires_grad:
            return [None] * len(wanted)
        return self.pull_checked(value, sources, rows, g, self.check(value, wanted))

    def pull_known(
        self, values: Sequence[Tensor], y: Tensor, rows: Sequence[Tensor], g: Sequence[Tensor]
    ) -> list[Tensor | None] | None:
        """As ``pull``, of several values in one graph; None if it ends in a leaf that was not found."""
        wanted = [y, *self.wanted(rows)]
        unknown, _ = self._search(values, wanted)
        if unknown:
            return None
        return list(torch.autograd.grad(values, wanted, g, allow_unused=True, retain_graph=True))

    def pull_checked(
        self, value: Tensor, sources: Sequence[Tensor], rows: Sequence[Tensor], g: Tensor | None, kept: list[int]
    ) -> list[Tensor | None]:
        """As ``pull_by``, of a value for which ``check`` has returned ``kept``."""
        wanted = [*sources, *self.wanted(rows)]
        by = wanted if not kept else [*wanted, *(self._externals[i] for i in kept)]
        # The graph of what the field keeps belongs to several values: it must not be freed with the first.
        grads: list[Tensor | None] = list(torch.autograd.grad(value, by, g, allow_unused=True, retain_graph=True))
        for i, grad in zip(kept, grads[len(wanted) :], strict=True):
            place = len(wanted) - len(self._externals) + i
            old = grads[place]
            grads[place] = grad if old is None else old if grad is None else old + grad
        return grads[: len(wanted)]

    def require_found(self) -> None:
        """Raises if a value that was checked depends on an unknown tensor; to be called when their graphs are gone.

        A leaf that the field has made in its call, say a time that requires grad, is gone with the graph, and no one
        can want its gradient. One that is still there belongs to someone.

        Raises:
            UnknownLeafError: a tensor with gradient was not found when the solve began.
        """
        if any(not leaf.expired() for _, leaf in self._unknown):
            gc.collect()  # graphs may be parts of cycles of the field's making
        for shape, leaf in self._unknown:
            if not leaf.expired():
                raise UnknownLeafError(
                    f"the field depends on a tensor of shape {shape} that requires grad and that could not be found "
                    "when the solve began: pass it in controls, make it a parameter of the field if the field is an "
                    "nn.Module, or use gradient='backprop'"
                )
        self._unknown.clear()

    def pull_state(self, value: Tensor, y: Tensor, rows: Sequence[Tensor], g: Tensor) -> Tensor | None:
        """J^T g with respect to the state alone; None stands for an exact zero."""
        if not value.requires_grad:
            return None
        self.check(value, [y, *self.wanted(rows)])
        return torch.autograd.grad(value, y, g, allow_unused=True, retain_graph=True)[0]

    def check(self, value: Tensor, known: Sequence[Tensor]) -> list[int]:
        """Notes leaves, other than the known tensors, that the graph of a value ends in, for ``require_found``.

        Returns:
            Places of externals that the graph ends in though the field is given stand-ins for them: it has kept what it
            once computed of them.
        """
        unknown, reached = self._search([value], known)
        self._unknown += unknown
        if not self._substitutes:
            return []
        kept = sorted(reached)
        if need_stand_ins([self._externals[i] for i in kept]):
            raise RuntimeError(
                "the field reads a tensor with hooks, or tensors that are computed from each other, inside of an "
                "autograd.Function, or keeps what it has computed from them, so that their gradients cannot be told "
                "apart: use gradient='backprop'"
            )
        return kept

    def _search(
        self, values: Sequence[Tensor], known: Sequence[Tensor]
    ) -> tuple[list[tuple[tuple[int, ...], Any]], set[int]]:
        """Leaves other than the known tensors that graphs end in, and places of externals that they end in."""
        leaves = {id(tensor) for tensor in known}
        reached: set[int] = set()
        unknown: list[tuple[tuple[int, ...], Any]] = []
        stack: list[tuple[Any, int]] = [(value.grad_fn, value.output_nr) for value in values]
        seen: dict[int, Any] = {}
        while stack:
            node, output = stack.pop()
            if node is None or id(node) in seen:
                continue
            if (id(node), output) in self._edges:
                reached.add(self._edges[id(node), output])
                continue
            seen[id(node)] = node
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) in self._leaves:
                reached.add(self._leaves[id(variable)])
            elif variable is not None and id(variable) not in leaves:
                unknown.append((tuple(variable.shape), torch._C._WeakTensorRef(variable)))  # type: ignore[attr-defined]
            stack.extend(node.next_functions)
        return unknown, reached
