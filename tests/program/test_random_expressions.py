"""Random expressions of what programs know, at ordinary and special points, against torch in float64 or refused."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F

from fastode.program.capture import Capture
from tests.program.special import EXECUTORS
from tests.program.tools import F64, attempt

ONE = [
    *(torch.abs, torch.sin, torch.tanh, torch.sigmoid, torch.relu, torch.floor, torch.round, torch.sign, torch.square),
    *(torch.atan, torch.asinh, torch.erf, torch.frac, F.softplus, F.gelu, F.silu, F.elu, F.hardtanh, F.relu6),
    *(F.hardswish, F.softsign, F.leaky_relu, F.mish),
    *(lambda x: x.clamp(-1, 1), lambda x: x**3, lambda x: x / 3, lambda x: -2 * x, lambda x: x % 0.75),
    *(lambda x: x.detach(), lambda x: (x > 0).to(x.dtype), lambda x: (~(x > 1)).to(x.dtype), lambda x: x.bool() * x),
    *(lambda x: x.softmax(-1), lambda x: x.flip(-1), lambda x: x.cumsum(-1), lambda x: x - x.mean(-1, keepdim=True)),
    *(lambda x: x.amax(-1, keepdim=True) + x, lambda x: x.max(-1, keepdim=True).values * x, lambda x: x.roll(1, -1)),
    *(lambda x: x.logsumexp(-1, keepdim=True) - x, lambda x: x / (1 + x.norm(dim=-1, keepdim=True))),
    *(lambda x: torch.div(x, -0.3, rounding_mode="floor"), lambda x: torch.div(x, 0.3, rounding_mode="trunc")),
]
TWO = [
    *(torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum, torch.fmax, torch.hypot, torch.atan2),
    torch.logaddexp,
    *(
        lambda x, y: torch.where(x > y, x, y),
        lambda x, y: torch.where(x == y, x, 2 * y),
        lambda x, y: x / (y.abs() + 1),
    ),
    *(
        lambda x, y: torch.lerp(x, y, 0.7),
        lambda x, y: x.clamp(max=y),
        lambda x, y: x * torch.logical_xor(x > 0, y > 0),
    ),
    *(lambda x, y: x * ((x > 0) + (y > 0)).to(x.dtype), lambda x, y: x * ((x > 0) * (y > 1))),
    *(lambda x, y: x.masked_fill(y > 0, 0.5), lambda x, y: torch.remainder(x, y.abs() + 0.5)),
    *(lambda x, y: torch.fmod(x, y.abs() + 0.5), lambda x, y: F.huber_loss(x, y, reduction="none")),
    *(lambda x, y: torch.stack([x, y]).amax(0), lambda x, y: torch.cat([x, y], -1)[..., 1:4]),
]
EXPRESSIONS = st.recursive(
    st.sampled_from(["y"]),
    lambda inner: st.one_of(
        st.tuples(st.integers(0, len(ONE) - 1), inner), st.tuples(st.integers(0, len(TWO) - 1), inner, inner)
    ),
    max_leaves=6,
)
SPECIAL = torch.tensor([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, 3.0, -3.0, 6.0, 0.75, -1.5], dtype=F64)


def value(expression, y):
    if expression == "y":
        return y
    number, *operands = expression
    return (ONE if len(operands) == 1 else TWO)[number](*(value(operand, y) for operand in operands))


@pytest.mark.filterwarnings("ignore::UserWarning")
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(EXPRESSIONS, st.integers(0, 1000))
def test_as_torch_has_it(expression, seed):
    random = torch.Generator().manual_seed(seed)
    ordinary = torch.randn(4, 3, generator=random, dtype=F64)
    points = SPECIAL[torch.randint(len(SPECIAL), (20, 3), generator=random)]
    found = attempt(lambda t, y: value(expression, y), ordinary)
    if not isinstance(found, Capture):
        return
    y = torch.cat([ordinary, points])
    own = y.clone().requires_grad_()
    right = value(expression, own)
    g = torch.randn(right.shape, generator=random, dtype=F64)
    grad = torch.autograd.grad(right, own, g, materialize_grads=True)[0] if right.requires_grad else torch.zeros_like(y)
    for executor, run in EXECUTORS.items():
        got, got_grad = run(found, y, g)
        for mine, torchs in ((got, right.detach()), (got_grad, grad)):
            message = lambda text, by=executor: f"{by}: {text}"  # noqa: E731
            torch.testing.assert_close(mine, torchs, rtol=1e-8, atol=1e-8, equal_nan=True, msg=message)
