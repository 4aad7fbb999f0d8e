"""Whatever a field can depend on gets the gradient that automatic differentiation through the steps gives it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastode import Checkpoint, solve
from fastode.externals import depend_on_each_other
from tests.gradient_tools import BACKENDS, FIELD_BACKENDS, MODES, assert_close, gradients, node_of, random

F64 = torch.float64
T = [0.0, 0.3, 1.0]
GLOBALS: dict[str, Tensor] = {}

Solve = Callable[..., Tensor]
"""``solve`` with the mode chosen, returning one number."""


def chosen(gradient: str, backend: str) -> Solve:
    def run(field: Any, y0: Any, t: Any = T, **options: Any) -> Tensor:
        options = {"rtol": 1e-2, "atol": 1e-3, **options}
        ys = solve(field, y0, t, gradient=gradient, backend=backend, **options).ys
        leaves = torch.utils._pytree.tree_leaves(ys)
        return sum((leaf.sin().sum() for leaf in leaves), torch.zeros((), dtype=F64))

    return run


class Net(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight  # a plain tensor, leaf or not

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight)

    def late(self, scale: float, t: Tensor, y: Tensor) -> Tensor:
        return scale * self.forward(t, y)


class Scale(torch.autograd.Function):
    """y * w with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(y, w)
        return y * w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        y, w = ctx.saved_tensors
        return grad * w, (grad * y).sum(0)


