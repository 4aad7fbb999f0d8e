"""Weights in half precision that a field casts: the program says so; backends that do not read them get the cast."""

import pytest
import torch

import fastode
from tests.program.tools import program_of

HALVES = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


@HALVES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leaves_are_of_either_type(half, dtype):
    weight = torch.randn(3, 4).to(half)
    field = lambda t, y, c: torch.tanh(y @ weight.to(y.dtype).T) @ weight.to(y.dtype) + c  # noqa: E731
    y0, controls = torch.randn(2, 4, dtype=dtype), torch.randn(2, 4).to(half)
    made = program_of(field, y0, controls)
    names = {leaf.half for leaf in (*made.program.shared, *made.program.sample)}
    assert names == {str(half).removeprefix("torch.")}
    assert f"of {str(half).removeprefix('torch.')}" in str(made.program)
    shared, sample = made.leaves([weight], [controls], 2)
    assert {x.dtype for x in (*shared, *sample)} == {dtype}
    shared, sample = made.leaves([weight], [controls], 2, stored=True)
    assert {x.dtype for x in (*shared, *sample)} == {half}
    assert all(x is weight for x in shared)  # nothing is copied
    assert sample[0] is controls


@HALVES
@pytest.mark.parametrize("kind", ["shared", "per sample"])
def test_the_cpu_solves_with_the_cast(kind, half):
    """Gradients are summed in float32 and rounded once."""
    if kind == "shared":
        weight = torch.randn(5, 5).to(half).requires_grad_()
        field, controls = (lambda t, y: torch.tanh(y @ weight.float())), None
    else:
        weight = torch.randn(3, 5, 5).to(half).requires_grad_()
        field, controls = (lambda t, y, c: torch.tanh((c.to(y.dtype) @ y[..., None])[..., 0])), weight
    y0 = torch.randn(3, 5)
    assert fastode.explain(field, y0, controls).backend == "cpu"
    got = []
    for backend in ("cpu", "reference"):
        options = {"method": "rk4", "step_size": 0.1, "backend": backend}
        ys = fastode.solve(field, y0, [0.0, 1.0], controls=controls, **options).ys
        got.append((ys.detach(), *torch.autograd.grad(ys.square().sum(), weight)))
    (ys, grad), (expected, truth) = got
    assert grad.dtype == half
    torch.testing.assert_close(ys, expected, rtol=1e-5, atol=1e-6)
    eps = torch.finfo(half).eps
    torch.testing.assert_close(grad, truth, rtol=eps, atol=eps * float(truth.abs().max()))


def test_a_wrong_gradient_is_not_taken_for_rounding():
    """The comparison at capture is no looser for half precision than its rounding."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w, y):
            ctx.save_for_backward(w, y)
            return w.to(y.dtype) * y

        @staticmethod
        def backward(ctx, g):
            w, y = ctx.saved_tensors
            return (1.1 * g * y).sum(0).to(w.dtype), g * w.to(y.dtype)

    weight = torch.randn(4).bfloat16().requires_grad_()
    found = fastode.explain(lambda t, y: Wrong.apply(weight, y), torch.randn(3, 4))
    assert found.backend == "stepped"
    assert found.program is None
