"""What fields hold that changes between two solves: buffers, containers, functions, modes."""

from __future__ import annotations

from tests.fuzz.feature import Feature

_LIN = "$lin = nn.Linear({D}, {D})"
_LP = "$lin.parameters()"
_W = "nn.Parameter(0.3 * torch.randn({D}, {D}))"

BUFFERS = (
    Feature(
        "buffer",
        "core",
        "h = h * $scale",
        "$scale = torch.full(({D},), 0.8)",
        changes=("$scale.mul_(0.5)", "$scale = torch.full(({D},), 1.2)"),
        writes=("$scale",),
    ),
    Feature(
        "buffer of another shape",
        "core",
        "h = h * $scale",
        "$scale = torch.full(({D},), 0.8)",
        changes=("$scale = torch.tensor(0.4)",),
        writes=("$scale",),
    ),
    Feature(
        "permutation buffer",
        "core",
        "h = h[:, $order]",
        "$order = torch.arange({D})",
        changes=("$order.copy_($order.flip(0))",),
    ),
    Feature(
        "permutation as a list",
        "core",
        "h = h[:, $order.tolist()]",
        "$order = torch.arange({D})",
        changes=("$order.copy_($order.flip(0))",),
    ),
    Feature(
        "mask buffer",
        "core",
        "h = h * $mask",
        "$mask = torch.ones({D}, dtype=torch.bool)",
        changes=("$mask[0] = False",),
    ),
    Feature(
        "mask index",
        "core",
        "h = torch.cat([h[:, $mask], h[:, ~$mask]], 1)",
        "$mask = torch.arange({D}) % 2 == 0",
        changes=("$mask.copy_(~$mask)",),
    ),
    Feature("integer buffer", "core", "h = h * $n", "$n = torch.tensor(1)", changes=("$n.fill_(2)",)),
    Feature(
        "learned knots",
        "core",
        "i = torch.bucketize(h.detach(), $knots)\nh = h * (0.5 + 0.1 * i)",
        "$knots = torch.tensor([-0.4, 0.0, 0.4])",
        changes=("$knots.add_(0.2)",),
    ),
    Feature(
        "number list in a product",
        "core",
        "for r in $rates:\n    h = r * h",
        "$rates = [0.9]",
        changes=("$rates.append(1.1)", "$rates.clear()"),
    ),
    Feature(
        "dict of activations",
        "core",
        "h = $act[$name](h)",
        '$act = {"tanh": torch.tanh, "relu": F.relu}\n$name = "tanh"',
        changes=('$name = "relu"', '$act["relu"] = torch.sin'),
        writes=("$name",),
    ),
    Feature(
        "function attribute",
        "core",
        "h = $act(h)",
        "$act = torch.tanh",
        changes=("$act = torch.sin", "$act = lambda x: 0.3 * x"),
        writes=("$act",),
    ),
    Feature(
        "partial",
        "core",
        "h = $act(h)",
        "$act = functools.partial(F.leaky_relu, negative_slope=0.3)",
        changes=("$act = functools.partial(F.leaky_relu, negative_slope=0.6)",),
        writes=("$act",),
    ),
    Feature(
        "partial keywords",
        "core",
        "h = $act(h)",
        "$act = functools.partial(F.leaky_relu, negative_slope=0.3)",
        changes=('$act.keywords["negative_slope"] = 0.6',),
    ),
    Feature(
        "closures of a loop",
        "core",
        "for f in $fs:\n    h = f(h)",
        "$fs = [lambda x, k=k: x * (0.5 + 0.1 * k) for k in range(3)]",
        changes=("$fs.reverse()\n$fs.pop()",),
    ),
    Feature(
        "late binding",
        "core",
        "h = @fs[0](h)",
        top="@fs = []\nfor @k in (1, 2):\n    @fs.append(lambda x: x * 0.3 * @k)",
        changes=("@k = 3",),
        writes=("@k",),
    ),
    Feature(
        "monkey patched function",
        "core",
        "h = @act(h)",
        top="def @act(x):\n    return torch.tanh(x)",
        changes=("@act = lambda x: 0.5 * x",),
        writes=("@act",),
    ),
    Feature(
        "replaced code",
        "core",
        "h = @act(h)",
        top="def @act(x):\n    return torch.tanh(x)\n\n\ndef @other(x):\n    return 0.5 * x",
        changes=("@act.__code__ = @other.__code__",),
    ),
    Feature(
        "train and eval", "core", "h = $drop(h)", "$drop = nn.Dropout(0.0)", changes=("$drop.p = 0.0\n$drop.eval()",)
    ),
    Feature(
        "training flag",
        "core",
        "h = h * (0.5 if $part.training else 1.0)",
        "$part = nn.Identity()",
        changes=("$part.eval()", "$part.train()"),
    ),
    Feature("dropout in eval", "core", "h = $drop(h)", "$drop = nn.Dropout(0.5).eval()"),
    Feature(
        "replaced parameter",
        "core",
        "h = h @ $lin.weight",
        _LIN,
        params=_LP,
        changes=("$lin.weight = nn.Parameter(0.2 * torch.eye({D}))",),
    ),
    Feature("deleted bias", "core", "h = $lin(h)", _LIN, params=_LP, changes=("$lin.bias = None",)),
    Feature(
        "optimizer step",
        "core",
        "h = $lin(h)",
        f"{_LIN}\n$optimizer = torch.optim.SGD($lin.parameters(), lr=0.1)",
        params=_LP,
        changes=("$lin(torch.ones(1, {D})).sum().backward()\n$optimizer.step()\n$optimizer.zero_grad()",),
    ),
    Feature(
        "scheduler",
        "core",
        "h = $scheduler.get_last_lr()[0] * h",
        "$optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)\n$scheduler = torch.optim.lr_scheduler.StepLR($optimizer, 1, 0.5)",
        changes=("$optimizer.step()\n$scheduler.step()",),
    ),
    Feature(
        "set of names", "core", 'h = h * (0.5 if "decay" in $on else 1.0)', '$on = {"decay"}', changes=("$on.clear()",)
    ),
    Feature(
        "range", "core", "for _ in range($n):\n    h = torch.sin(h)", "$n = 1", changes=("$n = 3",), writes=("$n",)
    ),
    Feature(
        "isinstance",
        "core",
        "h = h * (0.5 if isinstance($act, nn.ReLU) else 1.0)",
        "$act = nn.Tanh()",
        changes=("$act = nn.ReLU()",),
        writes=("$act",),
    ),
    Feature(
        "module list grows",
        "core",
        "for f in $parts:\n    h = f(h)",
        "$parts = nn.ModuleList([nn.Tanh()])",
        changes=("$parts.append(nn.Softsign())",),
    ),
    Feature("class swapped", "core", "h = $act(h)", "$act = nn.Tanh()", changes=("$act.__class__ = nn.Sigmoid",)),
    Feature("default dtype", "core", "h = h * torch.tensor(0.1).to(h.dtype)"),
    Feature("numpy constant", "core", "h = h * $a[0]", "$a = np.array([0.5, 2.0])", changes=("$a[0] = 1.5",)),
    Feature(
        "tensor from numpy",
        "core",
        "h = h * torch.from_numpy($a)[:1].to(h.dtype)",
        "$a = np.array([0.5, 2.0])",
        changes=("$a[0] = 1.5",),
    ),
    Feature(
        "shared memory",
        "core",
        "h = h * $b[0]",
        "$a = np.array([0.5, 2.0])\n$b = torch.from_numpy($a)",
        changes=("$a[0] = 1.5",),
    ),
    Feature(
        "data replaced",
        "core",
        "h = h * $w",
        "$w = nn.Parameter(torch.ones({D}))",
        params="[$w]",
        changes=("$w.data = torch.full(({D},), 0.4)",),
    ),
    Feature(
        "weight written in place",
        "core",
        "h = h * $w",
        "$w = nn.Parameter(torch.ones({D}))",
        params="[$w]",
        changes=("with torch.no_grad():\n    $w[0] = 0.1",),
    ),
    Feature(
        "per sample rows",
        "core",
        "h = h * $rows[: h.shape[0]]",
        "$rows = torch.rand({B}, 1)",
        changes=("$rows.mul_(0.5)",),
    ),
)
