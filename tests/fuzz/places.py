"""Where Python numbers live in people's code."""

from __future__ import annotations

from tests.fuzz.feature import Feature, Place, counter_in, decaying_in, flag_in, number_in

PLACES = (
    Place("attribute", "$rate", "$rate = {v}", "$rate = {v}", writes=("$rate",)),
    Place("private attribute", "$_rate", "$_rate = {v}", "$_rate = {v}", writes=("$_rate",)),
    Place("dict", '$cfg["rate"]', '$cfg["rate"] = {v}', '$cfg = {"rate": {v}}'),
    Place("private dict", '$_cfg["rate"]', '$_cfg["rate"] = {v}', '$_cfg = {"rate": {v}}'),
    Place(
        "dict subclass",
        '$cfg["rate"]',
        '$cfg["rate"] = {v}',
        "$cfg = @Config(rate={v})",
        "class @Config(dict):\n    pass",
    ),
    Place(
        "attribute dict",
        "$cfg.rate",
        "$cfg.rate = {v}",
        "$cfg = @Config(rate={v})",
        "class @Config(dict):\n    __getattr__ = dict.__getitem__\n    __setattr__ = dict.__setitem__",
    ),
    Place("list", "$rates[-1]", "$rates[-1] = {v}", "$rates = [{v}]"),
    Place(
        "list subclass", "$rates[-1]", "$rates.append({v})", "$rates = @Rates([{v}])", "class @Rates(list):\n    pass"
    ),
    Place("growing list", "$rates[-1]", "$rates.append({v})", "$rates = [{v}]"),
    Place("deque", "$rates[-1]", "$rates.append({v})", "$rates = collections.deque([{v}], maxlen=8)"),
    Place("ordered dict", '$cfg["rate"]', '$cfg["rate"] = {v}', "$cfg = collections.OrderedDict(rate={v})"),
    Place("default dict", '$cfg["rate"]', '$cfg["rate"] = {v}', "$cfg = collections.defaultdict(float, rate={v})"),
    Place("counter dict", '$cfg["rate"]', '$cfg["rate"] = {v}', "$cfg = collections.Counter(rate={v})"),
    Place("user dict", '$cfg["rate"]', '$cfg["rate"] = {v}', "$cfg = collections.UserDict(rate={v})"),
    Place(
        "dataclass",
        "$cfg.rate",
        "$cfg.rate = {v}",
        "$cfg = @Config({v})",
        "@dataclasses.dataclass\nclass @Config:\n    rate: float = 1.0",
    ),
    Place(
        "dataclass with slots",
        "$cfg.rate",
        "$cfg.rate = {v}",
        "$cfg = @Config({v})",
        "@dataclasses.dataclass(slots=True)\nclass @Config:\n    rate: float = 1.0",
    ),
    Place(
        "frozen dataclass",
        "$cfg.rate",
        "$cfg = dataclasses.replace($cfg, rate={v})",
        "$cfg = @Config({v})",
        "@dataclasses.dataclass(frozen=True)\nclass @Config:\n    rate: float = 1.0",
        writes=("$cfg",),
    ),
    Place(
        "named tuple",
        "$cfg.rate",
        "$cfg = $cfg._replace(rate={v})",
        "$cfg = @Config({v})",
        "class @Config(typing.NamedTuple):\n    rate: float",
        writes=("$cfg",),
    ),
    Place(
        "list in a named tuple",
        "$cfg.rates[0]",
        "$cfg.rates[0] = {v}",
        "$cfg = @Config([{v}])",
        "class @Config(typing.NamedTuple):\n    rates: list",
    ),
    Place(
        "plain object",
        "$box.rate",
        "$box.rate = {v}",
        "$box = @Box()\n$box.rate = {v}",
        "class @Box:\n    pass",
    ),
    Place(
        "slots object",
        "$box.rate",
        "$box.rate = {v}",
        "$box = @Box({v})",
        'class @Box:\n    __slots__ = ("rate",)\n\n    def __init__(self, rate):\n        self.rate = rate',
    ),
    Place("namespace", "$cfg.rate", "$cfg.rate = {v}", "$cfg = types.SimpleNamespace(rate={v})"),
    Place("argparse", "$args.rate", "$args.rate = {v}", "$args = argparse.Namespace(rate={v})"),
    Place("global", "@RATE", "@RATE = {v}", top="@RATE = {v}", writes=("@RATE",)),
    Place("global dict", '@CONFIG["rate"]', '@CONFIG["rate"] = {v}', top='@CONFIG = {"rate": {v}}'),
    Place("class attribute", "@Config.rate", "@Config.rate = {v}", top="class @Config:\n    rate = {v}"),
    Place(
        "property",
        "$box.rate",
        "$box._now[0] = {v}",
        "$box = @Box()\n$box._now = [{v}]",
        "class @Box:\n    @property\n    def rate(self):\n        return self._now[0]",
    ),
    Place(
        "getattr",
        "$box.rate",
        '$box.__dict__["kept"]["rate"] = {v}',
        '$box = @Box()\n$box.__dict__["kept"] = {"rate": {v}}',
        "class @Box:\n    def __getattr__(self, name):\n        try:\n"
        '            return self.__dict__["kept"][name]\n        except KeyError:\n'
        "            raise AttributeError(name) from None",
    ),
    Place(
        "function attribute", "@scale.rate", "@scale.rate = {v}", top="def @scale(x):\n    return x\n@scale.rate = {v}"
    ),
    Place(
        "mutable default",
        "@scale()[0]",
        "@scale()[0] = {v}",
        top="def @scale(kept=[{v}]):\n    return kept",
    ),
    Place(
        "default argument",
        "@scale()",
        "@scale.__defaults__ = ({v},)",
        top="def @scale(rate={v}):\n    return rate",
    ),
    Place(
        "optimizer",
        '$optimizer.param_groups[0]["lr"]',
        '$optimizer.param_groups[0]["lr"] = {v}',
        '$optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)\n$optimizer.param_groups[0]["lr"] = {v}',
    ),
    Place("attribute of a parameter", "$p.rate", "$p.rate = {v}", "$p = nn.Parameter(torch.ones(1))\n$p.rate = {v}"),
    Place("attribute of a tensor", "$p.rate", "$p.rate = {v}", "$p = torch.ones(1)\n$p.rate = {v}"),
    Place("attribute of a submodule", "$part.rate", "$part.rate = {v}", "$part = nn.Identity()\n$part.rate = {v}"),
    Place(
        "environment",
        'float(os.environ["FUZZ_RATE@"])',
        'os.environ["FUZZ_RATE@"] = str({v})',
        'os.environ["FUZZ_RATE@"] = str({v})',
    ),
    Place(
        "context variable", "@rate.get()", "@rate.set({v})", "@rate.set({v})", '@rate = contextvars.ContextVar("@rate")'
    ),
    Place(
        "mapping proxy",
        '$view["rate"]',
        '$cfg["rate"] = {v}',
        '$cfg = {"rate": {v}}\n$view = types.MappingProxyType($cfg)',
    ),
    Place(
        "weak reference",
        "$link().rate",
        "$owner.rate = {v}",
        "$owner = @Owner()\n$owner.rate = {v}\n$link = weakref.ref($owner)",
        "class @Owner:\n    pass",
    ),
    Place("ctypes", "$number.value", "$number.value = {v}", "$number = ctypes.c_double({v})"),
    Place("array", "$numbers[0]", "$numbers[0] = {v}", '$numbers = array.array("d", [{v}])'),
    Place("numpy array", "float($numbers[0])", "$numbers[0] = {v}", "$numbers = np.array([{v}])"),
    Place("numpy scalar", "$rate", "$rate = np.float64({v})", "$rate = np.float64({v})", writes=("$rate",)),
    Place("bound get", '$get("rate")', '$cfg["rate"] = {v}', '$cfg = {"rate": {v}}\n$get = $cfg.get'),
    Place("itemgetter", "$get($cfg)", '$cfg["rate"] = {v}', '$cfg = {"rate": {v}}\n$get = operator.itemgetter("rate")'),
    Place("iterator of a list", "next(iter($rates))", "$rates[0] = {v}", "$rates = [{v}]"),
    Place(
        "module type",
        "@config.rate",
        "@config.rate = {v}",
        top='@config = types.ModuleType("config")\n@config.rate = {v}',
    ),
    Place("item of a tensor", "$rate.item()", "$rate.fill_({v})", "$rate = torch.ones(())\n$rate.fill_({v})"),
    Place("float of a tensor", "float($rate)", "$rate.fill_({v})", "$rate = torch.ones(())\n$rate.fill_({v})"),
    Place("numpy of a tensor", "$rate.numpy()[0]", "$rate.fill_({v})", "$rate = torch.ones(1)\n$rate.fill_({v})"),
    Place("tolist of a tensor", "$rate.tolist()[0]", "$rate.fill_({v})", "$rate = torch.ones(1)\n$rate.fill_({v})"),
    Place("string", "float($text)", "$text = str({v})", "$text = str({v})", writes=("$text",)),
    Place(
        "cached property",
        "$box.rate",
        "$box.__dict__.update(rate={v})",
        "$box = @Box()\n$box.__dict__.update(rate={v})",
        "class @Box:\n    @functools.cached_property\n    def rate(self):\n        return 1.0",
    ),
    Place(
        "enum member",
        "$mode.value",
        "$mode = @Mode.of({v})",
        "$mode = @Mode.of({v})",
        "class @Mode(enum.Enum):\n    NONE = 0.0\n    LOW = 0.5\n    ONE = 1.0\n    MORE = 1.5\n    TWO = 2.0\n\n"
        "    @classmethod\n    def of(cls, v):\n        return cls(round(2 * v) / 2 if v <= 2 else 2.0)",
        writes=("$mode",),
    ),
)
"""Every one works as a factor, a flag, and (but for the last) a counter."""

_NO_COUNTER = {"enum member"}


def features_of_places() -> list[Feature]:
    """Numbers, flags, counters and decaying numbers in every place."""
    made = []
    for place in PLACES:
        made += [number_in(place), flag_in(place)]
        if place.name not in _NO_COUNTER:
            made += [counter_in(place), decaying_in(place)]
    return made
