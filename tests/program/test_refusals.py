"""Fields without a program: the reason names what prevents it and where it stands, and solve is right all the same."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import fastode
from tests.program.tools import F64, attempt, check, refusal_of


def randn(*shape):
    return torch.randn(*shape, dtype=F64)


def network(*modules):
    net = nn.Sequential(*modules).to(F64)
    return lambda t, y: net(y)


class Counting(nn.Module):
    """Counts its evaluations, as many published fields do."""

    def __init__(self):
        super().__init__()
        self.nfe = 0

    def forward(self, t, y):
        self.nfe += 1
        return -y


class CountingInBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("nfe", torch.zeros(()))

    def forward(self, t, y):
        self.nfe += 1
        return -y


class WritingBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(3, dtype=F64))

    def forward(self, t, y):
        with torch.no_grad():
            self.last.copy_(y[0])
        return -y


def appending():
    history = []

    def field(t, y):
        history.append(1)
        return -y

    return field


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class Cubed(torch.autograd.Function):
    """With the gradient that it has."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


def branching(t, y):
    if y.sum() > 0:
        return -y
    return -2 * y


def counting_samples(t, y):
    return -y * y.shape[0]


def by_batch_size(t, y):
    return -y if y.shape[0] < 3 else -2 * y


def through_numpy(t, y):
    return torch.from_numpy(-y.detach().numpy())


def conv(t, y):
    return nn.functional.conv1d(y[:, None], torch.ones(1, 1, 3, dtype=y.dtype), padding=1)[:, 0]


