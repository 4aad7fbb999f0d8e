"""The source of the kernel of the discrete adjoint: the recorded steps backwards, their stages computed again.

With k_i = f(u_i), u_i = y + h sum_j a_ij k_j and p the gradient by the state after the step, c_m that by the m-th
coefficient of the dense output (from outputs inside the step),

    g_i = h (b_i p + sum_m q_im c_m + sum_{j>i} a_ji v_j),    v_i = g_i df/dy(u_i),    p <- p + c_0 + sum_i v_i

and g_i df/dw(u_i) is what stage i adds to the gradient by a leaf w.
"""

from __future__ import annotations

from fastode.backends.triton.code import Code
from fastode.backends.triton.kernel_source import Kernel, header, jitted, loaded, stored
from fastode.backends.triton.method import Method
from fastode.backends.triton.text import joined, weighted
from fastode.program.ir import SAMPLE, SHARED


class AdjointKernel(Kernel):
    """Writes the module of the adjoint kernel."""

    def __init__(self, code: Code, method: Method) -> None:
        super().__init__(code, method)

    def source(self, title: str) -> str:
        """The module."""
        functions = self.code.functions()
        out, code, s = self.out, self.code, self.s
        grads = [f"grad{leaf}_ptr" for leaf in sorted({a.leaf for a in code.accumulators if a.kind == SAMPLE})]
        arguments = [
            *("times_ptr", "time_row", "time_sample", "n_times", "batch", "rows_ptr", "n"),
            *("record_ptr", "states_ptr", "taken_ptr", "capacity", "every", "solved_ptr", "grad_ys_ptr"),
            *code.leaf_arguments(),
            *("tables_ptr", "p_ptr", "e_ptr", *grads, "workspace_ptr", "replay_ptr"),
            *("SOME: tl.constexpr", "SOLVED: tl.constexpr", "ADD: tl.constexpr", "REPLAY: tl.constexpr"),
        ]
        out.include(functions)
        out.add(jitted(arguments))
        with out.block(f"def adjoint({joined(arguments)}):"):
            out.add("program = tl.program_id(0)")
            self.start_sums(SHARED)
            with out.block(f"for group in range(program, (n + {s - 1}) // {s}, tl.num_programs(0)):"):
                self.group()
            self.finish_sums(SHARED)
        return header(code, title) + "\n" + str(out)

    def start_sums(self, kind: str) -> None:
        for made in self.code.accumulators:
            if made.kind == kind:
                values = self.code.accumulator_start(made)
                for name, value in zip(self.code.accumulator_names(made), values, strict=True):
                    self.out.add(f"{name} = {value}")

    def finish_sums(self, kind: str) -> None:
        """Writes gradients by leaves, or adds them to what later segments left there."""
        pointer = f"workspace_ptr + program.to(tl.int64) * {self.code.workspace} + "
        for made in self.code.accumulators:
            if made.kind != kind:
                continue
            at = pointer if kind == SHARED else f"grad{made.leaf}_ptr + "
            for value, place, mask in self.code.accumulator_places(made):
                if kind == SAMPLE and self.code.overlaps(made.leaf):
                    self.out.add("tl.debug_barrier()  # another sum has written into some of these places")
                    self.out.add(stored(at + place, f"{value} + {loaded(at + place, mask)}", mask))
                    continue
                with self.out.block("if ADD:"):
                    self.out.add(stored(at + place, f"{value} + {loaded(at + place, mask)}", mask))
                with self.out.block("else:"):
                    self.out.add(stored(at + place, value, mask))

    def group(self) -> None:
        out, code, s = self.out, self.code, self.s
        out.add(
            f"row = (group * {s} + tl.arange(0, {s})).to(tl.int64)",
            "valid = row < n",
            "row = tl.minimum(row, n - 1)",
            "sample = row",
        )
        with out.block("if SOME:"):
            out.add("sample = tl.load(rows_ptr + row)")
        out.add("own = sample", "count = tl.load(taken_ptr + row)", "moves = valid & (count > 0)")
        with out.block("if SOLVED:"):
            out.add("moves = moves & (tl.load(solved_ptr + sample) != 0)")
        out.add(
            "# A sample that failed or took no step may hold infinities: a copy of one that moves stands in its place,",
            "# with a cotangent of zero.",
            "healthy = tl.max(tl.where(moves, row, -1), axis=0)",
            "row = tl.where(moves, row, tl.maximum(healthy, 0))",
            "count = tl.load(taken_ptr + row)",
        )
        with out.block("if SOME:"):
            out.add("sample = tl.load(rows_ptr + row)")
        with out.block("else:"):
            out.add("sample = row")
        out.add("time_ptr = times_ptr + sample * time_sample")
        self.constants()
        with out.block("if ADD:"):
            self.load_state("p", "p_ptr", "own", "valid")
            out.add("e = tl.load(e_ptr + own)")
        with out.block("else:"):
            for part in code.parts("p"):
                out.add(f"{part} = {code.zeros()}")
            out.add("e = tl.zeros_like(sample) + (n_times - 1)")
        self.start_sums(SAMPLE)
        out.add("j = tl.max(tl.where(moves, count, 0), axis=0) - 1")
        with out.block("if REPLAY:"):
            out.add(f"replay = replay_ptr + program.to(tl.int64) * every * {s * code.program.dim}", "fresh = 1")
        with out.block("while j >= 0:"):
            self.step()
            out.add("j -= 1")
        self.store_state("p", "p_ptr", "own", "valid")
        out.add("tl.store(e_ptr + own, e, mask=valid)", "sample = own")
        self.finish_sums(SAMPLE)

    def step_of(self, number: str, active: str) -> None:
        """Time and size of a step; of a sample that did not take it, those of its last one, with size zero."""
        out = self.out
        out.add(
            f"place = record_ptr + tl.minimum({number}, count - 1) * n + row",
            "t = tl.load(place)",
            f"step = tl.where({active}, tl.load(place + 2 * capacity.to(tl.int64) * n), 0.0)",
            f"size = step.to({self.code.kind})",
        )

    def replay(self) -> None:
        """States between the kept ones, by the steps that the forward kernel took."""
        out, s = self.out, self.s
        lane = f"tl.arange(0, {s})"
        out.add("slot = j % every")
        with out.block("if (slot == every - 1) | (fresh == 1):"):
            out.add("# All states since the last one that was kept.", "fresh = 0", "i = slot * 0")
            out.add("tl.debug_barrier()")
            self.load_state("y", "states_ptr", "(tl.minimum(j, count - 1) // every) * n + row")
            with out.block("while i < slot:"):
                self.store_state("y", "replay", f"i * {s} + {lane}", f"{lane} >= 0")
                self.step_of("(j - slot + i)", "moves & (count > j - slot + i)")
                last = self.method.stages
                self.field("k1", "t", "y")
                self.stage_states(last - 1, "y", "k", "u", "step", "size")
                self.combination_of("y", list(self.method.a[last - 1][: last - 1]), self.stages(last - 1), "y", "size")
                out.add("i += 1")
            self.store_state("y", "replay", f"slot * {s} + {lane}", f"{lane} >= 0")
            out.add("tl.debug_barrier()")
        self.load_state("y", "replay", f"slot * {s} + {lane}")

    def step(self) -> None:
        out, code, method = self.out, self.code, self.method
        last = method.stages
        with out.block("if REPLAY:"):
            self.replay()
        with out.block("else:"):
            self.load_state("y", "states_ptr", "tl.minimum(j, count - 1) * n + row")
        out.add("active = moves & (count > j)")
        self.step_of("j", "active")
        out.add(
            "t_next = tl.load(place + capacity.to(tl.int64) * n)",
            "direction = tl.where(step > 0, 1.0, -1.0).to(tl.float64)",
            "# Gradients of outputs: of those at the end of the step to p, of those inside it to c0, c1, ...",
        )
        for m in range(method.degree + 1):
            for part in code.parts(f"c{m}"):
                out.add(f"{part} = {code.zeros()}")
        due = (
            "(active & (e >= 0) & (direction * (tl.load(time_ptr + tl.maximum(e, 0) * time_row) - t) > 0)).to(tl.int32)"
        )
        out.add(f"due = {due}", "inside = 0")
        with out.block("while tl.max(due, axis=0) > 0:"):
            out.add("at = tl.load(time_ptr + tl.maximum(e, 0) * time_row)", "at_end = at == t_next")
            self.load_state("g", "grad_ys_ptr", "tl.maximum(e, 0) * batch + sample", "due != 0")
            self.assign("p", "p", "g", text=f"{{0}} + tl.where({code.wide('at_end')}, {{1}}, 0.0)")
            self.assign("g", "g", text=f"tl.where({code.wide('at_end')}, 0.0, {{0}})")
            out.add("theta = tl.where(step == 0, 1.0, (at - t) / step)", "rest = 1.0 - theta")
            self.assign("c0", "c0", "g", text="{0} + {1}")
            for m, phi in enumerate(method.basis("theta", "rest"), start=1):
                out.add(f"phi{m} = ({phi}).to({code.kind})")
                self.assign(f"c{m}", f"c{m}", "g", text=f"{{0}} + {code.wide(f'phi{m}')} * {{1}}")
            out.add(
                "inside += tl.max(tl.where((due != 0) & (at_end == 0), 1, 0), axis=0)",
                "e -= due",
                f"due = {due}",
            )
        out.add("# The stages.")
        self.field("k1", "t", "y")
        self.stage_states(last - 1, "y", "k", "u", "step", "size")
        names = ["y", *(f"u{i + 1}" for i in range(1, last))]
        self.combination_of(f"u{last}", list(method.a[last - 1][: last - 1]), self.stages(last - 1), "y", "size")
        pulled: list[int] = []
        for i in reversed(range(last)):
            if i == last - 1 and method.b[i] == 0.0:
                # Only the polynomial sees the last stage: its gradient is zero unless an output is inside.
                for part in code.parts(f"v{last}"):
                    out.add(f"{part} = {code.zeros()}")
                with out.block("if inside > 0:"):
                    self.pull(i, names[i], pulled)
            else:
                self.pull(i, names[i], pulled)
            pulled.append(i)
        total = " + ".join(f"{{{i + 2}}}" for i in range(len(pulled)))
        text = f"tl.where({code.wide('active')}, {{0}} + ({{1}} + {total}), {{0}})"
        self.assign("p", "p", "c0", *(f"v{i + 1}" for i in pulled), text=text)

    def pull(self, i: int, state: str, pulled: list[int]) -> None:
        """The cotangent of stage i and its pull-back."""
        code, method = self.code, self.method
        weights = [method.b[i], *method.q[i], *(method.a[j][i] for j in pulled)]
        states = ["p", *(f"c{m + 1}" for m in range(method.degree)), *(f"v{j + 1}" for j in pulled)]
        kept = [(w, s) for w, s in zip(weights, states, strict=True) if w != 0.0]
        total = weighted([w for w, _ in kept], [f"{{{m}}}" for m in range(len(kept))], code.dtype)
        if not kept:
            kept, total = [(0.0, "p")], "0.0 * {0}"
        self.assign(f"g{i + 1}", *(s for _, s in kept), text=f"{code.wide('size')} * ({total})")
        call, names = code.call_pull(self.stage_time(i, "step"), state, f"g{i + 1}")
        self.out.add(f"{joined([*code.parts(f'v{i + 1}'), *names])} = {call}")
