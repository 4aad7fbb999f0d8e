"""What ``solve`` accepts, what it refuses and how it says so; what a field may receive and return."""

import collections
import copy
import functools
import math
import sys

import pytest
import torch
from torch import nn

import fastode
from fastode import IController, Tableau
from tests.problems import FIELD_BACKENDS, largest_error, linear, randn, same_bits, stats_of

TIMES = [0.0, 0.5, 1.0]
Point = collections.namedtuple("Point", ["x", "v"])


@pytest.fixture(params=FIELD_BACKENDS)
def backend(request):
    return request.param


def decay(t, y):
    return -y


def solve(y0=None, t=TIMES, field=decay, **options):
    return fastode.solve(field, torch.ones(3, 2) if y0 is None else y0, t, **options)


WRONG = {
    # field
    "field=None": (TypeError, "field must be a callable", {"field": None}),
    "field is a class": (TypeError, "field must be a callable", {"field": nn.Linear}),
    # y0
    "y0 is a number": (TypeError, "y0 must be a tensor or a tree of tensors, got a leaf of type float", {"y0": 1.0}),
    "y0 is an array": (TypeError, "leaf of type ndarray", {"y0": torch.ones(2, 2).numpy()}),
    "y0 is empty": (TypeError, "empty tuple", {"y0": ()}),
    "y0 holds None": (TypeError, "leaf of type NoneType", {"y0": (torch.ones(2), None)}),
    "y0 int": (TypeError, "floating dtype .* got torch.int64", {"y0": torch.ones(2, 2, dtype=torch.int64)}),
    "y0 bool": (TypeError, "floating dtype .* got torch.bool", {"y0": torch.ones(2, 2, dtype=torch.bool)}),
    "y0 complex": (TypeError, "floating dtype .* got torch.complex64", {"y0": torch.ones(2, 2, dtype=torch.complex64)}),
    "y0 float8": (TypeError, "floating dtype .*, got torch.float8", {"y0": torch.ones(2, 2).to(torch.float8_e4m3fn)}),
    "y0 without batch": (ValueError, "leading batch dimension", {"y0": torch.tensor(1.0)}),
    "y0 batches": (ValueError, "share the batch dimension, got 2 and 3", {"y0": (torch.ones(2), torch.ones(3))}),
    "y0 dtypes": (TypeError, "share one dtype", {"y0": (torch.ones(2), torch.ones(2).double())}),
    "y0 devices": (ValueError, "on one device", {"y0": (torch.ones(2), torch.ones(2, device="meta"))}),
    # t
    "t=None": (TypeError, "t must be a tensor or a sequence of numbers, got NoneType", {"t": None}),
    "t text": (TypeError, "t must be a tensor or a sequence of numbers", {"t": "01"}),
    "t ragged": (TypeError, "t must be a tensor or a sequence of numbers", {"t": [[0.0], [1.0, 2.0]]}),
    "t scalar": (ValueError, r"t must have shape \(T,\) or \(T, B\) with B=3, got \(\)", {"t": 1.0}),
    "t empty": (ValueError, "at least one entry", {"t": []}),
    "t empty columns": (ValueError, "at least one entry", {"t": torch.ones(0, 3)}),
    "t batch": (ValueError, r"with B=3, got \(2, 2\)", {"t": torch.tensor([[0.0, 0.0], [1.0, 1.0]])}),
    "t transposed": (ValueError, r"with B=3, got \(3, 2\)", {"t": torch.zeros(3, 2)}),
    "t rank 3": (ValueError, r"got \(2, 3, 1\)", {"t": torch.zeros(2, 3, 1)}),
    "t NaN": (ValueError, "t must be finite", {"t": [0.0, math.nan]}),
    "t inf": (ValueError, "t must be finite", {"t": [0.0, math.inf]}),
    "t -inf first": (ValueError, "t must be finite", {"t": [-math.inf, 0.0]}),
    "t unsorted": (ValueError, "t must be monotone", {"t": [0.0, 2.0, 1.0]}),
    "t there and back": (ValueError, "t must be monotone", {"t": [0.0, 1.0, 0.0]}),
    "t one column": (ValueError, "t must be monotone", {"t": torch.tensor([[0.0, 0, 0], [1, 1, 2], [2, 2, 1]])}),
    "t complex": (TypeError, "t must be real", {"t": torch.zeros(2, dtype=torch.complex64)}),
    "t bool": (TypeError, "t must be real", {"t": torch.tensor([False, True])}),
    "t device": (ValueError, "t must be on the device of y0", {"t": torch.zeros(2, device="meta")}),
    # controls
    "controls number": (TypeError, "controls must be a tensor or a tree", {"controls": 1.0}),
    "controls None leaf": (TypeError, "leaf of type NoneType", {"controls": {"a": None}}),
    "controls batch": (ValueError, "leading dimension B=3 of y0, got .2, 3.", {"controls": torch.ones(2, 3)}),
    "controls scalar": (ValueError, r"leading dimension B=3 of y0, got \(\)", {"controls": (torch.tensor(1.0),)}),
    "controls device": (ValueError, "controls must be on the device", {"controls": torch.ones(3, device="meta")}),
    # method, backend, gradient
    "method name": (ValueError, "unknown method 'dopri6', expected one of euler", {"method": "dopri6"}),
    "method type": (TypeError, "method must be a name or a fastode Tableau", {"method": 5}),
    "backend": (ValueError, "backend must be 'auto' or one of", {"backend": "cuda-ish"}),
    "backend=None": (ValueError, "backend must be", {"backend": None}),
    "gradient": (ValueError, "gradient must be 'checkpoint'", {"gradient": "exact"}),
    "gradient list": (ValueError, "gradient must be 'checkpoint'", {"gradient": ["backprop"]}),
    "on_failure": (ValueError, "on_failure must be 'raise' or 'nan'", {"on_failure": "ignore"}),
    "on_failure=None": (ValueError, "on_failure must be", {"on_failure": None}),
    # tolerances
    "rtol < 0": (ValueError, "rtol must be at least 0", {"rtol": -1e-3}),
    "atol < 0": (ValueError, "atol must be at least 0", {"atol": -1e-3}),
    "rtol NaN": (ValueError, "rtol must be at least 0", {"rtol": math.nan}),
    "rtol inf": (ValueError, "rtol must be finite", {"rtol": math.inf}),
    "one atol < 0": (ValueError, "atol must be at least 0", {"atol": torch.tensor([1e-3, -1e-3])}),
    "rtol text": (TypeError, "rtol must consist of numbers or tensors, got str", {"rtol": "small"}),
    "rtol=None": (TypeError, "rtol must consist of numbers or tensors", {"rtol": None}),
    "rtol=True": (TypeError, "rtol must consist of numbers or tensors, got bool", {"rtol": True}),
    "rtol complex": (TypeError, "rtol must be real", {"rtol": torch.tensor(1e-3j)}),
    "rtol shape": (ValueError, r"rtol of shape \(3,\) does not broadcast", {"rtol": torch.ones(3)}),
    "atol per sample": (ValueError, r"atol of shape \(3, 2\) does not broadcast", {"atol": torch.ones(3, 2)}),
    "atol tree": (TypeError, "atol must be a number, a tensor or a tree like the state", {"atol": (1e-3, 1e-4)}),
    # steps
    "step_size = 0": (ValueError, "step_size must be positive and finite", {"step_size": 0.0}),
    "step_size < 0": (ValueError, "step_size must be positive and finite", {"step_size": -0.1}),
    "step_size NaN": (ValueError, "step_size must be positive and finite", {"step_size": math.nan}),
    "step_size inf": (ValueError, "step_size must be positive and finite", {"step_size": math.inf}),
    "step_size shape": (ValueError, r"step_size must be a number or have shape", {"step_size": torch.ones(2)}),
    "step_size text": (TypeError, "step_size must be a number or a tensor", {"step_size": "0.1"}),
    "step_size bool": (TypeError, "step_size must be a number or a tensor", {"step_size": True}),
    "both": (ValueError, "give one of them", {"step_size": 0.1, "controller": IController()}),
    "controller": (ValueError, "no error estimate", {"method": "rk4", "controller": IController()}),
    "controller type": (TypeError, "controller must be a PIDController, got str", {"controller": "PI"}),
    "max_steps = 0": (ValueError, "max_steps must be a positive integer", {"max_steps": 0}),
    "max_steps < 0": (ValueError, "max_steps must be a positive integer", {"max_steps": -5}),
    "max_steps 1.5": (ValueError, "max_steps must be a positive integer", {"max_steps": 1.5}),
    "max_steps True": (ValueError, "max_steps must be a positive integer", {"max_steps": True}),
    "max_steps None": (ValueError, "max_steps must be a positive integer", {"max_steps": None}),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case):
    kind, message, arguments = WRONG[case]
    with pytest.raises(kind, match=message):
        solve(**arguments)


