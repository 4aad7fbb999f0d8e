"""Side effects and caches: what a program must keep or refuse."""

from __future__ import annotations

from tests.fuzz.feature import Feature

_LIN = "$lin = nn.Linear({D}, {D})"
_LP = "$lin.parameters()"
_W = "nn.Parameter(0.3 * torch.randn({D}, {D}))"

SIDE_EFFECTS = (
    Feature(
        "evaluation counter", "core", "$nfe += 1", "$nfe = 0", effects="$nfe", changes=("$nfe = 0",), writes=("$nfe",)
    ),
    Feature("counter in a cell list", "core", "$calls[0] += 1", "$calls = [0]", effects="$calls"),
    Feature("counter in a dict", "core", '$stats["nfe"] = $stats.get("nfe", 0) + 1', "$stats = {}", effects="$stats"),
    Feature(
        "counter of collections",
        "core",
        '$stats["calls"] += 1',
        "$stats = collections.Counter()",
        effects="dict($stats)",
    ),
    Feature(
        "counter buffer",
        "core",
        "$n += 1",
        "$n = torch.zeros((), dtype=torch.long)",
        effects="$n.clone()",
        writes=("$n",),
    ),
    Feature("counter by add_", "core", "$n.add_(1)", "$n = torch.zeros(1)", effects="$n.clone()"),
    Feature("counter through numpy", "core", "$n[0] += 1", "$n = np.zeros(1)", effects="$n.copy()"),
    Feature(
        "counter through data",
        "core",
        "$n.data += 1",
        "$n = nn.Parameter(torch.zeros(1))",
        effects="$n.detach().clone()",
    ),
    Feature("itertools counter", "core", "next($n)", "$n = itertools.count()", effects="repr($n)"),
    Feature("global counter", "core", "@CALLS += 1", top="@CALLS = 0", effects="@CALLS", writes=("@CALLS",)),
    Feature("class counter", "core", "@Stats.calls += 1", top="class @Stats:\n    calls = 0", effects="@Stats.calls"),
    Feature(
        "counter in a method",
        "core",
        "$meter.tick()",
        "$meter = @Meter()",
        "class @Meter:\n    def __init__(self):\n        self.n = 0\n\n    def tick(self):\n        self.n += 1",
        effects="$meter.n",
    ),
    Feature(
        "counter by setattr",
        "core",
        'setattr($meter, "n", getattr($meter, "n", 0) + 1)',
        "$meter = types.SimpleNamespace()",
        effects="vars($meter)",
    ),
    Feature(
        "counter in slots",
        "core",
        "$meter.n += 1",
        "$meter = @Meter()",
        'class @Meter:\n    __slots__ = ("n",)\n\n    def __init__(self):\n        self.n = 0',
        effects="$meter.n",
    ),
    Feature(
        "counting decorator",
        "core",
        "h = @scaled(h)",
        top="def @counted(f):\n    @functools.wraps(f)\n    def inner(x):\n        inner.calls += 1\n        return f(x)\n\n"
        "    inner.calls = 0\n    return inner\n\n\n@@counted\ndef @scaled(x):\n    return 0.8 * x",
        effects="@scaled.calls",
    ),
    Feature(
        "appended times",
        "core",
        "$times.append(t.detach().clone())",
        "$times = []",
        effects="list($times)",
        changes=("$times.clear()",),
    ),
    Feature(
        "appended numbers", "core", "$times.append(float(t.reshape(-1)[0]))", "$times = []", effects="list($times)"
    ),
    Feature(
        "appended to a list subclass",
        "core",
        "$log.append(len($log))",
        "$log = @Log()",
        "class @Log(list):\n    pass",
        effects="list($log)",
    ),
    Feature(
        "deque of states",
        "core",
        "$seen.append(y.detach().clone())",
        "$seen = collections.deque(maxlen=3)",
        effects="list($seen)",
    ),
    Feature("set that grows", "core", "$seen.add(len($seen))", "$seen = set()", effects="sorted($seen)"),
    Feature("last state", "core", "$last = y.detach()", "$last = None", effects="$last.clone()", writes=("$last",)),
    Feature(
        "last state with graph",
        "core",
        "$last = y",
        "$last = None",
        effects="$last.detach().clone()",
        writes=("$last",),
    ),
    Feature("last value in a dict", "core", '$kept["h"] = h', "$kept = {}", effects='$kept["h"].detach().clone()'),
    Feature(
        "largest seen",
        "core",
        "$top = max($top, float(y.detach().abs().max()))",
        "$top = 0.0",
        effects="$top",
        writes=("$top",),
    ),
    Feature("text stream", "core", '$out.write("called\\n")', "$out = io.StringIO()", effects="$out.getvalue()"),
    Feature("print", "core", "print(len(h), file=$out)", "$out = io.StringIO()", effects="$out.getvalue()"),
    Feature(
        "logging",
        "core",
        '@logger.info("called")',
        top='@records = []\n@logger = logging.getLogger("fuzz@")\n'
        "@logger.setLevel(logging.INFO)\n@logger.propagate = False\n@handler = logging.Handler()\n"
        "@handler.emit = lambda record: @records.append(record.msg)\n@logger.addHandler(@handler)",
        effects="len(@records)",
    ),
    Feature(
        "generator", "core", "h = next($rates) * h", "$rates = (1.0 / (1 + i) for i in itertools.count())", pure=False
    ),
    Feature("cycle", "core", "h = next($rates) * h", "$rates = itertools.cycle([1.0, 0.5, 0.25])", pure=False),
    Feature(
        "random numbers of python",
        "core",
        "h = $rng.random() * h",
        "$rng = random.Random(3)",
        pure=False,
        effects="$rng.random()",
    ),
    Feature(
        "random numbers of numpy", "core", "h = float($rng.random()) * h", "$rng = np.random.default_rng(3)", pure=False
    ),
    Feature(
        "random generator of torch",
        "core",
        "h = h + 0.1 * torch.rand(1, generator=$rng)",
        "$rng = torch.Generator().manual_seed(3)",
        pure=False,
    ),
    Feature("noise", "core", "h = h + 0.1 * torch.randn_like(h)", pure=False),
    Feature("one random number", "core", "h = h * torch.rand(())", pure=False),
    Feature("dropout in training", "core", "h = F.dropout(h, 0.5, training=True)", pure=False),
    Feature("dropout module in training", "core", "h = $drop(h)", "$drop = nn.Dropout(0.3)", pure=False),
    Feature("global random", "core", "h = random.random() * h", pure=False),
    Feature("global numpy random", "core", "h = float(np.random.rand()) * h", pure=False),
    Feature("random permutation", "core", "h = h[:, torch.randperm({D})]", pure=False),
    Feature(
        "exponential moving average",
        "core",
        "$mean.mul_(0.9).add_(0.1 * y.detach().mean())",
        "$mean = torch.zeros(())",
        effects="$mean.clone()",
    ),
    Feature(
        "previous value used",
        "core",
        "previous = $previous\n$previous = y.detach()\nh = h if previous is None or previous.shape != y.shape else h + 0.1 * previous",
        "$previous = None",
        changes=("$previous = None",),
        writes=("$previous",),
        pure=False,
    ),
    Feature(
        "try and except",
        "core",
        "try:\n    $limits[1]\nexcept IndexError:\n    h = 0.7 * h",
        "$limits = [1]",
        changes=("$limits.append(2)",),
    ),
    Feature(
        "lazily made layer",
        "core",
        "if $lazy is None:\n    $lazy = nn.Linear({D}, {D})\n    nn.init.constant_($lazy.weight, 0.1)\n    nn.init.zeros_($lazy.bias)\nh = $lazy(h)",
        "$lazy = None",
        writes=("$lazy",),
    ),
    Feature(
        "reused buffer",
        "core",
        "if $buf is None or $buf.shape != h.shape:\n    $buf = torch.empty_like(h)\n$buf.copy_(h.detach())\nh = h + 0.1 * $buf",
        "$buf = None",
        writes=("$buf",),
    ),
    Feature(
        "time of the clock",
        "core",
        "started = time.perf_counter()\nh = h * (1.0 if time.perf_counter() >= started else 2.0)",
    ),
)

