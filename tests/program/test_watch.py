"""What a field reads, changes or hooks is an input of its program, part of its key, or there is no program."""

# ruff: noqa: PLW0108, SIM115, NPY002 - fields are written here as they are elsewhere

import array
import collections
import contextvars
import ctypes
import datetime
import functools
import io
import itertools
import json
import math
import operator
import os
import random
import secrets
import sys
import threading
import time
import types
import warnings
import weakref
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import fastode
from fastode.program.capture import Capture
from fastode.program.describe import Executed
from fastode.program.watch import Watch
from tests.program.tools import F64, attempt, compare, refusal_of

T = torch.tensor([0.0, 1.0], dtype=F64)
Y0 = torch.linspace(0.5, 1.5, 6, dtype=F64).reshape(3, 2)


def rates(field):
    """The numbers k of y' = k y, for each component."""
    sol = fastode.solve(field, Y0, T, rtol=1e-9, atol=1e-10)
    return torch.log(sol.ys[-1, 0].detach() / Y0[0]).tolist()


class Owner:
    def __init__(self, rate=1.0):
        self.rate = rate


class History(list):
    pass


class Table(dict):
    def lookup(self):
        return self["rate"]


class Settings(NamedTuple):
    rates: list


class Slotted:
    __slots__ = ("rate",)


class Hidden:
    """Attributes that no code names."""

    def __init__(self):
        self.rate = 1.0

    def __getattr__(self, name):
        if name == "speed":
            return vars(self)["ra" + "te"]
        raise AttributeError(name)


VARIABLE = contextvars.ContextVar("rate", default=1.0)
NUMBER = 1.0


def optimizer():
    made = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    return lambda: made.param_groups[0]["lr"], lambda: made.param_groups[0].update(lr=0.5)


def scheduler():
    made = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    steps = torch.optim.lr_scheduler.StepLR(made, 1, 0.5)
    return lambda: steps.get_last_lr()[0], lambda: (made.step(), steps.step())


def of(make, read, change):
    def case():
        held = make()
        return lambda: read(held), lambda: change(held)

    return case


def environment():
    os.environ["FIELD_RATE"] = "1.0"
    return lambda: float(os.environ["FIELD_RATE"]), lambda: os.environ.update(FIELD_RATE="0.5")


def set_global():
    globals()["NUMBER"] = 0.5


def changed_global():
    globals()["NUMBER"] = 1.0
    return lambda: NUMBER, set_global


def slotted():
    held = Slotted()
    held.rate = 1.0
    return lambda: held.rate, lambda: setattr(held, "rate", 0.5)


def parameter_with_attribute():
    held = nn.Parameter(torch.ones(1, dtype=F64))
    held.rate = 1.0
    return lambda: held.rate, lambda: setattr(held, "rate", 0.5)


def new_attribute():
    held = Owner()
    return lambda: getattr(held, "other", 1.0), lambda: setattr(held, "other", 0.5)


def default_of_a_function():
    def read(rate=[1.0]):  # noqa: B006 - on purpose
        return rate[0]

    return read, lambda: read.__defaults__[0].__setitem__(0, 0.5)


def attribute_of_a_function():
    def held():
        pass

    held.rate = 1.0
    return lambda: held.rate, lambda: setattr(held, "rate", 0.5)


def cached_function():
    base = [1.0]
    cached = functools.lru_cache(lambda: base[0])
    cached()
    return cached, lambda: (base.__setitem__(0, 0.5), cached.cache_clear())


def contextual():
    VARIABLE.set(1.0)
    return VARIABLE.get, lambda: VARIABLE.set(0.5)


