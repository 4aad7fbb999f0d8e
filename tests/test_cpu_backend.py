"""Backend ``cpu`` from field to gradient: everything that lowers is solved as by the reference."""

import pytest
import torch
from torch import nn

import fastode
from fastode import Checkpoint
from fastode.backends.cpu import backend, tile
from fastode.fields import ControlledField, MLPField
from fastode.tree import leaves, tree_map
from tests.problems import assert_as_accurate, stats_of
from tests.program.test_fields import FIELDS, MODULES, Case, randn
from tests.program.tools import F32, F64, moved

T = [0.0, 0.05, 0.12]


def case_of(name):
    if name in FIELDS:
        return FIELDS[name]()
    kind, shape = MODULES[name]
    nested = isinstance(shape[0], tuple)
    return Case(kind(), tuple(randn(5, *s) for s in shape) if nested else randn(5, *shape))


def solved(case, dtype, backend, batch=37, **options):
    """Outputs, solution and gradients of a loss by state, controls and parameters."""
    torch.manual_seed(3)
    if isinstance(case.field, nn.Module):
        case.field.to(dtype)
    leaf = lambda x: x.to(dtype).requires_grad_()  # noqa: E731
    y0 = tree_map(leaf, moved(case.y0, batch, 0.1))
    controls = None if case.controls is None else tree_map(leaf, moved(case.controls, batch, 0.1))
    solution = fastode.solve(case.field, y0, T, controls=controls, backend=backend, **options)
    ys = torch.cat([y.reshape(len(T), batch, -1) for y in leaves(solution.ys)], dim=2)
    parameters = list(case.field.parameters()) if isinstance(case.field, nn.Module) else []
    sources = [*leaves(y0), *([] if controls is None else leaves(controls)), *parameters]
    weights = torch.randn(ys.shape, dtype=F64).to(dtype)
    grads = torch.autograd.grad((ys * weights).sum(), sources, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(sources, grads, strict=True)]
    return ys.detach(), solution, grads


NAMES = [*FIELDS, *MODULES]


@pytest.mark.parametrize("name", NAMES)
def test_steps_values_and_every_gradient_are_those_of_the_reference(name):
    case = case_of(name)
    options = {"rtol": 1e-6, "atol": 1e-6}
    ys, solution, grads = solved(case, F64, "cpu", **options)
    expected, reference, truth = solved(case, F64, "reference", **options)
    assert torch.equal(stats_of(solution), stats_of(reference))
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(ys, expected, rtol=1e-9, atol=1e-10 * scale)
    for grad, exact in zip(grads, truth, strict=True):
        torch.testing.assert_close(grad, exact, rtol=1e-7, atol=1e-8 * max(1.0, float(exact.abs().max())))


@pytest.fixture
def wide(monkeypatch):
    """Every state without shared products is one of many components."""
    made = {}

    def tiles_of(capture, dtype):
        key = id(capture), dtype
        if key not in made:
            made[key] = capture, tile.Tiles(capture, dtype)
        return made[key][1]

    monkeypatch.setattr(tile, "_WIDE", 1)
    monkeypatch.setattr(backend, "tiles_of", tiles_of)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_layout_of_states_with_many_components(name, wide):
    case = case_of(name)
    options = {"rtol": 1e-6, "atol": 1e-6}
    ys, solution, grads = solved(case, F64, "cpu", **options)
    assert all(tiles.rows == tiles.rows_backward for _, tiles in wide.values() if tiles.largest_shared_product == 0)
    expected, reference, truth = solved(case, F64, "reference", **options)
    assert torch.equal(stats_of(solution), stats_of(reference))
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(ys, expected, rtol=1e-9, atol=1e-10 * scale)
    for grad, exact in zip(grads, truth, strict=True):
        torch.testing.assert_close(grad, exact, rtol=1e-7, atol=1e-8 * max(1.0, float(exact.abs().max())))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "robertson"])  # too stiff for such steps
def test_float32_is_as_accurate_as_torch(name):
    """Fixed steps, so that all take the same; errors against float64, next to those of the same steps in torch."""
    case = case_of(name)
    options = {"method": "rk4", "step_size": 0.01}
    ys, _, grads = solved(case, F32, "cpu", **options)
    baseline, _, plain = solved(case, F32, "reference", **options)
    truth, _, exact = solved(case, F64, "reference", **options)
    assert_as_accurate(ys, baseline, truth)
    assert_as_accurate(grads, plain, exact)  # together: some are zero by cancellation only


