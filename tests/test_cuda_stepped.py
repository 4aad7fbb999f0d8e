"""The kernels of backend ``stepped`` for GPUs, compiled for the host, against the reference and the CPU's kernels."""

import pytest
import torch

import fastode
from fastode import Checkpoint, PIController, Status
from fastode._environment import _C
from fastode.backends import choose
from fastode.backends.stepped import SteppedBackend
from fastode.backends.stepped_device import DeviceRecord, DeviceSteps, Poll
from tests.gradient_tools import assert_close, node_of
from tests.problems import PROBLEMS, assert_as_accurate, batch_of, leaves, per_sample, same_bits, stats_of

WIDTHS = [1, 3, 4, 16, 17, 64, 1023, 1025, 8200]
"""Rows for 4 threads, a warp, a block and several blocks; with and without packs of 16 bytes."""


@pytest.fixture(autouse=True)
def as_on_device(monkeypatch):
    """The backend runs the kernels of GPUs on the CPU."""
    replaced = [SteppedBackend(as_on_device=True) if b.name == "stepped" else b for b in choose.FIELDS]
    monkeypatch.setattr(choose, "FIELDS", tuple(replaced))


def wave(t, y, c):
    """Each component pulled by its neighbours, at a rate of each sample's own."""
    return c["rate"] * (torch.sin(y.roll(1, 1)) - y) + torch.cos(t)


def inputs(width, batch=4, dtype=torch.float64):
    y0 = torch.randn(batch, width, dtype=torch.float64).to(dtype)
    return y0, {"rate": torch.linspace(0.5, 6.0, batch, dtype=torch.float64).to(dtype)[:, None]}


def solve(backend, y0, controls, t=(0.0, 0.3, 1.0, 2.0), field=wave, **options):
    leaf = y0.clone().requires_grad_()
    own = {name: c.clone().requires_grad_() for name, c in controls.items()}
    sol = fastode.solve(field, leaf, list(t), controls=own, backend=backend, **options)
    loss = torch.nan_to_num(sol.ys).square().sum()
    if options.get("dense"):
        loss = loss + sol.interpolate(0.7).square().sum()
    return sol, list(torch.autograd.grad(loss, [leaf, *own.values()]))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dense", [False, True])
def test_widths_take_the_steps_of_the_reference(width, dense):
    given = inputs(width)
    sol, grads = solve("stepped", *given, dense=dense)
    expected, expected_grads = solve("reference", *given, dense=dense)
    assert torch.equal(stats_of(sol), stats_of(expected))
    assert_close(sol.ys.detach(), expected.ys.detach(), rtol=1e-10)
    assert_close(grads, expected_grads, rtol=1e-10)


@pytest.mark.parametrize("width", [5, 8, 8200])
def test_float32_is_as_accurate_as_torch(width):
    y0, controls = inputs(width)
    options = {"method": "rk4", "step_size": 0.05}
    truth, true_grads = solve("reference", y0, controls, **options)
    narrow = y0.float(), {name: c.float() for name, c in controls.items()}
    baseline, base_grads = solve("reference", *narrow, **options)
    sol, grads = solve("stepped", *narrow, **options)
    assert_as_accurate(sol.ys.detach(), baseline.ys.detach(), truth.ys.detach())
    for grad, base, true in zip(grads, base_grads, true_grads, strict=True):
        assert_as_accurate(grad, base, true)


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_with_known_solutions(name):
    problem = PROBLEMS[name]()
    t = torch.linspace(0.0, problem.span, 5, dtype=torch.float64)
    options = {"controls": problem.controls, "rtol": 1e-8, "atol": 1e-10}
    sol = fastode.solve(problem.field, problem.y0, t, backend="stepped", **options)
    base = fastode.solve(problem.field, problem.y0, t, backend="reference", **options)
    assert_as_accurate(sol.ys, base.ys, problem.exact(per_sample(t, batch_of(problem))))


