"""Programs of the fused backend written by hand: a small assembler, and calls that hold the memory they point to."""

from __future__ import annotations

import numpy as np
import torch

from fastode._environment import _C
from fastode.backends.cpu.record import PackedRecord
from fastode.controllers import LAST_STEP_STRETCH, MIN_STEP_ULPS, RATIO_FLOOR, IController
from fastode.tableaus import get_tableau

OPS = _C.tile_ops()
BASES = ["NONE", "IMM", "IN", "TIME", "OUT", "TMP", "SHARED", "PARAM", "GOUT", "GIN", "ADJ", "GSHARED", "GPARAM"]
UNARY = [name for name, number in OPS.items() if number < OPS["add"]]
BINARY = [name for name, number in OPS.items() if OPS["add"] <= number < OPS["where"]]


def at(base, offset=0, s0=1, s1=0):
    """An operand."""
    return (BASES.index(base), offset, s0, s1)


NONE = (0, 0, 0, 0)
IMM = (1, 0, 0, 0)


def ins(op, n0, out, a=NONE, b=NONE, c=NONE, n1=0, n2=0, map_at=0, imm=(0.0, 0.0)):
    """An instruction: its row and its immediates."""
    return [OPS[op], n0, n1, n2, *out, *a, *b, *c, map_at, 0, 0, 0], list(imm)


def code(instructions):
    """A routine."""
    rows = np.array([row for row, _ in instructions], dtype=np.int32).reshape(-1, 24)
    return rows, np.array([imm for _, imm in instructions], dtype=np.float64).reshape(-1, 2)


def pointers(tensors):
    return [0 if t is None else t.data_ptr() for t in tensors]


def poisoned(*shape, dtype):
    """Memory that a kernel has to write."""
    return torch.full(shape, torch.nan, dtype=dtype)


def method_of(name):
    tableau = get_tableau(name)
    return _C.TileMethod(
        tableau.c.tolist(),
        tableau.a.flatten().tolist(),
        tableau.b.tolist(),
        [] if tableau.e is None else tableau.e.tolist(),
        tableau.q.flatten().tolist(),
    )


def control_of(name, controller=None):
    controller, exponent = controller or IController(), get_tableau(name).error_exponent
    b1, b2, b3 = controller.exponents(exponent)
    return _C.TileControl(
        {
            "exponent": exponent,
            "b1": b1,
            "b2": b2,
            "b3": b3,
            "safety": controller.safety,
            "min_factor": controller.min_factor,
            "max_factor": controller.max_factor,
            "min_step": controller.min_step,
            "max_step": controller.max_step,
            "ratio_floor": RATIO_FLOOR,
            "last_stretch": LAST_STEP_STRETCH,
            "min_ulps": MIN_STEP_ULPS,
            "to_outputs": 0.0,
        }
    )


class Program:
    """A compiled program of one dtype together with the leaves it is called with.

    shared: tensors; params: tensors (B, ...). Packed one after another unless packs are given.
    """

    def __init__(
        self,
        dim,
        forward,
        dtype,
        lanes=16,
        forward_keep=None,
        reverse=(),
        accumulate=(),
        maps=(),
        n_tmp=0,
        n_tmp_keep=None,
        n_adj=0,
        shared=(),
        params=(),
        shared_pack=None,
        param_pack=None,
        n_shared=None,
        n_param=None,
        backward_lanes=None,
    ):
        self.dim, self.dtype, self.shared, self.params = dim, dtype, list(shared), list(params)
        sizes = [t.numel() for t in self.shared], [t[0].numel() for t in self.params]
        packs = []
        for given, each in zip((shared_pack, param_pack), sizes, strict=True):
            start = np.cumsum([0, *each])
            rows = [[i, 0, 1, n, 0, 1, start[i]] for i, n in enumerate(each)] if given is None else given
            packs.append(np.array(rows, dtype=np.int64).reshape(-1, 7))
        kind = _C.TileProgram64 if dtype == torch.float64 else _C.TileProgram32
        self.program = kind(
            dim=dim,
            lanes=lanes,
            backward_lanes=lanes if backward_lanes is None else backward_lanes,
            forward=code(forward),
            forward_keep=code(forward if forward_keep is None else forward_keep),
            reverse=code(reverse),
            accumulate=code(accumulate),
            maps=np.array(maps, dtype=np.int32),
            n_tmp=n_tmp,
            n_tmp_keep=n_tmp if n_tmp_keep is None else n_tmp_keep,
            n_adj=n_adj,
            shared_pack=packs[0],
            param_pack=packs[1],
            shared_sizes=sizes[0],
            param_sizes=sizes[1],
            n_shared=sum(sizes[0]) if n_shared is None else n_shared,
            n_param=sum(sizes[1]) if n_param is None else n_param,
        )

    def leaves(self):
        return pointers(self.shared), pointers(self.params), [t[0].numel() for t in self.params]

    def evaluate(self, y, t=None, threads=1):
        t = torch.zeros(len(y), dtype=torch.float64) if t is None else t
        out = poisoned(*y.shape, dtype=self.dtype)
        self.program.evaluate(len(y), t.data_ptr(), y.data_ptr(), *self.leaves(), out.data_ptr(), threads)
        return out

    def gradients(self, batch):
        """Poisoned memory for the gradients of y0, the shared and the per-sample leaves."""
        return (
            poisoned(batch, self.dim, dtype=self.dtype),
            [poisoned(*t.shape, dtype=self.dtype) for t in self.shared],
            [poisoned(*t.shape, dtype=self.dtype) for t in self.params],
        )

    def vjp(self, y, g, t=None, threads=1):
        t = torch.zeros(len(y), dtype=torch.float64) if t is None else t
        grad_y, shared, params = self.gradients(len(y))
        where = grad_y.data_ptr(), pointers(shared), pointers(params)
        self.program.vjp(len(y), t.data_ptr(), y.data_ptr(), g.data_ptr(), *self.leaves(), *where, threads)
        return grad_y, shared, params

    def solve(self, y0, times, method="dopri5", rtol=1e-5, atol=1e-6, every=0, max_bytes=0, threads=1, **options):
        return Solved(self, y0, times, method, rtol, atol, every, max_bytes, threads, **options)