@pytest.mark.parametrize("batch", [1, 15, 16, 17, 130])
@pytest.mark.parametrize("dim", [1, 7, 24])
def test_batches_and_widths_that_fit_no_vector(batch, dim):
    """Per-sample weights: below 400 entries lanes are samples, above components."""
    case = Case(ControlledField(dim, activation="sin"), randn(5, dim), randn(5, dim * dim + dim) / dim**0.5)
    ys, solution, grads = solved(case, F64, "cpu", batch)
    expected, reference, truth = solved(case, F64, "reference", batch)
    assert torch.equal(stats_of(solution), stats_of(reference))
    torch.testing.assert_close(ys, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(grads, truth, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("field", [MLPField(5, (40, 40)), ControlledField(5), ControlledField(24)], ids=str)
def test_the_same_bits_for_any_number_of_threads(field):
    controls = randn(5, field.n_controls) if isinstance(field, ControlledField) else None
    case = Case(field, randn(5, field.dim), controls)
    try:
        results = []
        for threads in (1, 2, 3):
            fastode.set_num_threads(threads)
            ys, _, grads = solved(case, F32, "cpu", 700)
            results.append([ys, *grads])
    finally:
        fastode.set_num_threads(None)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("policy", [Checkpoint(3), Checkpoint(max_bytes=2000)], ids=str)
def test_fewer_states_give_the_same_gradient(policy):
    case = Case(MLPField(3, (9,)), randn(5, 3))
    options = {"rtol": 1e-8, "atol": 1e-8}
    all_kept, fewer = (solved(case, F64, "cpu", gradient=p, **options)[2] for p in ("checkpoint", policy))
    torch.testing.assert_close(all_kept, fewer, rtol=1e-12, atol=1e-12)


def test_memory_is_the_record_whatever_the_field_costs():
    """What is kept for the gradient counts accepted steps, not evaluations or layers."""
    y0 = torch.randn(50, 3, requires_grad=True)
    kept = []
    for hidden in ((4,), (64, 64, 64)):
        field = MLPField(3, hidden)
        ys = fastode.solve(field, y0, [0.0, 1.0], backend="cpu", method="dopri5", step_size=0.1).ys
        record = ys.grad_fn.record
        kept.append(record.states.numel() + record.table.numel() + 2 * record.offsets.numel())
        assert len(record.table) == len(record.states) == 50 * 10
    assert kept[0] == kept[1]


def test_what_auto_takes():
    def names(field, y0, **options):
        found = fastode.explain(field, y0, **options)
        return found.backend, dict(found.reasons)

    y0 = torch.randn(4, 3)
    assert names(MLPField(3), y0) == ("cpu", {})
    backend, reasons = names(lambda t, y: y - y.mean(0), y0)
    assert backend == "stepped"
    assert "over the samples" in reasons["cpu"]
    backend, reasons = names(MLPField(3, (1024, 1024)), y0)
    assert backend == "stepped"
    assert "faster in torch" in reasons["cpu"]
    assert fastode.explain(MLPField(3, (1024, 1024)), y0, backend="cpu").backend == "cpu"
    with pytest.raises(RuntimeError, match=r"backend 'cpu' cannot run this solve: .* over the samples"):
        fastode.solve(lambda t, y: y - y.mean(0), y0, [0.0, 1.0], backend="cpu")
    with pytest.raises(RuntimeError, match="does not evaluate single points"):
        fastode.solve(lambda t, y: -y, y0, [0.0, 1.0], backend="cpu", gradient="adjoint")


def test_a_sample_that_explodes_leaves_the_others():
    y0 = torch.tensor([[0.1], [5.0], [0.2]], dtype=F64, requires_grad=True)
    sol = fastode.solve(lambda t, y: y * y, y0, [0.0, 1.0], backend="cpu", on_failure="nan")
    assert sol.status.tolist()[::2] == [0, 0]
    assert sol.status[1] != 0
    assert sol.ys[-1, 1].isnan().all()
    (grad,) = torch.autograd.grad(sol.ys[-1, ::2].sum(), y0)
    torch.testing.assert_close(grad[::2], 1 / (1 - y0.detach()[::2]) ** 2, rtol=1e-4, atol=1e-4)
    assert grad[1] == 0
