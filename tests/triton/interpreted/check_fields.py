"""Every field that lowers, in both shapes of generated code: solved as by the reference, gradients included."""

import pytest
import torch
from torch import nn

from fastode.backends.triton.heuristics import work
from tests.problems import assert_as_accurate, stats_of
from tests.program.test_fields import HyperControls, randn
from tests.program.tools import F32, F64, program_of
from tests.test_cpu_backend import NAMES, Case, case_of
from tests.triton.interpreted.tools import launched, solved

T = [0.0, 0.05, 0.12, 0.12]
"""An output inside a step, and one that is asked for twice."""
MOST_SCALARISED = 600
"""Operations; the interpreter takes minutes for more."""


def made(name):
    if name == "hyper_controls":
        return Case(HyperControls(), randn(5, 3), randn(5, 2))
    return case_of(name)


def scalar_work(case):
    if isinstance(case.field, nn.Module):
        case.field.to(F64)
    program = program_of(case.field, case.y0, case.controls).program
    return work(program.values())


@pytest.mark.parametrize("launch", ["scalarised", "tiled"])
@pytest.mark.parametrize("name", [*NAMES, "hyper_controls"])
def test_f64(name, launch):
    case = made(name)
    if launch == "scalarised" and scalar_work(case) > MOST_SCALARISED:
        pytest.skip("too many operations for the interpreter")
    options = {"rtol": 1e-6, "atol": 1e-6} if name != "robertson" else {"rtol": 1e-4, "atol": 1e-4}  # stiff
    with launched(launch):
        ys, solution, grads = solved(case, F64, "triton", T, **options)
    expected, reference, truth = solved(case, F64, "reference", T, **options)
    assert torch.equal(stats_of(solution), stats_of(reference))
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(ys, expected, rtol=1e-9, atol=1e-10 * scale)
    for grad, exact in zip(grads, truth, strict=True):
        torch.testing.assert_close(grad, exact, rtol=1e-7, atol=1e-8 * max(1.0, float(exact.abs().max())))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "robertson"])  # too stiff for such steps
def test_f32_is_as_accurate_as_torch(name):
    """Fixed steps, so that all take the same; errors against float64, next to those of the same steps in torch."""
    case = made(name)
    options = {"method": "rk4", "step_size": 0.05}
    with launched(None):  # the shape that the heuristics choose
        ys, _, grads = solved(case, F32, "triton", T, **options)
    baseline, _, plain = solved(case, F32, "reference", T, **options)
    truth, _, exact = solved(case, F64, "reference", T, **options)
    assert_as_accurate(ys, baseline, truth)
    assert_as_accurate(grads, plain, exact)  # together: some are zero by cancellation only
