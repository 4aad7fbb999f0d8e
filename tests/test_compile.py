"""Solves under torch.compile: captured fields inside the graph, all others outside of it."""

import math
import sys
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import fastode
from fastode.backends import choose
from fastode.backends.cuda.backend import CudaBackend
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


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p"])
def test_implicit_methods_are_solved_outside_of_the_graph(method):
    """No program is executed by them: kernels would take their coefficients for those of an explicit method."""
    model, x = Model(True, method=method), torch.randn(5, 3, dtype=torch.float64)
    expected = results(model, x)
    for value, truth in zip(results(torch.compile(model, backend="aot_eager"), x), expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-10)
    truth = Model(True)
    truth.load_state_dict(model.state_dict())
    torch.testing.assert_close(expected[0], results(truth, x)[0], rtol=1e-3, atol=1e-3)


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


def test_a_captured_field_is_solved_by_its_program_outside_of_graphs_too():
    """Its parameters are found: they belong to the module that it was made of."""
    net = MLPField(3, (8,))
    field, y0 = fastode.capture(net, torch.randn(4, 3)), torch.randn(6, 3)
    assert fastode.explain(field, y0).backend == fastode.explain(net, y0).backend == "cpu"
    got, expected = (fastode.solve(f, y0, [0.0, 1.0], backend="cpu").ys for f in (field, net))
    assert torch.equal(got, expected)
    grads = torch.autograd.grad(got.sum(), list(net.parameters()))
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), list(net.parameters())), rtol=0.0, atol=0.0)


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
    settings = (field.number, "auto", "dopri5", 1e-3, 1e-4, math.nan, "", 1000, False, 1, 0)
    torch.library.opcheck(torch.ops.fastode.solve.default, ([y0], times, controls, field.held, True, *settings))


@pytest.fixture
def cuda_on_host(monkeypatch):
    """The kernels of backend ``cuda``, compiled for the host."""
    others = [p for p in choose.PROGRAMS if p.name != "cuda"]
    monkeypatch.setattr(choose, "PROGRAMS", (CudaBackend(on_host=True), *others))


@pytest.mark.parametrize("max_bytes", [None, 300])
def test_compiled_is_eager_with_kernels_of_gpus(cuda_on_host, max_bytes):
    """Records in pages go through the graph as two tensors."""
    options = {"backend": "cuda", "gradient": fastode.Checkpoint(max_bytes=max_bytes), "max_steps": 200}
    model, x = Model(True, **options), torch.randn(5, 3, dtype=torch.float64)
    expected = results(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for value, truth in zip(results(compiled, x), expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-10)


def test_a_backend_that_cannot_run_it_says_why():
    field = fastode.capture(MLPField(3, (8,)), torch.randn(4, 3))
    options = {"backend": "cuda"}
    solve = torch.compile(lambda y: fastode.solve(field, y, [0.0, 1.0], **options).ys, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"backend 'cuda' cannot run this solve inside a graph: cuda: "):
        solve(torch.randn(4, 3))


def test_fake_tensors_on_a_gpu():
    """What tracing needs to know of the operators there: shapes, types and devices; no GPU is needed for that."""
    from fastode import compiled  # noqa: F401 - registers them

    field = fastode.capture(ControlledField(3), torch.randn(4, 3), torch.randn(4, 12))
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes):
        y0, controls = torch.empty(5, 3, device="cuda"), torch.empty(5, 12, device="cuda")
        times = torch.empty(4, dtype=torch.float64)  # the user's may be on the CPU
        settings = (field.number, "auto", "dopri5", 1e-3, 1e-4, math.nan, "", 1000, False, 1, 0)
        ys, columns, reached, words, layout = torch.ops.fastode.solve([y0], times, [controls], [], True, *settings)
        assert (ys.shape, ys.dtype) == ((4, 5, 3), torch.float32)
        assert (columns.shape, columns.dtype) == ((4, 5), torch.int64)
        assert (reached.shape, reached.dtype) == ((5,), torch.float64)
        assert words.dtype == layout.dtype == torch.int64
        assert {x.device.type for x in (ys, columns, reached, words)} == {"cuda"}
        assert layout.device.type == "cpu"  # the host reads it
        grads = torch.ops.fastode.solve_backward(
            torch.empty_like(ys), ys, columns.select(0, 0), words, layout, [y0], times, [controls], [], *settings
        )
        for grad, source in zip(grads, (y0, times, controls), strict=True):
            assert (grad.shape, grad.dtype, grad.device) == (source.shape, source.dtype, source.device)


