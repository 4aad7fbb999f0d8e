"""``_C.combine`` against the same sum in float64, for every instruction set, and its promise of equal bits."""

import gc
import threading

import pytest
import torch

from fastode._environment import _C

DTYPES = [torch.float32, torch.float64]
SHAPES = [(1, 1), (7, 1), (5, 3), (3, 16), (100, 17), (2, 700), (300, 130)]


def combine(coefs, terms, base=None, scale=None, out=None):
    """``_C.combine`` on tensors of equal shape (n, d)."""
    out = torch.full_like(terms[0], float("nan")) if out is None else out
    pointers = [term.data_ptr() for term in terms]
    base_pointer, scale_pointer = (0 if each is None else each.data_ptr() for each in (base, scale))
    double = out.dtype == torch.float64
    _C.combine(out.data_ptr(), base_pointer, scale_pointer, coefs, pointers, *out.shape, double)
    return out


def inputs(m, n, d, dtype):
    terms = [torch.randn(n, d, dtype=dtype) for _ in range(m)]
    return torch.randn(m).tolist(), terms, torch.randn(n, d, dtype=dtype), torch.rand(n, dtype=torch.float64)


@pytest.fixture(params=_C.usable_isas())
def isa(request):
    _C.set_isa(request.param)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 17, 32])
def test_agrees_with_the_sum_in_float64(isa, m, shape, dtype):
    coefs, terms, base, scale = inputs(m, *shape, dtype)
    rounded = torch.tensor(coefs).to(dtype).double()
    total = sum(c * x.double() for c, x in zip(rounded, terms, strict=True))
    magnitude = sum(abs(c) * x.double().abs() for c, x in zip(rounded, terms, strict=True))
    for given_base in (None, base):
        for given_scale in (None, scale):
            result = combine(coefs, terms, given_base, given_scale).double()
            factor = 1.0 if given_scale is None else scale.to(dtype).double()[:, None]
            offset = 0.0 if given_base is None else base.double()
            # m roundings of the sum, one more of the last operation: the textbook bound of a recursive sum.
            bound = (m + 2) * torch.finfo(dtype).eps * (magnitude * factor + abs(offset))
            assert ((result - (offset + factor * total)).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 5, 15, 16, 33, 600])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(isa, d, dtype):
    coefs, terms, base, scale = inputs(11, 40, d, dtype)
    whole = combine(coefs, terms, base, scale)
    for first, last in [(0, 1), (3, 4), (39, 40), (5, 12), (1, 40)]:
        part = combine(coefs, [x[first:last] for x in terms], base[first:last], scale[first:last])
        assert torch.equal(part, whole[first:last])


@pytest.mark.parametrize("shape", [(3000, 50), (2, 90_000), (100_001, 1)], ids=str)
def test_the_number_of_threads_does_not_change_the_bits(isa, shape):
    coefs, terms, base, scale = inputs(3, *shape, torch.float32)
    results = []
    for threads in (1, 2, 3):
        _C.set_num_threads(threads)
        results.append(combine(coefs, terms, base, scale))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.skipif(len(_C.usable_isas()) < 3, reason="needs AVX2 and AVX-512")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_instruction_sets_with_fused_multiply_add_agree_exactly(dtype):
    coefs, terms, base, scale = inputs(13, 90, 21, dtype)
    results = []
    for name in ("avx2", "avx512"):
        _C.set_isa(name)
        results.append(combine(coefs, terms, base, scale))
    assert torch.equal(*results)


@pytest.mark.parametrize("which", ["base", "first", "last"])
@pytest.mark.parametrize("m", [3, 20])
def test_the_result_may_replace_an_input(isa, m, which):
    coefs, terms, base, scale = inputs(m, 60, 40, torch.float64)
    expected = combine(coefs, terms, base, scale)
    out = {"base": base, "first": terms[0], "last": terms[-1]}[which]
    assert torch.equal(combine(coefs, terms, base, scale, out=out), expected)


def test_terms_with_a_zero_coefficient_are_not_read(isa):
    coefs, terms, base, scale = inputs(4, 10, 6, torch.float32)
    terms[1].fill_(float("nan"))
    coefs[1] = 0.0
    without = combine(coefs[:1] + coefs[2:], terms[:1] + terms[2:], base, scale)
    assert torch.equal(combine(coefs, terms, base, scale), without)
    pointers = [term.data_ptr() for term in terms]
    pointers[1] = 0
    out = torch.empty_like(base)
    _C.combine(out.data_ptr(), base.data_ptr(), scale.data_ptr(), coefs, pointers, 10, 6, False)
    assert torch.equal(out, without)


def test_without_terms_the_base_is_copied():
    base, out = torch.randn(5, 4), torch.full((5, 4), float("nan"))
    _C.combine(out.data_ptr(), base.data_ptr(), 0, [], [], 5, 4, False)
    assert torch.equal(out, base)
    _C.combine(out.data_ptr(), 0, 0, [0.0], [0], 5, 4, False)
    assert torch.equal(out, torch.zeros(5, 4))


@pytest.mark.parametrize(("n", "d"), [(0, 3), (3, 0)])
def test_nothing_is_touched_where_there_is_nothing_to_do(n, d):
    out = torch.full((3, 3), 7.0)
    _C.combine(out.data_ptr(), 0, 0, [0.0], [0], n, d, False)
    assert (out == 7.0).all()


def test_wrong_arguments_raise():
    x = torch.zeros(2, 2)
    pointer = x.data_ptr()
    with pytest.raises(ValueError, match="2 coefficients but 1 pointers"):
        _C.combine(pointer, 0, 0, [1.0, 2.0], [pointer], 2, 2, False)
    with pytest.raises(ValueError, match="at most 32 terms, got 33"):
        _C.combine(pointer, 0, 0, [1.0] * 33, [pointer] * 33, 2, 2, False)
    with pytest.raises(ValueError, match="must not be negative"):
        _C.combine(pointer, 0, 0, [1.0], [pointer], -1, 2, False)
    with pytest.raises(TypeError):
        _C.combine(pointer, 0, 0, ["a"], [pointer], 2, 2, False)
    with pytest.raises(TypeError):
        _C.combine(pointer, 0, 0, [1.0], [1.5], 2, 2, False)
    with pytest.raises(OverflowError):
        _C.combine(pointer, 0, 0, [1.0], [-8], 2, 2, False)
    assert (x == 0).all()


def test_callers_in_several_python_threads_do_not_disturb_each_other():
    _C.set_num_threads(2)
    cases = [inputs(4, 2000, 30 + key, torch.float32) for key in range(4)]
    expected = [combine(*case) for case in cases]
    wrong = []

    def call(key: int) -> None:
        for _ in range(20):
            if not torch.equal(combine(*cases[key]), expected[key]):
                wrong.append(key)

    callers = [threading.Thread(target=call, args=(key,)) for key in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_calls_leave_no_references_behind():
    coefs, terms, base, scale = inputs(5, 4, 4, torch.float64)
    pointers = [term.data_ptr() for term in terms]
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(1000):
        _C.combine(base.data_ptr(), 0, scale.data_ptr(), coefs, pointers, 4, 4, True)
    assert len(gc.get_objects()) - before < 100