CHANGES = {
    "private flag": of(lambda: types.SimpleNamespace(_rate=1.0), lambda x: x._rate, lambda x: setattr(x, "_rate", 0.5)),
    "list in a named tuple": of(lambda: Settings([1.0]), lambda x: x.rates[0], lambda x: x.rates.__setitem__(0, 0.5)),
    "subclass of list": of(lambda: History([1.0]), lambda x: x[-1], lambda x: x.append(0.5)),
    "subclass of dict": of(lambda: Table(rate=1.0), lambda x: x.lookup(), lambda x: x.update(rate=0.5)),
    "private set": of(lambda: {"slow"}, lambda x: 1.0 if "slow" in x else 0.5, lambda x: x.clear()),
    "view of a dictionary": of(
        lambda: {"rate": 1.0}, lambda x: types.MappingProxyType(x)["rate"], lambda x: x.update(rate=0.5)
    ),
    "bound method": of(lambda: {"rate": 1.0}, lambda x: x.get("rate"), lambda x: x.update(rate=0.5)),
    "foreign number": of(lambda: ctypes.c_double(1.0), lambda x: x.value, lambda x: setattr(x, "value", 0.5)),
    "weak reference": of(Owner, lambda x: weakref.ref(x)().rate, lambda x: setattr(x, "rate", 0.5)),
    "array": of(lambda: np.ones(2), lambda x: float(x[0]), lambda x: x.__setitem__(0, 0.5)),
    "computed name": of(Hidden, lambda x: x.speed, lambda x: setattr(x, "rate", 0.5)),
    "attrgetter": of(Owner, operator.attrgetter("rate"), lambda x: setattr(x, "rate", 0.5)),
    "items": of(lambda: {"rate": [1.0]}, lambda x: sum(*x.values()), lambda x: x["rate"].__setitem__(0, 0.5)),
    "thread's own": of(threading.local, lambda x: getattr(x, "rate", 1.0), lambda x: setattr(x, "rate", 0.5)),
    "optimizer": optimizer,
    "scheduler": scheduler,
    "environment": environment,
    "global": changed_global,
    "slot": slotted,
    "attribute of a parameter": parameter_with_attribute,
    "new attribute": new_attribute,
    "default": default_of_a_function,
    "context variable": contextual,
    "attribute of a function": attribute_of_a_function,
    "cached function": cached_function,
    "user dict": of(lambda: collections.UserDict(rate=1.0), lambda x: x["rate"], lambda x: x.update(rate=0.5)),
    "array of Python": of(lambda: array.array("d", [1.0]), lambda x: x[0], lambda x: x.__setitem__(0, 0.5)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changes_between_solves_is_noticed(kind):
    read, change = CHANGES[kind]()
    field = lambda t, y: y * read()  # noqa: E731
    assert rates(field) == pytest.approx([1.0, 1.0], abs=1e-6)
    change()
    assert rates(field) == pytest.approx([0.5, 0.5], abs=1e-6)


def test_imports_by_torch_are_no_doing_of_the_fields(monkeypatch):
    """Torch loads parts of itself when they are first used, and whoever has a hook on imports runs then."""

    class Hook:
        @staticmethod
        def find_spec(name, path=None, target=None):
            os.fspath("x")

    monkeypatch.setattr(sys, "meta_path", [Hook, *sys.meta_path])
    source = "def load():\n    try: import nothing_of_this_name\n    except ImportError: pass"
    names = {}
    exec(compile(source, os.path.join(os.path.dirname(torch.__file__), "testing", "of_no_name.py"), "exec"), names)
    executed = Executed()
    executed.add(Hook.find_spec.__code__)  # as if it were the field's: what it calls counts
    with Watch(executed, lambda: None, lambda: None):
        names["load"]()


def test_a_module_that_the_field_imports(monkeypatch):
    module = types.ModuleType("settings_of_a_test")
    module.rate = 1.0
    monkeypatch.setitem(sys.modules, "settings_of_a_test", module)

    def field(t, y):
        import settings_of_a_test

        return y * settings_of_a_test.rate

    assert rates(field) == pytest.approx([1.0, 1.0], abs=1e-6)
    module.rate = 0.5
    assert rates(field) == pytest.approx([0.5, 0.5], abs=1e-6)


# -- values of tensors that reach Python

READS = {
    "tolist": lambda w: w.tolist()[0],
    "item": lambda w: w[0].item(),
    "float": lambda w: float(w[0]),
    "numpy": lambda w: w.detach().numpy()[0],
    "array": lambda w: float(np.asarray(w.detach()).mean()),
    "sum of an array": lambda w: sum(w.detach().numpy()) / 2,
    "max of a list": lambda w: max(w.tolist()),
    "map": lambda w: next(iter(map(float, w))),
    "methodcaller": lambda w: operator.methodcaller("tolist")(w)[0],
    "text": lambda w: float(f"{w[0]:.6f}"),
    "json": lambda w: json.loads(json.dumps(w.tolist()))[0],
    "copied": lambda w: torch.tensor(w.detach().numpy()),
    "rebuilt": lambda w: torch.tensor([w[0], w[1]], dtype=F64),
    "nested": lambda w: torch.tensor(w.tolist(), dtype=F64),
    "address": lambda w: ctypes.cast(w.data_ptr(), ctypes.POINTER(ctypes.c_double))[0],
    "branch": lambda w: 1.0 if torch.allclose(w, torch.ones_like(w)) else 0.3,
    "equal": lambda w: 1.0 if torch.equal(w, torch.ones_like(w)) else 0.3,
    "truth": lambda w: 1.0 if (w == 1).all() else 0.3,
    "in": lambda w: 1.0 if 1.0 in w else 0.3,
    "range": lambda w: 1.0 if len(range(int(10 * w[0]))) == 10 else 0.3,
    "index": lambda w: [0.3, 1.0][int(w[0])],
    "fill": lambda w: torch.full((2,), w[0].detach(), dtype=F64),
    "clone": lambda w: torch.tensor(w),
    "new tensor": lambda w: w.new_tensor(w),
    "nothing in Python": lambda w: w.detach().clone(),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", READS)
def test_a_parameter_that_changes(kind):
    w = nn.Parameter(torch.ones(2, dtype=F64))
    read = READS[kind]
    field = lambda t, y: read(w) * y  # noqa: E731
    assert rates(field) == pytest.approx([1.0, 1.0], abs=1e-6)
    with torch.no_grad():
        w.mul_(0.3)
    assert rates(field) == pytest.approx([0.3, 0.3], abs=1e-6)


# -- what a field does beside its value


def _count(owner):
    return getattr(owner, "n", 0)


def _seen():
    return getattr(Owner, "n", 0)


EFFECTS = {
    "counter": lambda: (count := itertools.count(), lambda: next(count), lambda: next(count)),
    "list": lambda: (log := [], lambda: log.append(1), lambda: len(log)),
    "subclass of list": lambda: (log := History(), lambda: log.append(1), lambda: len(log)),
    "stream": lambda: (s := io.StringIO(), lambda: s.write("x"), lambda: len(s.getvalue())),
    "printed": lambda: (s := io.StringIO(), lambda: print("x", end="", file=s), lambda: len(s.getvalue())),
    "attribute": lambda: (o := Owner(0), lambda: setattr(o, "rate", o.rate + 1), lambda: o.rate),
    "dictionary": lambda: (d := {"n": 0}, lambda: d.update(n=d["n"] + 1), lambda: d["n"]),
    "array": lambda: (a := np.zeros(1), lambda: np.add(a, 1, out=a), lambda: a[0]),
    "buffer": lambda: (b := torch.zeros(1), lambda: b.add_(1), lambda: b.item()),
    "buffer through numpy": lambda: (b := torch.zeros(1), lambda: b.numpy().__iadd__(1), lambda: b.item()),
    "set": lambda: (s := set(), lambda: s.add(len(s)), lambda: len(s)),
    "user dict": lambda: (d := collections.UserDict(n=0), lambda: d.update(n=d["n"] + 1), lambda: d["n"]),
    "array of Python": lambda: (a := array.array("i"), lambda: a.append(1), lambda: len(a)),
    "module": lambda: (m := types.ModuleType("m"), lambda: setattr(m, "n", _count(m) + 1), lambda: _count(m)),
    "function": lambda: (f := lambda: 0, lambda: setattr(f, "n", _count(f) + 1), lambda: _count(f)),
    "class attribute": lambda: (Owner, lambda: setattr(Owner, "n", _seen() + 1), _seen),
}  # fmt: skip


@pytest.mark.parametrize("kind", EFFECTS)
def test_effects_are_those_of_the_solves_own_calls(kind):
    """Four stages in ten steps are forty calls, with one more at the end at most."""
    _, act, count = EFFECTS[kind]()

    def field(t, y):
        act()
        return -y

    before = count()
    sol = fastode.solve(field, Y0, T, method="rk4_classic", step_size=0.1)
    torch.testing.assert_close(sol.ys[-1], Y0 * math.exp(-1.0), rtol=1e-6, atol=0.0)
    seen = count() - before
    assert seen == int(sol.stats.n_evals[0]) + (kind == "counter")
    if kind == "class attribute":
        del Owner.n


def test_what_is_refused_is_not_called_a_second_time():
    """The field holds a tensor with as many rows as there are samples: a reason to record it in another way."""
    number, noise = ctypes.c_double(1.0), torch.ones(3, 2, dtype=F64)

    def field(t, y):
        number.value *= 0.5
        return -number.value * noise * y

    sol = fastode.solve(field, Y0, T, method="euler", step_size=0.25)
    assert number.value == 0.5 ** int(sol.stats.n_evals[0])


def test_buffers_written_by_out_are_not_written_on_trial():
    net = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2, dtype=F64))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert "writes into" in refusal_of(lambda t, y: net(y), Y0).reason
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_hooks_and_counters_see_the_whole_state_only():
    seen = []
    net = nn.Linear(2, 2, dtype=F64)
    net.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape)))
    fastode.odeint(lambda t, y: net(y), Y0, T)
    assert set(seen) == {(3, 2)}


