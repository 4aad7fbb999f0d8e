"""``torch.func`` transforms, forward mode and higher derivatives, all through ``gradient="backprop"``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from fastode import IController, Status, solve
from fastode.fields import MLPField
from tests.gradient_tools import BACKENDS, assert_close, random

F64 = torch.float64
T = [0.0, 0.4, 1.0]


def field(weight: Tensor) -> Callable[..., Tensor]:
    return lambda t, y, c: torch.tanh(y @ weight) * c + torch.sin(3 * t) * y


def run(y: Tensor, c: Tensor, w: Tensor, t: Any = T, **options: Any) -> Tensor:
    """(T, B, D)"""
    options = {"rtol": 1e-2, "atol": 1e-3, "gradient": "backprop", **options}
    return solve(field(w), y, t, controls=c, **options).ys


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return random(batch, 2), random(batch, 1, scale=3.0), random(2, 2, scale=0.7)


# vmap


@pytest.mark.parametrize("over", ["y0", "controls", "weight", "t", "all", "y0 and weight"])
@pytest.mark.parametrize("options", [{}, {"method": "rk4", "step_size": 0.3}], ids=["adaptive", "fixed"])
def test_vmap_is_a_loop(over: str, options: dict[str, Any]) -> None:
    """Also where the entries of the mapped batch take different steps."""
    names = {"y0", "controls", "weight", "t"} if over == "all" else set(over.split(" and "))
    y0, c, w = inputs()
    many = {
        "y0": random(4, *y0.shape),
        "controls": random(4, *c.shape) * torch.tensor([0.1, 1, 10, 3.0])[:, None, None],
        "weight": random(4, *w.shape),
        "t": torch.tensor(T, dtype=F64) * torch.tensor([[1.0], [2.0], [-1.0], [0.1]]),
    }
    one = {"y0": y0, "controls": c, "weight": w, "t": torch.tensor(T, dtype=F64)}
    call = lambda y, c, w, t: run(y, c, w, t, **options)  # noqa: E731
    given = [many[name] if name in names else one[name] for name in one]
    dims = tuple(0 if name in names else None for name in one)
    expected = [call(*(x[i] if d == 0 else x for x, d in zip(given, dims, strict=True))) for i in range(4)]
    assert_close(vmap(call, in_dims=dims)(*given), torch.stack(expected))


def test_vmap_in_vmap_and_other_dimensions() -> None:
    y0, _, w = inputs()
    ys, cs = random(2, 3, 2), random(3, 1, 4)  # one batch over the first, one over the last dimension
    found = vmap(lambda y: vmap(lambda c: run(y, c, w), in_dims=2, out_dims=1)(cs))(ys)
    expected = torch.stack([torch.stack([run(y, cs[..., i], w) for i in range(4)], 1) for y in ys])
    assert_close(found, expected)
    assert y0.shape == ys.shape[1:]


def test_vmap_of_dense_output_and_results_per_entry() -> None:
    y0, c, w = inputs()
    cs = torch.stack([c * 0.1, c * 10])
    query = torch.tensor([0.1, 0.77], dtype=F64)

    def call(c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sol = solve(field(w), y0, T, controls=c, gradient="backprop", dense=True)
        return sol.interpolate(query), sol.status, sol.stats.n_steps

    y, status, n_steps = vmap(call)(cs)
    singles = [call(c) for c in cs]
    assert_close(y, torch.stack([s[0] for s in singles]))
    assert torch.equal(status, torch.stack([s[1] for s in singles]))
    assert torch.equal(n_steps, torch.stack([s[2] for s in singles]))
    assert len(n_steps.unique()) > 1


def test_ensemble_of_modules() -> None:
    nets = [MLPField(2, [4]).double() for _ in range(3)]
    params, buffers = torch.func.stack_module_state(nets)
    y0 = random(5, 2)

    def call(params: Any, buffers: Any) -> Tensor:
        return solve(lambda t, y: functional_call(nets[0], (params, buffers), (t, y)), y0, T, gradient="backprop").ys

    found = vmap(call)(params, buffers)
    assert_close(found, torch.stack([solve(net, y0, T).ys.detach() for net in nets]), 1e-9)


def test_failing_samples_under_vmap() -> None:
    y0, c, w = inputs()
    cs = torch.stack([c, c.clone(), c])
    cs[1, 2] = torch.nan
    call = lambda c: run(y0, c, w, on_failure="nan").sin().nan_to_num().sum()  # noqa: E731
    value, slope = vmap(torch.func.grad_and_value(call))(cs)[::-1]
    assert_close(slope, torch.stack([grad(call)(c) for c in cs]))
    assert_close(value, torch.stack([call(c) for c in cs]))
    assert not bool(slope[1, 2].any())
    with pytest.raises(RuntimeError, match="failed"):
        vmap(lambda c: run(y0, c, w))(cs)


# Derivatives


def test_grad_by_a_dict_of_parameters_is_that_of_checkpoint() -> None:
    net, y0 = MLPField(2, [4], time=True).double(), random(5, 2)
    params = dict(net.named_parameters())

    def loss(params: dict[str, Tensor]) -> Tensor:
        return solve(lambda t, y: functional_call(net, params, (t, y)), y0, T, gradient="backprop").ys.square().sum()

    found = grad(loss)({name: p.detach() for name, p in params.items()})
    expected = torch.autograd.grad(solve(net, y0, T).ys.square().sum(), list(params.values()))
    assert_close([found[name] for name in params], list(expected), 1e-9)


def test_per_sample_gradients() -> None:
    y0, c, w = inputs()
    loss = lambda w, y, c: run(y[None], c[None], w)[-1].sum()  # noqa: E731
    found = vmap(grad(loss), in_dims=(None, 0, 0))(w, y0, c)
    assert_close(found, torch.stack([grad(loss)(w, y, x) for y, x in zip(y0, c, strict=True)]))
    assert_close(found.sum(0), grad(lambda w: run(y0, c, w)[-1].sum())(w))


@pytest.mark.parametrize("by", [0, 1, 2, 3], ids=["y0", "controls", "weight", "t"])
@pytest.mark.parametrize(
    "options",
    [{"method": "heun3", "step_size": 0.4}, {"controller": IController(first_step=1.0), "rtol": 1e-3, "atol": 1e-4}],
    ids=["fixed", "adaptive"],
)
def test_jacobians_in_both_modes(by: int, options: dict[str, Any]) -> None:
    """Step sizes are constants in forward mode too, where no detached tensor would show that they are not."""
    args = [*inputs(2), torch.tensor([0.0, 1.5], dtype=F64)]
    call = lambda *x: run(*x, **options)  # noqa: E731
    assert bool((solve(field(args[2]), args[0], args[3], controls=args[1], **options).stats.n_accepted > 1).all())
    reverse = torch.autograd.functional.jacobian(lambda x: call(*args[:by], x, *args[by + 1 :]), args[by])
    assert bool(reverse.any())
    assert_close(jacrev(call, argnums=by)(*args), reverse)
    assert_close(jacfwd(call, argnums=by)(*args), reverse)
    tangent = torch.randn_like(args[by])
    value, pushed = jvp(lambda x: call(*args[:by], x, *args[by + 1 :]), (args[by],), (tangent,))
    assert_close(value, call(*args))
    assert_close(pushed, torch.einsum("tbd...,...->tbd", reverse.flatten(3), tangent.flatten()))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(args[by], tangent)
        assert_close(forward_ad.unpack_dual(call(*args[:by], dual, *args[by + 1 :])).tangent, pushed)
    assert_close(
        vjp(lambda x: call(*args[:by], x, *args[by + 1 :]), args[by])[1](value)[0],
        (value.flatten() @ reverse.reshape(value.numel(), -1)).reshape(args[by].shape),
    )


def test_gradient_by_times_of_a_vmapped_solve() -> None:
    """A tensor batched by vmap does not say that it requires grad; it does."""
    y0, c, w = inputs()
    ts = torch.tensor(T, dtype=F64) * torch.tensor([[1.0], [0.5], [-2.0]])
    call = lambda t: run(y0, c, w, t).sum()  # noqa: E731
    expected = torch.stack([torch.autograd.functional.jacobian(call, t) for t in ts])
    assert_close(grad(lambda ts: vmap(call)(ts).sum())(ts), expected)
    assert_close(vmap(grad(call))(ts), expected)
    leaf = ts.clone().requires_grad_()
    assert_close(torch.autograd.grad(vmap(call)(leaf).sum(), leaf)[0], expected)


# Higher derivatives


@pytest.mark.parametrize("method", ["dopri5", "heun3"])
def test_gradgradcheck(method: str) -> None:
    y0, c, w = (x.requires_grad_() for x in inputs(1))
    t = torch.tensor([0.0, 0.3, 0.8], dtype=F64, requires_grad=True)
    call = lambda y, c, w, t: run(y, c, w, t, method=method, step_size=0.4)  # noqa: E731
    # Times: only the outputs' own, as step sizes are constants.
    assert torch.autograd.gradcheck(lambda y, c, w: call(y, c, w, t.detach()), (y0, c, w), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda y, c, w: call(y, c, w, t.detach()), (y0, c, w), fast_mode=True)


@pytest.mark.parametrize("by", [0, 1, 2], ids=["y0", "controls", "weight"])
def test_hessians_agree(by: int) -> None:
    args = inputs(2)
    loss = lambda *x: run(*x)[1:].sin().sum()  # noqa: E731
    expected = torch.autograd.functional.hessian(lambda x: loss(*args[:by], x, *args[by + 1 :]), args[by])
    assert bool(expected.any())
    assert_close(hessian(loss, argnums=by)(*args), expected)
    assert_close(jacrev(jacrev(loss, argnums=by), argnums=by)(*args), expected)


def test_second_derivatives_by_times() -> None:
    """Of the exact flow: y'' = -y is solved by sines, whose second derivatives are known."""
    y0 = torch.tensor([[1.0, 0.0]], dtype=F64)
    swing = lambda t, y: torch.stack([y[:, 1], -y[:, 0]], 1)  # noqa: E731
    t = torch.tensor([0.3, 0.9, 1.4], dtype=F64)

    def loss(t: Tensor) -> Tensor:
        ys = solve(swing, y0, t, rtol=1e-9, atol=1e-9, method="dopri8", gradient="backprop").ys
        return ys[1, 0, 0] + 2 * ys[2, 0, 0]

    def exact(t: Tensor) -> Tensor:
        return torch.cos(t[1] - t[0]) + 2 * torch.cos(t[2] - t[0])

    expected = torch.autograd.functional.hessian(exact, t)
    assert_close(torch.autograd.functional.hessian(loss, t), expected, 1e-7)
    assert_close(hessian(loss)(t), expected, 1e-7)


def test_training_on_a_gradient_penalty() -> None:
    """A loss that contains a gradient, differentiated by parameters: against finite differences."""
    y0, c, w = inputs(2)

    def penalty(w: Tensor) -> Tensor:
        y = y0.clone().requires_grad_()
        out = run(y, c, w, method="rk4", step_size=0.25)[-1]
        (slope,) = torch.autograd.grad(out.sin().sum(), y, create_graph=True)
        return slope.square().sum()

    leaf = w.clone().requires_grad_()
    (found,) = torch.autograd.grad(penalty(leaf), leaf)
    eps, direction = 1e-4, torch.randn_like(w)
    at = lambda s: penalty(w + s * eps * direction).detach()  # noqa: E731
    difference = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * eps)
    assert abs(float((found * direction).sum() - difference)) < 1e-9 * max(1.0, abs(float(difference)))


# What does not run says so


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_gradients_under_transforms_are_an_error(gradient: str, backend: str) -> None:
    y0, c, w = inputs()
    call = lambda c: run(y0, c, w, gradient=gradient, backend=backend).sum()  # noqa: E731
    transforms: list[Callable[[], Any]] = [
        lambda: vmap(call)(torch.stack([c, c])),
        lambda: grad(call)(c),
        lambda: jacrev(call)(c),
        lambda: jacfwd(call)(c),
        lambda: jvp(call, (c,), (c,)),
    ]
    for transform in transforms:
        with pytest.raises(RuntimeError, match=f"gradient='{gradient}' does not run under torch.func"):
            transform()


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
def test_other_gradients_in_forward_mode_are_an_error(gradient: str) -> None:
    y0, c, w = inputs()
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode"):
        run(forward_ad.make_dual(y0, y0), c, w, gradient=gradient)


def test_status_of_a_transformed_solve() -> None:
    y0, c, w = inputs()
    status = vmap(lambda c: solve(field(w), y0, T, controls=c, gradient="backprop").status)(torch.stack([c, 2 * c]))
    assert status.shape == (2, 3)
    assert bool((status == Status.SUCCESS).all())
