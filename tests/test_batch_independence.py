"""A sample's result does not depend on the others: the same steps, and the same bits where the field gives them."""

import itertools
import threading

import pytest
import torch
from torch import nn

import fastode
from fastode import Status
from fastode._environment import _C
from fastode.backends import stepped
from tests.problems import FIELD_BACKENDS, largest_error, randn, same_bits, stats_of, steps_of

DTYPES = [torch.float32, torch.float64]
KEEPS, GROWS, BREAKS, STARTS_BROKEN = 0.0, 1.0, 2.0, 3.0


def field(t, y, controls):
    """Elementwise arithmetic, whose bits do not depend on the place in memory: y' = rate (1 - t^2 / 2 - y) (1 + y^2).

    ``kind``: KEEPS; GROWS to infinity; BREAKS, NaN from t = 0.6 on; STARTS_BROKEN, NaN at once.
    """
    rate, kind = controls["rate"], controls["kind"]
    value = rate * (1 - 0.5 * t * t - y) * (1 + y * y)
    value = torch.where(kind == GROWS, (1 + y * y) * 3, value)
    value = torch.where((kind == BREAKS) & (t > 0.6), torch.nan, value)
    return torch.where(kind == STARTS_BROKEN, torch.nan, value)


class Batch:
    """Samples of ``field``: states, controls and times of each."""

    def __init__(self, dtype, width=3):
        rates = [1.0, 30.0, 0.1, 3.0, 400.0, 1.0, 1.0, 1.0, 10.0, 2.0, 1.0]
        kinds = [KEEPS, KEEPS, KEEPS, KEEPS, KEEPS, GROWS, BREAKS, STARTS_BROKEN, KEEPS, KEEPS, KEEPS]
        ends = [1.0, 1.0, 0.01, -0.03, 0.5, 1.0, 1.0, 1.0, 0.0, 1.5, 1.0]
        column = lambda values: torch.tensor(values, dtype=dtype)[:, None]  # noqa: E731
        self.y0 = (randn(len(rates), width, seed=2) * 0.5).to(dtype)
        self.controls = {"rate": column(rates), "kind": column(kinds)}
        self.t = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None] * torch.tensor(ends, dtype=torch.float64)

    def __len__(self):
        return len(self.y0)

    def solve(self, index, **options):
        index = torch.tensor(index)
        controls = {name: value[index] for name, value in self.controls.items()}
        y0, t = self.y0[index], self.t[:, index]
        return fastode.solve(field, y0, t, controls=controls, on_failure="nan", dense=True, **options)


EXPECTED = [
    [Status.SUCCESS] * 5 + [grown, Status.NON_FINITE, Status.NON_FINITE] + [Status.SUCCESS] * 3
    for grown in (Status.STEP_UNDERFLOW, Status.NON_FINITE)  # before infinity either is met first
]
OPTIONS = [{"rtol": 1e-3}, {"method": "tsit5", "rtol": 1e-2}, {"method": "rk4"}, {"method": "bosh3", "step_size": 0.05}]


def same_sample(sol, b, other, c):
    """Whether sample b of a solution is sample c of another, bit for bit."""
    queries = steps_of(sol, b)[0]
    inside = sol.dense.coefs[sol.dense.rows[: len(queries), b]], other.dense.coefs[other.dense.rows[: len(queries), c]]
    return (
        same_bits(sol.ys[:, b], other.ys[:, c])
        and sol.status[b] == other.status[c]
        and torch.equal(stats_of(sol)[:, b], stats_of(other)[:, c])
        and all(map(torch.equal, steps_of(sol, b), steps_of(other, c)))
        and same_bits(*inside)
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("width", "dtype"), [(1, torch.float64), (3, torch.float32), (17, torch.float64)], ids=str)
def test_a_sample_alone_and_beside_any_others(width, dtype, options):
    batch = Batch(dtype, width)
    everything = range(len(batch))
    whole = batch.solve(everything, backend="stepped", **options)
    if "rtol" in options:
        assert whole.status.tolist() in EXPECTED
    for b in everything:
        assert same_sample(batch.solve([b], backend="stepped", **options), 0, whole, b)
    order = [5, 10, 7, 0, 8, 4, 9, 1, 3, 6, 2]
    permuted = batch.solve(order, backend="stepped", **options)
    assert all(same_sample(permuted, place, whole, b) for place, b in enumerate(order))
    doubled = batch.solve([0, 9, 3, 0, 9, 9], backend="stepped", **options)
    assert all(same_sample(doubled, place, whole, b) for place, b in enumerate([0, 9, 3, 0, 9, 9]))