class Growing(nn.Module):
    """Reads what it has written before."""

    def __init__(self):
        super().__init__()
        self.rate = 1.0

    def forward(self, t, y):
        self.rate *= 0.5
        return -self.rate * y


def test_a_field_that_reads_what_it_writes():
    ours, y = Growing(), Y0
    sol = fastode.solve(ours, Y0, T, method="euler", step_size=0.25)
    own = Growing()
    for _ in range(4):
        y = y + 0.25 * own(None, y)
    torch.testing.assert_close(sol.ys[-1], y)


# -- what belongs to the surroundings

AROUND = {
    "clock": lambda: time.time(),
    "perf_counter": lambda: time.perf_counter(),
    "date": lambda: datetime.datetime.now().timestamp(),
    "random": lambda: random.random(),
    "numpy's random": lambda: np.random.rand(),
    "secrets": lambda: secrets.randbelow(5),
    "identity": lambda: id(object()),
    "threads": lambda: threading.get_ident(),
    "interpreter": lambda: sys.getrecursionlimit(),
    "path": lambda: len(os.getcwd()),
    "globals": lambda: globals()["NUMBER"],
    "torch's seed": lambda: torch.initial_seed(),
    "torch's threads": lambda: torch.get_num_threads(),
    "warning": lambda: warnings.warn("x", stacklevel=1) or 1.0,
    "text to code": lambda: eval("1.0"),
    "file": lambda: len(open(os.devnull).read()),
}  # fmt: skip