RETURNS = {
    "None": (TypeError, "NoneType", lambda t, y: None),
    "a number": (TypeError, "float", lambda t, y: 1.0),
    "an array": (TypeError, "ndarray", lambda t, y: y.numpy()),
    "a tuple": (TypeError, "field's value", lambda t, y: (y,)),
    "one component less": (ValueError, r"shape \(3, 2\) like the state, got \(3, 1\)", lambda t, y: y[:, :1]),
    "one sample less": (ValueError, r"shape \(3, 2\) like the state, got \(2, 2\)", lambda t, y: y[:2]),
    "flattened": (ValueError, r"got \(6,\)", lambda t, y: y.flatten()),
    "a scalar": (ValueError, r"got \(\)", lambda t, y: y.sum()),
    "transposed": (ValueError, r"got \(2, 3\)", lambda t, y: y.T),
    "float64": (TypeError, "must return the state's dtype, torch.float32; got torch.float64", lambda t, y: y.double()),
    "float16": (TypeError, "must return the state's dtype", lambda t, y: y.half()),
    "integers": (TypeError, "must return the state's dtype", lambda t, y: y.int()),
    "complex numbers": (TypeError, "must return the state's dtype", lambda t, y: y + 0j),
    "another device": (ValueError, "on the device of the state, cpu; got meta", lambda t, y: y.to("meta")),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("what", RETURNS)
def test_wrong_values_of_the_field(what, late, backend):
    """At the first evaluation, or only later."""
    kind, message, wrong = RETURNS[what]
    with pytest.raises(kind, match=message):
        solve(field=lambda t, y: -y if late and t[0] < 0.3 else wrong(t, y), backend=backend)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t, y: [y[0], y[1]],
        lambda t, y: y[0],
        lambda t, y: (y[0],),
        lambda t, y: (y[0], (y[1],)),
        lambda t, y: (y[0], y[1], y[1]),
        lambda t, y: (y[0], None),
        lambda t, y: {"a": y[0], "b": y[1]},
    ],
)
def test_values_of_another_structure(wrong, backend):
    with pytest.raises(TypeError, match="the field's value must"):
        solve((torch.ones(3, 2), torch.ones(3)), field=wrong, backend=backend)


