"""A program is captured once for fields that are alike, and never used for a field that has changed."""

import collections
import contextvars
import copy
import ctypes
import dataclasses
import enum
import functools
import gc
import io
import itertools
import pickle
import random
import sys
import threading
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import fastode
from fastode._environment import _C
from fastode.program import capture
from fastode.program.capture import Capture
from fastode.program.describe import Executed, describe
from fastode.program.known import KNOWN_FIELDS
from tests.program.tools import F64, attempt, compare, refusal_of


def randn(*shape):
    return torch.randn(*shape, dtype=F64)


@pytest.fixture
def captures(monkeypatch):
    """The number of captures since the test began, as a list that grows."""
    made = []
    real = capture._capture

    def counted(*args):
        made.append(1)
        return real(*args)

    monkeypatch.setattr(capture, "_capture", counted)
    monkeypatch.setattr(KNOWN_FIELDS, "entries", collections.OrderedDict())
    return made


Y0 = torch.linspace(-1, 1, 15, dtype=F64).reshape(5, 3)


class Net(nn.Module):
    def __init__(self, activation=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), activation or nn.Tanh(), nn.Linear(4, 3)).to(F64)
        self.gain = 1.5

    def forward(self, t, y):
        y = self.net(y) * self.gain
        return torch.sin(y) if self.training else y


# -- what costs no capture


def test_optimiser_steps(captures):
    net = Net()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(4):
        compare(net, Y0)
        optimiser.zero_grad()
        net(None, Y0).sum().backward()
        optimiser.step()
    assert len(captures) == 1


def test_other_data_and_batch_sizes(captures):
    net = Net()
    for batch in (1, 2, 3, 7, 1):
        compare(net, randn(batch, 3))
    assert len(captures) == 1


def test_closures_made_anew_over_new_tensors(captures):
    def make(w, b):
        return lambda t, y: torch.tanh(y @ w + b)

    for _ in range(5):
        compare(make(randn(3, 3).requires_grad_(), randn(3)), Y0)
    assert len(captures) == 1


def test_functions_defined_anew(captures):
    net = Net()
    for i in range(4):
        scale = torch.tensor(float(i), dtype=F64)

        def field(t, y, scale=scale):
            return net(t, y) * scale

        compare(field, Y0)
    assert len(captures) == 1


def test_noise_made_anew_per_sample(captures):
    def make(noise):
        return lambda t, y: torch.sin(y) * noise

    for _ in range(4):
        compare(make(randn(5, 3)), Y0)
    assert len(captures) == 1


def test_modules_of_the_same_make(captures):
    for _ in range(3):
        compare(Net(), Y0)
    assert len(captures) == 1


def test_partials_made_anew(captures):
    def field(w, t, y, b=0.0):
        return y * w + b

    for _ in range(3):
        compare(functools.partial(field, randn(3), b=randn(3)), Y0)
    assert len(captures) == 1


def test_bound_methods(captures):
    class Model:
        def __init__(self):
            self.w = randn(3, 3)

        def right(self, t, y):
            return y @ self.w

        def left(self, t, y):
            return y @ self.w.T - y

    model = Model()
    for _ in range(3):
        compare(model.right, Y0)
        compare(model.left, Y0)
    assert len(captures) == 2
    compare(Model().left, Y0)
    assert len(captures) == 2


def test_refusals_are_remembered(captures):
    net = nn.BatchNorm1d(3, dtype=F64)
    for _ in range(3):
        refusal_of(lambda t, y: net(y), Y0)
    assert len(captures) == 1


# -- what must be noticed


def test_lambdas_of_one_line_with_different_constants():
    for field in [lambda t, y, k=k: y * k for k in (1.0, 2.0, 3.0)]:
        compare(field, Y0)
    for k in (1.0, 2.0, 3.0):
        compare(lambda t, y: y * k, Y0)  # noqa: B023


def test_numbers_that_are_equal_but_of_another_type():
    for k in (0.0, -0.0, 0, False, 1, 1.0, True, 2):
        compare(lambda t, y: y * k + k, Y0)  # noqa: B023


def set_attribute(net):
    net.gain = 2.5


def set_attribute_deep(net):
    net.net[0].bias = None


def evaluation(net):
    net.eval()


def replace_parameter(net):
    net.net[0].weight = nn.Parameter(randn(4, 3))