@pytest.mark.parametrize("kind", AROUND)
def test_surroundings_are_no_constants(kind):
    read = AROUND[kind]
    refusal = refusal_of(lambda t, y: y * read(), Y0)
    assert "it calls" in refusal.reason or "may change without being noticed" in refusal.reason, refusal
    assert "test_watch.py" in (refusal.where or "test_watch.py")


def test_the_random_state_is_that_of_the_solves_own_calls():
    def draws():
        random.seed(5)
        fastode.solve(lambda t, y: -y * random.random(), Y0, T, method="euler", step_size=0.25)
        return random.random()

    random.seed(5)
    expected = [random.random() for _ in range(8)]
    assert draws() in expected[:6]


def test_the_gradient_mode_is_that_of_the_solve():
    field = lambda t, y: y if torch.is_grad_enabled() else 0.5 * y  # noqa: E731
    with torch.no_grad():
        assert rates(field) == pytest.approx([0.5, 0.5], abs=1e-6)
    assert "values without gradient" in refusal_of(field, Y0).reason

    def flow(t, y):
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            y = y.requires_grad_()
            return torch.autograd.grad(torch.sin(y).sum(), y, create_graph=wanted)[0]

    compare(flow, Y0)


def test_a_field_that_asks_whether_its_state_requires_grad():
    def field(t, y):
        return -y if y.requires_grad else -0.5 * y

    assert "values without gradient" in refusal_of(field, Y0).reason

    def harmless(t, y):
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            return -torch.autograd.grad((y**2).sum() / 2, y, create_graph=True)[0]

    assert isinstance(attempt(harmless, Y0), Capture)