def test_a_solve_on_a_gpu_is_traced_into_one_graph():
    """Without gradient: the autograd engine of a torch without CUDA knows no such device."""
    field = fastode.capture(ControlledField(3), torch.randn(4, 3), torch.randn(4, 12))
    seen = []

    def keep(graph, examples):
        seen.append(graph)
        return graph.forward

    def model(y0, controls):
        return fastode.solve(field, y0, [0.0, 0.5, 1.0], controls=controls).ys.select(0, -1) * 2

    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), torch.no_grad():
        y0, controls = torch.empty(5, 3, device="cuda"), torch.empty(5, 12, device="cuda")
        out = torch.compile(model, fullgraph=True, backend=keep)(y0, controls)
    assert (out.shape, out.device.type) == ((5, 3), "cuda")
    (graph,) = seen
    assert "torch.ops.fastode.solve" in graph.code


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


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y * torch.cos(t))


@pytest.mark.parametrize("way", ["solve", "stepped", "odeint", "odeint_adjoint"])
def test_recorders_are_not_compiled_with_a_compiled_field(way: str) -> None:
    """The compiler sees the field's own frames, however often it is recorded; the results are those of the field."""
    from torch._dynamo.utils import counters

    solves: dict[str, Any] = {
        "solve": lambda field, y0: fastode.solve(field, y0, [0.0, 1.0]).ys,
        "stepped": lambda field, y0: fastode.solve(field, y0, [0.0, 1.0], backend="stepped").ys,
        "odeint": lambda field, y0: fastode.odeint(field, y0, torch.tensor([0.0, 1.0])),
        "odeint_adjoint": lambda field, y0: fastode.odeint_adjoint(field, y0, torch.tensor([0.0, 1.0])),
    }
    net, y0 = _Net(), torch.randn(4, 3, dtype=torch.float64)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(net, backend="eager")
    ys = solves[way](compiled, y0)
    expected = solves[way](net, y0)
    torch.testing.assert_close(ys, expected, rtol=1e-9, atol=1e-12)
    got = torch.autograd.grad(ys.square().sum(), list(net.parameters()))
    want = torch.autograd.grad(expected.square().sum(), list(net.parameters()))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert counters["frames"]["total"] <= 4, dict(counters["frames"])
    torch._dynamo.reset()


def test_a_compiled_module_has_a_program() -> None:
    field = torch.compile(_Net(), backend="eager")
    assert fastode.explain(field, torch.randn(4, 3, dtype=torch.float64)).backend == "cpu"


_THIS = sys.modules[__name__]
_weight = torch.eye(3, dtype=torch.float64)


def _decorated(t: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(y @ _weight)


@pytest.mark.parametrize("kind", ["function", "closure", "method", "inner module", "called by another"])
def test_compiled_functions_and_parts_have_programs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their code is what is recorded, and what it reads is held against the field as ever."""
    rate = 2.0

    class Whole(_Net):
        @torch.compile(backend="eager")
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return _Net.forward(self, t, y) * rate

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.compile(nn.Linear(3, 3, dtype=torch.float64), backend="eager")

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(self.inner(y)) * rate

    function = torch.compile(_decorated, backend="eager")
    field: Any = {
        "function": function,
        "closure": torch.compile(lambda t, y: torch.sin(y) * rate, backend="eager"),
        "method": Whole(),
        "inner module": Parts(),
        "called by another": lambda t, y: function(t, y) * rate,
    }[kind]
    y0 = torch.randn(4, 3, dtype=torch.float64)
    seen = []
    for number in (2.0, 3.0):
        rate = number
        monkeypatch.setattr(_THIS, "_weight", number * torch.eye(3, dtype=torch.float64))
        solution = fastode.solve(field, y0, [0.0, 1.0])
        assert solution.backend == "cpu", solution.why_not
        expected = fastode.solve(field, y0, [0.0, 1.0], backend="reference").ys
        torch.testing.assert_close(solution.ys, expected, rtol=1e-9, atol=1e-12)
        seen.append(solution.ys)
    assert not torch.equal(*seen)


@pytest.mark.parametrize("options", [{"method": "dopri5"}, {"method": "rk4", "step_size": 0.5}], ids=str)
def test_compiling_leaves_the_numbers_of_methods_unchangeable(options: Any) -> None:
    """Torch's compiler makes arrays that it looks at writeable."""
    field = fastode.capture(MLPField(3, (8,)), torch.randn(4, 3))
    solve = torch.compile(lambda y: fastode.solve(field, y, [0.0, 1.0], **options).ys, fullgraph=True, backend="eager")
    solve(torch.randn(4, 3))
    tableau = fastode.TABLEAUS[options["method"]]
    for array in (tableau.a, tableau.b, tableau.c, tableau.e, tableau.p, tableau.q):
        assert array is None or not array.flags.writeable


def test_recordings_that_overlap_in_threads_leave_torch_as_it_was() -> None:
    """Torch has one stance of compilation for all threads; the first recording to begin may be the first to end."""
    from fastode.uncompiled import uncompiled

    first, second = uncompiled(), uncompiled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    counters = torch._dynamo.utils.counters
    torch.compile(lambda y: y + 1, backend="eager")(torch.ones(2))
    assert counters["frames"]["ok"] == 1
