"""Fields at special points: what a program and its pullback give there, by every executor, and what torch gives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastode._environment import _C
from fastode.backends.cpu.tile import tiles_of
from fastode.program.capture import Capture
from fastode.program.evaluate import evaluate, evaluate_pullback
from tests.program.tools import F32, F64, program_of

Function = Callable[[Tensor], Tensor]


def magnitudes(dtype: torch.dtype) -> Tensor:
    """Positive numbers of all sizes, and where functions change their formula or reach a limit; 0, infinity, NaN."""
    kind = torch.finfo(dtype)
    powers = torch.logspace(-44 if dtype == F32 else -323, 38 if dtype == F32 else 308, 60, dtype=F64)
    ordinary = torch.linspace(0.013, 12.0, 90, dtype=F64)
    named = [0.0, kind.smallest_normal * kind.eps, kind.smallest_normal, kind.smallest_normal / 4, kind.eps]
    named += [0.5, 0.70710678, 1 - kind.eps, 1.0, 1 + kind.eps, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 7.9, 8.3, 8.9, 9.02, 9.2]
    named += [10.0, 13.0, 15.0, 17.5, 18.7, 19.0, 20.0, 20 * (1 + kind.eps), 20.5, 26.0, 27.5, 30.0, 36.7, 38.0, 50.0]
    named += [
        87.4,
        88.0,
        88.7,
        89.0,
        92.0,
        100.0,
        103.3,
        104.5,
        350.0,
        700.0,
        709.5,
        711.0,
        740.0,
        746.0,
        1e4,
        12345.678,
    ]
    named += [1e10, 1e19, 3e38, kind.max, torch.inf, torch.nan]
    return torch.cat([powers, ordinary, torch.tensor(named, dtype=F64)]).to(dtype).unique()


def points(dtype: torch.dtype) -> Tensor:
    """``magnitudes`` with both signs, (N, 1)."""
    sizes = magnitudes(dtype)
    return torch.cat([sizes, -sizes])[:, None]


def pairs(dtype: torch.dtype) -> Tensor:
    """Pairs of special and ordinary numbers, (N, 2)."""
    kind = torch.finfo(dtype)
    sizes = [0.0, kind.smallest_normal / 4, kind.smallest_normal, kind.eps, 0.5, 1.0, 1.5, 2.0, 3.0, 7.3]
    sizes += [kind.max**0.75, kind.max, torch.inf, torch.nan]
    values = torch.tensor([*sizes, *(-x for x in sizes)], dtype=dtype)
    return torch.cartesian_prod(values, values)


def sized_pairs(dtype: torch.dtype) -> Tensor:
    """``pairs`` whose squares are normal numbers, or zero."""
    numbers, kind = pairs(dtype), torch.finfo(dtype)
    sizes = numbers.abs()
    return numbers[((sizes == 0) | ((sizes > kind.smallest_normal**0.4) & (sizes < kind.max**0.4))).all(1)]


def by_torch(fn: Function, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Values of fn (B, D) and gradients by the state, of torch."""
    own = y.clone().requires_grad_()
    out = fn(own)
    grad = torch.autograd.grad(out, own, g, materialize_grads=True)[0] if out.requires_grad else torch.zeros_like(y)
    return out.detach(), grad


def by_evaluation(made: Capture, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The same by ``evaluate``, for programs without leaves."""
    t = torch.zeros(len(y), dtype=y.dtype)
    return evaluate(made.program, t, y, [], []), evaluate_pullback(made.pullback, t, y, [], [], g)[0]


def by_kernels(made: Capture, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The same by the kernels of backend ``cpu``."""
    assert not made.program.shared
    assert not made.program.sample
    program = tiles_of(made, y.dtype).program(len(y), ())
    t, y, g = torch.zeros(len(y), dtype=F64), y.contiguous(), g.contiguous()
    value, grad = torch.full_like(y, 77.0), torch.full_like(y, 77.0)
    program.evaluate(len(y), t.data_ptr(), y.data_ptr(), [], [], [], value.data_ptr(), 1)
    program.vjp(len(y), t.data_ptr(), y.data_ptr(), g.data_ptr(), [], [], [], grad.data_ptr(), [], [], 1)
    return value, grad


def with_isa(isa: str) -> Callable[[Capture, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``by_kernels`` compiled for an instruction set."""

    def run(made: Capture, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        _C.set_isa(isa)
        return by_kernels(made, y, g)

    return run


EXECUTORS = {"evaluate": by_evaluation, **{isa: with_isa(isa) for isa in _C.usable_isas()}}


def capture(fn: Function, width: int, dtype: torch.dtype) -> Capture:
    """The program of y' = fn(y), recorded at ordinary points."""
    torch.manual_seed(0)
    return program_of(lambda t, y: fn(y), torch.rand(5, width, dtype=dtype) * 0.4 + 0.3)


def differing(got: Tensor, torchs: Tensor, true: Tensor, cancels: bool = False, ulps: float = 24.0) -> Tensor:
    """Where a result is neither torch's nor better than it, elementwise.

    Args:
        got: of the program.
        torchs: of torch, in the same precision.
        true: of torch in float64 from the same inputs.
        cancels: whether zeros are differences of larger numbers, so that rounding may stand for them.
        ulps: units in the last place that are allowed, beside four times the largest error that torch's own result has
            among the 13 inputs around.
    """
    kind = torch.finfo(got.dtype)
    eps, least = kind.eps, 16 * kind.smallest_normal
    wide, own = torchs.to(F64), got.to(F64)
    known = torch.isfinite(wide) & torch.isfinite(true)
    relative = torch.where(known, (wide - true).abs() / true.abs().clamp_min(least), 0.0)
    around = torch.nn.functional.max_pool1d(relative.T[None], 13, 1, 6)[0].T
    same = (got == torchs) | (torch.isnan(got) & torch.isnan(torchs))
    size = torch.maximum(wide.abs(), true.abs())
    close = (own - wide).abs() <= ulps * eps * wide.abs() + 4 * around * size + least
    close |= ((own - wide).abs() <= (32 if cancels else 4) * eps * size.clamp_min(1.0)) & ((wide != 0) | cancels)
    right = (own - true).abs() <= ulps * eps * true.abs() + least
    return ~(same | (torch.isfinite(own) & (close | right)))


def tame_pairs(dtype: torch.dtype) -> Tensor:
    """Pairs of numbers of usual size with ties, zeros of both signs and whole multiples, (N, 2)."""
    values = torch.tensor(
        [0.0, -0.0, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 7.3, -0.1, -0.5, -1.0, -2.0, -7.3], dtype=dtype
    )
    return torch.cartesian_prod(values, values)