# -- what is attached to gradients


class Clipping(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-10.0, 10.0)


def hooked(y):
    z = 0.5 * y
    if z.requires_grad:
        z.register_hook(lambda g: g.clamp(-10.0, 10.0))
    return z


def with_backward_hook():
    net = nn.Linear(2, 2, dtype=F64)
    net.register_full_backward_hook(lambda module, gi, go: (gi[0].clamp(-10.0, 10.0),))
    return net


@pytest.mark.parametrize("make", [lambda: hooked, lambda: Clipping.apply, with_backward_hook])
def test_attachments_keep_their_meaning(make):
    """A loss so large that clipping acts, against a plain loop of Euler steps."""
    act = make()

    def gradient(solve):
        y0 = Y0.clone().requires_grad_()
        return torch.autograd.grad(1e5 * solve(y0).square().sum(), y0)[0]

    def loop(y):
        for _ in range(4):
            y = y + 0.25 * torch.tanh(act(y))
        return y

    def solve(y):
        return fastode.solve(lambda t, y: torch.tanh(act(y)), y, T, method="euler", step_size=0.25).ys[-1]

    torch.testing.assert_close(gradient(solve), gradient(loop), rtol=1e-7, atol=1e-2)


def test_a_global_backward_hook_that_comes_later():
    net = nn.Linear(2, 2, dtype=F64)
    compare(lambda t, y: net(y), Y0)
    handle = nn.modules.module.register_module_full_backward_hook(lambda module, gi, go: None)
    try:
        assert "hooks on its gradients" in refusal_of(lambda t, y: net(y), Y0).reason
    finally:
        handle.remove()


# -- what is allowed


@functools.wraps(math.exp)
def wrapped(x):
    return math.exp(x)


class Config:
    def __init__(self):
        self.names, self.sizes = ("a", "b"), {"a": 1.0, "b": 2.0}

    @property
    def total(self):
        return sum(self.sizes[name] for name in self.names)


CONFIG = Config()
ALLOWED = {
    "math": lambda t, y: y * math.sqrt(2.0) + wrapped(0.5),
    "containers": lambda t, y: y * CONFIG.total + len([x for x in range(3) if x % 2]),
    "text": lambda t, y: y if ["a", "b"][0].upper() == "A" else -y,
    "functional": lambda t, y: functools.reduce(operator.add, [y, y, torch.sin(y)]),
    "partial": lambda t, y: functools.partial(torch.clamp, min=-1.0)(y),
    "numbers of numpy": lambda t, y: y * float(np.sqrt(2.0)) * np.array([1.0, 2.0]).sum(),
    "no_grad": lambda t, y: y + torch.no_grad()(torch.sin)(y).detach(),
    "context": lambda t, y: _in_context(y),
    "shapes": lambda t, y: y.reshape(y.shape[0], -1) * (y.dim() + y.size(1)),
    "types": lambda t, y: y * (2.0 if isinstance(y, torch.Tensor) and y.dtype is F64 else 3.0),
    "own derivative": lambda t, y: _derivative(y),
}