def test_wrong_signatures_of_the_field(backend):
    with pytest.raises(TypeError, match="positional argument"):
        solve(field=lambda t, y: y, controls=torch.ones(3), backend=backend)
    with pytest.raises(TypeError, match="missing 1 required"):
        solve(field=lambda t, y, controls: y, backend=backend)


BUFFER = torch.empty(64, 2)


def into_buffer(t, y):
    return torch.mul(y, -1.0, out=BUFFER[: len(y)])


def strided(t, y):
    wide = torch.zeros(len(y), 2 * y.shape[1], dtype=y.dtype)
    wide[:, ::2] = -y
    return wide[:, ::2]


class InPlace(nn.Module):
    """Works in memory of its own, and returns parts of it."""

    def __init__(self):
        super().__init__()
        self.memory = torch.empty(2, 64)

    def forward(self, t, y):
        out = self.memory[:, : len(y)]
        out.copy_(y.T).neg_()
        return out.T


DECAYS = {
    "one buffer": into_buffer,
    "strided": strided,
    "part of its memory": InPlace(),
    "transposed": lambda t, y: (-y.T).contiguous().T,
    "negative view": lambda t, y: torch.complex(y, y).conj().imag,
    "with gradient inside": lambda t, y: -y.detach().requires_grad_() * 1.0,
    "no_grad inside": torch.no_grad()(lambda t, y: -y),
}


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("what", DECAYS)
def test_whatever_memory_the_field_returns(what, batch, backend):
    """Values are used before the field is called again, or copied."""
    y0 = randn(batch, 2).float()
    t = torch.linspace(0, 1, 3)[:, None] * torch.linspace(1, 3, batch)
    expected = solve(y0, t, backend=backend, dense=True)
    sol = solve(y0, t, DECAYS[what], backend=backend, dense=True)
    assert same_bits(sol.ys, expected.ys)
    assert same_bits(sol.dense.coefs, expected.dense.coefs)
    assert torch.equal(stats_of(sol), stats_of(expected))


