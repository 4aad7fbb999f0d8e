"""The compiled parts of the ``stepped`` backend on their own: error norm, step control, record of steps, walk back."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from fastode import Checkpoint, IController, PIDController, Status
from fastode._environment import _C
from fastode.backends.stepped import SteppedBackend
from fastode.controllers import LAST_STEP_STRETCH, MIN_STEP_ULPS, RATIO_FLOOR
from fastode.interpolant import basis
from fastode.problem import make_problem
from tests.problems import randn, same_bits
from tests.test_controllers import scalar_factor

DTYPES = [torch.float32, torch.float64]
CONTROL = {
    "exponent": 1.0,
    "b1": 1.0,
    "b2": 0.0,
    "b3": 0.0,
    "safety": 1.0,
    "min_factor": 1e-12,
    "max_factor": 1e12,
    "min_step": 0.0,
    "max_step": math.inf,
    "ratio_floor": RATIO_FLOOR,
    "last_stretch": LAST_STEP_STRETCH,
    "min_ulps": MIN_STEP_ULPS,
    "to_outputs": 0.0,
}


@pytest.fixture(params=_C.usable_isas())
def isa(request):
    _C.set_isa(request.param)
    return request.param


class Driven:
    """A stepper whose stages the test makes up. Holds all memory that the stepper points to."""

    def __init__(self, y0, k1, e, ends, atol=1.0, rtol=0.0, first_step=1.0, max_steps=1000, **control):
        batch, width = y0.shape
        dtype, s = y0.dtype, len(e)
        kind = "64" if dtype == torch.float64 else "32"
        self.times = torch.stack([torch.zeros(batch), torch.as_tensor(ends).expand(batch)]).double().contiguous()
        self.tolerances = [torch.as_tensor(v, dtype=dtype).expand(width).contiguous() for v in (rtol, atol)]
        self.ys = torch.full((2, batch, width), math.nan, dtype=dtype)
        self.record = getattr(_C, "StepRecord" + kind)(batch, width, 1, 0)
        self.y, self.t = torch.full_like(y0, math.nan), torch.full((batch,), math.nan, dtype=dtype)
        self.stepper = getattr(_C, "Stepper" + kind)(
            batch=batch,
            width=width,
            n_times=2,
            times_ptr=self.times.data_ptr(),
            step_size_ptr=0,
            rtol_ptr=self.tolerances[0].data_ptr(),
            atol_ptr=self.tolerances[1].data_ptr(),
            ys_ptr=self.ys.data_ptr(),
            max_steps=max_steps,
            first_step=first_step,
            dense=False,
            c=[i / (s - 1) for i in range(s)],
            a=[0.0] * (s * s),
            e=e,
            q=[1.0] * s,
            control={**CONTROL, **control},
            record=self.record,
        )
        self.s = s
        self.stepper.start(y0.data_ptr(), k1.data_ptr())

    def step(self, stages, y1=None):
        """One attempt with the stages 1, ..., s - 1 (batch, width); returns how many are still running."""
        for i in range(1, self.s):
            self.stepper.stage(i, 0 if i == 1 else stages[i - 2].data_ptr(), self.t.data_ptr(), self.y.data_ptr())
        y1 = self.y if y1 is None else y1
        return self.stepper.finish_step(y1.data_ptr(), stages[-1].data_ptr())

    def sizes(self):
        """(N, batch) sizes of the accepted steps."""
        self.record.finish()
        return torch.from_numpy(self.record.table()[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 15, 16, 17, 33, 65, 1000])
def test_the_error_norm_agrees_with_float64(isa, width, dtype):
    """With factor = 1 / ratio the size of the second step tells the error ratio of the first."""
    torch.manual_seed(width)
    batch, e = 5, [0.3, 0.0, -0.7, 0.9, -0.5]
    y0, y1, *stages = (torch.randn(batch, width, dtype=dtype) for _ in range(7))
    rtol, atol = torch.rand(width, dtype=dtype) + 3, torch.rand(width, dtype=dtype) + 3
    driven = Driven(y0, stages[0], e, 1e6, atol=atol, rtol=rtol, first_step=0.5)
    driven.step(stages[1:], y1)
    driven.step([torch.zeros_like(y0)] * 3 + [stages[-1]])
    size = driven.sizes()
    assert driven.stepper.n_accepted().tolist() == [2] * batch
    ratio = size[0] / size[1]
    weights = torch.tensor(e, dtype=dtype).double()
    terms = weights[:, None, None] * torch.stack(stages).double()
    tolerance = (atol.double() + rtol.double() * torch.maximum(y0.abs(), y1.abs()).double()) / 0.5
    expected = (terms.sum(0) / tolerance).square().mean(1).sqrt()
    rounding = (terms.abs().sum(0) / tolerance).square().mean(1).sqrt() * torch.finfo(dtype).eps * 8
    assert ((ratio - expected).abs() <= rounding + 1e-14).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("width", [1, 16, 37])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(isa, width, bad, dtype):
    """In the new state or in the last stage; each sample has its bad value in another place."""
    for where in ("state", "stage"):
        y0, k = torch.ones(width + 1, width, dtype=dtype), torch.zeros(width + 1, width, dtype=dtype)
        y1, last = y0.clone(), k.clone()
        spoiled = y1 if where == "state" else last
        spoiled[torch.arange(width), torch.arange(width)] = bad
        driven = Driven(y0, k, [0.5, 0.0, -0.5], 10.0)
        assert driven.step([k, last], y1) == width + 1
        assert driven.stepper.n_accepted().tolist() == [0] * width + [1]
        assert driven.stepper.n_rejected().tolist() == [1] * width + [0]
        start = Driven(spoiled, k, [0.5, -0.5], 10.0) if where == "state" else Driven(y0, spoiled, [0.5, -0.5], 10.0)
        assert start.stepper.status().tolist() == [int(Status.NON_FINITE)] * width + [-1]
        assert start.stepper.running().tolist() == [width]


def test_stages_without_weight_in_the_error_are_not_read(isa):
    y0 = torch.ones(2, 20)
    k, broken = torch.zeros_like(y0), torch.full_like(y0, math.nan)
    driven = Driven(y0, k, [0.5, 0.0, -0.5], 10.0)
    driven.step([broken, k])
    assert driven.stepper.n_accepted().tolist() == [1, 1]


def test_the_largest_and_smallest_tolerances(isa):
    """An exact step is accepted with tolerance 0; with an infinite one any error is; overflow counts as too large."""
    for dtype in DTYPES:
        y0, k = torch.zeros(1, 3, dtype=dtype), torch.zeros(1, 3, dtype=dtype)
        some = torch.full_like(k, 1.0)
        huge = torch.full_like(k, torch.finfo(dtype).max)
        for stage, atol, accepted in [
            (k, 0.0, 1),
            (some, 0.0, 0),
            (some, math.inf, 1),
            (huge, 1e-30, 0),
            (huge, 0.0, 0),
        ]:
            driven = Driven(y0, k, [0.5, -0.5], 10.0, atol=atol)
            driven.step([stage])
            assert driven.stepper.n_accepted().tolist() == [accepted]
            assert driven.stepper.status().tolist() == [-1]


RATIO = st.floats(1e-12, 1e4) | st.sampled_from([0.0, 1.0, 1e-10, math.nan, math.inf, 1e300])


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    ratios=st.lists(RATIO, min_size=1, max_size=12),
    p=st.floats(-0.5, 1),
    i=st.floats(0, 1),
    d=st.floats(-0.5, 0.5),
    bounds=st.sampled_from([(0.2, 10.0), (0.9, 1.1), (0.01, 3.0)]),
    limits=st.sampled_from([(0.0, math.inf), (0.5, 2.0), (0.0, 1.5)]),
    exponent=st.sampled_from([1 / 2, 1 / 5, 1 / 8]),
)
def test_step_control_follows_the_formula(ratios, p, i, d, bounds, limits, exponent):
    """Stages made up so that the attempts have given error ratios: sizes as by the scalar formula."""
    controller = PIDController(
        p, i, d, min_factor=bounds[0], max_factor=bounds[1], min_step=limits[0], max_step=limits[1]
    )
    b1, b2, b3 = controller.exponents(exponent)
    constants = {
        name: getattr(controller, name) for name in ("safety", "min_factor", "max_factor", "min_step", "max_step")
    }
    y0, k = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    end = 1e9
    driven = Driven(y0, k, [1.0, -1.0], end, exponent=exponent, b1=b1, b2=b2, b3=b3, **constants)
    t, h, old, sizes, rejected, status = 0.0, 1.0, [1.0, 1.0], [], 0, -1

    def shortest():
        return max(limits[0], MIN_STEP_ULPS * 2.0**-52 * t)

    for ratio in ratios:
        step = (t + h) - t  # as far as the clock goes
        slope = k + ratio / step if step and math.isfinite(ratio) else torch.full_like(k, math.nan)
        actual = abs(step * float(k - slope))  # after rounding
        running = driven.step([slope])
        accepted, tried = step != 0 and actual <= 1, min(step, h)
        if accepted:
            sizes.append(step)
            k, t = slope, t + h
        else:
            rejected += 1
            if tried <= shortest():
                status = int(Status.NON_FINITE if math.isnan(actual) else Status.STEP_UNDERFLOW)
                assert running == 0
                break
        h = tried * scalar_factor(controller, exponent, actual, old[-1], old[-2], accepted)
        h = min(max(h, shortest()), limits[1])
        if accepted:
            old.append(actual)
    assert driven.stepper.status().tolist() == [status]
    assert driven.stepper.n_rejected().tolist() == [rejected]
    assert driven.stepper.n_accepted().tolist() == [len(sizes)]
    assert driven.sizes()[:, 0].tolist() == pytest.approx(sizes, rel=1e-9)


def test_wrong_methods_are_refused():
    y0 = torch.zeros(1, 1)
    for e, message in [([1.0], "2 to 32 stages"), ([0.0] * 33, "2 to 32 stages"), ([], "2 to 32 stages")]:
        with pytest.raises((ValueError, ZeroDivisionError), match=f"{message}|division"):
            Driven(y0, y0, e, 1.0)
    arguments = {
        "batch": 1, "width": 1, "n_times": 1, "times_ptr": 0, "step_size_ptr": 0, "rtol_ptr": 0, "atol_ptr": 0,
        "ys_ptr": 0, "max_steps": 1, "first_step": 0.0, "dense": False, "c": [0.0, 1.0], "a": [0.0] * 4,
        "e": [0.5, -0.5], "q": [0.0, 1.0], "control": CONTROL, "record": None,
    }  # fmt: skip
    wrong = {
        "do not fit": [{"a": [0.0] * 3}, {"e": [1.0]}, {"q": [1.0] * 3}],
        "need a method with an error estimate": [{"e": []}],
        "dense output needs a record": [{"dense": True}],
        "degree above 32": [{"q": [0.0] * 66}],
    }
    for message, cases in wrong.items():
        for case in cases:
            with pytest.raises(ValueError, match=message):
                _C.Stepper64(**{**arguments, **case})


def forward(dtype, policy, dense=True, batch=9, width=5):
    """A solve with samples in both directions and of different lengths, one that takes no step, and its plan."""
    y0 = randn(batch, width).to(dtype)
    ends = torch.linspace(0.2, 2.0, batch, dtype=torch.float64)
    ends[2], ends[3] = -1.0, 0.0
    t = torch.linspace(0, 1, 14, dtype=torch.float64)[:, None] * ends
    rate = torch.linspace(1, 20, batch, dtype=dtype)[:, None]
    plan, inputs = make_problem(
        lambda t, y, r: -r * y, y0, t, rate, "dopri5", 1e-5, 1e-6, None, IController(), 1000, dense
    )
    result = SteppedBackend().forward(plan, inputs.y0, inputs.controls, -rate * y0, policy)
    return plan, result, result.record.steps


def walker(plan, steps, dtype, samples, grad_ys=None, grad_coefs=None):
    kind = _C.StepWalker64 if dtype == torch.float64 else _C.StepWalker32
    n_times, _, width = grad_ys.shape if grad_ys is not None else (0, plan.batch, 5)
    return kind(
        record=steps,
        width=width,
        n_times=n_times,
        degree=plan.tableau.degree,
        times_ptr=plan.times.data_ptr(),
        grad_ys_ptr=0 if grad_ys is None else grad_ys.data_ptr(),
        grad_coefs_ptr=0 if grad_coefs is None else grad_coefs.data_ptr(),
        samples=samples,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("every", "budget"), [(1, None), (3, None), (1, 2000), (2, 1), (1000, None)])
def test_the_record_keeps_the_states_it_promises(every, budget, dtype):
    plan, result, steps = forward(dtype, Checkpoint(every, budget))
    count = torch.from_numpy(steps.count())
    assert torch.equal(count, result.stats.n_accepted)
    assert steps.steps == int(count.sum())
    assert math.log2(steps.every / every).is_integer()
    row = 5 * torch.finfo(dtype).bits // 8
    kept = int(((count + steps.every - 1) // steps.every).sum())
    assert steps.state_bytes == kept * row
    if budget is None:
        assert steps.every == every
    else:  # the least power of two that does it, or one state per sample
        assert steps.state_bytes <= budget or kept == int((count > 0).sum())
        coarser = steps.every // 2
        if coarser >= every:
            assert int(((count + coarser - 1) // coarser).sum()) * row > budget
    moving = (count > 0).nonzero().flatten().tolist()
    walk = walker(plan, steps, dtype, moving)
    for j in range(0, int(count.max()), steps.every):
        y = torch.full((len(moving), 5), math.nan, dtype=dtype)
        walk.states(j, len(moving), y.data_ptr())
        for lane, b in enumerate(moving):
            last = (int(count[b]) - 1) // steps.every * steps.every  # where a sample has ended, its last one kept
            expected = result.dense.coefs[result.dense.rows[min(j, last), b], 0]
            assert torch.equal(y[lane], expected)


def test_the_table_of_steps():
    _, result, steps = forward(torch.float64, Checkpoint())
    start, end, size, row = (torch.from_numpy(column) for column in steps.table())
    count = torch.from_numpy(steps.count())
    assert start.shape == (int(count.max()), 9)
    for b in range(9):
        n = int(count[b])
        torch.testing.assert_close(start[:n, b] + size[:n, b], end[:n, b], rtol=1e-14, atol=0)
        assert torch.equal(start[1:n, b], end[: max(n - 1, 0), b])
        assert (size[n:, b] == 0).all()
        if n:
            assert (start[n:, b] == result.reached[b]).all()
            assert (row[n:, b] == row[n - 1, b]).all()
    assert sorted(row[j, b].item() for b in range(9) for j in range(int(count[b]))) == list(range(steps.steps))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_coefs", [False, True])
def test_gradients_of_outputs_are_sorted_into_steps(with_coefs, dtype):
    plan, result, steps = forward(dtype, Checkpoint())
    start, end, size, rows = (torch.from_numpy(column) for column in steps.table())
    count, degree = torch.from_numpy(steps.count()), plan.tableau.degree
    grad_ys = torch.randn(result.ys.shape, dtype=dtype)
    grad_coefs = torch.randn(result.dense.coefs.shape, dtype=dtype) if with_coefs else None
    samples = torch.argsort(count, descending=True)
    samples = samples[count[samples] > 0].tolist()
    walk = walker(plan, steps, dtype, samples, grad_ys, grad_coefs)
    seen = torch.zeros(14, 9, dtype=torch.int64)
    for j in range(int(count.max())):
        n = int((count > j).sum()) + 1  # one lane that stands still
        n = min(n, len(samples))
        t, h = torch.full((2, n), math.nan, dtype=torch.float64)
        walk.steps(j, n, t.data_ptr(), h.data_ptr())
        p = torch.randn(n, 5, dtype=dtype)
        g = torch.full((degree + 1, n, 5), math.nan, dtype=dtype)
        expected_p, expected_g, any_inside = p.double(), torch.zeros(degree + 1, n, 5, dtype=torch.float64), with_coefs
        for lane, b in enumerate(samples[:n]):
            if j >= count[b]:
                assert h[lane] == 0
                continue
            assert (float(t[lane]), float(h[lane])) == (float(start[j, b]), float(size[j, b]))
            direction = math.copysign(1.0, float(h[lane]))
            for e in range(14):
                time = float(plan.times[e, b])
                if not (direction * (time - float(t[lane])) > 0 and direction * (float(end[j, b]) - time) >= 0):
                    continue
                seen[e, b] += 1
                grad = grad_ys[e, b].double()
                if time == float(end[j, b]):
                    expected_p[lane] += grad
                    continue
                any_inside = True
                theta = torch.tensor((time - float(t[lane])) / float(h[lane]), dtype=torch.float64)
                expected_g[0, lane] += grad
                expected_g[1:, lane] += basis(theta, degree)[:, None] * grad
            if with_coefs:
                expected_g[:, lane] += grad_coefs[rows[j, b]].double()
        assert walk.outputs(j, n, p.data_ptr(), g.data_ptr()) == any_inside
        tolerance = 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(p.double(), expected_p, rtol=tolerance, atol=tolerance)
        if any_inside:
            torch.testing.assert_close(g.double(), expected_g, rtol=tolerance, atol=tolerance)
        else:
            assert g.isnan().all()  # not touched
    assert (seen[1:, [b for b in range(9) if count[b] > 0]] == 1).all()
    assert (seen[0] == 0).all()


def test_compacting_keeps_the_lanes_that_run():
    """Lanes close up in order; what is done is gone, and the counts of all samples stay."""
    y0 = torch.arange(5.0).reshape(5, 1)
    k = torch.zeros_like(y0)
    driven = Driven(y0, k, [0.5, -0.5], torch.tensor([1.0, 9.0, 1.0, 9.0, 9.0]))
    assert driven.step([k]) == 3
    assert driven.stepper.running().tolist() == [1, 3, 4]
    driven.stepper.compact()
    assert driven.stepper.lanes == 3
    assert driven.stepper.running().tolist() == [0, 1, 2]
    driven.y, driven.t = driven.y[:3], driven.t[:3]
    driven.step([k[:3]])
    assert driven.y.flatten().tolist() == [1.0, 3.0, 4.0]
    assert driven.stepper.n_accepted().tolist() == [1, 2, 1, 2, 2]
    driven.stepper.compact()
    assert same_bits(driven.ys[1, [0, 2]], y0[[0, 2]])