def _in_context(y):
    with torch.enable_grad(), warnings_off():
        return torch.tanh(y)


class warnings_off:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def _derivative(y):
    with torch.enable_grad():
        y = y.requires_grad_() if not y.requires_grad else y
        return torch.autograd.grad(torch.sin(y).sum(), y, create_graph=True)[0]


@pytest.mark.parametrize("kind", ALLOWED)
def test_pure_python_costs_no_program(kind):
    compare(ALLOWED[kind], Y0)


# -- recording again and again


def test_a_counter_beside_the_field_does_not_matter(monkeypatch):
    from fastode.program import capture

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.step, self.losses = nn.Linear(2, 2, dtype=F64), 0, []

        def forward(self, t, y):
            return self.net(y)

        def after(self):
            self.step += 1
            self.losses.append(0.5)

    model = Model()
    compare(model, Y0)
    monkeypatch.setattr(capture, "_capture", None)
    for _ in range(3):
        model.after()
        compare(model, Y0)


@pytest.mark.parametrize("second", [False, True])
def test_a_refusal_is_remembered_whatever_a_counter_says(monkeypatch, second):
    from fastode.program import capture

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.nfe = 0

        def forward(self, t, y):
            if second:
                y = y * float(t[0, 0] < 9.0)
            self.nfe += 1
            return -y

    model, runs, real = Model(), [], capture._capture
    monkeypatch.setattr(capture, "_capture", lambda *a: runs.append(1) or real(*a))
    for _ in range(8):
        fastode.solve(model, Y0, T, method="euler")
    assert len(runs) <= 2
    assert model.nfe == 16


def test_a_number_that_never_stays_the_same(monkeypatch):
    from fastode.program import capture, known

    monkeypatch.setattr(known, "_CHANGING", 4)

    class Annealed(nn.Module):
        def __init__(self):
            super().__init__()
            self.beta = 1.0

        def forward(self, t, y):
            return -self.beta * y

    model, runs, real = Annealed(), [], capture._capture
    monkeypatch.setattr(capture, "_capture", lambda *a: runs.append(1) or real(*a))
    with pytest.warns(fastode.PerformanceWarning, match=r"beta is another number.*tensor") as caught:  # noqa: PT031
        for _ in range(30):
            model.beta *= 0.9
            assert rates(model) == pytest.approx([-model.beta] * 2, abs=1e-6)
    assert len(runs) <= 12
    assert len([w for w in caught if w.category is fastode.PerformanceWarning]) == 1


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_number_that_never_stays_the_same_is_not_tried_in_other_ways(method, monkeypatch):
    """``odeint`` knows three readings of a function; one of them has shown that numbers change."""
    from fastode.program import capture, known

    monkeypatch.setattr(known, "_CHANGING", 4)
    rate, runs, real = 1.0, [], capture._capture
    monkeypatch.setattr(capture, "_capture", lambda *a: runs.append(1) or real(*a))

    def field(t, y):
        return -rate * y

    t = torch.tensor([0.0, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastode.PerformanceWarning)
        for _ in range(12):
            rate *= 0.9
            ys = fastode.odeint(field, torch.ones(2, 2), t, method=method)
            assert ys[-1, 0, 0].item() == pytest.approx(math.exp(-rate), rel=2e-2)
    assert len(runs) <= 6


def test_one_warning_for_each_field_names_line_and_cure():
    def counting(t, y):
        counting.calls += 1
        return -y

    counting.calls = 0
    with pytest.warns(fastode.PerformanceWarning, match=r"counting.*changes calls.*Solution.stats") as caught:  # noqa: PT031
        for _ in range(3):
            fastode.solve(counting, Y0, T)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", fastode.PerformanceWarning)
        fastode.solve(lambda t, y: y - y.mean(0), Y0, T)  # nothing would help
