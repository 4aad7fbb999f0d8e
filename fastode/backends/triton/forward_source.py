"""The source of the kernel that solves forward: every step of every sample of a program, control included.

The arithmetic of step sizes is that of ``fastode/reference.py`` and ``fastode/controllers.py``.
"""

from __future__ import annotations

from fastode.backends.triton.code import Code
from fastode.backends.triton.kernel_source import Kernel, header, jitted, loaded
from fastode.backends.triton.method import Method
from fastode.backends.triton.text import joined, weighted

CONTROL = (
    *("exponent", "b1", "b2", "b3", "safety", "min_factor", "max_factor", "min_step", "max_step"),
    *("ratio_floor", "last_stretch", "min_ulps", "to_outputs"),
)
"""Places of the controller's constants in the kernel's array of them, ``PIDController.constants``."""
COUNTS = ("status", "n_accepted", "n_rejected", "n_evals", "next_e")
"""Rows of the (5, B) int64 array of results."""
CLOCKS = ("t", "h", "previous", "before")
"""Rows of the (4, B) float64 array of results; the first is the time reached."""


class ForwardKernel(Kernel):
    """Writes the module of the forward kernel."""

    def __init__(self, code: Code, method: Method) -> None:
        super().__init__(code, method)
        self.adaptive = bool(method.e)

    def source(self, title: str) -> str:
        """The module."""
        functions = self.code.functions()
        arguments = [
            *("y0_ptr", "times_ptr", "time_row", "time_sample", "n_times", "batch"),
            *("rows_ptr", "n", "rtol_ptr", "atol_ptr", "control_ptr", "step_size_ptr", "first_step_ptr", "max_steps"),
            *self.code.leaf_arguments(),
            *("tables_ptr", "ys_ptr", "counts_ptr", "clocks_ptr", "resume_ptr", "k1_ptr"),
            *("record_ptr", "states_ptr", "taken_ptr", "running_ptr", "capacity", "every"),
            *("START: tl.constexpr", "SOME: tl.constexpr", "RECORD: tl.constexpr", "CHOOSE: tl.constexpr"),
            *("PID: tl.constexpr", "K1: tl.constexpr"),
        ]
        out = self.out
        out.include(functions)
        out.add(jitted(arguments))
        with out.block(f"def forward({joined(arguments)}):"):
            self.prologue()
            self.start()
            self.loop()
            self.finish()
        return header(self.code, title) + "\n" + str(out)

    def prologue(self) -> None:
        out, s = self.out, self.s
        out.add(
            "# The samples of this program: numbers in the batch, and in this launch.",
            f"row = (tl.program_id(0) * {s} + tl.arange(0, {s})).to(tl.int64)",
            "valid = row < n",
            "row = tl.minimum(row, n - 1)  # what is beyond the end repeats the last sample, and is not stored",
            "sample = row",
        )
        with out.block("if SOME:"):
            out.add("sample = tl.load(rows_ptr + row)")
        if self.adaptive:
            out.add(*(f"{name} = tl.load(control_ptr + {i})" for i, name in enumerate(CONTROL)))
        else:
            out.add(
                *(f"{name} = tl.load(control_ptr + {CONTROL.index(name)})" for name in ("last_stretch", "to_outputs")),
                "fixed = tl.load(step_size_ptr + sample)",
            )
        out.add(
            "time_ptr = times_ptr + sample * time_sample",
            "start = tl.load(time_ptr)",
            "end = tl.load(time_ptr + (n_times - 1) * time_row)",
            "direction = tl.where(end > start, 1.0, tl.where(end < start, -1.0, 0.0)).to(tl.float64)",
        )
        self.constants()
        for array, other in (("rtol", "0.0"), ("atol", "1.0")) if self.adaptive else ():
            mask = self.code.mask(None)
            for part, place in zip(self.code.parts(array), self.code.components(), strict=True):
                out.add(f"{part} = {loaded(f'{array}_ptr + {place}', mask, other)}")
        if self.adaptive:
            out.add(
                "ulp = min_ulps * 2.220446049250313e-16",
            )

    @property
    def tiny(self) -> str:
        """The least normal number of the state's type."""
        return "1.1754943508222875e-38" if self.code.kind == "tl.float32" else "2.2250738585072014e-308"

    def bound(self, target: str, size: str, t: str) -> None:
        """Sets target to a size within its bounds, for a step from t."""
        self.out.add(
            f"shortest = tl.where(ulp * tl.abs({t}) > min_step, ulp * tl.abs({t}), min_step)",
            f"{target} = tl.where({size} < shortest, shortest, {size})",
            f"{target} = tl.where({target} > max_step, max_step, {target})",
        )

    def tolerance(self, target: str, size: str) -> None:
        """Sets target to max(atol + rtol size, tiny): an exact step has error ratio 0."""
        self.assign(target, "atol", "rtol", size, text="{0} + {1} * {2}")
        self.assign(target, target, text=f"tl.where({{0}} < {self.tiny}, {self.tiny}, {{0}})")

    def norm(self, target: str, error: str, scale: str) -> None:
        """Root mean square of error / scale over the components of each sample, in float64."""
        self.assign("scaled", error, scale, text="{0} / {1}")
        squares = self.code.sum_squares(self.code.parts("scaled"))
        self.out.add(f"{target} = tl.sqrt(({squares}) / {float(self.code.program.dim)})")

    def start(self) -> None:
        out, code = self.out, self.code
        with out.block("if START:"):
            self.load_state("y", "y0_ptr", "sample")
            out.add("t = start")
            self.field("k1", "t", "y")
            with out.block("if K1:"):
                self.store_state("k1", "k1_ptr", "sample", "valid")
            out.add(
                "# Outputs at the start.",
                "next_e = tl.zeros_like(sample)",
                "due = valid.to(tl.int32)",
            )
            with out.block("while tl.max(due, axis=0) > 0:"):
                self.store_state("y", "ys_ptr", "next_e * batch + sample", "due != 0")
                out.add("next_e += due")
                self.next_output()
                out.add("due = (valid & (next_e < n_times) & (next_output == start)).to(tl.int32)")
            finite = f"{code.finite(code.parts('y'))} * {code.finite(code.parts('k1'))}"
            out.add(
                f"sound0 = {finite}",
                "status = tl.where(direction == 0, 0, tl.where(sound0 > 0, -1, 3)).to(tl.int32)",
                "status = tl.where(valid, status, 0)",
                "n_accepted = tl.zeros_like(sample)",
                "n_rejected = tl.zeros_like(sample)",
                "previous = tl.full(start.shape, 1.0, tl.float64)",
                "before = tl.full(start.shape, 1.0, tl.float64)",
            )
            self.first_step()
        with out.block("else:"):
            out.add(
                *(f"{name} = tl.load(clocks_ptr + {i} * batch + sample)" for i, name in enumerate(CLOCKS)),
                "status = tl.where(valid, tl.load(counts_ptr + sample), 0).to(tl.int32)",
                "n_accepted = tl.load(counts_ptr + batch + sample)",
                "n_rejected = tl.load(counts_ptr + 2 * batch + sample)",
                "next_e = tl.load(counts_ptr + 4 * batch + sample)",
            )
            self.load_state("y", "resume_ptr", "sample")
            self.load_state("k1", "resume_ptr", "batch.to(tl.int64) + sample")
        self.next_output("next_output")

    def next_output(self, target: str = "next_output") -> None:
        self.out.add(f"{target} = tl.load(time_ptr + tl.minimum(next_e, n_times - 1) * time_row)")

    def first_step(self) -> None:
        out = self.out
        if not self.adaptive:
            out.add("h = fixed")
            return
        with out.block("if CHOOSE:"):
            out.add("# Hairer, Norsett, Wanner I, algorithm II.4.")
            self.assign("magnitude", "y", text="tl.abs({0})")
            self.tolerance("scale0", "magnitude")
            self.norm("d0", "y", "scale0")
            self.norm("d1", "k1", "scale0")
            kind = self.code.kind
            out.add(
                "h0 = tl.where((d0 < 1e-5) | (d1 < 1e-5), tl.full(d0.shape, 1e-6, tl.float64), 0.01 * d0 / d1)",
                'h0 = tl.where((h0 > 0) & (h0 < float("inf")), h0, tl.full(d0.shape, 1e-6, tl.float64))',
                "h0 = tl.where(h0 < tl.abs(end - start), h0, tl.abs(end - start))",
                "probe = direction * h0",
                f"probe_size = probe.to({kind})",
            )
            self.assign("u", "y", "k1", text=f"{{0}} + {self.code.wide('probe_size')} * {{1}}")
            self.field("f1", "t + probe", "u")
            self.assign("f1", "f1", "k1", text="{0} - {1}")
            self.norm("d2", "f1", "scale0")
            out.add(
                "d2 = d2 / h0",
                "steepest = tl.where(d1 > d2, d1, d2)",
                "h1 = tl.where(h0 * 1e-3 < 1e-6, tl.full(h0.shape, 1e-6, tl.float64), h0 * 1e-3)",
                "h1 = tl.where(steepest <= 1e-15, h1, libdevice.exp(exponent * libdevice.log(0.01 / steepest)))",
                'h = tl.where((h1 > 0) & (h1 < float("inf")), tl.where(100 * h0 < h1, 100 * h0, h1), h0)',
            )
        with out.block("else:"):
            out.add("h = tl.load(first_step_ptr) + tl.zeros_like(start)")
        self.bound("h", "h", "start")

    def loop(self) -> None:
        out, code, method = self.out, self.code, self.method
        out.add(
            "taken = tl.zeros_like(sample)  # steps accepted in this launch",
            "go = tl.max((status == -1).to(tl.int32), axis=0)",
        )
        with out.block("while go > 0:"):
            out.add(
                "running = status == -1",
                'target = tl.where(h == float("inf"), next_output, tl.where(to_outputs > 0.5, next_output, end))',
                "cut = h * (1.0 + last_stretch) >= tl.abs(target - t)",
                "t_next = tl.where(running, tl.where(cut, target, t + direction * h), t)",
                "step = t_next - t  # so that the state goes as far as the clock",
                "moves = step != 0",
                f"size = step.to({code.kind})",
            )
            last = method.stages
            self.stage_states(last, "y", "k", "u", "step", "size")
            new = f"u{last}"  # in first-same-as-last form the state of the last stage is the new state
            out.add(f"sound = ({code.finite(code.parts(new))} * {code.finite(code.parts(f'k{last}'))}) > 0")
            if self.adaptive:
                self.assign("largest", "y", new, text="tl.maximum(tl.abs({0}), tl.abs({1}))")
                self.tolerance("scale", "largest")
                kept = [(w, s) for w, s in zip(method.e, self.stages(last), strict=True) if w != 0.0]
                total = weighted([w for w, _ in kept], [f"{{{i}}}" for i in range(len(kept))], code.dtype)
                self.assign("error", *(s for _, s in kept), text=f"{code.wide('size')} * ({total})")
                self.norm("ratio", "error", "scale")
                self.control()
            else:
                out.add(
                    "accept = moves & sound",
                    "status = tl.where(running & (accept == 0), tl.where(sound, 2, 3), status)",
                    "h = fixed + tl.where(cut, 0.0, h - tl.abs(step))",
                )
            out.add(
                "n_accepted += accept.to(tl.int64)",
                "n_rejected += (running & (accept == 0)).to(tl.int64)",
            )
            with out.block("if RECORD:"):
                out.add(
                    "place = record_ptr + taken * n + row",
                    "tl.store(place, t, mask=accept)",
                    "tl.store(place + capacity.to(tl.int64) * n, t_next, mask=accept)",
                    "tl.store(place + 2 * capacity.to(tl.int64) * n, step, mask=accept)",
                    "kept = accept & (taken % every == 0)",
                )
                self.store_state("y", "states_ptr", "(taken // every) * n + row", "kept")
                out.add("taken += accept.to(tl.int64)")
            self.outputs(new)
            out.add("t = tl.where(accept, t_next, t)")
            self.assign("y", new, "y", text=f"tl.where({code.wide('accept')}, {{0}}, {{1}})")
            self.assign("k1", f"k{last}", "k1", text=f"tl.where({code.wide('accept')}, {{0}}, {{1}})")
            out.add(
                "status = tl.where(accept & (t == end), 0, status)",
                "status = tl.where((status == -1) & (n_accepted + n_rejected >= max_steps), 1, status)",
                "go = tl.max((status == -1).to(tl.int32), axis=0)",
            )
            with out.block("if RECORD:"):
                out.add("go = tl.where(tl.max(tl.where(status == -1, taken, 0), axis=0) < capacity, go, 0)")

    def control(self) -> None:
        """Accepts or rejects, and the next step size."""
        out = self.out
        out.add(
            'ratio = tl.where(sound, ratio, float("nan"))',
            "accept = moves & (ratio <= 1.0)",
            "tried = tl.where(tl.abs(step) < h, tl.abs(step), h)",
            "shortest = tl.where(ulp * tl.abs(t) > min_step, ulp * tl.abs(t), min_step)",
            "stuck = running & (accept == 0) & (tried <= shortest)",
            "status = tl.where(stuck, tl.where(ratio != ratio, 3, 2), status)",
        )
        # Step sizes of float32 states need no more than float32's logarithm; that of float64 costs as much as a stage.
        double = self.code.kind == "tl.float64"
        log = (lambda x: f"libdevice.log({x})") if double else (lambda x: f"tl.log2(({x}).to(tl.float32))")
        power = (lambda x: f"libdevice.exp({x})") if double else (lambda x: f"tl.exp2({x}).to(tl.float64)")
        kind = "" if double else ".to(tl.float32)"

        def floored(x: str) -> str:
            return log(f"tl.where({x} < ratio_floor, ratio_floor, {x})")

        out.add(f"power = tl.where(accept, b1, exponent){kind} * {floored('ratio')}")
        with out.block("if PID:"):
            out.add(
                f"power += tl.where(accept, b2{kind} * {floored('previous')} + b3{kind} * {floored('before')}, 0.0)"
            )
        out.add(
            f"factor = safety * {power('-power')}",
            "high = tl.where(accept, max_factor, tl.full(start.shape, 1.0, tl.float64))",
            "factor = tl.where(factor < min_factor, min_factor, tl.where(factor > high, high, factor))",
            'factor = tl.where(tl.abs(ratio) < float("inf"), factor, min_factor)',
            "grown = tried * factor",
            "grown = tl.where(accept & cut & (grown < h), h, grown)",
        )
        self.bound("grown", "grown", "tl.where(accept, t_next, t)")
        out.add(
            "h = tl.where(running, grown, h)",
            "before = tl.where(accept & (cut == 0), previous, before)",
            "previous = tl.where(accept & (cut == 0), ratio, previous)",
        )

    def outputs(self, new: str) -> None:
        """Outputs inside and at the end of the accepted steps, from the dense output's polynomial."""
        out, code, method = self.out, self.code, self.method
        due = "(accept & (next_e < n_times) & (direction * (t_next - next_output) >= 0)).to(tl.int32)"
        out.add(f"due = {due}", "any_due = tl.max(due, axis=0)")
        with out.block("if any_due > 0:"):
            names = self.stages(method.stages)
            for m in range(method.degree):
                weights = [row[m] for row in method.q]
                kept = [(w, s) for w, s in zip(weights, names, strict=True) if w != 0.0]
                total = weighted([w for w, _ in kept], [f"{{{i}}}" for i in range(len(kept))], code.dtype)
                if kept:
                    self.assign(f"c{m + 1}", *(s for _, s in kept), text=f"{code.wide('size')} * ({total})")
                else:
                    self.assign(f"c{m + 1}", "y", text="0.0 * {0}")
            with out.block("while any_due > 0:"):
                out.add(
                    "at_end = next_output == t_next",
                    "theta = tl.where(at_end | (step == 0), 1.0, (next_output - t) / step)",
                    "rest = 1.0 - theta",
                )
                for m, phi in enumerate(method.basis("theta", "rest")):
                    out.add(f"phi{m + 1} = ({phi}).to({code.kind})")
                terms = [f"{code.wide(f'phi{m + 1}')} * {{{m + 2}}}" for m in range(method.degree)]
                coefs = [f"c{m + 1}" for m in range(method.degree)]
                text = f"tl.where({code.wide('at_end')}, {{1}}, {{0}} + ({' + '.join(terms)}))"
                self.assign("value", "y", new, *coefs, text=text)
                self.store_state("value", "ys_ptr", "next_e * batch + sample", "due != 0")
                out.add("next_e += due")
                self.next_output()
                out.add(f"due = {due}", "any_due = tl.max(due, axis=0)")

    def finish(self) -> None:
        out = self.out
        out.add("# Beyond the time that a sample reached.")
        self.assign("value", "y", text='{0} * 0.0 + float("nan")')
        out.add("due = (valid & (status > 0) & (next_e < n_times)).to(tl.int32)", "fill_e = next_e")
        with out.block("while tl.max(due, axis=0) > 0:"):
            self.store_state("value", "ys_ptr", "fill_e * batch + sample", "due != 0")
            out.add("fill_e += due", "due = (valid & (status > 0) & (fill_e < n_times)).to(tl.int32)")
        stages = self.method.stages - 1
        out.add(
            f"n_evals = tl.where(CHOOSE, 2, 1) + (n_accepted + n_rejected) * {stages}",
            *(
                f"tl.store(counts_ptr + {i} * batch.to(tl.int64) + sample, {name}.to(tl.int64), mask=valid)"
                for i, name in enumerate(COUNTS)
            ),
            "tl.store(clocks_ptr + sample, t, mask=valid)",
        )
        with out.block("if RECORD:"):
            out.add("tl.store(taken_ptr + row, taken, mask=valid)", "stopped = valid & (status == -1)")
            with out.block("if tl.max(stopped.to(tl.int32), axis=0) > 0:"):
                out.add("# The record is full: where the next launch goes on.")
                out.add(
                    *(
                        f"tl.store(clocks_ptr + {i} * batch.to(tl.int64) + sample, {name}, mask=stopped)"
                        for i, name in enumerate(CLOCKS)
                        if i
                    )
                )
                self.store_state("y", "resume_ptr", "sample", "stopped")
                self.store_state("k1", "resume_ptr", "batch.to(tl.int64) + sample", "stopped")
                out.add("tl.atomic_add(running_ptr, tl.sum(stopped.to(tl.int32), axis=0))")
