"""Solves under torch.compile: captured fields inside the graph, all others outside of it."""

import math

import pytest
import torch
import torch._dynamo
from torch import nn

import fastode
from fastode.fields import ControlledField, MLPField

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def fresh():
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


class Model(nn.Module):
    """A layer, a solve and a layer; controls come from a network."""

    def __init__(self, captured, **options):
        super().__init__()
        self.controlled = ControlledField(3)
        self.controls = nn.Linear(3, self.controlled.n_controls)
        self.out = nn.Linear(3, 2)
        self.options = options
        field = self.controlled
        self.double()
        example = torch.randn(4, 3).double(), torch.randn(4, field.n_controls).double()
        self.field = fastode.capture(field, *example) if captured else field

    def forward(self, x):
        t = torch.tensor([0.0, 0.5, 1.0])
        solution = fastode.solve(self.field, x, t, controls=self.controls(x), rtol=1e-4, atol=1e-5, **self.options)
        return self.out(solution.ys[-1]) + solution.ys[1].sum()


def results(model, x):
    """Value, gradient by the input and by all parameters."""
    leaf = x.clone().requires_grad_()
    model.zero_grad()
    y = model(leaf)
    y.square().sum().backward()
    return [y.detach(), leaf.grad, *[p.grad for p in model.parameters()]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient": fastode.Checkpoint(3)},
        {"controller": fastode.PIController(safety=0.8)},
        {"method": "rk4", "step_size": 0.1},
        {"on_failure": "nan"},
    ],
    ids=str,
)
@pytest.mark.parametrize("captured", [True, False])
def test_compiled_is_eager(captured, options):
    model, x = Model(captured, **options), torch.randn(5, 3, dtype=torch.float64)
    expected = results(model, x)
    compiled = torch.compile(model, fullgraph=captured, backend="aot_eager")
    for value, truth in zip(results(compiled, x), expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-10)


def test_parameters_are_read_when_the_graph_runs():
    """An optimiser step costs no recompilation and is not overlooked."""
    net = MLPField(3, (8,))
    field = fastode.capture(net, torch.randn(4, 3))
    compiled = torch.compile(lambda y: fastode.solve(field, y, [0.0, 1.0]).ys[-1], fullgraph=True, backend="aot_eager")
    y0 = torch.randn(6, 3)
    for _ in range(3):
        torch.testing.assert_close(compiled(y0), fastode.solve(net, y0, [0.0, 1.0]).ys[-1])
        grads = torch.autograd.grad(compiled(y0).sum(), list(net.parameters()))
        expected = torch.autograd.grad(fastode.solve(net, y0, [0.0, 1.0]).ys[-1].sum(), list(net.parameters()))
        torch.testing.assert_close(grads, expected)
        with torch.no_grad():
            for p, g in zip(net.parameters(), grads, strict=True):
                p -= 0.1 * g
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # with and without gradient of the input


def test_trees_statistics_and_failures():
    def field(t, state):
        x, v = state["x"], state["v"]
        return {"x": v, "v": -x * x * x}

    y0 = {"x": torch.randn(5, 2), "v": torch.randn(5, 2)}
    captured = fastode.capture(field, y0)

    def run(y0):
        solution = fastode.solve(captured, y0, [0.0, 1.0])
        return solution.ys["x"][-1], solution.ys["v"][-1], solution.status, solution.stats.n_steps

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for value, truth in zip(compiled(y0), run(y0), strict=True):
        torch.testing.assert_close(value, truth)
    growing = fastode.capture(lambda t, y: y * y, torch.ones(3, 1))
    solve = torch.compile(lambda y: fastode.solve(growing, y, [0.0, 2.0]).ys, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="sample"):
        solve(torch.tensor([[0.1], [5.0], [0.2]]))


@pytest.mark.parametrize("needs", ["state", "times", "controls", "parameters"])
def test_the_operator_is_well_formed(needs):
    from fastode import compiled  # noqa: F401 - registers it

    if needs == "parameters":
        field = fastode.capture(MLPField(3, (5,)), torch.randn(4, 3))
    else:
        field = fastode.capture(ControlledField(3), torch.randn(4, 3), torch.randn(4, 12))
    y0 = torch.randn(5, 3, requires_grad=needs == "state")
    times = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64, requires_grad=needs == "times")
    controls = [] if needs == "parameters" else [torch.randn(5, 12, requires_grad=needs == "controls")]
    settings = (field.number, "dopri5", 1e-3, 1e-4, math.nan, "", 1000, 1, 0)
    torch.library.opcheck(torch.ops.fastode.solve.default, ([y0], times, controls, field.held, True, *settings))


def test_gradients_by_times_inside_the_graph():
    field = fastode.capture(ControlledField(3), torch.randn(4, 3), torch.randn(4, 12))
    y0, controls = torch.randn(5, 3), torch.randn(5, 12)
    compiled = torch.compile(
        lambda t: fastode.solve(field, y0, t, controls=controls).ys.square().sum(), fullgraph=True, backend="aot_eager"
    )
    t = torch.tensor([0.0, 0.4, 1.0], requires_grad=True)
    (grad,) = torch.autograd.grad(compiled(t), t)
    (expected,) = torch.autograd.grad(fastode.solve(field, y0, t, controls=controls).ys.square().sum(), t)
    torch.testing.assert_close(grad, expected)