# name: (field, words of the reason, whether the line is known)
REFUSED = {
    "batch_norm": (lambda: network(nn.Linear(3, 3), nn.BatchNorm1d(3)), r"writes into .*num_batches_tracked", True),
    "mean": (lambda: lambda t, y: y - y.mean(0), "over the samples", True),
    "mean_kept": (lambda: lambda t, y: y - y.mean(0, keepdim=True), "over the samples", True),
    "total": (lambda: lambda t, y: y / y.abs().sum(), "over the samples", True),
    "max": (lambda: lambda t, y: y / y.max(), "", True),
    "softmax": (lambda: lambda t, y: y.softmax(0), "over the samples", True),
    "cumsum": (lambda: lambda t, y: y.cumsum(0), "over the samples", True),
    "flip": (lambda: lambda t, y: y.flip(0), "along the batch", True),
    "roll": (lambda: lambda t, y: y.roll(1, 0), "along the batch", True),
    "roll_all": (lambda: lambda t, y: y.roll(1), "along the batch", True),
    "sample": (lambda: lambda t, y: y - y[0], "sample", True),
    "last_sample": (lambda: lambda t, y: y - y[-1:], "sample", True),
    "samples": (lambda: lambda t, y: y[[1, 0, 2, 4, 3]], "IndexError for fewer samples", False),
    "half": (lambda: lambda t, y: torch.cat([y[: len(y) // 2], y[len(y) // 2 :]]), "", True),
    "sort": (lambda: lambda t, y: y.sort(0).values, "", True),
    "sort_components": (lambda: lambda t, y: y.sort(-1).values, "aten.sort", True),
    "pairs": (lambda: lambda t, y: (y @ y.T) @ y, "pairs of samples|samples", True),
    "distances": (lambda: lambda t, y: (y[:, None] - y[None]).sum(1), "", True),
    "gram": (lambda: lambda t, y: y @ (y.T @ y), "samples", True),
    "merged": (lambda: lambda t, y: y.T.reshape(-1, 3), "samples", False),
    "stacked": (lambda: lambda t, y: torch.cat([y, y])[: len(y)], "batch", True),
    "dropout": (lambda: network(nn.Linear(3, 3), nn.Dropout()), "random", True),
    "rand": (lambda: lambda t, y: y * torch.rand_like(y), "random", True),
    "randn": (lambda: lambda t, y: y + torch.randn(3, dtype=y.dtype), "random", True),
    "item": (lambda: lambda t, y: y * t[0, 0].item(), "to Python", True),
    "float": (lambda: lambda t, y: y * float(t[0, 0]), "to Python", True),
    "branch": (lambda: branching, "to Python", True),
    "allclose": (lambda: lambda t, y: -y if torch.equal(y, y) else y, "to Python", True),
    "counting_samples": (lambda: counting_samples, "2.* for 2 samples|argument", True),
    "by_batch_size": (lambda: by_batch_size, "number of the samples", True),
    "nfe": (Counting, "nfe", False),
    "nfe_buffer": (CountingInBuffer, "writes into", True),
    "buffer": (WritingBuffer, "writes into|sample", True),
    "append": (appending, "history", False),
    "conv": (lambda: conv, "convolution", True),
    "integer": (lambda: lambda t, y: y.long().to(y.dtype), "int64", True),
    "where_numbers": (lambda: lambda t, y: y * torch.where(y > 0, 1.0, 0.1), "float32", True),
    "float32": (lambda: lambda t, y: -y.float().double(), "float32", True),
    "complex": (lambda: lambda t, y: y * torch.polar(y, y).real, "", True),
    "fft": (lambda: lambda t, y: torch.fft.irfft(torch.fft.rfft(y, dim=-1), n=3, dim=-1), "", True),
    "linalg": (lambda: lambda t, y: torch.linalg.solve(torch.diag_embed(y * y + 1), y), "linalg", True),
    "straight_through": (lambda: lambda t, y: StraightThrough.apply(y), "gradient", False),
    "from_numpy": (lambda: lambda t, y: y * torch.from_numpy(np.array([1.0, 2.0, 3.0])), "anew", False),
    "numpy": (lambda: through_numpy, "", False),
    "floor_divide": (lambda: lambda t, y: y * (y // 0.7), "differentiate", False),
    "topk": (lambda: lambda t, y: y.topk(3).values, "topk", True),
    "unique": (lambda: lambda t, y: y * len(torch.unique(y)), "to Python", True),
    "mask_select": (lambda: lambda t, y: y * y[y > 0].sum(), "", True),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_refusal(name):
    make, words, known = REFUSED[name]
    refusal = refusal_of(make(), randn(5, 3))
    assert re.search(words, refusal.reason), refusal
    assert "capture fails" not in refusal.reason
    if known:
        assert refusal.where is not None
        assert "test_refusals.py" in refusal.where


RANDOM = ("dropout", "rand", "randn")


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in RANDOM])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_solve_is_right_all_the_same(name):
    y0 = 0.5 * randn(5, 3)
    options = {"method": "rk4", "step_size": 0.25, "t": (0.0, 0.5)}
    values = []
    for backend in ("auto", "reference"):
        torch.manual_seed(0)
        values.append(fastode.solve(REFUSED[name][0](), y0, backend=backend, **options).ys)
    torch.testing.assert_close(*values)


def test_own_gradient_is_refused_also_where_it_is_right():
    # Nothing of the recording tells that it is right: inside, gradient is off.
    assert "a gradient of its own" in refusal_of(lambda t, y: -Cubed.apply(y), randn(5, 3)).reason


def test_straight_through_estimator_keeps_its_gradient():
    y0 = randn(5, 3).requires_grad_()
    grads = []
    for backend in ("auto", "reference"):
        ys = fastode.solve(
            lambda t, y: -StraightThrough.apply(y), y0, (0.0, 0.5), method="euler", step_size=0.1, backend=backend
        ).ys
        grads.append(torch.autograd.grad(ys.sum(), y0)[0])
    assert grads[0].abs().max() > 0.1
    torch.testing.assert_close(*grads)


def test_a_tensor_of_unknown_origin_is_refused():
    class Made:
        """Keeps what it made where nobody looks: in the state of a generator."""

        def __init__(self):
            self.next = (w for w in [randn(3)] * 100)

        def __call__(self):
            return next(self.next)

    made = Made()
    assert "next (of type builtins.generator)" in refusal_of(lambda t, y: y * made(), randn(5, 3)).reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_refused(dtype):
    assert str(dtype) in refusal_of(lambda t, y: -y, randn(5, 3).to(dtype)).reason


def test_autocast_is_refused_and_its_end_noticed():
    net = nn.Linear(3, 3)

    def field(t, y):
        return net(y).float()

    y0 = torch.randn(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in refusal_of(field, y0).reason
    check(field, y0)
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in refusal_of(field, y0).reason


def test_no_samples():
    assert "no samples" in refusal_of(lambda t, y: -y, randn(0, 3)).reason


class Own(Exception):
    pass


@pytest.mark.parametrize("backend", ["auto", "stepped", "reference"])
def test_the_exception_of_a_field_reaches_the_user(backend):
    def field(t, y):
        raise Own("mine")

    assert "Own" in refusal_of(field, randn(5, 3)).reason
    with pytest.raises(Own, match="mine"):
        fastode.solve(field, randn(5, 3), (0.0, 1.0), backend=backend)


def test_a_field_that_fails_for_other_numbers_of_samples_is_solved():
    weights = randn(5, 3)

    def field(t, y):
        if y.shape[0] != 5:
            raise Own
        return -weights * y

    y0 = randn(5, 3)
    assert "Own" in refusal_of(field, y0).reason
    ys = [
        fastode.solve(field, y0, (0.0, 1.0), backend=b, method="rk4", step_size=0.1).ys for b in ("auto", "reference")
    ]
    torch.testing.assert_close(*ys)


@pytest.mark.parametrize(
    ("value", "error"), [(lambda y: y[:, :2], ValueError), (lambda y: y.float(), TypeError), (lambda y: 1.0, TypeError)]
)
def test_wrong_values_of_a_field_are_errors_of_solve(value, error):
    assert attempt(lambda t, y: value(y), randn(5, 3))
    with pytest.raises(error, match="field"):
        fastode.solve(lambda t, y: value(y), randn(5, 3), (0.0, 1.0))


def test_writing_into_the_state_is_an_error_of_solve():
    def field(t, y):
        return y.mul_(2)

    refusal_of(field, randn(5, 3))
    with pytest.raises(RuntimeError):
        fastode.solve(field, randn(5, 3), (0.0, 1.0))


def test_capture_says_what_prevents_it():
    with pytest.raises(
        RuntimeError, match=r"no program: .*over the samples, at test_refusals.py:\d+: return y - y.mean\(0\)"
    ):
        fastode.capture(subtracting_the_mean, randn(5, 3))


def test_explain_says_what_prevents_it():
    text = str(fastode.explain(subtracting_the_mean, randn(5, 3)))
    assert text.startswith("backend: stepped\n")
    assert "y - y.mean(0)" in text


def subtracting_the_mean(t, y):
    return y - y.mean(0)


class Decaying:
    """A field with a helper two calls down."""

    def __init__(self, rate):
        self.rate = rate

    def helper(self, y):
        return y.mean(0) * self.rate

    def __call__(self, t, y):
        return self.helper(y) - y


def test_the_line_is_the_innermost_of_the_users():
    assert "return y.mean(0) * self.rate" in refusal_of(Decaying(2.0), randn(5, 3)).where


def test_the_first_of_several_reasons_is_given():
    def field(t, y):
        a = y.mean(0)
        return a + y.flip(0)

    assert "a = y.mean(0)" in refusal_of(field, randn(5, 3)).where


def test_what_the_result_does_not_depend_on_prevents_nothing():
    def field(t, y):
        y.sort(0)
        y.mean(0)
        return -y

    check(field, randn(5, 3))


def test_samples_mixed_by_a_product_that_only_sometimes_shows():
    # Zero for the data at capture, and not for other data.
    def field(t, y):
        return -y + torch.relu(y.sum(0) - 100.0)

    assert "over the samples" in refusal_of(field, randn(5, 3)).reason
