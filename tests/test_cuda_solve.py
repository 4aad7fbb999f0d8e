"""The kernels of backend ``cuda``, compiled for the host, against the reference: whole solves and adjoints."""

import pytest
import torch

import fastode
from fastode import Checkpoint, IController, PIController, Status
from fastode._environment import _C
from fastode.backends import choose
from fastode.backends.cuda import record
from fastode.backends.cuda.backend import CudaBackend
from fastode.backends.cuda.recognise import Net, recognise
from fastode.fields import ACTIVATIONS, ControlledField
from tests.gradient_tools import assert_close
from tests.problems import assert_as_accurate, same_bits, stats_of

DTYPES = [torch.float32, torch.float64]
SIZES = [(1, None), (5, None), (8, None), (13, None), (16, None), (24, None), (40, None), (100, None)]
SIZES += [(2, 11), (12, 4), (20, 30), (30, 64)]
"""Dimension and hidden units: every padded size, odd ones, both numbers of layers."""


@pytest.fixture(autouse=True)
def on_host(monkeypatch):
    """The backend takes states on the CPU."""
    monkeypatch.setattr(choose, "PROGRAMS", (*choose.PROGRAMS, CudaBackend(on_host=True)))
    monkeypatch.setattr(choose, "PROGRAMS", tuple(p for p in choose.PROGRAMS if p.name != "cuda" or p._on_host))


def problem(dim, hidden=None, activation="tanh", batch=3, dtype=torch.float64, scale=1.5):
    """A field, weights and states."""
    field = ControlledField(dim, hidden, activation)
    weights = scale * torch.randn(batch, field.n_controls, dtype=torch.float64) / dim**0.5
    return field, weights.to(dtype), torch.randn(batch, dim, dtype=torch.float64).to(dtype)


def solve(backend, field, weights, y0, t=(0.0, 0.4, 1.0, 1.7), power=2, **options):
    """Outputs and their gradients by the states, the weights and the times."""
    leaves = [y0.clone().requires_grad_(), weights.clone().requires_grad_()]
    times = torch.as_tensor(t, dtype=torch.float64).clone().requires_grad_()
    sol = fastode.solve(field, leaves[0], times, controls=leaves[1], backend=backend, **options)
    wanted = [*leaves, times]
    grads = torch.autograd.grad(torch.nan_to_num(sol.ys).pow(power).sum(), wanted, allow_unused=True)
    return sol, [torch.zeros_like(x) if g is None else g.detach() for x, g in zip(wanted, grads, strict=True)]


def compare(*problem, **options):
    """The same steps as the reference, and the same numbers but for rounding."""
    sol, grads = solve("cuda", *problem, **options)
    expected, expected_grads = solve("reference", *problem, **options)
    assert torch.equal(stats_of(sol), stats_of(expected))
    assert torch.equal(sol.status, expected.status)
    assert_close(torch.nan_to_num(sol.ys.detach()), torch.nan_to_num(expected.ys.detach()))
    assert torch.equal(sol.ys.isnan(), expected.ys.isnan())
    assert_close(grads, expected_grads, rtol=1e-10)
    return sol, grads


@pytest.mark.parametrize(("dim", "hidden"), SIZES)
def test_sizes_take_the_steps_of_the_reference(dim, hidden):
    compare(*problem(dim, hidden))


WIDE = [(129, None), (160, None), (200, None), (257, None), (512, None), (20, 130), (140, 300), (128, 65)]
"""Beyond what fits on chip: matrices are streamed; the last one in float64 only."""


@pytest.mark.parametrize(("dim", "hidden"), WIDE)
def test_streamed_matrices_take_the_steps_of_the_reference(dim, hidden):
    compare(*problem(dim, hidden, batch=2), t=(0.0, 0.4, 0.7), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"gradient": Checkpoint(3)}, {"method": "dopri8"}, {"t": (1.0, 0.3, -0.5)}], ids=str
)
def test_options_with_streamed_matrices(options):
    compare(*problem(130, batch=2), **options)


@pytest.mark.parametrize("kind", ["turned", "slice"])
def test_streamed_matrices_that_lie_otherwise(kind):
    """Transposed, with a factor, and in the middle of a leaf; what is no weight has no gradient."""
    y0 = torch.randn(2, 131, dtype=torch.float64)
    weights = torch.randn(2, 135, 140, dtype=torch.float64) / 12

    def field(t, y, c):
        own = c[:, 2:133, 5:136]
        own = own.mT if kind == "turned" else own
        return torch.tanh(0.7 * (own @ y[..., None])[..., 0])

    sol, grads = solve("cuda", field, weights, y0)
    expected, truth = solve("reference", field, weights, y0)
    assert torch.equal(stats_of(sol), stats_of(expected))
    assert_close(sol.ys.detach(), expected.ys.detach())
    assert_close(grads, truth, rtol=1e-10)


