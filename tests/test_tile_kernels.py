"""The operations of the tile machine one by one, and its mathematical functions to the last few bits."""

import math

import numpy as np
import pytest
import torch
from scipy import special

from fastode._environment import _C
from tests.problems import same_bits
from tests.tile_tools import BINARY, IMM, NONE, UNARY, Program, at, code, ins

DTYPES = [torch.float32, torch.float64]
LANES = [1, 16, 48]
BATCH = 37  # of no vector width, and not a whole number of tiles


@pytest.fixture(params=_C.usable_isas())
def isa(request):
    _C.set_isa(request.param)
    return request.param


def run(op, inputs, lanes, n=None, **options):
    """out = op(inputs) with each input (B, n) or (B, 1) as a per-sample leaf."""
    dtype = inputs[0].dtype
    n = max(x.shape[1] for x in inputs) if n is None else n
    starts = np.cumsum([0] + [x.shape[1] for x in inputs])
    operands = [at("PARAM", int(s), int(x.shape[1] > 1 or n == 1)) for s, x in zip(starts, inputs, strict=False)]
    program = Program(n, [ins(op, n, at("OUT"), *operands, **options)], dtype, lanes, params=inputs)
    return program.evaluate(torch.zeros(len(inputs[0]), n, dtype=dtype))


DOMAIN = {
    "sqrt": (0, 10), "rsqrt": (0.1, 10), "reciprocal": (0.1, 10), "log": (0.01, 100), "log1p": (-0.9, 50),
    "asin": (-1, 1), "acos": (-1, 1), "tan": (-1.5, 1.5),
}  # fmt: skip
SPECIAL = [
    0.0,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1e-30,
    -1e-30,
    1e30,
    -1e30,
    88.5,
    -103.0,
    3e5,
]
TORCH = {
    "copy": lambda x: x,
    "logical_not": lambda x: torch.logical_not(x).to(x.dtype),
    "softplus": torch.nn.functional.softplus,
}


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", UNARY)
def test_unary_operations_agree_with_torch(isa, op, dtype, lanes):
    low, high = DOMAIN.get(op, (-6, 6))
    x = (torch.rand(BATCH, 7, dtype=torch.float64) * (high - low) + low).to(dtype)
    edges = torch.tensor(SPECIAL, dtype=dtype).repeat(2)[:, None].expand(-1, 3).contiguous()
    function = TORCH.get(op) or getattr(torch, op)
    for values in (x, edges, torch.cat([edges, x[:5, :3]])):
        expected = function(values)
        tiny = torch.finfo(dtype).tiny  # below it relative accuracy is not asked for
        torch.testing.assert_close(
            run(op, [values], lanes), expected, rtol=12 * torch.finfo(dtype).eps, atol=4 * tiny, equal_nan=True
        )


def binary(op, a, b):
    if op == "tanh_back":
        return a * (1 - b * b)
    if op == "sigmoid_back":
        return a * b * (1 - b)
    if op == "softplus_back":
        return torch.where(b > 20, a, a * torch.sigmoid(b))
    return getattr(torch, op)(a, b).to(a.dtype)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", BINARY)