def shared_point(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    return run(
        lambda t, y, c: torch.tanh(y @ a) * c, y0[0].expand(4, 3), controls=torch.arange(4.0, dtype=F64)[:, None]
    )


def hypernetwork(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    weight = torch.sin(a) @ a
    return run(lambda t, y: torch.tanh(y @ weight), y0)


def hypernetwork_and_its_weight(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    weight = torch.sin(a) @ a
    return run(lambda t, y: torch.tanh(y @ weight) + y @ a, y0)


def chain_of_results(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    first = torch.sin(a)
    second = first @ a
    return run(lambda t, y: torch.tanh(y @ second) + y @ first, y0)


def parameter_and_its_view(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    row = a[0]
    return run(lambda t, y: torch.tanh(y @ a) + row, y0)


def siblings(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    first, second = torch.cat([a, a.sin()]).chunk(2)
    return run(lambda t, y: torch.tanh(y @ first) + y @ second, y0)


def branch_on_time(run: Solve, y0: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return run(lambda t, y: torch.tanh(y @ (a if float(t[0]) < 0.5 else b)), y0, method="rk4", step_size=0.25)


def branch_on_time_to_a_result(run: Solve, y0: Tensor, a: Tensor, b: Tensor) -> Tensor:
    later = b.sin()
    return run(lambda t, y: torch.tanh(y @ (a if float(t[0]) < 0.5 else later)), y0, method="rk4", step_size=0.25)


def only_a_later_branch_learns(run: Solve, a: Tensor) -> Tensor:
    """Nothing that the start reads, nor y0, requires grad."""
    later, y0 = a.sin(), torch.ones(4, 3, dtype=F64)
    return run(lambda t, y: -y if float(t[0]) < 0.5 else torch.tanh(y @ later), y0, method="rk4", step_size=0.25)


def same_tensor_as_start_and_closure(run: Solve, y0: Tensor) -> Tensor:
    return run(lambda t, y: torch.tanh(y) * y0.sum() * 0.1, y0)


def flattened_start_and_closure(run: Solve, y0: Tensor) -> Tensor:
    return run(lambda t, y: torch.tanh(y[0]) * y0.sum() * 0.1 if False else (torch.tanh(y[0]) * y0.sum() * 0.1,), (y0,))


def same_tensor_as_controls_and_closure(run: Solve, y0: Tensor, c: Tensor) -> Tensor:
    return run(lambda t, y, u: torch.tanh(y) @ u[0] + c.sum() * 0.1, y0, controls=c.expand(4, 3, 3))


def leaf_controls_also_closed_over(run: Solve, y0: Tensor) -> Tensor:
    return run(lambda t, y, u: torch.tanh(y) * u + y0.mean() * 0.1, torch.ones(4, 3, dtype=F64), controls=y0)


def same_tensor_twice_in_controls(run: Solve, y0: Tensor, c: Tensor) -> Tensor:
    u = c[:1].expand(4, 3)
    return run(lambda t, y, u: torch.tanh(y * u["a"]) + u["b"], y0, controls={"a": u, "b": u})


def times_also_closed_over(run: Solve, y0: Tensor) -> Tensor:
    t = torch.stack([torch.zeros(4, dtype=F64), y0.sum(1).abs() + 0.5])
    return run(lambda s, y: torch.tanh(y) * t.sum() * 0.1, torch.ones(4, 3, dtype=F64), t)


def tree_of_controls(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    controls = {"w": a.expand(4, 3, 3).clone(), "rest": (y0.sin(), [y0[:, 0].cos()]), "steady": y0.detach()}

    def field(t: Tensor, y: Tensor, c: Any) -> Tensor:
        first, (second,) = c["rest"]
        return torch.tanh(torch.einsum("nij,nj->ni", c["w"], y) + first) * second[:, None] - 0.1 * c["steady"]

    return run(field, y0, controls=controls)


def integer_controls(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    return run(lambda t, y, i: torch.tanh(y) * a[i], y0, controls=torch.tensor([0, 2, 1, 0]))


def constant_in_closure(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    return run(lambda t, y: a[0].expand_as(y), y0)


def constant_without_gradient(run: Solve, y0: Tensor) -> Tensor:
    return run(lambda t, y: torch.ones_like(y), y0)


def returns_its_argument(run: Solve, y0: Tensor) -> Tensor:
    return run(lambda t, y: y, y0)


def returns_its_controls(run: Solve, y0: Tensor) -> Tensor:
    return run(lambda t, y, c: c, y0, controls=y0.sin())


def not_contiguous(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    return run(lambda t, y: (a @ torch.tanh(y).mT).mT, y0)


def function_of_its_own(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    return run(lambda t, y: torch.tanh(Scale.apply(y, a[0])), y0)


def pendulum(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    """Hamilton's equations by automatic differentiation inside the field."""

    def field(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.enable_grad():
            q, p = (x if x.requires_grad else x.detach().requires_grad_() for x in (y["q"], y["p"]))
            energy = (torch.cos(q @ a).sum() + 0.5 * p.square().sum()) * a[0, 0]
            dq, dp = torch.autograd.grad(energy, (q, p), create_graph=True)
        return {"q": dp, "p": -dq}

    return run(field, {"q": y0, "p": y0.cos()})


def flow_with_density(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    """FFJORD: the state and the logarithm of its density, by the exact divergence."""

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
            f = torch.tanh(z @ a + t)
            columns = [torch.autograd.grad(f[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(3)]
        return f, -torch.stack(columns).sum(0)

    return run(field, (y0, torch.zeros(4, dtype=F64)))


def nested_state(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    state = {"x": (y0, [y0[:, 0]]), "m": y0[:, :, None] * y0[:, None]}

    def field(t: Tensor, s: dict[str, Any]) -> dict[str, Any]:
        x, (r,) = s["x"]
        return {"x": (torch.tanh(x) * r[:, None], [s["m"].sum((1, 2)).sin()]), "m": -(s["m"] @ a)}

    return run(field, state)


def functional_transform_inside(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    def potential(y: Tensor) -> Tensor:
        return torch.cos(y @ a).sum()

    return run(lambda t, y: torch.func.vmap(torch.func.grad(potential))(y), y0)


def activation_checkpoint_inside(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    inner = lambda y: torch.tanh(y @ a)  # noqa: E731
    return run(lambda t, y: torch.utils.checkpoint.checkpoint(inner, y, use_reentrant=False), y0)


def solve_inside(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    inner = lambda t, y: -y + a[0]  # noqa: E731
    return run(lambda t, y: torch.tanh(solve(inner, y, [0.0, 0.5], method="rk4").ys[-1]), y0, method="rk4")


def plain_attribute(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    return run(Net(a), y0)


def result_as_attribute(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    return run(Net(a.sin()), y0)


def bound_method(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    return run(functools.partial(Net(a).late, 0.7), y0)


def partial(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    def field(w: Tensor, t: Tensor, y: Tensor, scale: float) -> Tensor:
        return torch.tanh(y @ w) * scale

    return run(functools.partial(field, a, scale=0.5), y0)


def default_argument(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    def field(t: Tensor, y: Tensor, w: Tensor = a) -> Tensor:
        return torch.tanh(y @ w)

    return run(field, y0)


def wrapped(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ a)

    @functools.wraps(field)
    def outer(*args: Any) -> Tensor:
        return 0.5 * field(*args)

    return run(outer, y0)


def global_tensor(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    GLOBALS["a"] = a
    return run(lambda t, y: torch.tanh(y @ GLOBALS["a"]), y0)


def also_used_outside(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    return run(lambda t, y: torch.tanh(y @ a), (y0 @ a).sin()) + (a * a).sum()


def float64_weights_of_a_single_precision_state(run: Solve, y0: Tensor, a: Tensor) -> Tensor:
    return run(lambda t, y: torch.tanh(y @ a.float()), y0.float()).double()


CASES = [
    shared_point,
    hypernetwork,
    hypernetwork_and_its_weight,
    chain_of_results,
    parameter_and_its_view,
    siblings,
    branch_on_time,
    branch_on_time_to_a_result,
    only_a_later_branch_learns,
    same_tensor_as_start_and_closure,
    flattened_start_and_closure,
    same_tensor_as_controls_and_closure,
    leaf_controls_also_closed_over,
    same_tensor_twice_in_controls,
    times_also_closed_over,
    tree_of_controls,
    integer_controls,
    constant_in_closure,
    constant_without_gradient,
    returns_its_argument,
    returns_its_controls,
    not_contiguous,
    function_of_its_own,
    pendulum,
    flow_with_density,
    nested_state,
    functional_transform_inside,
    activation_checkpoint_inside,
    solve_inside,
    plain_attribute,
    result_as_attribute,
    bound_method,
    partial,
    default_argument,
    wrapped,
    global_tensor,
    also_used_outside,
    float64_weights_of_a_single_precision_state,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_checkpoint_equals_backprop(case: Callable[..., Tensor]) -> None:
    given = {"y0": random(4, 3), **{name: random(3, 3, scale=0.6) for name in "abc"}}
    inputs = [given[name] for name in case.__code__.co_varnames[1 : case.__code__.co_argcount]]
    expected = gradients(lambda *x: case(chosen("backprop", "auto"), *x), inputs)
    assert any(grad is not None and bool(grad.any()) for grad in expected)
    single = case is float64_weights_of_a_single_precision_state
    for backend in (*FIELD_BACKENDS, "auto"):
        found = gradients(lambda *x: case(chosen("checkpoint", backend), *x), inputs)  # noqa: B023
        for x, a, e in zip(inputs, found, expected, strict=True):  # a gradient of zero may also be left out
            zero = torch.zeros_like(x)
            assert_close(zero if a is None else a, zero if e is None else e, 1e-5 if single else 1e-12)


def tied() -> nn.Module:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


MODULES = {
    "linear": lambda: nn.Linear(3, 3),
    "deep": lambda: nn.Sequential(
        nn.Linear(3, 5), nn.Tanh(), nn.Sequential(nn.Linear(5, 5), nn.ELU()), nn.Linear(5, 3)
    ),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
    "tied": tied,
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Tanh())),
    "dropout in evaluation": lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).eval(),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_parameters_of_modules(name: str) -> None:
    net, y0 = MODULES[name]().double(), random(4, 3)
    parameters = dict(net.named_parameters())

    def run(gradient: str, backend: str) -> list[Tensor | None]:
        net.zero_grad()
        y = y0.clone().requires_grad_()
        (chosen(gradient, backend)(lambda t, y: torch.sin(net(y)), y) + net(y0).sum()).backward()
        return [y.grad, *[p.grad for p in parameters.values()]]

    expected = run("backprop", "auto")
    for backend in (*FIELD_BACKENDS, "auto"):
        assert_close(run("checkpoint", backend), expected)


@pytest.mark.parametrize(("gradient", "backend"), [*MODES, ("adjoint", "stepped")])
def test_unused_and_frozen_parameters_have_no_gradient(gradient: str, backend: str) -> None:
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.frozen, self.unused = (nn.Linear(3, 3).double() for _ in range(3))
            self.frozen.requires_grad_(False)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(self.used(y) + self.frozen(y))

    field = Field()
    chosen(gradient, backend)(field, random(4, 3)).backward()
    assert field.used.weight.grad is not None
    assert field.frozen.weight.grad is None
    assert field.unused.weight.grad is None


@pytest.mark.parametrize(("gradient", "backend"), [*MODES, ("adjoint", "stepped")])
def test_weights_learn_where_nothing_else_does(gradient: str, backend: str) -> None:
    """y0, controls and t without gradient."""
    y0, c = random(4, 3), random(4, 3)
    (grad,) = gradients(lambda a: chosen(gradient, backend)(lambda t, y, c: y @ a * c, y0, controls=c), [random(3, 3)])
    assert grad is not None
    assert bool(grad.any())


@pytest.mark.parametrize("position", [0, 7, 19])
def test_dependence_of_one_result_on_another_is_seen_among_many(position: int) -> None:
    """Python objects of graph nodes come and go: their ids must not be compared after that."""
    leaf = random(3).requires_grad_()
    results = [random(3).requires_grad_().sin() for _ in range(20)]
    assert not depend_on_each_other([*results, leaf])
    assert depend_on_each_other([*results, results[position].cos().exp()])
    assert depend_on_each_other([results[position].cos().exp(), *results])
    assert depend_on_each_other([*results, (leaf * 2).exp(), leaf])
    assert not depend_on_each_other([leaf, random(3).requires_grad_()])


# Hooks


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("result", [False, True], ids=["leaf", "result"])
def test_hooks_run_once_with_the_whole_gradient(backend: str, result: bool) -> None:
    a, y0 = random(3, 3), random(4, 3)

    def run(gradient: str, backend: str) -> tuple[list[Tensor], Tensor | None]:
        leaf = a.clone().requires_grad_()
        weight = leaf.sin() if result else leaf
        seen: list[Tensor] = []
        weight.register_hook(lambda grad: seen.append(grad.clone()))
        weight.register_hook(lambda grad: 2 * grad)
        chosen(gradient, backend)(lambda t, y: torch.tanh(y @ weight), y0).backward()
        return seen, leaf.grad

    expected, found = run("backprop", "auto"), run("checkpoint", backend)
    assert len(found[0]) == 1
    assert_close(found[0][0], sum(expected[0]))
    assert_close(found[1], expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_retained_gradient_of_a_result_is_the_whole_gradient_once(backend: str) -> None:
    a, y0 = random(3, 3), random(4, 3)

    def run(gradient: str, backend: str) -> Tensor | None:
        weight = a.clone().requires_grad_().sin()
        weight.retain_grad()
        chosen(gradient, backend)(lambda t, y: torch.tanh(y @ weight), y0).backward()
        return weight.grad

    assert_close(run("checkpoint", backend), run("backprop", "auto"))


def test_hook_after_accumulation_runs_once() -> None:
    net, seen = nn.Linear(3, 3).double(), []
    net.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    chosen("checkpoint", "auto")(lambda t, y: torch.tanh(net(y)), random(4, 3)).backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], net.weight.grad)


# What cannot be found is an error, never a lost gradient


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_result_that_only_a_later_branch_reads_from_an_object(gradient: str, backend: str) -> None:
    class Field:
        def __init__(self, a: Tensor) -> None:
            self.weights = {"first": a.detach().clone(), "later": a.sin()}

        def __call__(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(y @ self.weights["first" if float(t[0]) < 0.5 else "later"])

    y0, a = random(4, 3).requires_grad_(), random(3, 3).requires_grad_()
    loss = chosen(gradient, backend)(Field(a), y0, method="rk4", step_size=0.25)
    with pytest.raises(RuntimeError, match=r"shape \(3, 3\) that requires grad and that could not\s+be found"):
        loss.backward()


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_sibling_that_only_a_later_branch_reads_from_an_object(gradient: str, backend: str) -> None:
    """Two outputs of one operation share its node in the graph; knowing the one is not knowing the other."""

    class Field:
        def __init__(self, pair: Tensor) -> None:
            self.first, self.later = pair.chunk(2)

        def __call__(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(y @ (self.first if float(t[0]) < 0.5 else self.later))

    y0, pair = random(4, 3).requires_grad_(), random(6, 3).requires_grad_()
    loss = chosen(gradient, backend)(Field(pair), y0, method="rk4", step_size=0.25)
    with pytest.raises(RuntimeError, match="could not be found"):
        loss.backward()


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_stand_in_that_an_autograd_function_does_not_see(backend: str) -> None:
    """A hook makes the field see a stand-in of the result, which cannot be handed to a Function of the user's."""
    y0, a = random(4, 3), random(3, 3).requires_grad_()
    row = a.sin()[0]
    row.register_hook(lambda grad: grad)
    loss = chosen("checkpoint", backend)(lambda t, y: torch.tanh(Scale.apply(y, row)), y0)
    with pytest.raises(RuntimeError, match="cannot be told apart"):
        loss.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_result_of_an_earlier_pass_left_as_attribute_does_no_harm(backend: str) -> None:
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 3).double()
            self.penalty = torch.zeros((), dtype=F64)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(self.net(y))

    field, y0 = Field(), random(4, 3)
    for _ in range(2):
        loss = chosen("checkpoint", backend)(field, y0)
        field.penalty = field.net.weight.square().sum()  # its graph is gone after the backward pass
        (loss + field.penalty).backward()


# Changes between the passes


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint", "backprop"])
@pytest.mark.parametrize("what", ["weight", "result", "controls"])
def test_change_in_place_between_the_passes_is_an_error(gradient: str, what: str) -> None:
    a, c = random(3, 3).requires_grad_(), random(4, 3).requires_grad_()
    result, controls = a.sin() * 1, c * 1
    loss = chosen(gradient, "auto")(lambda t, y, u: torch.tanh(y @ result @ a) * u, random(4, 3), controls=controls)
    with torch.no_grad():
        {"weight": a, "result": result, "controls": controls}[what].add_(0.1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


@pytest.mark.parametrize(("gradient", "backend"), [*MODES, ("adjoint", "stepped")])
def test_change_of_start_times_and_results_in_place_does_not_matter(gradient: str, backend: str) -> None:
    y0, t = random(4, 3), torch.tensor(T, dtype=F64)[:, None].repeat(1, 4)
    step = torch.full((4,), 0.25, dtype=F64)
    a = random(3, 3).requires_grad_()
    field = lambda t, y: torch.tanh(y @ a)  # noqa: E731
    options: Any = {"gradient": gradient, "backend": backend, "step_size": step, "method": "bosh3"}
    (expected,) = torch.autograd.grad(solve(field, y0, t, **options).ys.sum(), a)
    start = y0.clone()
    ys = solve(field, start * 1 if gradient == "backprop" else start, t, **options).ys
    loss = ys.sum()
    for tensor in (start, t, step):
        tensor.mul_(3.0)
    if gradient == "checkpoint":
        with torch.no_grad():
            ys.zero_()
    (found,) = torch.autograd.grad(loss, a)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
@pytest.mark.parametrize("every", ["dropout", "buffer"])
def test_field_that_gives_other_values_in_the_backward_pass_is_an_error(backend: str, every: str) -> None:
    net = nn.Linear(3, 3).double()
    buffer = torch.ones(3, dtype=F64)
    drop = nn.Dropout(0.3 if every == "dropout" else 0.0)
    loss = chosen("checkpoint", backend)(lambda t, y: drop(torch.tanh(net(y))) * buffer, random(4, 3), method="rk4")
    if every == "buffer":
        buffer.mul_(0.5)
    with pytest.raises(RuntimeError, match="another value in the backward pass"):
        loss.backward()


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("stepped", {"method": "dopri5"}),
        ("stepped", {"method": "dopri5", "gradient": Checkpoint(every=3)}),
        ("stepped", {"method": "rk4_classic", "step_size": 0.25}),
        ("reference", {"method": "dopri5"}),
        ("implicit", {"method": "kvaerno5"}),
        ("implicit", {"method": "rodas5p"}),
    ],
)
def test_other_values_anywhere_but_at_the_start_are_an_error(backend: str, options: dict[str, Any]) -> None:
    """At t = 0 the field is zero whatever it reads; one sample takes no step."""
    buffer, y0 = torch.ones(3, dtype=F64), random(4, 3).requires_grad_()
    t = torch.tensor(T, dtype=F64)[:, None].repeat(1, 4)
    t[:, 2] = 0.0

    def run() -> Tensor:
        return solve(lambda t, y: t * y * buffer, y0, t, backend=backend, rtol=1e-5, **options).ys.sum()

    (grad,) = torch.autograd.grad(run(), y0)
    assert bool((grad > 0).all())
    loss = run()
    buffer.mul_(1.05)
    with pytest.raises(RuntimeError, match="another value in the backward pass"):
        loss.backward()


# Passes


@pytest.mark.parametrize(("gradient", "backend"), [*MODES, ("adjoint", "stepped")])
def test_second_backward_pass_of_a_retained_graph(gradient: str, backend: str) -> None:
    y0, a = random(4, 3).requires_grad_(), random(3, 3).requires_grad_()
    loss = chosen(gradient, backend)(lambda t, y: torch.tanh(y @ a), y0)
    first = torch.autograd.grad(loss, [y0, a], retain_graph=True)
    second = torch.autograd.grad(loss, [y0, a])
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, [y0, a])


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
@pytest.mark.parametrize("by", ["y0", "weight", "controls"])
def test_second_derivative_of_the_adjoint_equation_is_an_error(backend: str, by: str) -> None:
    tensors = {"y0": random(4, 3), "weight": random(3, 3), "controls": random(4, 3)}
    x = tensors[by].requires_grad_()
    field = lambda t, y, c: torch.tanh(y @ tensors["weight"]) * c  # noqa: E731
    ys = solve(field, tensors["y0"], T, controls=tensors["controls"], gradient="adjoint", backend=backend).ys
    loss = ys.sum() + x.pow(3).sum()  # the incoming gradient is a constant, and another part has a second derivative
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="gradient='adjoint' can be differentiated only once"):
        torch.autograd.grad(grad.sum(), x)


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
def test_creating_a_graph_does_no_harm_to_first_derivatives(gradient: str) -> None:
    y0, a = random(4, 3).requires_grad_(), random(3, 3).requires_grad_()
    loss = chosen(gradient, "auto")(lambda t, y: torch.tanh(y @ a), y0)
    plain = torch.autograd.grad(loss, [y0, a], retain_graph=True)
    graph = torch.autograd.grad(loss, [y0, a], create_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(plain, graph, strict=True))
    outer = torch.ones((), dtype=F64, requires_grad=True)
    (outer * graph[1].detach().sum()).backward()
    assert_close(outer.grad, plain[1].sum())


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
@pytest.mark.parametrize("backend", FIELD_BACKENDS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_several_gradients_at_once(gradient: str, backend: str, create_graph: bool) -> None:
    y0, a = random(2, 3).requires_grad_(), random(3, 3).requires_grad_()
    end = solve(lambda t, y: torch.tanh(y @ a), y0, T, gradient=gradient, backend=backend).ys[-1]
    directions = random(4, 2, 3)
    got = torch.autograd.grad(
        end, [y0, a], directions, is_grads_batched=True, retain_graph=True, create_graph=create_graph
    )
    each = [torch.autograd.grad(end, [y0, a], direction, retain_graph=True) for direction in directions]
    for together, column in zip(got, zip(*each, strict=True), strict=True):
        assert torch.equal(together, torch.stack(column))


@pytest.mark.parametrize("backend", [*FIELD_BACKENDS, "cpu"])
def test_gradients_under_vmap(backend: str) -> None:
    y0 = random(2, 3).requires_grad_()
    end = solve(lambda t, y: torch.sin(y), y0, T, backend=backend).ys[-1]
    directions = random(2, 3, 2, 3)

    def pull(direction: Tensor) -> Tensor:
        return torch.autograd.grad(end, y0, direction, retain_graph=True)[0]

    got = torch.vmap(torch.vmap(pull))(directions)
    want = [torch.stack([pull(direction) for direction in row]) for row in directions]
    assert torch.equal(got, torch.stack(want))


@pytest.mark.parametrize("backend", [*FIELD_BACKENDS, "cpu"])
def test_vectorized_jacobian(backend: str) -> None:
    def end(y0: Tensor) -> Tensor:
        return solve(lambda t, y: torch.sin(y), y0, T, backend=backend).ys[-1]

    y0 = random(2, 3)
    got = torch.autograd.functional.jacobian(end, y0, vectorize=True)
    assert torch.equal(got, torch.autograd.functional.jacobian(end, y0))


def _reentrant(run: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(run, y, use_reentrant=True)


def _not_reentrant(run: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(run, y, use_reentrant=False)


def _offloaded(run: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return run(y)


def _copied(run: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        return run(y)


@pytest.mark.parametrize("around", [_reentrant, _not_reentrant, _offloaded, _copied], ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize(("gradient", "backend"), [*MODES, ("adjoint", "stepped")])
def test_saved_tensors_may_be_replaced_by_others(around: Any, gradient: str, backend: str) -> None:
    """Activation checkpointing and offloading give other tensor objects to the backward pass."""
    net, y0, c = nn.Linear(3, 3).double(), random(4, 3), random(4, 3)

    def run(y: Tensor) -> Tensor:
        return chosen(gradient, backend)(lambda t, y, c: torch.tanh(net(y)) * c, y, controls=c * y)

    def grads(call: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
        net.zero_grad()
        y = y0.clone().requires_grad_()
        call(y).backward()
        return [y.grad, net.weight.grad]

    assert_close(grads(lambda y: around(run, y)), grads(run))


@pytest.mark.parametrize(("gradient", "backend"), [*MODES, ("adjoint", "stepped")])
def test_backward_pass_in_another_thread(gradient: str, backend: str) -> None:
    y0, a = random(4, 3).requires_grad_(), random(3, 3).requires_grad_()
    loss = chosen(gradient, backend)(lambda t, y: torch.tanh(y @ a), y0)
    expected = torch.autograd.grad(loss, [y0, a], retain_graph=True)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(torch.autograd.grad(loss, [y0, a], retain_graph=True)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for grads in found:
        assert all(torch.equal(x, y) for x, y in zip(grads, expected, strict=True))


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_nothing_is_recorded_where_nothing_is_differentiated(gradient: str, backend: str) -> None:
    a, y0 = random(3, 3).requires_grad_(), random(4, 3)
    options: Any = {"gradient": gradient, "backend": backend}
    with torch.no_grad():
        ys = solve(lambda t, y: torch.tanh(y @ a), y0, T, **options).ys
    assert not ys.requires_grad
    assert not solve(lambda t, y: torch.tanh(y), y0, T, **options).ys.requires_grad
    learning = solve(lambda t, y: torch.tanh(y @ a), y0, T, **options).ys
    assert node_of(learning) is not None
    assert torch.equal(ys, learning)
    with torch.inference_mode():
        assert torch.equal(solve(lambda t, y: torch.tanh(y @ a), y0, T, **options).ys, ys)