def test_a_failing_sample_with_streamed_matrices():
    """Its gradient is zero, though nothing of it was computed."""
    field, weights, y0 = problem(130, batch=3)
    weights[1, 5] = torch.nan
    sol, grads = solve("cuda", field, weights, y0, on_failure="nan")
    assert sol.status.tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS]
    healthy = torch.tensor([0, 2])
    alone, alone_grads = solve("cuda", field, weights[healthy], y0[healthy])
    assert same_bits(sol.ys[:, healthy].detach(), alone.ys.detach())
    assert same_bits(grads[1][healthy], alone_grads[1])
    assert bool((grads[1][1] == 0).all())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [None, 6])
def test_activations(activation, hidden):
    compare(*problem(5, hidden, activation, scale=1.0), step_size=0.13)


@pytest.mark.parametrize(
    ("dim", "hidden"), [(5, None), (24, None), (100, None), (12, 30), (70, 90), (129, None), (257, None), (40, 200)]
)
def test_float32_is_as_accurate_as_torch(dim, hidden):
    field, weights, y0 = problem(dim, hidden)
    options = {"method": "rk4", "step_size": 0.1}  # the same steps in every precision
    truth, true_grads = solve("reference", field, weights, y0, **options)
    narrow = [weights.float(), y0.float()]
    baseline, base_grads = solve("reference", field, *narrow, **options)
    sol, grads = solve("cuda", field, *narrow, **options)
    assert sol.ys.dtype == torch.float32
    assert_as_accurate(sol.ys.detach(), baseline.ys.detach(), truth.ys.detach())
    for grad, base, true in zip(grads, base_grads, true_grads, strict=True):
        assert_as_accurate(grad.float(), base.float(), true)  # by times too, sums of products in float32


@pytest.mark.parametrize("method", sorted(n for n, t in fastode.TABLEAUS.items() if t.n_stages <= 16))
def test_methods(method):
    # Error estimates that are rounding themselves would make steps, and so outputs, differ by more than rounding.
    compare(*problem(6), method=method, step_size=0.13)


@pytest.mark.parametrize(
    "options",
    [
        {"controller": PIController()},
        {"controller": IController(first_step=0.2, max_step=0.3)},
        {"method": "rk4"},
        {"method": "dopri5", "step_size": torch.tensor([0.1, 0.25, 2.0], dtype=torch.float64)},
        {"t": (1.0, 0.3, -0.5)},
        {"t": (0.5, 0.5, 1.0, 1.0)},
        {"t": (1.0, 1.0)},
        {"t": torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.0, 0.9], [2.0, 0.0, -1.0]])},
        {"rtol": 1e-9, "atol": 1e-9},
        {"rtol": torch.linspace(1e-5, 1e-3, 5), "atol": 1e-5},
    ],
    ids=str,
)
def test_options(options):
    compare(*problem(5), **options)


@pytest.mark.parametrize("layout", ["matmul", "row", "scaled", "turned", "bare", "two"])
def test_ways_to_write_the_field(layout):
    batch, d = 3, 6
    y0 = torch.randn(batch, d, dtype=torch.float64)
    controls = {
        "w": torch.randn(batch, d, d, dtype=torch.float64),
        "v": torch.randn(batch, d, d, dtype=torch.float64),
        "b": torch.randn(batch, d, dtype=torch.float64),
    }

    def field(t, y, c):
        w, b = c["w"], c["b"]
        if layout == "matmul":
            return torch.tanh((w @ y[..., None])[..., 0] + b)
        if layout == "row":
            return torch.sin((y[:, None] @ w)[:, 0] + b)
        if layout == "scaled":
            return torch.tanh(b + (w @ y[..., None])[..., 0] / -(d**0.5))
        if layout == "turned":
            return torch.tanh((w.transpose(1, 2) @ y[..., None])[..., 0] + b.flip(1).flip(1))
        if layout == "bare":
            return -0.3 * (w @ y[..., None])[..., 0]
        return (c["v"] @ torch.sigmoid((w @ y[..., None])[..., 0] + b)[..., None])[..., 0].tanh()

    results = []
    for backend in ("cuda", "reference"):
        leaves = {name: c.clone().requires_grad_() for name, c in controls.items()}
        start = y0.clone().requires_grad_()
        sol = fastode.solve(field, start, [0.0, 0.7, 1.0], controls=leaves, backend=backend)
        wanted = [start, *leaves.values()]
        grads = torch.autograd.grad(sol.ys.square().sum(), wanted, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True)]
        results.append([sol.ys.detach(), *grads])
    assert_close(*results, rtol=1e-10)