CACHES = (
    Feature(
        "cached weights",
        "tracing",
        "if $kept is None:\n    $kept = torch.linalg.matrix_exp($w)\nh = h @ $kept",
        f"$w = {_W}\n$kept = None",
        params="[$w]",
        changes=("$kept = None",),
        writes=("$kept",),
    ),
    Feature(
        "cached weights in a dict",
        "tracing",
        'if "w" not in $kept:\n    $kept["w"] = $w - $w.T\nh = h @ $kept["w"]',
        f"$w = {_W}\n$kept = {{}}",
        params="[$w]",
        changes=("$kept.clear()",),
    ),
    Feature(
        "lru cache",
        "core",
        "h = h * @factor(2)",
        top="@BASE = [1.0]\n\n\n@@functools.lru_cache(maxsize=None)\ndef @factor(n):\n    return @BASE[0] / n",
        changes=("@BASE[0] = 3.0\n@factor.cache_clear()",),
    ),
    Feature(
        "lru cache of a tensor",
        "core",
        "h = h * @factor({D})",
        top="@@functools.lru_cache(maxsize=None)\ndef @factor(n):\n    return torch.linspace(0.5, 1.0, n)",
        changes=("@factor({D}).mul_(0.5)",),
    ),
    Feature(
        "cached property of tensors",
        "core",
        "h = h * $box.scale",
        "$box = @Box()",
        "class @Box:\n    @functools.cached_property\n    def scale(self):\n        return torch.full((1,), 0.6)",
        changes=("$box.scale.mul_(2.0)",),
    ),
    Feature(
        "cached per size",
        "core",
        "if h.shape[0] not in $ones:\n    $ones[h.shape[0]] = torch.ones(h.shape[0], 1)\nh = h + 0.1 * $ones[h.shape[0]]",
        "$ones = {}",
    ),
)