def replace_parameter_of_another_shape(net):
    net.net[0], net.net[2] = nn.Linear(3, 6, dtype=F64), nn.Linear(6, 3, dtype=F64)


def replace_module(net):
    net.net[1] = nn.Softplus()


def replace_data(net):
    net.net[0].weight.data = randn(4, 3)


def append_module(net):
    net.net.append(nn.Sigmoid())


def delete_module(net):
    del net.net[1]


def in_place(net):
    with torch.no_grad():
        net.net[2].weight.mul_(-2)


def load(net):
    net.load_state_dict(Net().state_dict())


def load_assigned(net):
    net.load_state_dict(Net().state_dict(), assign=True)


def forward_hook(net):
    net.net[0].register_forward_hook(lambda module, args, out: out * 2)


def forward_pre_hook(net):
    net.net[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def full_hook_of_the_field(net):
    net.register_forward_hook(lambda module, args, out: out + 1)


def freeze(net):
    net.requires_grad_(False)


def freeze_one(net):
    net.net[0].weight.requires_grad_(False)


def replace_method(net):
    net.forward = lambda t, y: -y


def replace_method_of_a_part(net):
    net.net[1].forward = torch.sin


def tie(net):
    net.net[2].weight = nn.Parameter(net.net[0].weight.detach().T.contiguous())


def weight_norm(net):
    nn.utils.parametrizations.weight_norm(net.net[2])


def share(net):
    net.net = nn.Sequential(nn.Linear(3, 3, dtype=F64), nn.Tanh(), nn.Linear(3, 3, dtype=F64))
    net.net[2].weight = net.net[0].weight


CHANGES = [
    set_attribute,
    set_attribute_deep,
    evaluation,
    replace_parameter,
    replace_parameter_of_another_shape,
    replace_module,
    replace_data,
    append_module,
    delete_module,
    in_place,
    load,
    load_assigned,
    forward_hook,
    forward_pre_hook,
    full_hook_of_the_field,
    freeze,
    freeze_one,
    replace_method,
    replace_method_of_a_part,
    tie,
    weight_norm,
    share,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_changed_module(change):
    net = Net()
    compare(net, Y0)
    compare(net, Y0)
    before = net(None, Y0)
    change(net)
    if change not in (freeze, freeze_one, weight_norm):
        assert not torch.allclose(before, net(None, Y0))
    compare(net, Y0)
    compare(net.forward, Y0)
    compare(lambda t, y: net(t, y) * 1, Y0)


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_changed_module_in_a_closure(change):
    net = Net()

    def field(t, y):
        return net(t, y) - y

    compare(field, Y0)
    compare(field, Y0)
    change(net)
    compare(field, Y0)


def test_hooks_of_all_modules():
    net = Net()
    compare(net, Y0)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: out * 1.5)
    try:
        compare(net, Y0)
    finally:
        handle.remove()
    compare(net, Y0)


def test_another_dtype():
    net = Net()
    compare(net, Y0)
    compare(net.float(), Y0.float())
    compare(net.double(), Y0)


def test_a_closure_variable_that_is_bound_anew():
    k = 1.0

    def field(t, y):
        return y * k

    compare(field, Y0)
    k = 2.0
    compare(field, Y0)
    k = torch.tensor(3.0, dtype=F64)
    compare(field, Y0)


def test_a_list_in_a_closure():
    coefficients = [1.0, 2.0, 3.0]

    def field(t, y):
        return sum(c * y**i for i, c in enumerate(coefficients))

    compare(field, Y0)
    coefficients[1] = -2.0
    compare(field, Y0)
    coefficients.append(0.5)
    compare(field, Y0)


def test_a_dict_in_a_closure():
    options = {"scale": 1.0, "deep": {"act": torch.tanh}}

    def field(t, y):
        return options["deep"]["act"](y) * options["scale"]

    compare(field, Y0)
    options["scale"] = 2.0
    compare(field, Y0)
    options["deep"]["act"] = torch.sin
    compare(field, Y0)
    options["deep"] = {"act": torch.cos}
    compare(field, Y0)


RATE = 1.0
SETTINGS = None
WEIGHT = torch.tensor([1.0, 2.0, 3.0], dtype=F64)


def helper(y):
    return y * RATE


def reading_globals(t, y):
    return helper(y) * WEIGHT


@pytest.mark.parametrize(
    ("name", "value"), [("RATE", 2.0), ("WEIGHT", torch.ones(3, dtype=F64)), ("helper", lambda y: -y), ("WEIGHT", 3.0)]
)
def test_globals(monkeypatch, name, value):
    compare(reading_globals, Y0)
    before = reading_globals(None, Y0)
    monkeypatch.setitem(reading_globals.__globals__, name, value)
    assert not torch.equal(before, reading_globals(None, Y0))
    compare(reading_globals, Y0)
    compare(lambda t, y: reading_globals(t, y) * 1, Y0)


class Options:
    def __init__(self):
        self.rate = 1.0
        self.table = {"a": 2.0}


class Plain:
    """A callable object that is no module."""

    factor = 1.0

    def __init__(self):
        self.options = Options()
        self.w = randn(3)

    def __call__(self, t, y):
        return y * self.w * self.options.rate * self.options.table["a"] * self.factor

    @property
    def derived(self):
        return self.options.rate + 1


def test_attributes_of_a_callable_object():
    field = Plain()
    compare(field, Y0)
    for change in (
        lambda: setattr(field.options, "rate", 3.0),
        lambda: field.options.table.update(a=-1.0),
        lambda: setattr(field, "w", randn(3)),
        lambda: setattr(field, "factor", 0.5),
        lambda: setattr(field, "options", Options()),
    ):
        change()
        compare(field, Y0)


def test_attributes_of_a_class(monkeypatch):
    field = Plain()
    compare(field, Y0)
    monkeypatch.setattr(Plain, "factor", 7.0)
    compare(field, Y0)


def test_methods_of_a_class(monkeypatch):
    field = Plain()
    compare(field, Y0)
    monkeypatch.setattr(Plain, "__call__", lambda self, t, y: -y)
    compare(field, Y0)


def test_the_code_of_a_function():
    def field(t, y):
        return y

    def other(t, y):
        return -y

    compare(field, Y0)
    field.__code__ = other.__code__
    compare(field, Y0)


def test_defaults_of_a_function():
    def field(t, y, k=1.0, *, j=2.0):
        return y * k + j

    compare(field, Y0)
    field.__defaults__ = (3.0,)
    compare(field, Y0)
    field.__kwdefaults__ = {"j": 5.0}
    compare(field, Y0)


def test_an_attribute_of_a_function():
    def field(t, y):
        return y * field.k

    field.k = 1.0
    compare(field, Y0)
    field.k = 2.0
    compare(field, Y0)


def test_a_property_of_the_class(monkeypatch):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = 2.0

        @property
        def scale(self):
            return self.base * 2

        def forward(self, t, y):
            return y * self.scale

    field = Scaled()
    compare(field, Y0)
    field.base = 3.0
    compare(field, Y0)
    monkeypatch.setattr(Scaled, "scale", 9.0)
    compare(field, Y0)


def test_numbers_in_slots():
    class Slotted:
        __slots__ = ("k",)

        def __init__(self, k):
            self.k = k

    setting = Slotted(1.0)

    def field(t, y):
        return y * setting.k

    compare(field, Y0)
    setting.k = 2.0
    compare(field, Y0)


def test_arrays_of_numpy():
    k = np.array([1.0, 2.0])

    def field(t, y):
        return y * float(k[0])

    compare(field, Y0)
    k[0] = 5.0
    compare(field, Y0)


def test_dataclasses_and_enums():
    class Kind(enum.Enum):
        UP = 1
        DOWN = -1

    @dataclasses.dataclass
    class Setting:
        kind: Kind = Kind.UP
        k: float = 1.0

    setting = Setting()

    def field(t, y):
        return y * setting.kind.value * setting.k

    compare(field, Y0)
    setting.kind = Kind.DOWN
    compare(field, Y0)
    setting.k = 3.0
    compare(field, Y0)


def test_a_module_that_the_field_reaches_through_another_object():
    class Holder:
        pass

    holder = Holder()
    holder.parts = {"net": [Net()]}

    def field(t, y):
        return holder.parts["net"][0](t, y)

    compare(field, Y0)
    holder.parts["net"][0].gain = 4.0
    compare(field, Y0)
    holder.parts["net"][0] = Net(nn.ReLU())
    compare(field, Y0)


def test_settings_in_a_module_of_python(monkeypatch):
    settings = types.ModuleType("settings")
    settings.rate, settings.inner = 1.0, types.ModuleType("settings.inner")
    settings.inner.scale = 2.0

    def direct(t, y):
        return y * SETTINGS.rate * SETTINGS.inner.scale

    monkeypatch.setattr(sys.modules[__name__], "SETTINGS", settings)
    compare(direct, Y0)
    settings.rate = 3.0
    compare(direct, Y0)
    settings.inner.scale = 0.5
    compare(direct, Y0)


class Constants:
    rate = 1.0

    class Inner:
        scale = 2.0


def test_classes_as_namespaces(monkeypatch):
    def field(t, y):
        return y * Constants.rate * Constants.Inner.scale

    compare(field, Y0)
    monkeypatch.setattr(Constants, "rate", 3.0)
    compare(field, Y0)
    monkeypatch.setattr(Constants.Inner, "scale", 0.5)
    compare(field, Y0)


def test_default_dtype_matters():
    def field(t, y):
        return y * torch.tensor([1.0, 2.0, 0.1]).to(y.dtype)

    compare(field, Y0)
    torch.set_default_dtype(F64)
    compare(field, Y0)


def test_tied_tensors_are_told_from_separate_ones():
    def make(a, b):
        return lambda t, y: (y @ a) @ b

    w = randn(3, 3).requires_grad_()
    compare(make(w, w), Y0)
    compare(make(w, randn(3, 3).requires_grad_()), Y0)
    compare(make(w, w), Y0)


def test_tensors_that_change_shape_type_or_layout():
    def make(w):
        return lambda t, y: y * w

    for w in (randn(3), randn(1), randn(()), randn(1, 3), randn(5, 3), randn(5, 1), randn(3).float(), torch.arange(3)):
        compare(make(w), Y0)


def test_strides_do_not_matter():
    def make(w):
        return lambda t, y: torch.tanh(y @ w)

    big = randn(6, 6)
    for w in (big[:3, :3].contiguous(), big[:3, :3], big[::2, 1::2], big.T[:3, 2:5], randn(1, 3).expand(3, 3)):
        compare(make(w), Y0)


def test_controls_that_change_structure_or_shape():
    def field(t, y, c):
        return y * (c["k"] if isinstance(c, dict) else c)

    for controls in (randn(5, 3), randn(5, 1), {"k": randn(5, 3)}, randn(5, 3).float().double()):
        compare(field, Y0, controls)


def test_samples_as_many_as_rows_of_a_weight():
    # A (3, 3) weight with 3 samples is not a tensor per sample, also when first seen so.
    net = nn.Linear(3, 3, dtype=F64)
    field = lambda t, y: net(y)  # noqa: E731
    for batch in (3, 5, 3):
        assert compare(field, randn(batch, 3)).batch is None


def test_a_table_per_sample_that_also_suits_other_batches():
    def make(table):
        return lambda t, y: y * table

    assert compare(make(randn(1, 3)), randn(1, 3)).program
    compare(make(randn(1, 3)), randn(4, 3))
    compare(make(randn(4, 3)), randn(4, 3))
    compare(make(randn(4, 1)), randn(4, 3))


def test_gradient_is_asked_for_later():
    w = randn(3)

    def field(t, y):
        return y * w

    compare(field, Y0)
    w.requires_grad_()
    compare(field, Y0)


def test_weights_that_another_network_made(captures):
    maker = nn.Linear(2, 9, dtype=F64)
    for _ in range(3):
        w = maker(randn(2)).reshape(3, 3)
        compare(lambda t, y: torch.tanh(y @ w), Y0)  # noqa: B023
    assert len(captures) == 1


# -- integers that the field holds are part of its program


class Graph(nn.Module):
    """Messages along the edges of a graph."""

    def __init__(self):
        super().__init__()
        self.register_buffer("source", torch.tensor([0, 1, 2, 0]))
        self.register_buffer("target", torch.tensor([1, 2, 0, 2]))
        self.weight = nn.Parameter(randn(4))

    def forward(self, t, y):
        return torch.zeros_like(y).index_add(1, self.target, torch.sin(y[:, self.source]) * self.weight)


def test_an_index_in_a_buffer(captures):
    graph = Graph()
    compare(graph, Y0)
    compare(graph, Y0)
    compare(Graph(), Y0)
    assert len(captures) == 1
    graph.source[0] = 2
    compare(graph, Y0)
    graph.source.data.copy_(torch.tensor([2, 2, 1, 1]))
    compare(graph, Y0)
    graph.target = torch.tensor([0, 0, 0, 1])
    compare(graph, Y0)
    compare(Graph(), Y0)


def test_integers_that_are_no_index_cost_no_capture(captures):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3).to(F64)

        def forward(self, t, y):
            return -y * 2

    field = Counted()
    for _ in range(3):
        compare(field, Y0)
        field.norm(Y0)  # counts batches
    assert len(captures) == 1


