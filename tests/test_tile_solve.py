"""Whole solves and adjoints of the tile machine, against the reference backend and against themselves."""

import math

import pytest
import torch

import fastode
from fastode import Checkpoint, PIDController, Status
from fastode._environment import _C
from tests.problems import same_bits
from tests.tile_tools import Program, Solved, at, ins, tanh_field

F64, F32 = torch.float64, torch.float32
LAYOUTS = [1, 16, 64]


@pytest.fixture(params=_C.usable_isas())
def isa(request):
    _C.set_isa(request.param)
    return request.param


def tanh_problem(per_sample, batch, dim, dtype, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lead = (batch,) if per_sample else ()
    weight = torch.randn(*lead, dim, dim, dtype=dtype, generator=generator) * scale
    bias = torch.randn(*lead, dim, dtype=dtype, generator=generator)
    y0 = torch.randn(batch, dim, dtype=dtype, generator=generator)
    return weight, bias, y0


def tanh_torch(weight, bias):
    return lambda t, y: torch.tanh((weight @ y[:, :, None])[:, :, 0] + bias)


def reference(weight, bias, y0, times, **options):
    leaves = [x.clone().requires_grad_() for x in (weight, bias, y0)]
    solution = fastode.solve(tanh_torch(*leaves[:2]), leaves[2], times, backend="reference", **options)
    return leaves, solution


TIMES = torch.tensor([0.0, 0.0, 0.3, 0.31, 0.7, 1.0], dtype=F64)


CASES = [("dopri5", per_sample, lanes) for per_sample in (True, False) for lanes in LAYOUTS]
CASES += [("tsit5", True, 16), ("bosh3", False, 1), ("dopri8", True, 1), ("adaptive_heun", False, 16)]


@pytest.mark.parametrize(("method", "per_sample", "lanes"), CASES)
def test_solves_and_gradients_are_those_of_the_reference(isa, method, per_sample, lanes):
    weight, bias, y0 = tanh_problem(per_sample, 37, 5, F64)
    rtol, atol = (1e-5, 1e-6) if method != "adaptive_heun" else (1e-3, 1e-4)
    leaves, solution = reference(weight, bias, y0, TIMES, method=method, rtol=rtol, atol=atol)
    program = tanh_field(5, F64, weight, bias, lanes)
    solved = program.solve(y0, TIMES, method, rtol, atol, every=1, threads=2)
    assert torch.equal(solved.n_accepted, solution.stats.n_accepted)
    assert torch.equal(solved.n_rejected, solution.stats.n_rejected)
    assert torch.equal(solved.n_evals, solution.stats.n_evals)
    assert torch.equal(solved.status, solution.status)
    assert (solved.reached == 1.0).all()
    torch.testing.assert_close(solved.k1, tanh_torch(weight, bias)(0, y0))
    torch.testing.assert_close(solved.ys, solution.ys, rtol=1e-9, atol=1e-10)
    grad = torch.randn_like(solution.ys)
    grad[:2] = 0.0  # outputs at the start are the caller's
    solution.ys.backward(grad)
    grad[:2] = math.nan
    grad_y0, shared, params = solved.adjoint(grad)
    got = params if per_sample else shared
    for ours, leaf in zip([*got, grad_y0], leaves, strict=True):
        torch.testing.assert_close(ours, leaf.grad, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("lanes", [1, 32])
@pytest.mark.parametrize("backwards", [False, True])
def test_fixed_steps_own_times_and_other_directions(isa, backwards, lanes):
    weight, bias, y0 = tanh_problem(True, 21, 3, F64)
    times = torch.rand(4, 21, dtype=F64).sort(0, descending=backwards).values.contiguous()
    for step_size in (0.05, math.inf):
        size = torch.full((21,), step_size, dtype=F64)
        given = None if step_size == math.inf else step_size  # from output time to output time
        leaves, solution = reference(weight, bias, y0, times, method="rk4", step_size=given)
        program = tanh_field(3, F64, weight, bias, lanes)
        solved = program.solve(y0, times, "rk4", every=2, step_size=size)
        assert torch.equal(solved.n_accepted, solution.stats.n_accepted)
        assert torch.equal(solved.n_evals, solution.stats.n_evals)
        torch.testing.assert_close(solved.ys, solution.ys, rtol=1e-12, atol=1e-12)
        grad = torch.randn_like(solution.ys)
        grad[0] = 0.0
        solution.ys.backward(grad)
        grad_y0, _, params = solved.adjoint(grad)
        for ours, leaf in zip([*params, grad_y0], leaves, strict=True):
            torch.testing.assert_close(ours, leaf.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("lanes", [1, 16])
def test_controllers_first_steps_and_limits(isa, lanes):
    weight, bias, y0 = tanh_problem(True, 33, 4, F64, scale=4.0)
    times = torch.tensor([0.0, 3.0], dtype=F64)
    program = tanh_field(4, F64, weight, bias, lanes)
    for controller in (
        PIDController(0.4, 0.3, 0.1),
        PIDController(0.2, 0.7, -0.05, safety=0.8, min_factor=0.5, max_factor=2.0, max_step=0.2),
        PIDController(0.0, 1.0, 0.0, first_step=0.3),
    ):
        _, solution = reference(weight, bias, y0, times, rtol=1e-6, atol=1e-7, controller=controller)
        solved = program.solve(
            y0, times, rtol=1e-6, atol=1e-7, controller=controller, first_step=controller.first_step or 0.0
        )
        assert torch.equal(solved.n_accepted, solution.stats.n_accepted)
        assert torch.equal(solved.n_rejected, solution.stats.n_rejected)
        assert torch.equal(solved.n_evals, solution.stats.n_evals)
        torch.testing.assert_close(solved.ys, solution.ys, rtol=1e-9, atol=1e-10)


def growth(dim, lanes, dtype=F64):
    """The field y^2: reaches infinity at t = 1 / y0, and is NaN for ever where the state is."""
    forward = [ins("square", dim, at("OUT"), at("IN"))]
    reverse = [
        ins("mul", dim, at("ADJ"), at("GOUT"), at("IN")),
        ins("add", dim, at("GIN"), at("ADJ"), at("ADJ")),
    ]
    return Program(dim, forward, dtype, lanes, reverse=reverse, n_adj=dim)


@pytest.mark.parametrize("lanes", [1, 16])
def test_statuses_are_those_of_the_reference(isa, lanes):
    y0 = torch.tensor([0.5, -1.0, math.nan, 3.0, math.inf, 0.0, 0.9, 2.0] * 5, dtype=F64)[:, None].contiguous()
    times = torch.stack([torch.zeros(40), torch.linspace(0.2, 1.2, 40), torch.linspace(0.4, 2.4, 40)]).double()
    times[:, 7] = 0.0
    for options in ({"max_steps": 25}, {"controller": PIDController(0.0, 1.0, 0.0, min_step=1e-3)}):
        solution = fastode.solve(
            lambda t, y: y * y, y0, times, backend="reference", rtol=1e-6, atol=1e-8, on_failure="nan", **options
        )
        solved = growth(1, lanes).solve(y0, times, rtol=1e-6, atol=1e-8, every=1, **options)
        assert len(set(solution.status.tolist())) >= 3
        assert torch.equal(solved.status, solution.status)
        assert torch.equal(solved.n_accepted, solution.stats.n_accepted)
        assert torch.equal(solved.n_rejected, solution.stats.n_rejected)
        assert torch.equal(solved.n_evals, solution.stats.n_evals)
        torch.testing.assert_close(solved.ys, solution.ys, rtol=1e-6, atol=1e-9, equal_nan=True)
        failed = solved.status != Status.SUCCESS
        assert torch.equal(solved.reached == times[-1], ~failed | (times[0] == times[-1]))
        grad_y0, _, _ = solved.adjoint(torch.ones_like(solved.ys))
        assert (grad_y0[failed] == 0).all()
        assert torch.isfinite(grad_y0).all()


def results(solved, grad):
    grad_y0, shared, params = solved.adjoint(grad)
    names = ("ys", "status", "n_accepted", "n_rejected", "n_evals", "reached", "k1", "table", "states")
    return {name: getattr(solved, name) for name in names} | {"grad_y0": grad_y0, "shared": shared, "params": params}


def assert_same_bits(one, other):
    for name, value in one.items():
        for a, b in zip(*(v if isinstance(v, list) else [v] for v in (value, other[name])), strict=True):
            assert same_bits(a, b), name


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("lanes", [1, 16, 48])
@pytest.mark.parametrize("per_sample", [True, False])
def test_bits_do_not_depend_on_the_threads(isa, per_sample, lanes, dtype):
    weight, bias, y0 = tanh_problem(per_sample, 403, 6, dtype, scale=3.0)
    program = tanh_field(6, dtype, weight, bias, lanes)
    grad = torch.randn(len(TIMES), 403, 6, dtype=dtype)
    _C.set_num_threads(1)
    alone = results(program.solve(y0, TIMES, every=2, threads=1), grad)
    _C.set_num_threads(4)
    for _ in range(3):
        assert_same_bits(alone, results(program.solve(y0, TIMES, every=2, threads=4), grad))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("lanes", [1, 16, 48])
def test_bits_of_a_sample_do_not_depend_on_the_others(isa, lanes, dtype):
    weight, bias, y0 = tanh_problem(True, 150, 6, dtype, scale=3.0)
    grad = torch.randn(len(TIMES), 150, 6, dtype=dtype)
    whole = program_results(weight, bias, y0, grad, lanes, torch.arange(150))
    for index in (torch.randperm(150), torch.arange(70, 87), torch.tensor([149])):
        some = program_results(weight, bias, y0, grad, lanes, index)
        for name, value in some.items():
            assert same_bits(value, whole[name].movedim(whole[name].ndim - value.ndim, 0)[index]), name


def program_results(weight, bias, y0, grad, lanes, index):
    """Results with the samples in front."""
    program = tanh_field(6, y0.dtype, weight[index], bias[index], lanes)
    solved = program.solve(y0[index], TIMES, every=1, threads=2)
    grad_y0, _, params = solved.adjoint(grad[:, index].contiguous())
    counts = torch.stack([solved.n_accepted, solved.n_rejected], 1)
    return {"ys": solved.ys.movedim(1, 0), "counts": counts, "y0": grad_y0, "w": params[0], "b": params[1]}


@pytest.mark.parametrize("lanes", [16, 48])
def test_bits_do_not_depend_on_the_number_of_lanes(isa, lanes):
    weight, bias, y0 = tanh_problem(True, 150, 6, F32, scale=3.0)
    grad = torch.randn(len(TIMES), 150, 6)
    index = torch.arange(150)
    one, other = (program_results(weight, bias, y0, grad, n, index) for n in (lanes, 256))
    for name, value in one.items():
        assert same_bits(value, other[name]), name


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("per_sample", [True, False])
def test_kept_states_make_no_difference_to_any_bit(isa, per_sample, lanes, dtype):
    weight, bias, y0 = tanh_problem(per_sample, 60, 5, dtype, scale=4.0)
    program = tanh_field(5, dtype, weight, bias, lanes)
    grad = torch.randn(len(TIMES), 60, 5, dtype=dtype)
    every_step = program.solve(y0, TIMES, rtol=1e-7, atol=1e-8, every=1, max_steps=5000)
    assert (every_step.n_accepted > 7).any()
    expected = every_step.adjoint(grad)
    for every in (2, 3, 1000):
        sparse = program.solve(y0, TIMES, rtol=1e-7, atol=1e-8, every=every)
        assert sparse.every == min(every, int(every_step.n_accepted.max()))
        assert len(sparse.states) == int(((every_step.n_accepted + every - 1) // every).sum())
        assert_same_bits({"all": flat(expected)}, {"all": flat(sparse.adjoint(grad))})
    for b in (0, 59):  # what is kept is what there was
        start, end = every_step.offsets[b], every_step.offsets[b + 1]
        kept = sparse.states[sparse.state_offsets[b] : sparse.state_offsets[b + 1]]
        assert same_bits(kept, every_step.states[start:end:1000])


def flat(gradients):
    grad_y0, shared, params = gradients
    return [grad_y0, *shared, *params]


@pytest.mark.parametrize("threads", [1, 4])
def test_the_budget_of_the_record_thins_the_states(threads):
    """To the spacing that cpu/step_record.h ends with, whichever thread found what."""
    _C.set_num_threads(threads)
    weight, bias, y0 = tanh_problem(True, 300, 6, F32, scale=5.0)
    program = tanh_field(6, F32, weight, bias, 16)
    full = program.solve(y0, TIMES, rtol=1e-6, every=1, threads=threads)
    grad = torch.randn(len(TIMES), 300, 6)
    expected = full.adjoint(grad)
    row = 6 * 4
    for budget in (len(full.states) * row, len(full.states) * row - 1, 4000 * row // 3, 700 * row, 10):
        thinned = program.solve(y0, TIMES, rtol=1e-6, every=1, max_bytes=budget, threads=threads)
        every = 1
        most = int(full.n_accepted.max())
        while int(((full.n_accepted + every - 1) // every).sum()) * row > budget and every < most:
            every *= 2
        assert thinned.every == min(every, most)
        assert same_bits(thinned.table, full.table)
        assert_same_bits({"all": flat(expected)}, {"all": flat(thinned.adjoint(grad))})
    policy = Checkpoint(every=1, max_bytes=700 * row)
    assert policy.max_bytes == 700 * row


def test_the_record_is_in_order_of_samples_and_steps():
    weight, bias, y0 = tanh_problem(False, 90, 4, F64, scale=3.0)
    solved = tanh_field(4, F64, weight, bias, 16).solve(y0, TIMES, every=1, threads=2)
    assert torch.equal(solved.offsets.diff(), solved.n_accepted)
    for b in range(90):
        t, t_next, h = solved.table[solved.offsets[b] : solved.offsets[b + 1]].T
        assert t[0] == 0.0
        assert t_next[-1] == 1.0
        assert torch.equal(t[1:], t_next[:-1])
        assert ((t_next - t - h).abs() < 1e-15).all()
        assert same_bits(solved.states[solved.state_offsets[b]], y0[b])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_record_that_does_not_fit_is_refused(dtype):
    weight, bias, y0 = tanh_problem(False, 7, 3, dtype)
    solved = tanh_field(3, dtype, weight, bias, 16).solve(y0, TIMES, every=1)
    grad = torch.randn(len(TIMES), 7, 3, dtype=dtype)
    words = solved.words
    fewer_steps, no_spacing = words.copy(), words.copy()
    fewer_steps[0] -= 1
    no_spacing[2] = 0
    for wrong in (words[:-1], words[:2], fewer_steps, no_spacing):
        solved.words = wrong
        with pytest.raises(ValueError, match="no record of a solve of this program for so many samples"):
            solved.adjoint(grad)


def test_a_failed_sample_is_reported(isa):
    y0 = torch.ones(40, 2, dtype=F64)
    assert not growth(2, 16).solve(y0, TIMES).failed
    y0[33, 1] = math.nan
    assert growth(2, 16).solve(y0, TIMES).failed


@pytest.mark.parametrize("lanes", [1, 16])
def test_spoilt_samples_leave_the_others_alone(isa, lanes):
    weight, bias, y0 = tanh_problem(True, 64, 5, F64)
    good = torch.arange(64) % 3 != 1
    spoilt = y0.clone()
    spoilt[~good] = math.nan
    grad = torch.randn(len(TIMES), 64, 5, dtype=F64)
    clean, dirty = (tanh_field(5, F64, weight, bias, lanes).solve(y, TIMES, every=1) for y in (y0, spoilt))
    assert (dirty.status[~good] == Status.NON_FINITE).all()
    assert same_bits(dirty.ys[:, good], clean.ys[:, good])
    assert dirty.ys[2:, ~good].isnan().all()
    gradients = [s.adjoint(grad) for s in (clean, dirty)]
    for one, other in zip(*map(flat, gradients), strict=True):
        assert same_bits(one[good], other[good])
        assert (other[~good] == 0).all()


def test_empty_batches_empty_states_and_programs_without_a_reverse_routine():
    program = growth(2, 16)
    empty = program.solve(torch.empty(0, 2, dtype=F64), TIMES, every=1)
    assert empty.ys.shape == (6, 0, 2)
    assert empty.adjoint(torch.empty(6, 0, 2, dtype=F64))[0].shape == (0, 2)
    nothing = Program(0, [], F64, 16, shared=[torch.ones(3, dtype=F64)])
    solved = nothing.solve(torch.empty(5, 0, dtype=F64), TIMES, every=1)
    assert (solved.status == Status.SUCCESS).all()
    forward_only = Program(2, [ins("square", 2, at("OUT"), at("IN"))], F64, 16)
    with pytest.raises(ValueError, match="no reverse routine"):
        forward_only.vjp(torch.ones(3, 2, dtype=F64), torch.ones(3, 2, dtype=F64))
    with pytest.raises(ValueError, match="0 shared and 0 per-sample leaves"):
        forward_only.program.evaluate(3, 0, 0, [1], [], [], 0, 1)
    assert isinstance(solved, Solved)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("lanes", LAYOUTS)
@pytest.mark.parametrize("per_sample", [True, False])
def test_one_pullback_is_that_of_torch(isa, per_sample, lanes, dtype):
    weight, bias, y0 = tanh_problem(per_sample, 41, 9, dtype)
    g = torch.randn_like(y0)
    leaves = [x.clone().requires_grad_() for x in (weight, bias, y0)]
    tanh_torch(*leaves[:2])(0, leaves[2]).backward(g)
    program = tanh_field(9, dtype, weight, bias, lanes)
    grad_y, shared, params = program.vjp(y0, g, threads=2)
    for ours, leaf in zip([*(params if per_sample else shared), grad_y], leaves, strict=True):
        torch.testing.assert_close(ours, leaf.grad, rtol=40 * torch.finfo(dtype).eps, atol=40 * torch.finfo(dtype).eps)


def test_sizes_that_cannot_be_are_refused():
    """Before anything is allocated or written."""
    weight, bias, y0 = tanh_problem(False, 3, 2, F64)
    program = tanh_field(2, F64, weight, bias, 16)
    for every in (2**41, 2**62, -1):
        with pytest.raises(ValueError, match="every must be between"):
            program.solve(y0, TIMES, "dopri5", 1e-5, 1e-6, every=every)
    with pytest.raises(ValueError, match="must not be negative"):
        _C.StepRecord64(-1, 2, 1, 0)
    with pytest.raises(ValueError, match="product is above"):
        _C.StepRecord64(2**31, 2**31, 1, 0)