class Solved:
    """A forward solve and what its backward pass needs."""

    def __init__(
        self,
        program,
        y0,
        times,
        method,
        rtol,
        atol,
        every,
        max_bytes,
        threads,
        step_size=None,
        first_step=0.0,
        max_steps=10000,
        controller=None,
    ):
        batch, dim, dtype = len(y0), program.dim, program.dtype
        self.program, self.method, self.times, self.batch = program, method_of(method), times, batch
        self.rows = (times.stride(0), times.stride(1) if times.ndim == 2 else 0)
        self.rtol, self.atol = (torch.as_tensor(v, dtype=dtype).expand(dim).contiguous() for v in (rtol, atol))
        self.ys = poisoned(len(times), batch, dim, dtype=dtype) + 0
        self.ys.fill_(7.0)
        self.k1 = poisoned(batch, dim, dtype=dtype)
        self.threads = threads
        table, self.failed, self.words = program.program.solve(
            self.method,
            control_of(method, controller),
            batch,
            len(times),
            times.data_ptr(),
            *self.rows,
            y0.data_ptr(),
            *program.leaves(),
            self.rtol.data_ptr(),
            self.atol.data_ptr(),
            0 if step_size is None else step_size.data_ptr(),
            first_step,
            max_steps,
            self.ys.data_ptr(),
            self.k1.data_ptr(),
            every,
            max_bytes,
            threads,
        )
        self.n_accepted, self.n_rejected, self.n_evals, self.status, reached, *_ = torch.from_numpy(table)
        self.reached = reached.view(torch.float64)
        if self.words is not None:
            record = PackedRecord(self.words, batch, dim, dtype)
            self.every = int(self.words[2])
            self.offsets, self.state_offsets = record.offsets, record.state_offsets
            self.table, self.states = record.table, record.states

    def adjoint(self, grad_ys, threads=None):
        grad_y0, shared, params = self.program.gradients(self.batch)
        solved = (self.status == 0).to(torch.uint8)
        self.program.program.solve_adjoint(
            self.method,
            self.batch,
            len(self.times),
            self.times.data_ptr(),
            *self.rows,
            *self.program.leaves(),
            self.words,
            solved.data_ptr(),
            grad_ys.data_ptr(),
            grad_y0.data_ptr(),
            pointers(shared),
            pointers(params),
            self.threads if threads is None else threads,
        )
        return grad_y0, shared, params


def tanh_field(dim, dtype, weight, bias, lanes, backward_lanes=None):
    """The field tanh(W y + b); W (D, D) and b (D) shared, or (B, D, D) and (B, D) per sample."""
    per_sample, square = weight.ndim == 3, dim * dim
    base, gradient = ("PARAM", "GPARAM") if per_sample else ("SHARED", "GSHARED")
    # By columns: in rows a matrix is used that way.
    w, w_back = at(base, 0, 1, dim), at(base, 0, dim, 1)
    pack = [[0, 0, dim, dim, 1, dim, 0], [1, 0, 1, dim, 0, 1, square]]
    keep = [
        ins("matmul", dim, at("TMP"), w, at("IN"), at(base, square), n1=dim, n2=1),
        ins("tanh", dim, at("OUT"), at("TMP")),
    ]
    reverse = [
        ins("tanh_back", dim, at("ADJ"), at("GOUT"), at("OUT")),
        ins("matmul", dim, at("GIN"), w_back, at("ADJ"), n1=dim, n2=1),
    ]
    accumulate = [
        ins("acc_outer", dim, at(gradient, 0, dim, 1), at("ADJ"), at("IN"), n1=dim, n2=1),
        ins("acc", dim, at(gradient, square), at("ADJ")),
    ]
    kind = "param" if per_sample else "shared"
    return Program(
        dim,
        keep,
        dtype,
        lanes,
        reverse=reverse,
        accumulate=accumulate,
        n_tmp=dim,
        n_adj=dim,
        backward_lanes=backward_lanes,
        **{f"{kind}s" if per_sample else kind: [weight, bias], f"{kind}_pack": pack},
    )