@pytest.mark.parametrize(
    "options",
    [
        {"t": (1.0, 0.9, 0.7)},
        {"t": (0.5, 0.5, 1.0, 1.0)},
        {"controller": PIController(first_step=0.1, max_step=0.2)},
        {"step_size": 0.15},
        {"method": "rk4"},
        {"method": "tsit5", "rtol": 1e-8},
        {"gradient": Checkpoint(every=3), "rtol": 1e-8},
        {"gradient": Checkpoint(max_bytes=2000), "rtol": 1e-8, "atol": 1e-8},
    ],
    ids=str,
)
def test_options(options):
    given = inputs(5)
    sol, grads = solve("stepped", *given, **options)
    expected, expected_grads = solve("reference", *given, **options)
    assert torch.equal(stats_of(sol), stats_of(expected))
    assert_close(sol.ys.detach(), expected.ys.detach(), rtol=1e-10)
    assert_close(grads, expected_grads, rtol=1e-9)


def test_no_attempt_is_launched_that_is_not_needed():
    calls = []

    def counted(t, y, c):
        calls.append(len(y))
        return wave(t, y, c)

    y0, controls = inputs(6, batch=3)
    with torch.no_grad():
        sol = fastode.solve(counted, y0, [0.0, 1.0], controls=controls, backend="stepped")
    stages = fastode.TABLEAUS["dopri5"].n_stages - 1
    attempts = int(sol.stats.n_steps.max())
    compactions = len(calls) - (2 + attempts * stages)
    assert 0 <= compactions <= 2, "besides attempts there is one evaluation for each time that samples are dropped"


def test_the_host_runs_ahead_of_the_device():
    plan_waits = []
    take = Poll.take

    def watched(self, wait):
        found = take(self, wait)
        if wait and found is not None:
            plan_waits.append(found[0])
        return found

    y0, controls = inputs(6, batch=2)
    steps = []
    attempt = DeviceSteps.attempt

    def attempted(self, launch):
        value = attempt(self, launch)
        steps.append(self._attempts - self._known_after)
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Poll, "take", watched)
        patch.setattr(DeviceSteps, "attempt", attempted)
        with torch.no_grad():
            fastode.solve(wave, y0, [0.0, 5.0], controls=controls, backend="stepped", rtol=1e-8)
    assert max(steps) == 2, "an attempt is launched while the result of the one before is not known"
    assert plan_waits, "nothing was ever waited for"


def test_failing_samples_get_a_status_and_harm_no_other():
    y0, controls = inputs(4, batch=5)
    y0[1, 2] = torch.nan

    def field(t, y, c):
        return torch.where(y[:, :1] > 50, torch.inf, c["rate"] * y)

    y0[3] = 40.0
    options = {"field": field, "on_failure": "nan", "max_steps": 300}
    sol, grads = solve("stepped", y0, controls, **options)
    expected, expected_grads = solve("reference", y0, controls, **options)
    assert torch.equal(sol.status, expected.status)
    assert {int(s) for s in sol.status} == {Status.SUCCESS, Status.NON_FINITE}
    assert torch.equal(sol.ys.isnan(), expected.ys.isnan())
    assert_close(torch.nan_to_num(sol.ys.detach()), torch.nan_to_num(expected.ys.detach()), rtol=1e-10)
    assert_close(grads, expected_grads, rtol=1e-9)


@pytest.mark.parametrize("kind", ["argument", "buffer", "view"])
def test_fields_that_return_memory_of_their_own(kind):
    buffer = torch.empty(3, 8, dtype=torch.float64)

    def field(t, y):
        if kind == "argument":
            return y
        if kind == "buffer":
            return torch.mul(y, -0.5, out=buffer[: len(y)])
        return torch.stack([y, -y], 2)[..., 1]

    y0 = torch.randn(3, 8, dtype=torch.float64)
    with torch.no_grad():
        sol = fastode.solve(field, y0, [0.0, 1.0], backend="stepped")
        expected = fastode.solve(field, y0, [0.0, 1.0], backend="reference")
    assert_close(sol.ys, expected.ys)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_are_held_in_float32(dtype):
    y0, controls = inputs(8, dtype=dtype)
    options = {"step_size": 0.1, "method": "rk4"}
    exact = {name: c.double() for name, c in controls.items()}
    with torch.no_grad():
        sol = fastode.solve(wave, y0, [0.0, 1.0], controls=controls, backend="stepped", **options)
        base = fastode.solve(wave, y0, [0.0, 1.0], controls=controls, backend="reference", **options)
        truth = fastode.solve(wave, y0.double(), [0.0, 1.0], controls=exact, backend="reference", **options)
    assert sol.ys.dtype == dtype
    assert_as_accurate(sol.ys, base.ys, truth.ys)


