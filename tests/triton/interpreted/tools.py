"""What the interpreted tests share."""

from contextlib import contextmanager

import torch
from torch import nn
from triton.runtime import interpreter

import fastode
from fastode.backends.triton import backend
from fastode.backends.triton.heuristics import SCALARISED, TILED, Launch
from fastode.backends.triton.kernels import Kernels
from fastode.backends.triton.tiles import last_axis_first
from fastode.tree import leaves, tree_map
from tests.program.tools import F64, moved

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_and_index(tensor, scope):
    """Triton 3.6 asks NumPy for the integer in an array of shape (1,), which NumPy gives no longer since 2.4."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))


if not last_axis_first():  # 3.6 or older
    interpreter._patch_lang_tensor = _patch_tensor_and_index

LAUNCHES = {
    "scalarised": Launch(SCALARISED, samples=4, warps=1),
    "in_place": Launch(SCALARISED, samples=2, warps=1, hoist=False, programs=2),
    "tiled": Launch(TILED, samples=2, warps=1),
    "tiled_one": Launch(TILED, samples=1, warps=1, hoist=False, programs=2),
    "tiled_dot": Launch(TILED, samples=16, warps=4, dot=True, hoist=False),
}


def poisoned(*shape, dtype, device):
    """Memory that a kernel has to write."""
    return torch.full(shape, torch.nan if dtype.is_floating_point else -77, dtype=dtype, device=device)


@contextmanager
def launched(name, **changes):
    """Kernels with these launch parameters, and poison in all memory that they are to write."""
    before = Kernels.launch, backend.empty
    Kernels.launch, backend.empty = LAUNCHES.get(name), poisoned
    try:
        yield
    finally:
        Kernels.launch, backend.empty = before


def solved(case, dtype, name, times, batch=5, scale=0.1, **options):
    """Outputs (T, B, D), solution and gradients of a loss by state, controls and parameters."""
    torch.manual_seed(3)
    if isinstance(case.field, nn.Module):
        case.field.to(dtype)
    leaf = lambda x: x.to(dtype).requires_grad_()  # noqa: E731
    y0 = tree_map(leaf, moved(case.y0, batch, scale))
    controls = None if case.controls is None else tree_map(leaf, moved(case.controls, batch, scale))
    solution = fastode.solve(case.field, y0, times, controls=controls, backend=name, **options)
    ys = torch.cat([y.reshape(len(times), batch, -1) for y in leaves(solution.ys)], dim=2)
    parameters = list(case.field.parameters()) if isinstance(case.field, nn.Module) else []
    sources = [*leaves(y0), *([] if controls is None else leaves(controls)), *parameters]
    weights = torch.randn(ys.shape, dtype=F64).to(dtype)
    grads = torch.autograd.grad((torch.where(ys.isnan(), 0.0, ys) * weights).sum(), sources, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(sources, grads, strict=True)]
    return ys.detach(), solution, grads
