"""The clock: steps are differences of float64 times, and the least step is a rounding of the present time."""

import math

import pytest
import torch

import fastode
from fastode import IController, PIController, Status
from tests.problems import BACKENDS

NOW = 1.7e9
"""Seconds since 1970; float64 is spaced by 2.4e-7 there."""
SPAN = torch.tensor([0.0, 10.0], dtype=torch.float64)
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
Y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)


def turning(t, y):
    return y @ TURN


def pulled(t, y):
    """Towards sin t, whatever happened before: rounding of the state is forgotten, that of the clock is not."""
    return torch.sin(t) - y + torch.cos(t)


def reciprocal(t, y):
    return 1 / y


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def error(sol, t):
    """Largest error of solutions of ``turning``."""
    right = torch.stack([torch.cos(t), -torch.sin(t)], -1)
    return float((sol.ys[-1] - right).abs().max())


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dopri5", {"rtol": 1e-10, "atol": 1e-10}),
        ("bosh3", {"rtol": 1e-7, "atol": 1e-7}),
        ("rk4_classic", {"step_size": 0.03}),
        ("rk4_classic", {}),
    ],
)
def test_an_offset_of_the_times_costs_nothing(method, options, sign, backend):
    """Steps are as long as the clock says: the error is that of the same solve from zero."""
    t = sign * (torch.linspace(0, 10, 2 if options else 201, dtype=torch.float64))
    near = fastode.solve(turning, Y0, t, method=method, backend=backend, **options)
    far = fastode.solve(turning, Y0, NOW + t, method=method, backend=backend, **options)
    end = (NOW + t[-1]) - NOW
    assert error(far, end) <= 1.5 * error(near, t[-1]) + 1e-12
    assert abs(int(far.stats.n_steps) - int(near.stats.n_steps)) <= 1


@pytest.mark.parametrize("method", ["kvaerno5", "rodas5p"])
def test_an_offset_of_the_times_costs_implicit_methods_nothing(method):
    near, far = (fastode.solve(turning, Y0, t, method=method, rtol=1e-8, atol=1e-8) for t in (SPAN, NOW + SPAN))
    assert error(far, SPAN[-1]) <= 1.5 * error(near, SPAN[-1])


@pytest.mark.parametrize("options", [{}, {"step_t": NOW + SPAN[1:] / 3}])
def test_an_offset_of_the_times_costs_the_drop_in_nothing(options):
    ys = fastode.odeint(turning, Y0[0], NOW + SPAN, rtol=1e-10, atol=1e-10, method="dopri5", options=options)
    right = torch.tensor([math.cos(10), -math.sin(10)], dtype=torch.float64)
    assert (ys[-1] - right).abs().max() < 2e-9


def test_samples_with_and_without_offset_agree(backend):
    t = torch.stack([SPAN, SPAN + NOW, SPAN - NOW], 1)
    ys = fastode.solve(turning, Y0.expand(3, 2), t, rtol=1e-10, atol=1e-10, backend=backend).ys[-1]
    assert (ys - ys[0]).abs().max() < 1e-9


def test_constant_slope(backend):
    """The change of the state is the change of the clock."""
    sol = fastode.solve(lambda t, y: y * 0 + 1, Y0, NOW + SPAN, backend=backend)
    assert float((sol.ys[-1] - Y0 - 10).abs().max()) < 1e-13


