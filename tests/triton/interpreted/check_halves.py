"""Weights in half precision, read as they are stored: the same solve as with the weights cast before it."""

import pytest
import torch
from torch import nn

import fastode
from fastode.backends.triton import record
from fastode.problem import make_problem
from fastode.program.capture import capture_field
from tests.triton.interpreted.tools import launched

HALVES = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
T = [0.0, 0.1, 0.3, 0.3]


class Shared(nn.Module):
    """A layer whose matrix is kept in half precision and a bias that is not."""

    def __init__(self, dim: int, hidden: int, half: torch.dtype) -> None:
        super().__init__()
        self.inner = nn.Parameter((torch.randn(hidden, dim) / dim**0.5).to(half))
        self.outer = nn.Parameter((torch.randn(dim, hidden) / hidden**0.5).to(half))
        self.bias = nn.Parameter(torch.randn(hidden) / 3)

    def forward(self, t, y):
        return torch.tanh(y @ self.inner.to(y.dtype).T + self.bias) @ self.outer.float().T


def per_sample(t, y, c):
    """The matrix cast by the field, the bias by torch's promotion."""
    return torch.tanh((c["W"].to(y.dtype) @ y[..., None])[..., 0] + c["b"])


def controls_of(dim, half, batch=5):
    return {
        "W": (torch.randn(batch, dim, dim) / dim**0.5).to(half).requires_grad_(),
        "b": torch.randn(batch, dim).to(half).requires_grad_(),
    }


def program_of(field, y0, controls=None):
    plan, inputs = make_problem(field, y0, T, controls, "dopri5", 1e-5, 1e-6, None, None, 10, False)
    found, _ = capture_field(plan.field, plan.times, inputs.y0, inputs.controls)
    return found


def compared(launch, half, field, y0, sources, controls=None, exact=None, **options):
    """Against the reference on weights that were cast beforehand, ``exact``: (field, controls, sources)."""
    other_field, other_controls, other_sources = exact
    with launched(launch):
        ys = fastode.solve(field, y0, T, controls=controls, backend="triton", **options).ys
        weights = torch.randn(ys.shape)
        grads = torch.autograd.grad((ys * weights).sum(), [y0, *sources])
    expected = fastode.solve(other_field, y0, T, controls=other_controls, backend="reference", **options).ys
    truth = torch.autograd.grad((expected * weights).sum(), [y0, *other_sources])
    torch.testing.assert_close(ys, expected, rtol=2e-5, atol=2e-6)
    for source, grad, true in zip([y0, *sources], grads, truth, strict=True):
        assert grad.dtype == source.dtype
        # Of half precision one rounding; the interpreter cuts off where a GPU rounds, which is twice as coarse.
        bound = 1e-4 if grad.dtype == torch.float32 else torch.finfo(half).eps
        torch.testing.assert_close(grad.float(), true, rtol=bound, atol=2e-5 * float(true.abs().max()))


def fixed(**options):
    """Fixed steps: the same ones whatever the rounding."""
    return {"method": "rk4", "step_size": 0.08, **options}


@HALVES
@pytest.mark.parametrize("dim", [2, 7])
@pytest.mark.parametrize("launch", ["scalarised", "tiled", "tiled_one", None])
def test_weights_per_sample(launch, dim, half):
    torch.manual_seed(dim)
    y0, controls = torch.randn(5, dim, requires_grad=True), controls_of(dim, half)
    cast = {name: leaf.detach().float().requires_grad_() for name, leaf in controls.items()}
    exact = (per_sample, cast, list(cast.values()))
    assert [leaf.half for leaf in program_of(per_sample, y0, controls).program.sample] == [str(half)[6:]] * 2
    compared(launch, half, per_sample, y0, list(controls.values()), controls, exact, **fixed())


@HALVES
@pytest.mark.parametrize(("dim", "hidden"), [(2, 3), (3, 19)])
@pytest.mark.parametrize("launch", ["scalarised", "in_place", "tiled", "tiled_one", "tiled_dot"])
def test_shared_weights(launch, dim, hidden, half):
    torch.manual_seed(dim)
    net, y0 = Shared(dim, hidden, half), torch.randn(5, dim, requires_grad=True)
    plain = Shared(dim, hidden, torch.float32)
    plain.load_state_dict(net.state_dict())
    assert sorted(leaf.half or "" for leaf in program_of(net, y0).program.shared) == ["", *[str(half)[6:]] * 2]
    exact = (plain, None, list(plain.parameters()))
    compared(launch, half, net, y0, list(net.parameters()), None, exact, **fixed())


