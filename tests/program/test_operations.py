"""Single torch operations in fields: every overload that programs know, values and gradients against torch."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F

from fastode.program import ir
from fastode.program.capture import Refusal
from fastode.program.evaluate import evaluate, evaluate_pullback
from tests.program.tools import F32, F64, attempt, check, compare, program_of

B, D = 5, 6


def positive(x):
    return x.abs() + 0.2


def inside(x):
    """In (-1, 1)."""
    return torch.tanh(x) * 0.95


# name: f(y, c, t) with y (B, 6), per-sample constants c (B, 6) and t (B, 1)
UNARY = {
    "neg": lambda y, c, t: -y,
    "neg_function": lambda y, c, t: torch.neg(y),
    "pos": lambda y, c, t: +y,
    "abs": lambda y, c, t: y.abs(),
    "sign": lambda y, c, t: y.sign() * y,
    "sgn": lambda y, c, t: torch.sgn(y) * y,
    "sqrt": lambda y, c, t: positive(y).sqrt(),
    "rsqrt": lambda y, c, t: positive(y).rsqrt(),
    "reciprocal": lambda y, c, t: 1 / positive(y) + y.reciprocal(),
    "square": lambda y, c, t: y.square(),
    "exp": lambda y, c, t: y.exp(),
    "exp2": lambda y, c, t: y.exp2(),
    "expm1": lambda y, c, t: y.expm1(),
    "log": lambda y, c, t: positive(y).log(),
    "log2": lambda y, c, t: positive(y).log2(),
    "log10": lambda y, c, t: positive(y).log10(),
    "log1p": lambda y, c, t: positive(y).log1p(),
    "sin": lambda y, c, t: y.sin(),
    "cos": lambda y, c, t: y.cos(),
    "tan": lambda y, c, t: inside(y).tan(),
    "sinh": lambda y, c, t: y.sinh(),
    "cosh": lambda y, c, t: y.cosh(),
    "tanh": lambda y, c, t: y.tanh(),
    "asin": lambda y, c, t: inside(y).asin(),
    "acos": lambda y, c, t: inside(y).acos(),
    "atan": lambda y, c, t: y.atan(),
    "asinh": lambda y, c, t: y.asinh(),
    "acosh": lambda y, c, t: (positive(y) + 1).acosh(),
    "atanh": lambda y, c, t: inside(y).atanh(),
    "sinc": lambda y, c, t: torch.sinc(y),
    "sigmoid": lambda y, c, t: y.sigmoid(),
    "softplus": lambda y, c, t: F.softplus(y),
    "sharper softplus": lambda y, c, t: F.softplus(y, 3.0, 5.0),
    "expit": lambda y, c, t: torch.special.expit(y),
    "logit": lambda y, c, t: torch.logit(positive(inside(y)) / 2),
    "relu": lambda y, c, t: y.relu(),
    "erf": lambda y, c, t: y.erf(),
    "erfc": lambda y, c, t: y.erfc(),
    "ndtr": lambda y, c, t: torch.special.ndtr(y),
    "floor": lambda y, c, t: y.floor() * y,
    "ceil": lambda y, c, t: y.ceil() * y,
    "trunc": lambda y, c, t: y.trunc() * y,
    "fix": lambda y, c, t: y.fix() * y,
    "round": lambda y, c, t: y.round() * y,
    "frac": lambda y, c, t: y.frac(),
    "deg2rad": lambda y, c, t: torch.deg2rad(y),
    "nan_to_num": lambda y, c, t: torch.nan_to_num(y),
    "isfinite": lambda y, c, t: y * torch.isfinite(y),
    "isnan": lambda y, c, t: torch.where(torch.isnan(y), 0.0, y),
    "logical_not": lambda y, c, t: y * torch.logical_not(y > 0),
    "invert": lambda y, c, t: y * ~(y > 0),
    "softmax": lambda y, c, t: y.softmax(-1),
    "clone": lambda y, c, t: y.clone() * y.contiguous(),
    "same_type": lambda y, c, t: y.to(y.dtype).type_as(y),
}
BINARY = {
    "add": lambda y, c, t: (y + c) + 2 + (3 + y),
    "add_alpha": lambda y, c, t: torch.add(y, c, alpha=0.3),
    "add_scalar_alpha": lambda y, c, t: torch.add(y, 2.0, alpha=0.3),
    "sub": lambda y, c, t: (y - c) - 2 - (3 - y),
    "sub_alpha": lambda y, c, t: torch.sub(c, y, alpha=0.3),
    "rsub": lambda y, c, t: torch.rsub(y, c) + torch.rsub(y, 2.0, alpha=3),
    "mul": lambda y, c, t: (y * c) * 2 * (3 * y),
    "mul_bool": lambda y, c, t: y * (c > 0) * True,
    "div": lambda y, c, t: y / positive(c) + c / positive(y) + y / 3 + 2 / positive(y),
    "div_floor": lambda y, c, t: y * torch.div(c, positive(y), rounding_mode="floor"),
    "div_trunc": lambda y, c, t: y * torch.div(y, positive(c), rounding_mode="trunc"),
    "true_divide": lambda y, c, t: torch.true_divide(y, positive(c)),
    "pow": lambda y, c, t: positive(y) ** c,
    "pow_of_number": lambda y, c, t: 1.7**y + torch.pow(2, y),
    "pow_number": lambda y, c, t: positive(y) ** 1.3 + positive(y) ** -0.5,
    "pow_0": lambda y, c, t: y**0 + y,
    "pow_1": lambda y, c, t: y**1,
    "pow_2": lambda y, c, t: y**2,
    "pow_3": lambda y, c, t: y**3,
    "pow_4": lambda y, c, t: y**4.0,
    "pow_5": lambda y, c, t: y**5,
    "pow_half": lambda y, c, t: positive(y) ** 0.5,
    "pow_minus_1": lambda y, c, t: y**-1,
    "pow_minus_2": lambda y, c, t: y**-2,
    "float_power": lambda y, c, t: positive(y).float_power(1.5).to(y.dtype),
    "minimum": lambda y, c, t: torch.minimum(y, c),
    "maximum": lambda y, c, t: torch.maximum(c, y) + torch.max(y, c) + torch.min(c, y),
    "fmin": lambda y, c, t: torch.fmin(y, c) + torch.fmax(y, c),
    "atan2": lambda y, c, t: torch.atan2(y, c) + torch.atan2(c, y),
    "arctan2": lambda y, c, t: torch.arctan2(y, c),
    "fmod": lambda y, c, t: torch.fmod(y, 0.7) + torch.fmod(3 * y, positive(c)) + torch.fmod(c, positive(y)),
    "remainder": lambda y, c, t: y % 0.7 + torch.remainder(3 * y, positive(c)) + torch.remainder(c, positive(y)),
    "hypot": lambda y, c, t: torch.hypot(y, c),
    "logaddexp": lambda y, c, t: torch.logaddexp(y, c),
    "xlogy": lambda y, c, t: torch.xlogy(y, positive(c)),
    "copysign": lambda y, c, t: torch.copysign(y, c),
    "eq": lambda y, c, t: y * (y == c) + y * (y == 0),
    "ne": lambda y, c, t: y * (y != c) + y * (y != 0),
    "lt": lambda y, c, t: y * (y < c) + y * (y < 0.1),
    "le": lambda y, c, t: y * (y <= c) + y * (y <= 0.1),
    "gt": lambda y, c, t: y * (y > c) + y * (y > 0.1),
    "ge": lambda y, c, t: y * (y >= c) + y * (y >= 0.1),
    "logical_and": lambda y, c, t: y * torch.logical_and(y > 0, c > 0) + y * ((y > 0) & (c > 0)),
    "logical_or": lambda y, c, t: y * torch.logical_or(y > 0, c > 0) + y * ((y > 0) | (c > 0)),
    "logical_xor": lambda y, c, t: y * torch.logical_xor(y > 0, c > 0) + y * ((y > 0) ^ (c > 0)),
    "lerp": lambda y, c, t: torch.lerp(y, c, 0.3) + torch.lerp(c, y, t) + torch.lerp(y, c, y),
    "time": lambda y, c, t: y * t + t - c / t,
    "dist": lambda y, c, t: y * (y - c).norm(dim=-1, keepdim=True),
}
TERNARY = {
    "where": lambda y, c, t: torch.where(y > c, y, c * y),
    "where_numbers": lambda y, c, t: torch.where(y > 0, y, 0.3) + torch.where(y > 0, 1.0, y),
    "where_time": lambda y, c, t: torch.where(t > 1, y, c),
    "addcmul": lambda y, c, t: torch.addcmul(c, y, y, value=0.5) + torch.addcmul(y, c, t),
    "addcdiv": lambda y, c, t: torch.addcdiv(c, y, positive(y), value=0.5),
    "clamp": lambda y, c, t: y.clamp(-0.5, 0.5) + y.clamp(min=0.1) + y.clamp(max=0.1) + torch.clip(y, -1, 0.3),
    "clamp_tensor": lambda y, c, t: y.clamp(c - 0.1, c + 0.1) + y.clamp(min=c) + y.clamp(max=c),
    "clamp_moving": lambda y, c, t: c.clamp(y - 0.1, y + 0.1),
    "clamp_min": lambda y, c, t: torch.clamp_min(y, 0.2) + torch.clamp_max(y, c),
    "masked_fill": lambda y, c, t: y.masked_fill(c > 0, 0.5) + y.masked_fill(y > 0, torch.tensor(0.5, dtype=y.dtype)),
    "smooth_step": lambda y, c, t: F.smooth_l1_loss(y, c, reduction="none") + F.huber_loss(y, c, reduction="none"),
    "mse": lambda y, c, t: F.mse_loss(y, c, reduction="none"),
}
REDUCTIONS = {
    "sum": lambda y, c, t: y * y.sum(-1, keepdim=True),
    "sum_dim": lambda y, c, t: y * y.sum(dim=1)[:, None],
    "sum_two_dims": lambda y, c, t: y * y.view(-1, 2, 3).sum((-1, -2))[:, None],
    "sum_middle": lambda y, c, t: y * y.view(-1, 2, 3).sum(1).repeat(1, 2),
    "sum_of_comparisons": lambda y, c, t: y * (y > 0).to(y.dtype).sum(-1, keepdim=True),
    "mean": lambda y, c, t: y - y.mean(-1, keepdim=True) + y.mean(1)[..., None],
    "amax": lambda y, c, t: y - y.amax(-1, keepdim=True),
    "amin": lambda y, c, t: y - y.amin(-1, keepdim=True),
    "max": lambda y, c, t: y - y.max(-1, keepdim=True).values,
    "min": lambda y, c, t: y - y.min(1).values[:, None],
    "prod": lambda y, c, t: y * y.prod(-1, keepdim=True),
    "var": lambda y, c, t: y * y.var(-1, keepdim=True) + y.var(1, unbiased=False)[:, None],
    "std": lambda y, c, t: y * y.std(-1, keepdim=True) + torch.std(y, dim=1, correction=0)[:, None],
    "logsumexp": lambda y, c, t: y * torch.logsumexp(y, -1, keepdim=True),
    "norm": lambda y, c, t: y / y.norm(dim=-1, keepdim=True) + torch.linalg.norm(y, dim=1)[:, None],
    "vector_norm": lambda y, c, t: y * torch.linalg.vector_norm(y, dim=-1, keepdim=True),
    "norm_1": lambda y, c, t: y * torch.linalg.vector_norm(y, ord=1, dim=-1, keepdim=True),
    "norm_inf": lambda y, c, t: y * y.norm(p=math.inf, dim=-1, keepdim=True),
    "norm_3": lambda y, c, t: y * torch.linalg.vector_norm(y, ord=3, dim=-1, keepdim=True),
    "normalize": lambda y, c, t: F.normalize(y, dim=-1),
    "cosine_similarity": lambda y, c, t: y * F.cosine_similarity(y, c, dim=-1)[:, None],
    "softmax": lambda y, c, t: torch.softmax(y, 1) + y.view(-1, 2, 3).softmax(1).flatten(1),
    "log_softmax": lambda y, c, t: F.log_softmax(y, -1),
    "cumsum": lambda y, c, t: y.cumsum(-1) * y,
    "cumprod": lambda y, c, t: y.cumprod(-1),
    "diff": lambda y, c, t: F.pad(y.diff(dim=-1), (1, 0)),
    "trapezoid": lambda y, c, t: y * torch.trapezoid(y, dx=0.1, dim=-1)[:, None],
    "any": lambda y, c, t: y * (y > 1).any(-1, keepdim=True),
    "all": lambda y, c, t: y * (y > -1).all(-1, keepdim=True),
}
PRODUCTS = {
    "dot": lambda y, c, t: y * (y * c).sum(-1, keepdim=True),
    "vecdot": lambda y, c, t: y * torch.linalg.vecdot(y, c)[:, None],
    "einsum_dot": lambda y, c, t: y * torch.einsum("bi,bi->b", y, c)[:, None],
    "einsum_outer": lambda y, c, t: torch.einsum("bi,bj->bij", y, c).sum(1) * y,
    "outer": lambda y, c, t: (y[:, :, None] * c[:, None, :]).sum(1),
    "bmm": lambda y, c, t: torch.bmm(y.view(-1, 2, 3), c.view(-1, 3, 2)).flatten(1).repeat(1, 2)[:, :6],
    "matmul": lambda y, c, t: (c.view(-1, 3, 2) @ y.view(-1, 2, 3)).flatten(1)[:, :6],
    "matmul_vector": lambda y, c, t: (y.view(-1, 2, 3) @ c[:, :3, None]).repeat(1, 3, 1).flatten(1),
    "self": lambda y, c, t: (y.view(-1, 2, 3).mT @ y.view(-1, 2, 3)).flatten(1)[:, 1:7],
    "baddbmm": lambda y, c, t: torch.baddbmm(
        y.view(-1, 3, 2), c.view(-1, 3, 2), y[:, :4].view(-1, 2, 2), beta=0.3, alpha=2
    ).flatten(1),
    "cross": lambda y, c, t: torch.cross(y.view(-1, 2, 3), c.view(-1, 2, 3), dim=-1).flatten(1),
    "linalg_cross": lambda y, c, t: torch.linalg.cross(y.view(-1, 2, 3), c.view(-1, 2, 3)).flatten(1),
    "tensordot": lambda y, c, t: torch.tensordot(y, torch.ones(6, 6, dtype=y.dtype), dims=1),
    "four_dimensions": lambda y, c, t: (y.view(-1, 2, 3, 1) @ c.view(-1, 2, 1, 3)).sum(-1).flatten(1),
    "kron": lambda y, c, t: (y[:, :2, None] * c[:, None, :3]).reshape(-1, 6),
}
MOVES = {
    "flip": lambda y, c, t: y.flip(-1) * y,
    "fliplr": lambda y, c, t: torch.fliplr(y),
    "roll": lambda y, c, t: y.roll(2, 1) - y.roll(-1, dims=-1),
    "tril": lambda y, c, t: y.view(-1, 2, 3).tril().flatten(1) + y.view(-1, 3, 2).triu(1).flatten(1),
    "repeat": lambda y, c, t: y[:, :2].repeat(1, 3),
    "tile": lambda y, c, t: y[:, :2].tile((1, 3)),
    "repeat_interleave": lambda y, c, t: y[:, :2].repeat_interleave(3, dim=-1),
    "cat": lambda y, c, t: torch.cat([y[:, 3:], t, c[:, :2]], dim=-1),
    "cat_constants": lambda y, c, t: torch.cat([y[:, 3:], torch.zeros(y.shape[0], 3, dtype=y.dtype)], dim=-1),
    "stack_constants": lambda y, c, t: torch.stack([y[:, 0], torch.ones_like(y[:, 0]), *y[:, 2:].unbind(1)], dim=-1),
    "stack": lambda y, c, t: torch.stack([y, c, y], 1).sum(-2) + torch.stack([y, c], -1)[..., 1],
    "concat": lambda y, c, t: torch.concat((y[:, :3], y[:, 3:]), -1) + torch.column_stack([y[:, 0], y[:, 1:]]),
    "hstack": lambda y, c, t: torch.hstack([y[:, 2:], c[:, :2]]),
    "dstack": lambda y, c, t: torch.dstack([y, c]).sum(-1),
    "split": lambda y, c, t: torch.cat(y.split([1, 2, 3], 1)[::-1], 1),
    "chunk": lambda y, c, t: torch.cat(y.chunk(4, -1)[::-1], -1),
    "tensor_split": lambda y, c, t: torch.cat(y.tensor_split(4, -1)[::-1], -1),
    "unbind": lambda y, c, t: torch.stack(y.unbind(-1)[::-1], -1),
    "narrow": lambda y, c, t: torch.cat([y.narrow(1, 2, 4), y.narrow(-1, 0, 2)], 1),
    "list_index": lambda y, c, t: y[:, [3, 1, 0, 5, 5, 2]] * y[..., [0, 0, 0, 1, 1, 1]],
    "index_select": lambda y, c, t: y.index_select(-1, torch.tensor([3, 1, 0, 5, 5, 2])),
    "strides": lambda y, c, t: torch.cat([y[:, ::2], y[:, 1::2]], 1),
    "negative_select": lambda y, c, t: y[:, -1:] + y[:, -3:-2] * c,
    "none_index": lambda y, c, t: (y[:, None] + c[..., None]).sum(1),
    "transpose": lambda y, c, t: y.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6),
    "permute": lambda y, c, t: y.view(-1, 2, 3).permute(2, 0, 1).permute(1, 0, 2).flatten(1),
    "movedim": lambda y, c, t: y.view(-1, 2, 3).movedim(1, -1).flatten(1),
    "swapaxes": lambda y, c, t: y.view(-1, 2, 3).swapaxes(-1, -2).flatten(-2),
    "T": lambda y, c, t: (y.T * c.T).T,
    "diagonal": lambda y, c, t: y * y[:, :4].view(-1, 2, 2).diagonal(dim1=1, dim2=2).sum(-1, keepdim=True),
    "diag_embed": lambda y, c, t: (torch.diag_embed(y) @ c[..., None])[..., 0],
    "unfold": lambda y, c, t: F.pad(y, (1, 1)).unfold(-1, 3, 1).sum(-1),
    "unflatten": lambda y, c, t: y.unflatten(-1, (2, 3)).flatten(1) + y.unflatten(1, (-1, 2)).sum(-1).repeat(1, 2),
    "expand": lambda y, c, t: y[:, :1].expand(-1, 6) * y[:, 2:3].expand_as(y),
    "broadcast_to": lambda y, c, t: y[:, :1].broadcast_to(y.shape),
    "squeeze": lambda y, c, t: y[:, :, None].squeeze(-1) + y[:, None].squeeze(1) + y[..., None].squeeze((2,)),
    "view_as": lambda y, c, t: y.view(-1, 2, 3).view_as(y.view(-1, 2, 3)).reshape(y.shape),
    "meshgrid_like": lambda y, c, t: (y[:, :, None] - y[:, None, :]).abs().sum(-1),
    "pad": lambda y, c, t: F.pad(y[:, 1:-1], (1, 1)) + F.pad(y[:, 2:], (0, 2), value=3.0) + F.pad(y, (-1, 1)),
    "pad_circular": lambda y, c, t: F.pad(y[:, None], (1, 1), mode="circular")[:, 0, 2:],
    "pad_replicate": lambda y, c, t: F.pad(y[:, None], (1, 1), mode="replicate")[:, 0, 2:],
    "pad_reflect": lambda y, c, t: F.pad(y[:, None], (1, 1), mode="reflect")[:, 0, 2:],
    "grad_through_detach": lambda y, c, t: y * y.detach() + y.data,
}
IN_PLACE = {
    "add_": lambda x, c: x.add_(c, alpha=2).add_(1),
    "sub_": lambda x, c: x.sub_(c).sub_(1, alpha=3),
    "mul_": lambda x, c: x.mul_(c).mul_(2),
    "div_": lambda x, c: x.div_(positive(c)),
    "pow_": lambda x, c: x.pow_(2),
    "neg_": lambda x, c: x.neg_(),
    "exp_": lambda x, c: x.exp_(),
    "tanh_": lambda x, c: x.tanh_(),
    "sigmoid_": lambda x, c: x.sigmoid_(),
    "relu_": lambda x, c: x.relu_(),
    "clamp_": lambda x, c: x.clamp_(-0.5, 0.5),
    "zero_": lambda x, c: x[:, :2].zero_(),
    "fill_": lambda x, c: x[:, :2].fill_(3),
    "fill_tensor": lambda x, c: x[:, 1:2].fill_(torch.tensor(3.0, dtype=x.dtype)),
    "copy_": lambda x, c: x[:, :2].copy_(c[:, 1:3]),
    "set_item": lambda x, c: x.__setitem__((slice(None), 1), c[:, 0]),
    "set_number": lambda x, c: x.__setitem__((..., slice(0, 2)), 0.5),
    "set_list": lambda x, c: x.__setitem__((slice(None), [1, 3]), c[:, :2]),
    "set_mask": lambda x, c: x.__setitem__(c > 0, 0.5),
    "addcmul_": lambda x, c: x.addcmul_(c, c, value=0.5),
    "masked_fill_": lambda x, c: x.masked_fill_(c > 0, 1.5),
    "lerp_": lambda x, c: x.lerp_(c, 0.3),
    "through_a_view": lambda x, c: x.view(-1, 2, 3)[:, 1].mul_(c[:, :3]),
    "through_a_transpose": lambda x, c: x.view(-1, 2, 3).transpose(1, 2)[:, 1].add_(c[:, :2]),
    "through_select": lambda x, c: x.select(-1, 2).mul_(2),
    "augmented": lambda x, c: x.__setitem__((slice(None), 0), x[:, 0] + c[:, 1] - x[:, 1]),
    "index_add_": lambda x, c: x.index_add_(1, torch.tensor([0, 2, 2]), c[:, :3]),
    "abs_sqrt_": lambda x, c: x.abs_().add_(0.1).sqrt_(),
}
ALL = {
    f"{kind}-{name}": f
    for kind, table in {
        "unary": UNARY,
        "binary": BINARY,
        "ternary": TERNARY,
        "reduction": REDUCTIONS,
        "product": PRODUCTS,
        "move": MOVES,
    }.items()
    for name, f in table.items()
}


def data(dtype):
    return torch.randn(B, D, dtype=dtype), torch.randn(B, D, dtype=dtype)


@pytest.mark.parametrize("name", ALL)
def test_operation(name):
    y, c = data(F64)
    check(lambda t, y, c: ALL[name](y, c, t), y, c)


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place(name):
    def field(t, y, c):
        x = y * 2
        IN_PLACE[name](x, c)
        return x + y

    y, c = data(F64)
    check(field, y, c)


# -- special values


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 3.0, -3.0, 6.0, math.inf, -math.inf, math.nan]
AT_SPECIAL_VALUES = {
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "square": torch.square,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "tanh": torch.tanh,
    "asin": torch.asin,
    "atan": torch.atan,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "erf": torch.erf,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
    "pow_2": lambda y: y**2,
    "pow_3": lambda y: y**3,
    "pow_half": lambda y: y**0.5,
    "pow_minus_1": lambda y: y**-1,
    "pow_0": lambda y: y**0,
    "clamp": lambda y: y.clamp(-2.5, 2.5),
    "minimum": lambda y: torch.minimum(y, torch.full_like(y, 0.5)),
    "maximum": lambda y: torch.maximum(y, torch.full_like(y, 0.5)),
    "fmod": lambda y: torch.fmod(y, 2.5),
    "remainder": lambda y: torch.remainder(y, 2.5),
    "isnan": lambda y: torch.isnan(y).to(y.dtype),
    "isfinite": lambda y: torch.isfinite(y).to(y.dtype),
    "nan_to_num": torch.nan_to_num,
    "equal": lambda y: (y == y).to(y.dtype) + (y != 0).to(y.dtype),
    "less": lambda y: (y < 0).to(y.dtype) + (y >= 0.5).to(y.dtype),
    "where": lambda y: torch.where(y > 0, y, 0.0),
    "softplus": F.softplus,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "threshold": lambda y: F.threshold(y, 0.5, 2.0),
    "softsign": F.softsign,
}


@pytest.mark.parametrize("name", AT_SPECIAL_VALUES)
def test_special_values(name):
    f = AT_SPECIAL_VALUES[name]
    field = lambda t, y: f(y)  # noqa: E731
    made = program_of(field, 0.3 + torch.rand(3, len(SPECIAL), dtype=F64) / 2)
    y = torch.tensor([SPECIAL], dtype=F64).requires_grad_()
    expected, t = f(y), torch.zeros(1, dtype=F64)
    torch.testing.assert_close(evaluate(made.program, t, y.detach(), [], []), expected.detach(), equal_nan=True)
    if expected.requires_grad:
        # At infinity torch's own formulas give NaN or the limit, whichever was easier to write.
        g = torch.ones_like(expected)
        (true,) = torch.autograd.grad(expected, y, g)
        own = evaluate_pullback(made.pullback, t, y.detach(), [], [], g)[0]
        finite = torch.isfinite(y.detach()) & torch.isfinite(true)
        torch.testing.assert_close(own[finite], true[finite], rtol=1e-6, atol=1e-7)


def test_ties():
    y = torch.tensor([[1.0, 1.0, 0.0, 1.0, -2.0, -2.0]], dtype=F64)

    def field(t, y):
        return (
            torch.maximum(y, y.roll(1, -1))
            + 2 * torch.minimum(y, y.roll(1, -1))
            + 3 * y.amax(-1, keepdim=True)
            + 4 * y.amin(-1, keepdim=True)
            + 5 * torch.clamp(y, -2.0, 1.0)
        )

    compare(field, y.repeat(3, 1))


def test_powers_at_zero():
    y = torch.tensor([[0.0, 0.0, 0.0, 2.0]], dtype=F64).repeat(3, 1)
    p = torch.tensor([[0.0, 1.0, 2.0, 0.0]], dtype=F64).repeat(3, 1)
    compare(lambda t, y, p: y**p, y, p)


def test_dtype_of_numbers_follows_the_state():
    y, c = data(F32)
    check(lambda t, y, c: torch.sin(3 * y + 0.1) * c - y / 3 + 1e-3 * y**2, y, c)


def test_every_pointwise_operation_of_programs_is_reached():
    reached = set()
    for name, f in ALL.items():
        y, c = data(F64)
        found = attempt(lambda t, y, c, f=f: f(y, c, t), y, c)
        assert not isinstance(found, Refusal), name
        reached |= {value.op for value in (*found.program.values(), *found.pullback.values())}
    # fma is made by backends, the others are parts of gradients of gradients.
    assert set(ir.POINTWISE) - reached <= {"fma", "tanh_back", "sigmoid_back"}, set(ir.POINTWISE) - reached


# -- views, at random


@st.composite
def moves(draw):
    """A function from (B, 2, 3, 2) to (B, 12) made of views and joins, as its steps."""
    steps, shape = [], [2, 3, 2]
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(
            st.sampled_from(["permute", "slice", "select", "flip", "stack", "cat", "expand", "unsqueeze", "merge"])
        )
        dim = draw(st.integers(0, max(len(shape) - 1, 0)))
        size = shape[dim] if shape else 0
        if kind == "permute" and shape:
            order = draw(st.permutations(range(len(shape))))
            steps.append(lambda x, order=order: x.permute(0, *(d + 1 for d in order)))
            shape = [shape[d] for d in order]
        elif kind == "slice" and size > 1:
            start, step = draw(st.integers(0, size - 1)), draw(st.integers(1, 2))
            steps.append(lambda x, d=dim, a=start, s=step: x[(slice(None),) * (d + 1) + (slice(a, None, s),)])
            shape = [*shape[:dim], len(range(start, size, step)), *shape[dim + 1 :]]
        elif kind == "select" and size:
            at = draw(st.integers(-size, size - 1))
            steps.append(lambda x, d=dim, at=at: x.select(d + 1, at))
            shape = shape[:dim] + shape[dim + 1 :]
        elif kind == "flip" and size:
            steps.append(lambda x, d=dim: x.flip(d + 1))
        elif kind == "stack" and math.prod(shape) < 40:
            at = draw(st.integers(0, len(shape)))
            steps.append(lambda x, d=at: torch.stack([x, 2 * x, torch.ones_like(x)], dim=d + 1))
            shape = [*shape[:at], 3, *shape[at:]]
        elif kind == "cat" and size and math.prod(shape) < 40:
            steps.append(lambda x, d=dim: torch.cat([x, x.cos()], dim=d - x.ndim + 1))
            shape = [*shape[:dim], 2 * size, *shape[dim + 1 :]]
        elif kind == "expand" and math.prod(shape) < 40:
            steps.append(lambda x: x.unsqueeze(1).expand(-1, 3, *x.shape[1:]))
            shape = [3, *shape]
        elif kind == "unsqueeze":
            at = draw(st.integers(0, len(shape)))
            steps.append(lambda x, d=at: x.unsqueeze(d + 1))
            shape = [*shape[:at], 1, *shape[at:]]
        elif kind == "merge":
            steps.append(lambda x: x.reshape(x.shape[0], -1))
            shape = [math.prod(shape)]
    return steps


@hypothesis.settings(max_examples=60)
@hypothesis.given(steps=moves(), batch=st.sampled_from([1, 2, 3, 5]))
def test_views_at_random(steps, batch):
    def field(t, y):
        x = y.view(-1, 2, 3, 2)
        for step in steps:
            x = step(x)
        x = x.reshape(x.shape[0], -1)
        return y * x.sum(-1, keepdim=True) + F.pad(x, (0, 12))[:, :12]

    check(field, torch.randn(batch, 12, dtype=F64))


LEAVES = [lambda y, c, t: y, lambda y, c, t: c, lambda y, c, t: t, lambda y, c, t: 0.7, lambda y, c, t: y[:, :1]]
FUNCTIONS = [torch.tanh, torch.sin, torch.sigmoid, torch.exp, F.softplus, torch.square, torch.neg, torch.atan]
OPERATORS = [
    torch.add,
    torch.sub,
    torch.mul,
    torch.maximum,
    lambda a, b: a / (1 + b * b),
    lambda a, b: torch.where(a > b, a, b),
]


def tensor(x, y):
    return x if isinstance(x, torch.Tensor) else torch.full_like(y, x)


EXPRESSIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.builds(lambda f, a: lambda y, c, t: torch.tanh(f(tensor(a(y, c, t), y))), st.sampled_from(FUNCTIONS), inner),
        st.builds(
            lambda f, a, b: lambda y, c, t: f(tensor(a(y, c, t), y), tensor(b(y, c, t), y)),
            st.sampled_from(OPERATORS),
            inner,
            inner,
        ),
    ),
    max_leaves=12,
)


@hypothesis.settings(max_examples=60)
@hypothesis.given(expression=EXPRESSIONS)
def test_expressions_at_random(expression):
    def field(t, y, c):
        return tensor(expression(y, c, t), y) + 0 * y

    torch.manual_seed(0)
    check(field, *data(F64), precision=1e-8)