def test_one_number_with_its_sign_in_the_view(backend):
    """Tensors of one element are contiguous whatever their strides: the lazy sign must not be lost."""
    y0 = torch.tensor([[1 + 2j]]).conj().imag
    assert y0.is_neg()
    assert y0.is_contiguous()
    sol = solve(y0, field=lambda t, y: torch.complex(y, y).conj().imag, backend=backend, rtol=1e-6)
    torch.testing.assert_close(sol.ys.flatten(), -2 * torch.exp(-torch.tensor(TIMES)))


def test_a_field_that_returns_its_argument(backend):
    y0 = randn(4, 2)
    sol = solve(y0, field=lambda t, y: y, backend=backend, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(sol.ys[-1], y0 * math.e, rtol=1e-6, atol=0)


def test_fields_that_return_their_controls_or_constants(backend):
    y0, c = randn(4, 2), randn(4, 2, seed=1)
    constant = randn(1, 2, seed=2)
    for field in (lambda t, y, c: c, lambda t, y, c: constant.expand(len(y), -1) + 0 * c, lambda t, y, c: c.clone()):
        slope = field(None, y0, c)
        sol = solve(y0, field=field, controls=c, backend=backend)
        torch.testing.assert_close(sol.ys[-1], y0 + slope)
    expanded = solve(y0, field=lambda t, y: constant.expand(len(y), -1), backend=backend)
    torch.testing.assert_close(expanded.ys[-1], y0 + constant)


@pytest.mark.parametrize("make", [torch.Tensor.clone, lambda y: y.T.contiguous().T, lambda y: y[:, :1].expand(-1, 3)])
def test_the_inputs_are_not_changed(make, backend):
    y0 = make(randn(5, 3))
    controls = {"a": randn(5, 3, seed=1), "n": torch.arange(5)}
    t = torch.linspace(0, 1, 4, dtype=torch.float64)[:, None].repeat(1, 5)
    before = [x.clone() for x in (y0, *controls.values(), t)]
    sol = fastode.solve(lambda t, y, c: c["a"] * y, y0, t, controls=controls, backend=backend, dense=True)
    assert all(map(torch.equal, before, (y0, *controls.values(), t)))
    sol.ys.fill_(0.0)
    assert torch.equal(y0, before[0])
    t.fill_(7.0)  # the caller's own times may change: the solution keeps working
    assert torch.equal(sol.dense.first, before[-1][0])


def test_what_the_field_receives(backend):
    seen = []

    def field(t, y, controls):
        x, (v,) = y
        seen.append((t.shape, t.dtype, x.shape, v.shape, {k: (c.shape, c.dtype) for k, c in controls.items()}))
        return torch.zeros_like(x), (torch.zeros_like(v),)

    y0 = (torch.ones(4, 3, 2, dtype=torch.bfloat16), (torch.ones(4, dtype=torch.bfloat16),))
    controls = {"w": torch.ones(4, 3, 3), "k": torch.arange(4), "on": torch.ones(4, 1, dtype=torch.bool)}
    sol = fastode.solve(field, y0, TIMES, controls=controls, backend=backend)
    kinds = {"w": torch.float32, "k": torch.int64, "on": torch.bool}
    for t_shape, t_dtype, x, v, c in seen:
        assert (t_shape, t_dtype, x, v) == ((4, 1, 1), torch.bfloat16, (4, 3, 2), (4,))
        assert c == {name: (controls[name].shape, kinds[name]) for name in controls}
    assert sol.ys[0].shape == (3, 4, 3, 2)
    assert sol.ys[1][0].dtype == torch.bfloat16


def test_time_has_the_rank_of_the_first_leaf(backend):
    seen = set()

    def field(t, y):
        seen.add(t.shape)
        return {"a": 0 * y["a"], "b": 0 * y["b"]}

    solve({"a": torch.ones(3), "b": torch.ones(3, 2)}, field=field, backend=backend)
    assert seen == {(3,)}


def test_trees_of_many_kinds(backend):
    x, v = randn(4, 2), randn(4, 2, seed=1)
    expected = solve(torch.cat([x, v], 1), field=lambda t, y: torch.cat([y[:, 2:], -y[:, :2]], 1), backend=backend)
    trees = {
        "tuple": ((x, v), lambda t, y: (y[1], -y[0])),
        "list": ([x, v], lambda t, y: [y[1], -y[0]]),
        "dict": ({"x": x, "v": v}, lambda t, y: {"x": y["v"], "v": -y["x"]}),
        "dict in another order": ({"x": x, "v": v}, lambda t, y: {"v": -y["x"], "x": y["v"]}),
        "named tuple": (Point(x, v), lambda t, y: Point(y.v, -y.x)),
        "nested": ((x, [{"v": v}]), lambda t, y: (y[1][0]["v"], [{"v": -y[0]}])),
    }
    for name, (y0, field) in trees.items():
        sol = solve(y0, field=field, backend=backend)
        values = sol.ys.values() if isinstance(sol.ys, dict) else sol.ys
        first, second = values
        second = second[0]["v"] if name == "nested" else second
        assert isinstance(sol.ys, type(y0))
        assert same_bits(torch.cat([first, second], 2), expected.ys), name


def test_tolerances_for_components_and_trees(backend):
    """A component with infinite atol is left out of the error; all forms of a tolerance give the same steps."""
    y0 = (randn(3, 2), randn(3, seed=1))
    field = lambda t, y: (torch.stack([-y[0][:, 0], -(50 * y[0][:, 1])], 1), -y[1])  # noqa: E731
    run = lambda **tolerances: solve(y0, field=field, backend=backend, **tolerances)  # noqa: E731
    plain = run(rtol=1e-4, atol=1e-5)
    forms = [
        run(rtol=torch.tensor(1e-4, dtype=torch.float64), atol=1e-5),
        run(rtol=(1e-4, 1e-4), atol=(torch.full((2,), 1e-5, dtype=torch.float64), 1e-5)),
        run(
            rtol=(torch.full((2,), 1e-4, dtype=torch.float64), 1e-4),
            atol=(1e-5, torch.tensor(1e-5, dtype=torch.float64)),
        ),
    ]
    for sol in forms:
        assert same_bits(sol.ys, plain.ys)
        assert torch.equal(stats_of(sol), stats_of(plain))
    blind = run(rtol=1e-4, atol=(torch.tensor([1e-5, math.inf]), 1e-5))
    assert (blind.stats.n_steps < plain.stats.n_steps / 2).all()
    exact = y0[0][:, 0] * math.exp(-1)
    assert largest_error(blind.ys[0][-1, :, 0], exact) < 1e-3


@pytest.mark.parametrize("options", [{}, {"method": "rk4"}, {"step_size": 0.1}, {"max_steps": sys.maxsize**2}], ids=str)
@pytest.mark.parametrize("shape", [(0, 3), (0,), (0, 2, 0), (3, 0), (1, 0)], ids=str)
def test_empty_batches_and_empty_states(shape, options, backend):
    y0 = torch.ones(shape)
    times = [TIMES, torch.linspace(0, 1, 4)[:, None] * torch.logspace(-6, 1, shape[0])]
    for t in times:
        sol = solve(y0, t, backend=backend, dense=True, **options)
        assert sol.ys.shape == (len(t), *shape)
        assert sol.status.shape == sol.stats.n_evals.shape == shape[:1]
        assert (sol.status == 0).all()
        assert sol.interpolate(0.0).shape == shape
        assert sol.interpolate([0.0, 0.0]).shape == (2, *shape)


def test_the_default_device_does_not_matter(backend):
    """Buffers are made where the state is, not where torch makes tensors by default."""
    y0, c = randn(3, 2).requires_grad_(), randn(3, 2, seed=1)
    field = lambda t, y, c: c * y  # noqa: E731
    expected = fastode.solve(field, y0, TIMES, controls=c, backend=backend, dense=True)
    (expected_grad,) = torch.autograd.grad(expected.ys.sum(), y0)
    with torch.device("meta"):
        sol = fastode.solve(field, y0, TIMES, controls=c, backend=backend, dense=True)
        middle = sol.interpolate(0.25)
        (grad,) = torch.autograd.grad(sol.ys.sum(), y0)
    assert same_bits(sol.ys, expected.ys)
    assert same_bits(middle, expected.interpolate(0.25))
    assert same_bits(grad, expected_grad)
    assert sol.t.device == y0.device


@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_does_not_matter(default, backend):
    y0 = torch.zeros(3, 2)  # a state at zero: the first step comes from constants
    expected = solve(y0, field=lambda t, y: t + 0 * y, backend=backend)
    torch.set_default_dtype(default)
    sol = solve(y0, field=lambda t, y: t + 0 * y, backend=backend)
    assert same_bits(sol.ys, expected.ys)
    assert torch.equal(stats_of(sol), stats_of(expected))
    assert sol.t.dtype == torch.float64


def test_autocast(backend):
    """The field sees the autocast that was on at the call, and may return its dtype; the state keeps its own."""
    layer = nn.Linear(3, 3)
    y0 = randn(4, 3).float()
    inside = []

    def field(t, y):
        value = layer(y)
        inside.append((value.dtype, torch.is_autocast_enabled("cpu")))
        return value

    with torch.autocast("cpu", dtype=torch.bfloat16):
        sol = solve(y0, field=field, backend=backend, rtol=1e-2, atol=1e-2)
    assert set(inside) == {(torch.bfloat16, True)}
    assert sol.ys.dtype == torch.float32
    exact = solve(y0, field=lambda t, y: layer(y), backend=backend)
    torch.testing.assert_close(sol.ys, exact.ys, rtol=0.1, atol=0.1)
    inside.clear()

    def own(t, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return field(t, y).float()

    sol = solve(y0, field=own, backend=backend, rtol=1e-2, atol=1e-2)
    assert set(inside) == {(torch.bfloat16, True)}
    assert not torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(sol.ys, exact.ys, rtol=0.1, atol=0.1)


def test_modules_partials_and_methods_are_fields(backend):
    class Own:
        def method(self, t, y):
            return -y

        __call__ = method

        @staticmethod
        def static(t, y):
            return -y

    class Module(nn.Module):
        def forward(self, t, y):
            return -y

    expected = solve(backend=backend).ys
    scaled = lambda scale, t, y: -scale * y  # noqa: E731
    fields = [Own().method, Own(), Own.static, Module(), functools.partial(scaled, 1.0)]
    for field in fields:
        assert same_bits(solve(field=field, backend=backend).ys, expected)


def test_a_problem_given_in_numpy_and_lists(backend):
    problem = linear(3, 2)
    expected = fastode.solve(problem.field, problem.y0, TIMES, controls=problem.controls, backend=backend).ys
    for t in (
        tuple(TIMES),
        torch.tensor(TIMES).numpy(),
        [torch.tensor(time) for time in TIMES],
        [[x] * 3 for x in TIMES],
    ):
        sol = fastode.solve(problem.field, problem.y0, t, controls=problem.controls, backend=backend)
        assert same_bits(sol.ys, expected)


def test_a_tableau_as_method(backend):
    ralston = Tableau("ralston", [0, "2/3"], [[], ["2/3"]], ["1/4", "3/4"], 2)
    sol = solve(
        torch.ones(1, 1, dtype=torch.float64), field=lambda t, y: t * y, method=ralston, step_size=0.5, backend=backend
    )
    value, t = 1.0, 0.0
    for _ in range(2):
        k1 = t * value
        k2 = (t + 1 / 3) * (value + 1 / 3 * k1)
        value, t = value + 0.5 * (k1 / 4 + 3 * k2 / 4), t + 0.5
    assert float(sol.ys[-1]) == pytest.approx(value, rel=1e-14)


def test_a_field_must_not_write_into_its_state(backend):
    """In-place activations would change the solver's own state. The caller's stays as it was."""
    for y0 in (randn(4, 3), (randn(4, 3), randn(4))):
        first = y0 if torch.is_tensor(y0) else y0[0]
        before = first.clone()

        def field(t, y):
            torch.relu_(y if torch.is_tensor(y) else y[0])
            return y

        with pytest.raises(RuntimeError, match="changed the state it was given in place"):
            solve(y0, field=field, backend=backend)
        assert torch.equal(first, before)


def test_fields_that_differentiate_by_their_state(backend):
    """As continuous normalizing flows do; that alone gives the solution no gradient."""
    matrix = randn(3, 3) / 3

    def divergence(t, state):
        z, _ = state
        with torch.enable_grad():
            z = z.requires_grad_()
            dz = torch.tanh(z @ matrix)
            trace = sum(torch.autograd.grad(dz[:, i].sum(), z, retain_graph=True)[0][:, i] for i in range(3))
        return dz, -trace

    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: torch.tanh(z @ matrix)))

    def functional(t, state):
        return torch.tanh(state[0] @ matrix), -jacobian(state[0]).diagonal(dim1=1, dim2=2).sum(1)

    y0 = (randn(5, 3), torch.zeros(5, dtype=torch.float64))
    one, other = (solve(y0, field=field, backend=backend) for field in (divergence, functional))
    torch.testing.assert_close(one.ys, other.ys, rtol=1e-12, atol=1e-12)
    assert not one.ys[0].requires_grad

    def potential(t, y):
        with torch.enable_grad():
            return -torch.autograd.grad((y.requires_grad_() ** 2).sum() / 2, y)[0]

    sol = solve(y0[0], field=potential, backend=backend)
    assert not sol.ys.requires_grad
    torch.testing.assert_close(sol.ys, solve(y0[0], backend=backend).ys, rtol=1e-13, atol=1e-13)