@HALVES
@pytest.mark.parametrize("launch", ["scalarised", "tiled"])
def test_step_control_takes_the_same_steps(launch, half):
    y0, controls = torch.randn(5, 3), controls_of(3, half)
    with launched(launch):
        got = fastode.solve(per_sample, y0, T, controls=controls, backend="triton")
    with launched(launch):
        cast = {name: leaf.float() for name, leaf in controls.items()}
        plain = fastode.solve(per_sample, y0, T, controls=cast, backend="triton")
    assert torch.equal(got.ys, plain.ys)  # the same numbers after they were read: the same bits
    assert torch.equal(got.stats.n_accepted, plain.stats.n_accepted)


@pytest.mark.parametrize("launch", ["scalarised", "tiled"])
def test_gradients_over_several_launches_are_rounded_once(launch, monkeypatch):
    """60 launches of one step each: in bfloat16 so many sums would lose several percent."""
    monkeypatch.setattr(record, "_FIRST_STEPS", 1)
    monkeypatch.setattr(record, "_MOST_STEPS", 1)
    monkeypatch.setattr(record, "_LEAST_STEPS", 1)
    bias = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    options = {"method": "euler", "step_size": 1.9 / 60, "backend": "triton"}
    with launched(launch):
        ys = fastode.solve(lambda t, y, c: 0.0 * y + c, torch.zeros(2, 1), [0.0, 1.9], controls=bias, **options).ys
        assert len(ys.grad_fn.record.segments) > 50
        (grad,) = torch.autograd.grad(ys[-1].sum(), bias)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad.float(), torch.full((2, 1), 1.9), rtol=1e-2, atol=0.0)


def test_components_used_twice_are_rounded_once():
    """Sums that overlap in a leaf."""

    def field(t, y, c):
        w = c.to(y.dtype)
        return torch.cat([w[:, :2] * y[:, :2], w[:, 1:2] * y[:, 2:] + w[:, 3:4] * w[:, 1:2]], dim=1)

    y0, c = torch.randn(4, 3, requires_grad=True), torch.randn(4, 5).bfloat16().requires_grad_()
    cast = c.detach().float().requires_grad_()
    for launch in ("scalarised", "tiled"):
        compared(launch, torch.bfloat16, field, y0, [c], c, (field, cast, [cast]), **fixed())


def test_second_derivatives_and_gradients_by_times():
    controls = torch.randn(3, 2).bfloat16().requires_grad_()
    field = lambda t, y, c: torch.sin(c.to(y.dtype) * y) + t  # noqa: E731
    got = []
    for backend in ("triton", "reference"):
        y0, times = torch.ones(3, 2, requires_grad=True), torch.tensor([0.0, 0.2], requires_grad=True)
        c = controls if backend == "triton" else controls.detach().float().requires_grad_()
        ys = fastode.solve(field, y0, times, controls=c, backend=backend).ys
        by_time, first = torch.autograd.grad((ys**3).sum(), [times, y0], create_graph=True)
        got.append([by_time, first, *torch.autograd.grad((first**2).sum(), [y0, c])])
    for mine, true in zip(*got, strict=True):
        bound = 1e-4 if mine.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(mine.float(), true, rtol=bound, atol=bound)


def test_what_is_no_plain_cast_is_left_to_torch():
    """A cast that is written into, one without gradient, and one of something computed."""
    weight = torch.randn(2, 2).bfloat16().requires_grad_()

    def written(t, y):
        w = weight.float()
        w[0] = 0.0
        return y @ w

    def stopped(t, y):
        with torch.no_grad():
            w = weight.float()
        return y @ w

    def computed(t, y):
        return y @ (weight * 2).float()

    y0 = torch.randn(3, 2, requires_grad=True)
    for field, half in ((written, None), (stopped, None), (computed, "bfloat16")):
        assert [leaf.half for leaf in program_of(field, y0).program.shared] == [half]
        got = []
        for backend in ("triton", "reference"):
            ys = fastode.solve(field, y0, T, backend=backend).ys
            got.append([ys.detach(), *torch.autograd.grad(ys.sum(), [y0, weight], allow_unused=True)])
        for mine, true in zip(*got, strict=True):
            assert (mine is None) == (true is None)
            if true is not None:
                torch.testing.assert_close(mine, true, rtol=1e-2, atol=1e-2)


def test_source_says_what_is_converted():
    y0, controls = torch.randn(5, 3), controls_of(3, torch.bfloat16)
    text = fastode.explain(per_sample, y0, controls, source=True).source
    assert "sample0: controls0 3x3 of bfloat16\n" in text
    loads = [line for line in text.splitlines() if "= tl.load(sample" in line]
    assert loads
    assert all(line.endswith(".to(tl.float32)") for line in loads)