def test_the_reference_too():
    batch = Batch(torch.float64)
    whole = batch.solve(range(len(batch)), backend="reference", rtol=1e-2)
    assert whole.status.tolist() in EXPECTED
    for b in (0, 1, 2, 7, 8):
        alone = batch.solve([b], backend="reference", rtol=1e-2)
        # Not bit for bit: torch computes powers otherwise in the vectorised part of a tensor than in the rest.
        assert alone.status[0] == whole.status[b]
        assert torch.equal(stats_of(alone)[:, 0], stats_of(whole)[:, b])
        for value, expected in zip(steps_of(alone, 0), steps_of(whole, b), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(alone.ys[:, 0], whole.ys[:, b], rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("neighbour", [2, 4, 5, 6, 7, 8])
def test_one_bad_neighbour(neighbour):
    batch = Batch(torch.float64)
    alone = batch.solve([0, 1, 3], backend="stepped", rtol=1e-3)
    for order in itertools.islice(itertools.permutations([0, 1, 3, neighbour]), 0, None, 7):
        beside = batch.solve(order, backend="stepped", rtol=1e-3)
        assert all(same_sample(alone, i, beside, order.index(b)) for i, b in enumerate([0, 1, 3]))


class Counting:
    """A field that writes down with how many rows it was called."""

    def __init__(self, inner):
        self.inner, self.rows = inner, []

    def __call__(self, t, y, *controls):
        self.rows.append(len(y))
        return self.inner(t, y, *controls)


def staggered(batch=64):
    """Times of samples that end one after another."""
    return torch.stack([torch.zeros(batch, dtype=torch.float64), torch.linspace(0.0, 8.0, batch, dtype=torch.float64)])


@pytest.mark.parametrize("broken", [False, True])
def test_finished_samples_stop_costing_evaluations(broken):
    """Also when the first steps of some samples are rejected because the field is NaN there."""
    batch = 64
    y0 = torch.ones(batch, 2, dtype=torch.float64)
    limit = torch.full((batch, 1), 100.0, dtype=torch.float64)
    if broken:
        limit[batch // 2 :, 0] = torch.linspace(1.001, 1.05, batch // 2)

    def oscillate(t, y, limit):
        value = torch.stack([y[:, 1], -9 * y[:, 0]], dim=1)
        return torch.where(y > limit, torch.nan, value)

    # The sick ones creep towards where the field ends, by steps of a few roundings of the time, as long as they may.
    options = {"on_failure": "nan", "max_steps": 500}
    counting = Counting(oscillate)
    sol = fastode.solve(counting, y0, staggered(batch), controls=limit, backend="stepped", **options)
    assert (sol.status != Status.SUCCESS).sum() == (batch // 2 if broken else 0)
    needed = int(sol.stats.n_evals.sum())
    assert max(counting.rows) == batch
    assert broken or min(counting.rows) <= 2
    assert sum(counting.rows) <= 1.4 * needed
    assert sum(counting.rows) < 0.8 * batch * int(sol.stats.n_evals.max())
    reference = fastode.solve(oscillate, y0, staggered(batch), controls=limit, backend="reference", **options)
    assert torch.equal(stats_of(sol)[:, : batch // 2], stats_of(reference)[:, : batch // 2])


WEIGHTS = randn(64, 3, 3, seed=9)


NORM = nn.BatchNorm1d(3, affine=False, track_running_stats=False).double()


WHOLE_BATCH = {
    "mean of the batch": lambda t, y: 0.5 * y.mean(0) - y,
    "sum of the batch": lambda t, y: -y + 0.01 * y.sum(0),
    "size of the batch": lambda t, y: -y * (1 + len(y) / 10),
    "first sample": lambda t, y: y[0] - y,
    "last sample": lambda t, y: 0.3 * y[-1] - y,
    "neighbour": lambda t, y: y.roll(1, 0) - y,
    "batch norm": lambda t, y: NORM(y) - y,
    "matrices in a closure": lambda t, y: torch.einsum("bij,bj->bi", WEIGHTS, y) - 2 * y,
    "matrices cut to fit": lambda t, y: torch.einsum("bij,bj->bi", WEIGHTS[-len(y) :], y) - 2 * y,
    "vector in a closure": lambda t, y: -(WEIGHTS[:, :, 0] ** 2) * y,
}


MIXING = [name for name in WHOLE_BATCH if "closure" not in name and "cut" not in name]
STARTS = [(name, start) for name in WHOLE_BATCH for start in ("all move", "some are done at once")]
STARTS += [(name, "some are broken at once") for name in WHOLE_BATCH if name not in MIXING]


@pytest.mark.parametrize("options", [{}, {"method": "rk4", "step_size": 0.5}, {"controller": "first step"}], ids=str)
@pytest.mark.parametrize(("name", "start"), STARTS)
def test_fields_that_need_the_whole_batch_get_it(name, options, start, monkeypatch):
    """They give other values, or fail, with some of the rows. That is noticed, and they are called with all."""
    y0 = randn(64, 3)
    t = staggered()[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))] / 4
    if start == "some are done at once":
        t[1, ::2] = 0.0
    if start == "some are broken at once":
        y0[::2] = torch.nan
    if "controller" in options:
        options = {"controller": fastode.IController(first_step=0.01)}
    options = {**options, "on_failure": "nan", "dense": True}
    counting = Counting(WHOLE_BATCH[name])
    sol = fastode.solve(counting, y0, t, backend="stepped", **options)
    monkeypatch.setattr(stepped, "_COMPACT_BELOW", -1.0)
    expected = fastode.solve(WHOLE_BATCH[name], y0, t, backend="stepped", **options)
    assert all(same_sample(sol, b, expected, b) for b in range(64))
    # The reference walks its steps twice, the second time without the rejected ones: then others are beside a sample.
    if name not in MIXING or "step_size" in options:
        reference = fastode.solve(WHOLE_BATCH[name], y0, t, backend="reference", **options)
        healthy = reference.status == Status.SUCCESS
        assert torch.equal(stats_of(sol), stats_of(reference))
        assert largest_error(sol.ys[:, healthy], reference.ys[:, healthy]) < 1e-10
    if name not in ("first sample", "last sample"):  # they may do without others
        assert sum(rows < 64 for rows in counting.rows) <= 1  # the one call that found it out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_fields_that_mix_samples_in_low_precision(dtype):
    """Half of the samples end at once, and their mean is another: a difference far above rounding."""
    y0 = torch.tensor([[1.0], [1.3]]).repeat(8, 1).to(dtype)
    t = torch.tensor([[0.0, 0.0], [0.0, 1.0]]).repeat(1, 8)
    counting = Counting(lambda t, y: y.mean(0).expand_as(y))
    options = {"rtol": 1e-2, "atol": 1e-2, "backend": "stepped"}
    sol = fastode.solve(counting, y0, t, **options)
    assert counting.rows.count(16) > len(counting.rows) / 2
    expected = fastode.solve(counting.inner, y0, t, **{**options, "backend": "reference"})
    assert largest_error(sol.ys, expected.ys) <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("shape", "backend"), [((3, 40), "stepped"), ((350, 100), "stepped"), ((3, 40), "reference")], ids=str
)
def test_repeatable_to_the_bit_with_any_number_of_threads(shape, backend):
    """The second shape is large enough for the kernels to use their threads."""
    y0 = randn(*shape).float()
    rate = torch.linspace(0.5, 5.0, shape[0])[:, None]

    def solve():
        return fastode.solve(
            lambda t, y, r: r * (1 - y * y), 0.1 * y0, [0.0, 0.3, 1.0], controls=rate, backend=backend, dense=True
        )

    results = []
    for threads in (1, 2, 3, 2):
        fastode.set_num_threads(threads)
        results.append(solve())
    for other in results[1:]:
        assert same_bits(other.ys, results[0].ys)
        assert torch.equal(stats_of(other), stats_of(results[0]))
        assert same_bits(other.dense.coefs, results[0].dense.coefs)


def test_solves_in_several_python_threads_do_not_disturb_each_other():
    batch = Batch(torch.float64, 700)
    expected = batch.solve(range(5), rtol=1e-3)
    results = [None] * 4

    def work(i):
        results[i] = batch.solve(range(5), rtol=1e-3)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(same_sample(sol, b, expected, b) for sol in results for b in range(5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 16, 65])
def test_instruction_sets_agree_to_rounding(width, dtype):
    """With fixed steps, the errors stay within twice those of the reference, or a few roundings."""
    y0 = 0.1 * randn(7, width).to(dtype)
    rate = torch.linspace(0.5, 5.0, 7, dtype=dtype)[:, None]

    def solve(dtype, **options):
        return fastode.solve(
            lambda t, y, r: r * (1 - y * y), y0.to(dtype), [0.0, 0.33, 1.0], controls=rate.to(dtype), **options
        ).ys

    truth = solve(torch.float64, step_size=0.02, backend="reference", method="rk4")
    reference = solve(dtype, step_size=0.02, backend="reference", method="rk4")
    allowed = 2 * largest_error(reference, truth) + 8 * torch.finfo(dtype).eps
    for isa in _C.usable_isas():
        _C.set_isa(isa)
        ours = solve(dtype, step_size=0.02, backend="stepped", method="rk4")
        assert largest_error(ours, truth) <= allowed
        assert largest_error(ours, reference) <= allowed


@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_a_solve_inside_a_field(backend):
    """The inner solve has buffers of its own."""

    def inner(t, y):
        return -y

    def outer(t, y):
        with torch.no_grad():
            return -fastode.solve(inner, y, [0.0, 1.0], rtol=1e-8, atol=1e-8, backend=backend).ys[-1]

    y0 = randn(4, 2)
    sol = fastode.solve(outer, y0, [0.0, 1.0], rtol=1e-6, atol=1e-8, backend=backend)
    rate = torch.tensor(-1.0, dtype=torch.float64).exp()
    torch.testing.assert_close(sol.ys[-1], y0 * torch.exp(-rate), rtol=1e-5, atol=0)