def test_a_field_that_mixes_samples_keeps_its_batch(monkeypatch):
    y0, controls = inputs(3, batch=6)

    def field(t, y, c):
        return c["rate"] * (y.mean(0) - y)

    def run(**options):
        return fastode.solve(field, y0, [0.0, 0.3, 1.0, 2.0], controls=controls, backend="stepped", **options)

    sol, fixed = run(), solve("stepped", y0, controls, field=field, method="rk4", step_size=0.1)
    with pytest.raises(RuntimeError, match="mixes samples, which are at other times then"):
        solve("stepped", y0, controls, field=field)
    monkeypatch.setattr(choose, "FIELDS", (SteppedBackend(),))
    expected, host = run(), solve("stepped", y0, controls, field=field, method="rk4", step_size=0.1)
    assert torch.equal(stats_of(sol), stats_of(expected))
    assert_close(sol.ys, expected.ys, rtol=1e-10)
    assert_close(fixed[1], host[1], rtol=1e-9)


def test_the_record_holds_accepted_steps_in_chunks_and_gradients_repeat(monkeypatch):
    init = DeviceRecord.__init__

    def small(self, *args):
        init(self, *args)
        self.per_chunk = 7

    monkeypatch.setattr(DeviceRecord, "__init__", small)
    given = inputs(5, batch=6)
    options = {"rtol": 1e-8, "atol": 1e-9, "dense": True}
    sol, grads = solve("stepped", *given, **options)
    again, grads_again = solve("stepped", *given, **options)
    assert same_bits([sol.ys.detach(), *grads], [again.ys.detach(), *grads_again])
    kept = node_of(leaves(sol.ys)[0]).record.steps
    assert kept.table.shape[0] == int(sol.stats.n_accepted.sum())
    monkeypatch.undo()
    expected, expected_grads = solve("reference", *given, **options)
    assert_close(sol.ys.detach(), expected.ys.detach(), rtol=1e-10)
    assert_close(grads, expected_grads, rtol=1e-9)


def test_second_derivatives_replay_the_recorded_steps():
    y0, controls = inputs(3, batch=2)

    def grad_of(backend):
        leaf = y0.clone().requires_grad_()
        sol = fastode.solve(wave, leaf, [0.0, 1.0], controls=controls, backend=backend)
        (grad,) = torch.autograd.grad(sol.ys[-1].pow(2).sum(), leaf, create_graph=True)
        return torch.autograd.grad(grad.pow(2).sum(), leaf)[0]

    assert_close(grad_of("stepped"), grad_of("reference"), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0, 1])
def test_combine_agrees_with_the_kernel_of_the_cpu(dtype, offset):
    n, d = 7, 12
    memory = torch.randn(6, n * d + 1, dtype=dtype)[:, offset : offset + n * d]
    terms = [row.reshape(n, d) for row in memory]
    scale = torch.randn(n, dtype=torch.float64)
    coefs = [0.5, 0.0, -1.25, 2.0]
    out, expected = torch.full((2, n, d), torch.nan, dtype=dtype)
    pointers = [t.data_ptr() for t in terms[:4]]
    wide = dtype == torch.float64
    _C.combine(expected.data_ptr(), terms[4].data_ptr(), scale.data_ptr(), coefs, pointers, n, d, wide)
    _C.combine_on(
        device=-1,
        out_ptr=out.data_ptr(),
        base_ptr=terms[4].data_ptr(),
        scale_ptr=scale.data_ptr(),
        coefs=coefs,
        ptrs=pointers,
        n=n,
        d=d,
        is_double=wide,
        stream=0,
    )
    assert_as_accurate(out, expected, expected)


def test_a_build_without_cuda_says_so():
    if _C.build_info()["cuda"]:
        pytest.skip("this build has CUDA")
    with pytest.raises(RuntimeError, match="without CUDA"):
        _C.combine_on(
            device=0, out_ptr=0, base_ptr=0, scale_ptr=0, coefs=[], ptrs=[], n=0, d=0, is_double=True, stream=0
        )  # fmt: skip