def test_fields_in_numpy(backend):
    sol = solve(field=lambda t, y: torch.from_numpy(-y.numpy()), backend=backend)
    assert same_bits(sol.ys, solve(backend=backend).ys)


def test_memory_layout_of_the_arguments_does_not_matter(backend):
    y0, c = randn(5, 4), randn(5, 4, seed=1)
    t = torch.stack([torch.zeros(5), torch.linspace(0.1, 1, 5)]).double()
    swap = lambda x: x.T.contiguous().T  # noqa: E731
    tolerance = torch.tensor(1e-5, dtype=torch.float64).expand(4)
    results = [
        fastode.solve(lambda t, y, c: c * y, *arguments, controls=controls, rtol=rtol, backend=backend).ys
        for arguments, controls, rtol in [((y0, t), c, 1e-5), ((swap(y0), swap(t)), swap(c), tolerance)]
    ]
    assert same_bits(*results)


def test_empty_controls_are_handed_on(backend):
    for empty in ((), {}, []):
        sol = solve(field=lambda t, y, c, empty=empty: -y if c == empty else None, controls=empty, backend=backend)
        assert same_bits(sol.ys, solve(backend=backend).ys)


@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")  # of torch's, in copying
def test_a_solution_can_be_copied(backend):
    sol = solve({"a": randn(3, 2)}, field=lambda t, y: {"a": -y["a"]}, dense=True, backend=backend)
    assert same_bits(copy.deepcopy(sol).interpolate(0.3), sol.interpolate(0.3))


def test_backprop_runs_on_the_reference_only():
    with pytest.raises(RuntimeError, match="runs on backend 'reference'"):
        solve(gradient="backprop", backend="stepped")
    with pytest.raises(ValueError, match="dense=True does not go with"):
        solve(gradient="adjoint", dense=True)