def test_fields_that_are_not_recognised_are_refused_with_a_reason():
    batch, d = 2, 3
    y0, w = torch.randn(batch, d), torch.randn(batch, d, d)

    def reason(field):
        with pytest.raises(RuntimeError) as error:
            fastode.solve(field, y0, [0.0, 1.0], controls=w, backend="cuda")
        return str(error.value)

    def product(c, y):
        return (c @ y[..., None])[..., 0]

    assert "used twice" in reason(lambda t, y, c: product(c, torch.tanh(product(c, y))))
    assert "no product" in reason(lambda t, y, c: product(c, y) - y)
    assert "no product" in reason(lambda t, y, c: torch.tanh(product(c, y) + t))
    assert "one or two layers" in reason(
        lambda t, y, c: product(c * 3, torch.tanh(product(c * 2, torch.tanh(product(c, y)))))
    )
    wide = torch.randn(1, 513, 513)
    with pytest.raises(RuntimeError, match="up to 512 rows, not 513"):
        fastode.solve(lambda t, y, c: product(c, y), wide[:, 0], [0.0, 1.0], controls=wide, backend="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_way_to_end(dtype):
    """Numbers too large, NaN, an infinite state, no span, stiff, too many steps; the others do not notice."""
    field, weights, y0 = problem(4, activation="identity", batch=8, dtype=dtype)
    weights[1, 0], y0[1] = 1e3, y0[1] * (1e30 if dtype == torch.float32 else 1e300)
    weights[3, 2] = torch.nan
    y0[4, 1] = torch.inf
    weights[5] = torch.nan
    weights[6] = torch.cat([-10 * torch.eye(4).flatten(), torch.zeros(4)])
    weights[7] = torch.cat(
        [1e5 * torch.eye(4).roll(2, 0).flatten() * torch.tensor([1.0, -1.0]).repeat_interleave(8), y0[7]]
    )
    times = torch.tensor([0.0, 0.5, 4.0], dtype=torch.float64)[:, None].repeat(1, 8)
    times[:, 5] = 1.0
    options = {"on_failure": "nan", "max_steps": 100}
    sol, grads = solve("cuda", field, weights, y0, times, **options)
    expected, expected_grads = solve("reference", field, weights, y0, times, **options)
    assert torch.equal(sol.status, expected.status)
    endings = [Status(code) for code in sol.status.tolist()]
    assert endings[1] in (Status.NON_FINITE, Status.STEP_UNDERFLOW)
    assert endings[3:] == [Status.NON_FINITE, Status.NON_FINITE, Status.SUCCESS, Status.SUCCESS, Status.MAX_STEPS]
    assert torch.equal(sol.ys.isnan(), expected.ys.isnan())
    sick, healthy = torch.tensor([1, 3, 4, 7]), torch.tensor([0, 2, 5, 6])
    alone, alone_grads = solve("cuda", field, weights[healthy], y0[healthy], times[:, healthy], **options)
    assert same_bits(sol.ys[:, healthy].detach(), alone.ys.detach())
    for grad, own in zip(grads[:2], alone_grads[:2], strict=True):
        assert same_bits(grad[healthy], own)
        assert bool((grad[sick] == 0).all())
    assert bool(torch.isfinite(torch.cat([g.flatten() for g in expected_grads])).all())
    with pytest.raises(fastode.SolveError) as error:
        solve("cuda", field, weights, y0, times, max_steps=100)
    assert error.value.statuses == [endings[int(b)] for b in sick]
    assert "last step" not in str(error.value)


def test_steps_that_outgrow_the_record_go_on_in_further_pages(monkeypatch):
    given = problem(5, batch=4, scale=6.0)
    options = {"rtol": 1e-8, "atol": 1e-8, "t": (0.0, 0.3, 5.0)}
    expected, expected_grads = solve("cuda", *given, **options)
    pages = []
    grow = record.PagedRecord.grow

    def smaller(self, n):
        pages.append(n)
        grow(self, self.last.shape[0] if not self.chunks else 3)

    monkeypatch.setattr(record.PagedRecord, "grow", smaller)
    sol, grads = solve("cuda", *given, **options)
    assert len(pages) > 4, "the record was large enough"
    assert same_bits(sol.ys.detach(), expected.ys.detach())
    assert torch.equal(stats_of(sol), stats_of(expected))
    assert same_bits(grads, expected_grads)


POLICIES = [Checkpoint(2), Checkpoint(7), Checkpoint(1000), Checkpoint(2**62), Checkpoint(10**30, 1)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_states_between_kept_ones_are_computed_again(policy):
    given, options = problem(5, hidden=3, scale=4.0), {"rtol": 1e-7, "atol": 1e-7, "t": (0.0, 0.3, 5.0)}
    _, expected = solve("cuda", *given, **options)
    _, grads = solve("cuda", *given, gradient=policy, **options)
    assert_close(grads, expected, rtol=1e-10)


def test_the_record_stays_within_its_budget():
    given, options = problem(5, batch=6, scale=4.0), {"rtol": 1e-8, "atol": 1e-8, "t": (0.0, 0.3, 5.0)}
    sol, expected = solve("cuda", *given, **options)
    row = 5 * 8
    budget = int(sol.stats.n_accepted.sum()) * row // 3
    field, weights, y0 = given
    limited = fastode.solve(
        field, y0, list(options["t"]), controls=weights.requires_grad_(), rtol=1e-8, atol=1e-8, backend="cuda",
        gradient=Checkpoint(max_bytes=budget),
    )  # fmt: skip
    kept = limited.ys.grad_fn.record
    assert kept.every > 1
    assert kept.state_bytes <= budget
    (grad,) = torch.autograd.grad(limited.ys.pow(2).sum(), weights)
    assert_close(grad, expected[1], rtol=1e-10)


def test_two_runs_give_the_same_bits_and_a_sample_the_same_in_any_batch():
    field, weights, y0 = problem(9, batch=6, dtype=torch.float32)
    first, grads = solve("cuda", field, weights, y0)
    again, grads_again = solve("cuda", field, weights, y0)
    assert same_bits([first.ys.detach(), *grads], [again.ys.detach(), *grads_again])
    rows = torch.tensor([4, 1])
    some, some_grads = solve("cuda", field, weights[rows], y0[rows])
    assert same_bits(some.ys.detach(), first.ys[:, rows].detach())
    assert same_bits(some_grads[:2], [grads[0][rows], grads[1][rows]])


def test_only_wanted_gradients_are_computed():
    field, weights, y0 = problem(5, hidden=3)
    start = y0.clone().requires_grad_()
    sol = fastode.solve(field, start, [0.0, 1.0], controls=weights, backend="cuda")
    (grad,) = torch.autograd.grad(sol.ys.pow(2).sum(), start)
    assert_close(grad, solve("reference", field, weights, y0, t=(0.0, 1.0))[1][0], rtol=1e-10)


def test_controls_that_are_views_are_read_and_their_gradients_are_whole():
    field, weights, y0 = problem(5)
    wide = torch.randn(3, field.n_controls + 7, dtype=torch.float64)
    wide[:, 2:-5] = weights
    results = []
    for backend in ("cuda", "reference"):
        leaf = wide.clone().requires_grad_()
        sol = fastode.solve(
            lambda t, y, c: field(t, y, c[:, 2:-5]), y0, [0.0, 1.0], controls=leaf, backend=backend
        )  # fmt: skip
        (grad,) = torch.autograd.grad(sol.ys.pow(2).sum(), leaf)
        results.append([sol.ys.detach(), grad])
    assert_close(*results, rtol=1e-10)
    assert bool((results[0][1][:, :2] == 0).all())


def test_every_activation_of_the_ready_made_field_is_recognised():
    for name in ACTIVATIONS:
        field = ControlledField(4, None, name)
        program = fastode.capture(field, torch.randn(2, 4), torch.randn(2, field.n_controls)).program
        net = recognise(program)
        assert isinstance(net, Net)
        assert [layer.activation for layer in net.layers] == [name]
        assert net.covered == (True,)
    assert set(ACTIVATIONS) <= set(_C.net_activations)


def test_without_a_gpu_the_backend_says_why():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert CudaBackend().unavailable() is not None