def test_binary_operations_agree_with_torch(isa, op, dtype, lanes):
    a, b = torch.randn(2, BATCH, 5, dtype=dtype) * 3
    if op == "pow":
        a = a.abs()
    a[::3] = a[::3].round()
    b[::2] = b[::2].round()
    b[1], a[2], b[4] = math.nan, math.nan, 0.0
    close = {"rtol": 12 * torch.finfo(dtype).eps, "atol": 12 * torch.finfo(dtype).eps, "equal_nan": True}
    torch.testing.assert_close(run(op, [a, b], lanes), binary(op, a, b), **close)
    one = torch.full_like(a, 1.5)
    for x, y in ((a[:, :1].contiguous(), b), (a, b[:, :1].contiguous())):  # one component for all
        torch.testing.assert_close(run(op, [x, y], lanes, n=5), binary(op, x.expand_as(a), y.expand_as(a)), **close)
    left, right = (IMM, at("PARAM")), (at("PARAM"), IMM)
    for operands, imm, expected in ((left, (1.5, 0.0), binary(op, one, b)), (right, (0.0, 1.5), binary(op, b, one))):
        program = Program(5, [ins(op, 5, at("OUT"), *operands, imm=imm)], dtype, lanes, params=[b])
        torch.testing.assert_close(program.evaluate(torch.zeros_like(a)), expected, **close)
    weights = torch.randn(5, dtype=dtype)
    for s0 in (0, 1):  # weights common to all samples
        program = Program(5, [ins(op, 5, at("OUT"), at("IN"), at("SHARED", 0, s0))], dtype, lanes, shared=[weights])
        w = (weights if s0 else weights[:1]).expand_as(b)
        torch.testing.assert_close(program.evaluate(b), binary(op, b, w), **close)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pow_at_the_limits_is_that_of_torch(isa, dtype):
    values = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, math.inf, -math.inf, math.nan, 1e16, 1e-300, 2.5]
    a, b = (
        x.reshape(-1, 1).contiguous() for x in torch.meshgrid(*[torch.tensor(values, dtype=dtype)] * 2, indexing="ij")
    )
    torch.testing.assert_close(
        run("pow", [a, b], 16), torch.pow(a, b), rtol=4 * torch.finfo(dtype).eps, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ternary_operations_fill_and_time(isa, dtype, lanes):
    a, b, c = torch.randn(3, BATCH, 5, dtype=dtype)
    a[::2] = 0.0
    assert same_bits(run("where", [a, b, c], lanes), torch.where(a != 0, b, c))
    torch.testing.assert_close(run("fma", [a, b, c], lanes), a * b + c)
    t = torch.rand(BATCH, dtype=torch.float64)
    forward = [ins("fill", 5, at("TMP"), imm=(2.5, 0)), ins("mul", 5, at("OUT"), at("TMP"), at("TIME", 0, 0))]
    out = Program(5, forward, dtype, lanes, n_tmp=5).evaluate(a, t)
    assert same_bits(out, (2.5 * t.to(dtype))[:, None].expand(-1, 5))


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_scatter_and_reductions(isa, dtype, lanes):
    x = torch.randn(BATCH, 12, dtype=dtype)
    gathered = Program(5, [ins("gather", 5, at("OUT"), at("PARAM"))], dtype, lanes, maps=[3, -1, 11, 0, 3], params=[x])
    expected = x[:, [3, 0, 11, 0, 3]]
    expected[:, 1] = 0
    assert same_bits(gathered.evaluate(torch.zeros(BATCH, 5, dtype=dtype)), expected)
    forward = [ins("scatter", 4, at("OUT"), at("PARAM", 2), n1=5, map_at=1)]
    scattered = Program(5, forward, dtype, lanes, maps=[9, 4, 1, -1, 4], params=[x])
    expected = torch.zeros(BATCH, 5, dtype=dtype)
    expected[:, 4], expected[:, 1] = x[:, 2] + x[:, 5], x[:, 3]
    assert same_bits(scattered.evaluate(torch.zeros(BATCH, 5, dtype=dtype)), expected)
    cube = x.reshape(BATCH, 2, 3, 2)
    for op, value in (("sum", cube.sum(2)), ("amax", cube.amax(2))):
        program = Program(4, [ins(op, 2, at("OUT"), at("PARAM"), n1=3, n2=2)], dtype, lanes, params=[x])
        torch.testing.assert_close(program.evaluate(torch.zeros(BATCH, 4, dtype=dtype)), value.reshape(BATCH, 4))


SIZES = [(1, 1, 1), (3, 5, 1), (8, 8, 1), (17, 9, 1), (33, 7, 2), (64, 64, 1), (6, 4, 5), (2, 0, 3)]


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("where", ["SHARED", "PARAM"])
@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_matrix_products(isa, where, size, by_columns, add, dtype, lanes):
    m, k, n = size
    batch = 19
    b, c = torch.randn(batch, k, n, dtype=dtype), torch.randn(batch, m, n, dtype=dtype)
    a = torch.randn(*([batch] if where == "PARAM" else []), m, k, dtype=dtype)
    stored = a.transpose(-1, -2).contiguous() if by_columns else a
    strides = (1, m) if by_columns else (k, 1)
    leaves = [b.reshape(batch, -1), c.reshape(batch, -1)]
    starts = [0, k * n]
    shared = []
    if where == "PARAM":
        leaves.append(stored.reshape(batch, -1))
    else:
        shared.append(stored.reshape(-1))
    matrix = at(where, (k * n + m * n) if where == "PARAM" else 0, *strides)
    right, start = at("PARAM", starts[0], n, 1), at("PARAM", starts[1], n, 1) if add else NONE
    forward = [ins("matmul", m, at("OUT", 0, n, 1), matrix, right, start, n1=k, n2=n)]
    out = Program(m * n, forward, dtype, lanes, shared=shared, params=leaves).evaluate(
        torch.zeros(batch, m * n, dtype=dtype)
    )
    expected = a.double() @ b.double() + (c if add else 0)
    bound = (a.double().abs() @ b.double().abs() + c.abs()) * torch.finfo(dtype).eps * (k + 2)
    assert ((out.reshape(batch, m, n) - expected).abs() <= bound).all()


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("per_column", [False, True])
def test_biases_common_to_all_samples(isa, per_column, columns, lanes):
    weights, x = torch.randn(5, 4), torch.randn(BATCH, 4, columns)
    bias = torch.randn(5, columns if per_column else 1)
    start = at("SHARED", 20, columns, 1) if per_column else at("SHARED", 20, 1, 0)
    forward = [
        ins("matmul", 5, at("OUT", 0, columns, 1), at("SHARED", 0, 4, 1), at("PARAM", 0, columns, 1), start, 4, columns)
    ]
    program = Program(5 * columns, forward, torch.float32, lanes, shared=[weights, bias], params=[x.reshape(BATCH, -1)])
    out = program.evaluate(torch.zeros(BATCH, 5 * columns)).reshape(BATCH, 5, columns)
    torch.testing.assert_close(out, weights @ x + bias)


@pytest.mark.parametrize("lanes", LANES)
def test_products_of_any_operands_and_strides(isa, lanes):
    """The matrix on the right, in place of an addend, with the output by columns."""
    weights, x, y = torch.randn(3, 4), torch.randn(BATCH, 2, 3), torch.randn(BATCH, 2, 4)
    forward = [
        ins("copy", 8, at("TMP"), at("PARAM", 6)),
        ins("matmul", 2, at("TMP", 0, 4, 1), at("PARAM", 0, 3, 1), at("SHARED", 0, 4, 1), at("TMP", 0, 4, 1), 3, 4),
        ins("matmul", 4, at("OUT", 0, 2, 1), at("SHARED", 0, 1, 4), at("PARAM", 0, 1, 3), NONE, 3, 2),
    ]
    params = [x.reshape(BATCH, 6), y.reshape(BATCH, 8)]
    program = Program(8, forward, torch.float32, lanes, n_tmp=8, shared=[weights], params=params)
    expected = (weights.T @ x.transpose(1, 2)).reshape(BATCH, 8)
    torch.testing.assert_close(program.evaluate(torch.zeros(BATCH, 8)), expected)
    forward[2] = ins("copy", 8, at("OUT"), at("TMP"))
    program = Program(8, forward, torch.float32, lanes, n_tmp=8, shared=[weights], params=params)
    torch.testing.assert_close(program.evaluate(torch.zeros(BATCH, 8)), (x @ weights + y).reshape(BATCH, 8))


def ulps(values, exact, dtype):
    """Distance of values from float64 or longdouble `exact`, in units of the last place of dtype."""
    info = np.finfo(np.float32 if dtype == torch.float32 else np.float64)
    size = np.maximum(np.abs(exact), info.tiny)
    unit = np.exp2(np.floor(np.log2(size)) - info.nmant)
    return np.abs(values.astype(exact.dtype) - exact) / unit


# Greatest error in units of the last place, and where it is measured.
ACCURACY = {
    "exp": (2.0, (-87, 88), np.exp),
    "expm1": (3.0, (-20, 80), np.expm1),
    "log": (1.5, (1e-20, 1e20), np.log),
    "log1p": (2.0, (-0.99, 1e4), np.log1p),
    "tanh": (5.0, (-9, 9), np.tanh),
    "sigmoid": (3.0, (-80, 80), lambda x: 1 / (1 + np.exp(-x))),
    "softplus": (3.0, (-80, 20), lambda x: np.log1p(np.exp(x))),
    "sin": (2.0, (-3000, 3000), np.sin),
    "cos": (2.0, (-3000, 3000), np.cos),
    "tan": (4.0, (-1.5, 1.5), np.tan),
    "sinh": (4.0, (-80, 80), np.sinh),
    "cosh": (4.0, (-80, 80), np.cosh),
    "erf": (3.0, (-4, 4), special.erf),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ACCURACY)
def test_functions_are_accurate_to_a_few_units_of_the_last_place(isa, op, dtype):
    limit, (low, high), function = ACCURACY[op]
    wide = np.float64 if dtype == torch.float32 or op == "erf" else np.longdouble
    if wide is np.longdouble and np.finfo(np.longdouble).nmant <= 52:
        wide = np.float64
    slack = 0.5 if wide is np.float64 else 0.0
    generator = np.random.default_rng(0)
    spread = (
        generator.uniform(low, high, 40000) if low < 0 else np.exp(generator.uniform(np.log(low), np.log(high), 40000))
    )
    small = generator.uniform(-1, 1, 40000) * 10.0 ** generator.integers(-12, 1, 40000)
    x = np.concatenate([spread, np.abs(small) + 0.5 if op == "log" else small * min(high, 1)])
    x = torch.from_numpy(x).to(dtype).reshape(-1, 8)
    got = run(op, [x], 64).numpy()
    error = ulps(got, function(x.numpy().astype(wide)), dtype)
    worst = np.unravel_index(error.argmax(), error.shape)
    assert error[worst] <= limit + slack, f"{op}({x.numpy()[worst]!r}) = {got[worst]!r}: {error[worst]} ulp"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_derivative_of_softplus_is_accurate_on_both_sides_of_its_threshold(isa, dtype):
    x = torch.linspace(-80, 30, 40000, dtype=torch.float64).to(dtype).reshape(-1, 8)
    exact = 1 / (1 + np.exp(-x.numpy().astype(np.longdouble)))
    exact[x.numpy() > 20] = 1.0
    assert ulps(run("softplus_back", [torch.ones_like(x), x], 64).numpy(), exact, dtype).max() <= 3.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pow_is_accurate_to_the_last_places(isa, dtype):
    generator = np.random.default_rng(1)
    a = np.exp(generator.uniform(-20, 20, 40000))
    b = generator.uniform(-4, 4, 40000)
    if dtype == torch.float64:
        b *= 7
    a, b = (torch.from_numpy(v).to(dtype).reshape(-1, 8) for v in (a, b))
    wide = np.float64 if dtype == torch.float32 else np.longdouble
    error = ulps(run("pow", [a, b], 64).numpy(), np.power(a.numpy().astype(wide), b.numpy().astype(wide)), dtype)
    assert error.max() <= 1.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_angles_are_those_of_the_library(isa, dtype):
    x = torch.tensor([[1e7, -3e8, 1e15, 6e5, 0.3, -1e20, 5.0, 2e6]], dtype=dtype)
    for op in ("sin", "cos", "tan"):
        torch.testing.assert_close(run(op, [x], 1), getattr(torch, op)(x), rtol=2e-7, atol=1e-7)


BAD = [
    ("TMP, which has 4", ins("copy", 5, at("TMP"), at("IN"))),
    ("operand a touches components 1..5 of IN", ins("copy", 5, at("OUT"), at("IN", 1))),
    ("operand a touches components -1", ins("copy", 5, at("OUT"), at("IN", -1))),
    ("operand a may not be of base GOUT", ins("copy", 5, at("OUT"), at("GOUT"))),
    ("operand out may not be of base IN", ins("copy", 5, at("IN"), at("OUT"))),
    ("operand a may not be of base 77", ins("copy", 5, at("OUT"), (77, 0, 1, 0))),
    ("there is no such operation", ([999, *ins("copy", 1, at("OUT"))[0][1:]], [0.0, 0.0])),
    ("out overlaps operand a", ins("copy", 3, at("TMP", 1), at("TMP"))),
    ("out overlaps operand b", ins("add", 4, at("TMP"), at("IN"), at("TMP", 2, 0))),
    ("its map lies outside", ins("gather", 5, at("OUT"), at("IN"), map_at=1)),
    ("operand a touches components 0..5 of IN", ins("gather", 2, at("OUT"), at("IN"))),
    ("its map points outside", ins("scatter", 2, at("OUT"), at("IN"), n1=5)),
    ("operand b touches components 0..5", ins("matmul", 2, at("OUT"), at("TMP", 0, 0, 0), at("IN"), n1=6, n2=1)),
    ("negative size", ins("copy", -1, at("OUT"), at("IN"))),
    ("does not belong into this routine", ins("acc", 1, at("GSHARED"), at("IN"))),
    ("b and c cannot both be immediates", ins("where", 5, at("OUT"), at("IN"), IMM, IMM)),
]


@pytest.mark.parametrize(("message", "instruction"), BAD, ids=[m for m, _ in BAD])
def test_instructions_that_leave_their_memory_are_refused(message, instruction):
    with pytest.raises(ValueError, match=r"forward\[1\].*" + message):
        Program(5, [ins("fill", 1, at("TMP")), instruction], torch.float32, n_tmp=4, maps=[5, 1, 2])


def test_packs_and_lanes_are_checked():
    x = torch.zeros(3, 4)
    good = {"forward": [], "dtype": torch.float32, "params": [x]}
    Program(2, **good, param_pack=[[0, 0, 2, 2, 1, 2, 0]], n_param=4)
    for pack, message in (
        ([[0, 1, 2, 2, 1, 2, 0]], "reads outside"),
        ([[0, 0, 2, 2, 1, 2, 1]], "writes outside"),
        ([[1, 0, 1, 1, 1, 1, 0]], "no such leaf"),
        ([[0, 0, -1, 1, 1, 1, 0]], "negative"),
    ):
        with pytest.raises(ValueError, match=message):
            Program(2, **good, param_pack=pack, n_param=4)
    for lanes in (0, 8, 17, 272, -16):
        with pytest.raises(ValueError, match="lanes must be 1 or a multiple of 16"):
            Program(2, [], torch.float32, lanes)
    assert code([])[0].shape == (0, 24)
