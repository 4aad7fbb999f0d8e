"""Functions at all magnitudes, ties and zeros, by generated kernels: values and gradients against torch's."""

import itertools

import pytest
import torch

import fastode
from fastode.backends.triton.heuristics import SCALARISED, TILED, Launch
from tests.program.special import by_torch, differing
from tests.program.test_special_points import CANCELS, CASES, OFF_IN_TORCH, UNARY
from tests.program.tools import F32, F64
from tests.triton.interpreted import tools

TIMES = torch.tensor([0.0, 1.0], dtype=F64)
LAUNCHES = {"scalarised": Launch(SCALARISED, samples=64, warps=1), "tiled": Launch(TILED, samples=64, warps=1)}


@pytest.mark.parametrize(("name", "launch"), zip(UNARY, itertools.cycle(LAUNCHES)))  # in turns: it takes a minute
def test_as_torch_has_it(name, launch, monkeypatch):
    """One Euler step from 0 to 1 of y' = fn(c) with y(0) = 0 is fn(c); samples that fail say nothing."""
    monkeypatch.setitem(tools.LAUNCHES, "special", LAUNCHES[launch])
    fn, width, grid = CASES[name]
    dtype = F32 if launch == "scalarised" else F64
    if (name, dtype) in OFF_IN_TORCH:
        pytest.skip("torch is off")
    c = grid(dtype)
    torch.manual_seed(1)
    g = torch.randn(len(c), width, dtype=dtype)
    value, grad = by_torch(fn, c, g)
    true_value, true_grad = by_torch(lambda x: fn(x.to(F64)), c.to(F64), g.to(F64))
    usual = torch.isfinite(c).all(1) & torch.isfinite(value).all(1) & torch.isfinite(grad).all(1)
    if not usual.any():
        pytest.skip("torch has no finite values")
    given = c[usual].clone().requires_grad_()
    options = {"controls": given, "method": "euler", "backend": "triton"}
    with tools.launched("special"):
        solution = fastode.solve(lambda t, y, c: fn(c + y * 0), torch.zeros_like(given), TIMES, **options)
        (own,) = torch.autograd.grad(solution.ys[-1], given, g[usual], materialize_grads=True)
    for got, want, true in (
        (solution.ys[-1].detach(), value, true_value),
        (own, grad, true_grad),
    ):
        wrong = differing(got, want[usual], true[usual], name in CANCELS).any(1)
        shown = [x[wrong][:3].tolist() for x in (given, got, want[usual])]
        assert not wrong.any(), f"at, is, torch has: {shown}"