def test_gradients_far_from_zero(backend):
    """Backward passes walk the steps that were taken."""
    w = torch.tensor([[0.3, -1.1], [0.8, -0.2]], dtype=torch.float64, requires_grad=True)
    t = (NOW + torch.linspace(0, 2, 5, dtype=torch.float64)).requires_grad_()

    def field(t, y):
        return torch.tanh(y @ w) * torch.cos(t - NOW)

    def gradients(**options):
        y0 = Y0.clone().requires_grad_()
        sol = fastode.solve(field, y0, t, rtol=1e-6, atol=1e-6, **options)
        return torch.autograd.grad((sol.ys * sol.ys.detach().cos()).sum(), [y0, w, t])

    for grad, right in zip(gradients(backend=backend), gradients(gradient="backprop"), strict=True):
        torch.testing.assert_close(grad, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_million_steps_keep_their_clock(adaptive):
    """A state in float32, a clock in float64: the end is reached after a million steps, and no other number."""
    y0 = torch.tensor([[0.0]])
    options = {"controller": IController(first_step=1e-3, max_step=1e-3)} if adaptive else {"step_size": 1e-3}
    method = "bosh3" if adaptive else "heun2"
    t = torch.tensor([0.0, 1000.0], dtype=torch.float64)
    sol = fastode.solve(pulled, y0, t, method=method, max_steps=2_000_000, backend="cpu", **options)
    assert abs(int(sol.stats.n_steps) - 1_000_000) <= int(adaptive)
    assert float(sol.outcome.reached) == 1000.0
    resolution = 1000 * torch.finfo(torch.float32).eps  # of the time that the field is given
    assert abs(float(sol.ys[-1]) - math.sin(1000.0)) < 4 * resolution


@pytest.mark.parametrize("start", [0.0, NOW])
def test_a_step_size_that_the_clock_cannot_hold_is_made_up_for(start, backend):
    """One tenth is no multiple of the spacing of times at 1.7e9, and its multiples are no sums at 0."""
    sol = fastode.solve(turning, Y0, start + SPAN, method="heun2", step_size=0.1, backend=backend, dense=True)
    assert int(sol.stats.n_steps) == 100
    grid = start + torch.arange(100, dtype=torch.float64) * 0.1
    assert float((sol.dense.start[:, 0] - grid).abs().max()) <= math.ulp(start + 10)


@pytest.mark.parametrize(
    "options",
    [{"method": "rk4_classic", "step_size": 1e-8}, {"method": "dopri5", "controller": IController(max_step=1e-8)}],
)
def test_a_clock_that_does_not_move_is_underflow(options, backend):
    sol = fastode.solve(turning, Y0, NOW + SPAN, backend=backend, on_failure="nan", **options)
    assert sol.status.tolist() == [Status.STEP_UNDERFLOW]
    assert sol.stats.n_steps.tolist() == [1]


@pytest.mark.parametrize(("end", "dtype"), [(1e6, torch.float32), (1e6, torch.float64), (1e12, torch.float64)])
def test_the_end_says_nothing_of_the_smallest_step(end, dtype, backend):
    """y' = 1 / y from 1e-6 starts with steps of 1e-12, wherever it ends."""
    y0 = torch.full((2, 1), 1e-6, dtype=dtype)
    t = torch.stack([torch.zeros(2), torch.tensor([end, 1.0])]).double()
    rtol = 1e-5 if dtype == torch.float32 else 1e-8
    sol = fastode.solve(reciprocal, y0, t, rtol=rtol, atol=1e-12, backend=backend)
    right = torch.sqrt(2 * t[-1] + 1e-12)
    assert float((sol.ys[-1, :, 0].double() / right - 1).abs().max()) < 30 * rtol


def test_the_end_says_nothing_of_the_smallest_step_of_the_drop_in():
    t = torch.tensor([0.0, 1e12], dtype=torch.float64)
    for options in ({}, {"step_t": t[1:] / 2}):  # as a program, and step by step
        ys = fastode.odeint(reciprocal, torch.full((1,), 1e-6).double(), t, rtol=1e-8, atol=1e-12, options=options)
        assert abs(float(ys[-1]) / math.sqrt(2e12) - 1) < 3e-7


def robertson(t, y):
    a, b, c = y.unbind(-1)
    slow, fast = -0.04 * a + 1e4 * b * c, 3e7 * b * b
    return torch.stack([slow, -slow - fast, fast], -1)


@pytest.mark.parametrize("method", ["kvaerno4", "kvaerno5", "rodas5p"])
def test_robertson_to_its_end(method):
    """To t = 1e11; the values are those of the test set of Mazzia and Magherini."""
    t = torch.tensor([0.0, 1e11], dtype=torch.float64)
    y0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    sol = fastode.solve(robertson, y0, t, method=method, rtol=1e-7, atol=1e-14)
    right = torch.tensor([0.2083340149701255e-07, 0.8333360770334713e-13, 0.9999999791665050], dtype=torch.float64)
    assert float((sol.ys[-1, 0] / right - 1).abs().max()) < 1e-3


def test_a_field_that_is_nan_after_a_start_at_zero_ends_soon(backend):
    def field(t, y):
        return torch.sqrt(-t) + 0 * y

    sol = fastode.solve(field, torch.ones(2, 3), SPAN, backend=backend, on_failure="nan")
    assert sol.status.tolist() == [Status.NON_FINITE] * 2
    assert int(sol.stats.n_steps.max()) < 100
    sol = fastode.solve(field, torch.ones(2, 3).double(), SPAN, backend=backend, on_failure="nan")
    assert sol.status.tolist() == [Status.NON_FINITE] * 2
    assert int(sol.stats.n_steps.max()) < 1000


def test_no_scale_to_begin_with(backend):
    """atol = 0 and a component at zero tell nothing of the first step: it is not the smallest there is."""
    sol = fastode.solve(turning, Y0, SPAN, rtol=1e-6, atol=0.0, backend=backend)
    assert int(sol.stats.n_steps) < 300


# -- steps that end at outputs

TIMES = torch.linspace(0, 10, 15, dtype=torch.float64)


def nonlinear(t, y):
    return torch.stack([y[..., 1], (1 - y[..., 0] ** 2) * y[..., 1] * 3 - y[..., 0] + torch.sin(t[..., 0])], -1)


def times_of_two():
    return torch.stack([TIMES, -0.7 * TIMES.flip(0).sub(10).neg()], 1)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dopri5", {"rtol": 1e-5, "atol": 1e-6}),
        ("tsit5", {"rtol": 1e-5, "atol": 1e-6, "controller": PIController()}),
        ("bosh3", {"rtol": 1e-3, "atol": 1e-4}),
        ("rk4_classic", {"step_size": 0.06}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_end_at_outputs(method, options, dtype, backend):
    """Of each sample; every backend takes the steps of the reference."""
    y0 = torch.tensor([[2.0, 0.0], [0.5, -0.3]], dtype=dtype)
    t = times_of_two()
    options = {"method": method, "step_to_outputs": True, "dense": True, **options}
    sol = fastode.solve(nonlinear, y0, t, backend=backend, **options)
    right = fastode.solve(nonlinear, y0, t, backend="reference", **options)
    slack = 3 if dtype == torch.float32 else 0  # an error ratio of about 1 may round to either side
    assert (sol.stats.n_accepted - right.stats.n_accepted).abs().max() <= slack
    assert (sol.stats.n_rejected - right.stats.n_rejected).abs().max() <= slack
    bound = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(sol.ys, right.ys, rtol=bound, atol=bound)
    for b in range(2):
        assert set(t[:-1, b].tolist()) <= set(sol.dense.start[:, b].tolist())
    torch.testing.assert_close(sol.interpolate(t), sol.ys, rtol=bound, atol=bound)


def test_being_cut_does_not_hurt_the_next_step(backend):
    """Between outputs that are far apart the steps are as long as ever."""
    options = {"rtol": 1e-8, "atol": 1e-8, "backend": backend, "step_to_outputs": True}
    free, cut = (fastode.solve(turning, Y0, torch.linspace(0, 10, n).double(), **options) for n in (2, 12))
    assert int(cut.stats.n_steps) <= int(free.stats.n_steps) + 2 * 10
    near = torch.tensor([0.0, 5.0, 5.0 + 1e-12, 10.0], dtype=torch.float64)
    close = fastode.solve(turning, Y0, near, **options)
    assert int(close.stats.n_steps) <= int(free.stats.n_steps) + 4


def test_gradients_with_steps_that_end_at_outputs(backend):
    w = torch.tensor([[0.3, -1.1], [0.8, -0.2]], dtype=torch.float64, requires_grad=True)
    t = times_of_two().div(4).requires_grad_()

    def gradients(**options):
        y0 = torch.tensor([[1.0, 0.2], [0.3, -0.4]], dtype=torch.float64, requires_grad=True)
        sol = fastode.solve(
            lambda t, y: torch.tanh(y @ w) * torch.cos(t), y0, t, rtol=1e-4, atol=1e-5, step_to_outputs=True, **options
        )
        return torch.autograd.grad((sol.ys * sol.ys.detach().cos()).sum(), [y0, w, t])

    for grad, right in zip(gradients(backend=backend), gradients(gradient="backprop"), strict=True):
        torch.testing.assert_close(grad, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", ["kvaerno3", "rodas5p"])
def test_implicit_steps_end_at_outputs(method):
    y0 = torch.tensor([[2.0, 0.0], [0.5, -0.3]], dtype=torch.float64)
    t = times_of_two()
    sol = fastode.solve(nonlinear, y0, t, method=method, step_to_outputs=True, dense=True)
    for b in range(2):
        assert set(t[:-1, b].tolist()) <= set(sol.dense.start[:, b].tolist())
    right = fastode.solve(nonlinear, y0, t, method="dopri8", rtol=1e-11, atol=1e-11).ys
    torch.testing.assert_close(sol.ys, right, rtol=0.0, atol=2e-3)


def test_events_with_steps_that_end_at_outputs():
    event = fastode.Event(lambda t, y: y[..., 1] + 0.5, terminal=True)
    sol = fastode.solve(turning, Y0, TIMES, rtol=1e-9, atol=1e-9, events=event, step_to_outputs=True)
    assert abs(float(sol.outcome.reached) - math.pi / 6) < 1e-8


@pytest.mark.parametrize("value", [1, "yes", torch.tensor(True)])
def test_step_to_outputs_is_checked(value):
    with pytest.raises(TypeError, match="step_to_outputs must be True, False or None"):
        fastode.solve(turning, Y0, SPAN, step_to_outputs=value)


def test_explain_knows_step_to_outputs():
    assert fastode.explain(turning, Y0, step_to_outputs=True).backend == fastode.explain(turning, Y0).backend
