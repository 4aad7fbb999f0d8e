"""The user's vector field as backends see it: a function of flat rows, checked at every call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastode.tree import StateSpec

HALF_DTYPES = (torch.float16, torch.bfloat16)


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which states are held and combined: half precisions are widened to float32."""
    return torch.float32 if dtype in HALF_DTYPES else dtype


_OURS = 3
"""References to a value that nobody else holds: the caller's variable, ``own_memory``'s, and that of the count."""


def own_memory(value: Tensor) -> Tensor:
    """A field's value, copied where the field might write into its memory again, or the user may.

    Solvers keep values from call to call; a field may write each of its values into one buffer (``out=buffer``). A
    value is left as it is if nobody else holds it, nothing was written into it in place, and its memory is torch's.
    """
    if sys.getrefcount(value) > _OURS or value.is_inference() or value._version > 0:
        return value.clone()
    base = value._base
    if base is not None and sys.getrefcount(base) >= _OURS:  # a view of what somebody holds
        return value.clone()
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(value)
    if wrapped or value.layout is not torch.strided or value.untyped_storage().resizable():
        return value
    return value.clone()  # of numpy, which does not tell what it writes


@dataclass(eq=False)
class FlatField:
    """Calls ``field(t, y[, controls])`` on n samples held as rows.

    Attributes:
        field: the user's callable.
        state: layout of a row.
        controls_spec: structure of the controls tree, None where the field takes none.
        autocast: (enabled, dtype) in force when the solve was called; re-established at every call, so that the
            backward pass sees what the forward pass saw.
        controls_vary: where a gradient may be asked for, for each leaf of the controls whether by it; None elsewhere.
            Evaluations without gradient then make a graph all the same and drop it: what the field computes there and
            keeps, weights in a cache of its own for example, must have its graph; and a field may ask whether its
            arguments require a gradient, to which all evaluations of a solve must have the same answer.
    """

    field: Callable[..., Any]
    state: StateSpec
    controls_spec: Any
    autocast: tuple[bool, torch.dtype]
    controls_vary: Sequence[bool] | None = None

    def __call__(self, t: Tensor, y: Tensor, controls: Sequence[Tensor]) -> Tensor:
        """dy/dt of n samples.

        Args:
            t: (n,) times, any floating dtype; the field receives (n, 1, ..., 1) in the state's dtype.
            y: (n, D) rows in the work dtype.
            controls: leaves of the controls, each (n, ...).

        Returns:
            (n, D) in the work dtype, in memory that the field does not write into again.

        Raises:
            TypeError, ValueError: the field's value has not the structure, shape, dtype or device of the state.
            RuntimeError: the field wrote into y.
        """
        if self.controls_vary is None or torch.is_grad_enabled():
            return self._evaluate(t, y, controls)
        with torch.enable_grad():
            # As leaves nobody knows: should the field keep what it makes of them, that is seen where it is pulled back.
            pairs = zip(controls, self.controls_vary, strict=True)
            leaves = [c.detach().requires_grad_() if vary else c for c, vary in pairs]
            return self._evaluate(t, y.detach().requires_grad_(), leaves).detach()

    def _evaluate(self, t: Tensor, y: Tensor, controls: Sequence[Tensor]) -> Tensor:
        n, work = y.shape[0], y.dtype
        state = self.state
        dtype = state.dtype
        if t.dtype != dtype:
            t = t.to(dtype)
        if work != dtype:
            y = y.to(dtype)
        arguments: list[Any] = [t.reshape(n, *([1] * (state.time_rank - 1))), state.unflatten(y)]
        if self.controls_spec is not None:
            arguments.append(pytree.tree_unflatten(controls, self.controls_spec))
        version = None if y.is_inference() else y._version
        enabled, autocast_dtype = self.autocast
        if enabled or torch.is_autocast_enabled(y.device.type):
            # No cache: a weight cast without gradient here must not be found by the model around the solve.
            with torch.autocast(y.device.type, dtype=autocast_dtype, enabled=enabled, cache_enabled=False):
                value = self.field(*arguments)
        else:
            value = self.field(*arguments)
        if version is not None and y._version != version:
            raise RuntimeError("the field changed the state it was given in place (ReLU(inplace=True)?); it must not")
        if state.is_tensor and isinstance(value, Tensor):
            value = own_memory(value)
        flat = state.flatten(value, "the field's value", n).resolve_neg()  # kernels read the memory behind it
        if not enabled:
            for leaf in [value] if state.is_tensor else pytree.tree_leaves(value):
                if leaf.dtype != dtype:
                    raise TypeError(f"the field must return the state's dtype, {dtype}; got {leaf.dtype}")
        return flat if flat.dtype == work else flat.to(work)