# -- what cannot be watched


def test_a_large_array_is_refused():
    table = np.zeros(1_000_000)

    def field(t, y):
        return y * float(table[3])

    assert "variable table (an array of 8000000 bytes) may change without being noticed" in str(refusal_of(field, Y0))


def test_what_takes_long_to_look_through_is_refused_once(monkeypatch, captures):
    from fastode.program import describe

    table = [[float(i)] for i in range(100)]

    def field(t, y):
        return y * table[0][0]

    monkeypatch.setattr(describe, "_MAX_OBJECTS", 50)
    for _ in range(3):
        assert "after 50 other objects" in refusal_of(field, Y0).reason
    assert len(captures) == 1


class Owner:
    rate = 1.0


UNKNOWN = {
    "iterator": lambda: iter([1.0, 2.0]),
    "counter": lambda: itertools.count(1),
    "generator": lambda: (x for x in (1.0, 2.0)),
    "view": lambda: types.MappingProxyType({"rate": 1.0}),
    "weak reference": lambda: weakref.ref(Owner()),
    "context variable": lambda: contextvars.ContextVar("rate", default=1.0),
    "foreign number": lambda: ctypes.c_double(1.0),
    "random numbers": lambda: random.Random(0),
    "lock": threading.Lock,
    "stream": io.StringIO,
    "thread's own": threading.local,
    "cache": lambda: functools.lru_cache(lambda: 1.0),
    "deque of objects": lambda: collections.deque([object()]),
    "keys that are objects": lambda: {Owner(): 1.0},
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_cannot_be_watched_is_refused_before_it_is_called(kind):
    held, calls = UNKNOWN[kind](), []

    def field(t, y):
        calls.append(held)
        return -y

    reason = refusal_of(field, Y0).reason
    assert "variable held (" in reason
    assert "may change without being noticed" in reason
    assert not calls


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_is_not_named_in_code_that_runs_does_not_matter(kind):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = UNKNOWN[kind]()

        def other(self):
            return self.held

        def forward(self, t, y):
            return -y

    compare(Field(), Y0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_refused():
    net = torch.jit.script(nn.Linear(3, 3, dtype=F64))
    assert "may change without being noticed" in refusal_of(lambda t, y: net(y), Y0).reason


def test_an_object_that_does_not_let_itself_be_looked_at_is_refused():
    class Shy:
        def __getattribute__(self, name):
            raise OSError("no")

    shy = Shy()
    assert "cannot be looked through" in refusal_of(lambda t, y: y * shy.rate, Y0).reason


def test_capture_leaves_no_trace_in_buffers():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).to(F64)
    before = copy.deepcopy(net.state_dict())
    refusal_of(lambda t, y: net(y), Y0)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


# -- memory


def test_tensors_and_closures_are_let_go():
    def make(w):
        return lambda t, y: torch.tanh(y @ w)

    dead = []
    for _ in range(3):
        w = randn(3, 3)
        field = make(w)
        compare(field, Y0)
        dead += [weakref.ref(w), weakref.ref(field)]
    del w, field
    gc.collect()
    assert all(ref() is None for ref in dead)


@pytest.mark.parametrize("batchwise", [False, True])
def test_modules_are_let_go(batchwise):
    def seen():
        net = Net()
        noise = randn(5, 3) if batchwise else 1.0
        field = lambda t, y: net(t, y) * noise  # noqa: E731
        compare(net, Y0)
        compare(field, Y0)
        return [weakref.ref(net), weakref.ref(net.net[0].weight), weakref.ref(field)]

    dead = seen()
    gc.collect()
    assert [ref() for ref in dead] == [None] * 3


def test_refused_fields_are_let_go():
    def seen():
        net = Net()
        field = lambda t, y: net(t, y) - y.mean(0)  # noqa: E731
        refusal_of(field, Y0)
        return [weakref.ref(net), weakref.ref(field)]

    dead = seen()
    gc.collect()
    assert [ref() for ref in dead] == [None] * 2


def test_the_number_of_known_fields_is_bounded(monkeypatch, captures):
    from fastode.program import known

    monkeypatch.setattr(known, "_KINDS", 4)
    for d in range(1, 8):
        compare(lambda t, y: y * 2.0, randn(2, d))
        assert len(KNOWN_FIELDS.entries) <= 4
    compare(lambda t, y: y * 2.0, randn(2, 7))


def test_programs_of_one_field_are_bounded(captures):
    from fastode.program.known import _EACH

    class Field(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, t, y):
            return y * len(self.name)

    for i in range(_EACH + 9):
        compare(Field("x" * i), Y0)
    assert max(map(len, KNOWN_FIELDS.entries.values())) <= _EACH


# -- copies, threads


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_do_not_carry_captures(copied):
    net = Net()
    compare(net, Y0)
    again = copied(net)
    if copied is not copy.copy:
        assert again.net is not net.net
    again.gain = 9.0
    compare(again, Y0)
    compare(net, Y0)


def test_nothing_is_left_on_the_field():
    for field in (Net(), Plain(), functools.partial(Net(), None), lambda t, y: y * RATE):
        before = set(vars(field))
        attempt(field, Y0)
        assert set(vars(field)) == before


def test_saving_after_capture(tmp_path):
    net = Net()
    compare(net, Y0)
    torch.save(net, tmp_path / "net.pt")
    again = torch.load(tmp_path / "net.pt", weights_only=False)
    compare(again, Y0)


def test_threads():
    errors = []

    def work(field, seed):
        try:
            for _ in range(5):
                compare(field, Y0 + seed)
        except BaseException as error:
            errors.append(error)

    shared = Net()
    fields = [shared, shared, Net(nn.Sigmoid()), lambda t, y: shared(t, y) * 2]
    threads = [threading.Thread(target=work, args=(field, i)) for i, field in enumerate(fields)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_capture_within_no_grad_and_inference_mode():
    net = Net()
    with torch.no_grad():
        assert isinstance(attempt(net, Y0), Capture)
    compare(net, Y0)
    with torch.inference_mode():
        assert isinstance(attempt(net, Y0.clone()), Capture)


def test_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    attempt(lambda t, y: torch.sin(y) * 1.25, Y0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_variable_that_is_deleted():
    k = 1.0

    def field(t, y):
        return y * k  # noqa: F821

    compare(field, Y0)
    del k
    with pytest.raises(NameError):
        fastode.solve(field, Y0, (0.0, 1.0))


def test_a_global_that_hides_a_builtin(monkeypatch):
    def field(t, y):
        return y * max(1.0, 2.0)

    compare(field, Y0)
    monkeypatch.setitem(field.__globals__, "max", min)
    compare(field, Y0)


def test_the_matcher_holds_for_what_is_alike():
    executed = Executed()
    executed.add(Net.forward.__code__)
    net = Net()
    matcher = describe(net, executed).matcher()
    found = matcher.match(net)
    assert [id(x) for x in found] == [id(x) for x in net.parameters()]
    assert len(matcher.match(Net())) == 4
    net.step = 1  # not named in the code that ran
    assert matcher.match(net) is not None
    net.gain = 7.0
    assert matcher.match(net) is None
    net.gain = 3.0 / 2.0  # another object, though equal
    assert matcher.match(net) is not None
    assert matcher.match(Net(nn.ReLU())) is None
    assert matcher.match(None) is None


def test_what_a_matcher_is_given_is_checked():
    for statements in ([("no such", 0, 0, 0, None)], [("is", 3, 0, 0, None)], [("same", 0, 0, 9, None)]):
        with pytest.raises(ValueError, match="Matcher"):
            _C.Matcher(statements, 1, [])
    with pytest.raises(ValueError, match="slot"):
        _C.Matcher([], 1, [2])


def test_a_method_of_a_model_in_training_is_captured_once(captures):
    """The trainer, which the model refers to, changes with every step and is no part of the field."""
    lightning = pytest.importorskip("pytorch_lightning")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def rhs(self, t, y):
            return torch.tanh(self.layer(y))

        def training_step(self, batch, index):
            return fastode.solve(self.rhs, batch, [0.0, 1.0], backend="cpu").ys.square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_steps=5, enable_model_summary=False, accelerator="cpu", **quiet)
    trainer.fit(Model(), torch.utils.data.DataLoader(torch.randn(40, 3), batch_size=8))
    assert len(captures) == 1
