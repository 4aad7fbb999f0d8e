"""Hooks, parametrizations, gradients of one's own, derivatives taken inside."""

from __future__ import annotations

from tests.fuzz.feature import Feature

_LIN = "$lin = nn.Linear({D}, {D})"
_LP = "$lin.parameters()"
_W = "nn.Parameter(0.3 * torch.randn({D}, {D}))"

HOOKS = (
    Feature(
        "forward hook",
        "core",
        "h = $lin(h)",
        _LIN,
        params=_LP,
        changes=("$lin.register_forward_hook(lambda module, args, out: 0.5 * out)",),
    ),
    Feature(
        "forward pre hook",
        "core",
        "h = $lin(h)",
        _LIN,
        params=_LP,
        changes=("$lin.register_forward_pre_hook(lambda module, args: (2 * args[0],))",),
    ),
    Feature(
        "counting forward hook",
        "core",
        "h = $lin(h)",
        f"{_LIN}\n$seen = []\n$lin.register_forward_hook(lambda module, args, out: $seen.append(1))",
        params=_LP,
        effects="len($seen)",
    ),
    Feature(
        "full backward hook",
        "core",
        "h = $lin(h)",
        f"{_LIN}\n$lin.register_full_backward_hook(lambda module, gi, go: tuple(g if g is None else 0.5 * g for g in gi))",
        params=_LP,
    ),
    Feature(
        "later backward hook",
        "core",
        "h = $lin(h)",
        _LIN,
        params=_LP,
        changes=(
            "$lin.register_full_backward_hook(lambda module, gi, go: tuple(g if g is None else 0.5 * g for g in gi))",
        ),
    ),
    Feature(
        "backward pre hook",
        "core",
        "h = $lin(h)",
        f"{_LIN}\n$lin.register_full_backward_pre_hook(lambda module, go: tuple(g.clamp(-0.01, 0.01) for g in go))",
        params=_LP,
    ),
    Feature("tensor hook", "core", "if h.requires_grad:\n    h = h * 1.0\n    h.register_hook(lambda g: 0.5 * g)"),
    Feature(
        "clipping hook",
        "core",
        "if h.requires_grad:\n    h = h * 1.0\n    h.register_hook(lambda g: g.clamp(-0.02, 0.02))",
    ),
    Feature(
        "zero grad hook",
        "core",
        "if h.requires_grad:\n    h = h * 1.0\n    h.register_hook(lambda g: torch.nan_to_num(g))",
    ),
    Feature(
        "global forward hook",
        "core",
        "h = $lin(h)",
        _LIN,
        params=_LP,
        changes=(
            "torch.nn.modules.module.register_module_forward_hook(lambda module, args, out: 0.5 * out if module is $lin else None)",
        ),
    ),
    Feature(
        "weight norm",
        "ops",
        "h = $lin(h)",
        "$lin = torch.nn.utils.parametrizations.weight_norm(nn.Linear({D}, {D}))",
        params=_LP,
        changes=("$lin.parametrizations.weight.original0.data.mul_(0.5)",),
    ),
    Feature(
        "old weight norm", "ops", "h = $lin(h)", "$lin = torch.nn.utils.weight_norm(nn.Linear({D}, {D}))", params=_LP
    ),
    Feature(
        "spectral norm in eval",
        "ops",
        "h = $lin(h)",
        "$lin = torch.nn.utils.parametrizations.spectral_norm(nn.Linear({D}, {D})).eval()",
        params=_LP,
    ),
    Feature(
        "spectral norm in train",
        "core",
        "h = $lin(h)",
        "$lin = torch.nn.utils.parametrizations.spectral_norm(nn.Linear({D}, {D}))",
        params=_LP,
        pure=False,
        effects="[b.clone() for b in $lin.buffers()]",
    ),
    Feature(
        "orthogonal",
        "ops",
        "h = $lin(h)",
        "$lin = torch.nn.utils.parametrizations.orthogonal(nn.Linear({D}, {D}))",
        params=_LP,
    ),
    Feature(
        "own parametrization",
        "ops",
        "h = $lin(h)",
        '$lin = nn.Linear({D}, {D})\nparametrize.register_parametrization($lin, "weight", @Skew())',
        "class @Skew(nn.Module):\n    def forward(self, x):\n        return x - x.T",
        params=_LP,
    ),
    Feature(
        "pruned",
        "ops",
        "h = $lin(h)",
        '$lin = nn.Linear({D}, {D})\nprune.l1_unstructured($lin, "weight", amount=1)',
        params=_LP,
    ),
)

GRADIENTS = (
    Feature("detach", "core", "h = h.detach() * y + 0.1 * h"),
    Feature("data", "core", "h = h + 0.3 * y.data"),
    Feature("no grad block", "core", "with torch.no_grad():\n    s = h.tanh()\nh = h + s"),
    Feature("detached weight", "core", "h = h @ $w.detach() + 0.1 * (h @ $w)", f"$w = {_W}", params="[$w]"),
    Feature("data of a weight", "core", "h = h @ $w.data", f"$w = {_W}"),
    Feature(
        "weight in no grad",
        "core",
        "with torch.no_grad():\n    m = $w.exp()\nh = h @ m + 0.1 * $w[0]",
        f"$w = {_W}",
        params="[$w]",
    ),
    Feature(
        "requires grad toggled",
        "core",
        "h = $lin(h)",
        _LIN,
        params=_LP,
        changes=("$lin.weight.requires_grad_(False)", "$lin.weight.requires_grad_(True)"),
    ),
    Feature("gradient mode asked", "core", "h = h * (1.0 if torch.is_grad_enabled() else 0.5)"),
    Feature("requires grad asked", "core", "h = h * (1.0 if h.requires_grad else 0.5)"),
    Feature(
        "gradient reversal",
        "core",
        "h = @Reverse.apply(h)",
        top="class @Reverse(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x.view_as(x)\n\n"
        "    @staticmethod\n    def backward(ctx, g):\n        return -g",
    ),
    Feature("straight through", "core", "h = h + (torch.round(h) - h).detach()"),
    Feature(
        "own round",
        "core",
        "h = @Round.apply(h)",
        top="class @Round(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x.round(decimals=2)\n\n"
        "    @staticmethod\n    def backward(ctx, g):\n        return g",
    ),
    Feature(
        "clipping function",
        "core",
        "h = @Clip.apply(h)",
        top="class @Clip(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x.view_as(x)\n\n"
        "    @staticmethod\n    def backward(ctx, g):\n        return g.clamp(-0.02, 0.02)",
    ),
    Feature(
        "own square",
        "core",
        "h = @Square.apply(h)",
        top="class @Square(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        ctx.save_for_backward(x)\n        return x * x\n\n"
        "    @staticmethod\n    def backward(ctx, g):\n        (x,) = ctx.saved_tensors\n        return 2 * x * g",
    ),
    Feature(
        "checkpointed block",
        "tracing",
        "h = torch.utils.checkpoint.checkpoint($lin, h, use_reentrant=False)",
        _LIN,
        params=_LP,
    ),
    Feature(
        "grad inside",
        "tracing",
        "with torch.enable_grad():\n    x = y.detach().requires_grad_() if not y.requires_grad else y\n    energy = torch.tanh(x @ $w).pow(2).sum()\n"
        "    (g,) = torch.autograd.grad(energy, x, create_graph=True)\nh = h + g",
        f"$w = {_W}",
        params="[$w]",
    ),
    Feature(
        "hamiltonian",
        "tracing",
        "with torch.set_grad_enabled(True):\n    x = y if y.requires_grad else y.detach().requires_grad_(True)\n    e = $net(x).sum()\n"
        "    g = torch.autograd.grad(e, x, create_graph=True)[0]\nh = h + torch.roll(g, 1, -1)",
        "$net = nn.Sequential(nn.Linear({D}, 6), nn.Tanh(), nn.Linear(6, 1))",
        params="$net.parameters()",
    ),
    Feature(
        "divergence",
        "tracing",
        "with torch.enable_grad():\n    x = h * 1.0 if h.requires_grad else h.detach().requires_grad_()\n    v = torch.sin($lin(x))\n    div = 0.0\n    for i in range({D}):\n"
        "        div = div + torch.autograd.grad(v[:, i].sum(), x, create_graph=True)[0][:, i]\nh = v + 0.1 * div[:, None]",
        _LIN,
        params=_LP,
    ),
    Feature(
        "jacrev",
        "tracing",
        "jac = torch.func.vmap(torch.func.jacrev(lambda x: torch.tanh($lin(x))))(h)\nh = h + 0.1 * jac.diagonal(dim1=-2, dim2=-1)",
        _LIN,
        params=_LP,
    ),
    Feature(
        "jacfwd",
        "tracing",
        "jac = torch.func.vmap(torch.func.jacfwd(lambda x: torch.tanh($lin(x))))(h)\nh = h + 0.1 * jac.sum(-1)",
        _LIN,
        params=_LP,
    ),
    Feature(
        "func grad",
        "tracing",
        "h = torch.func.vmap(torch.func.grad(lambda x: $lin(x).sin().sum()))(h)",
        _LIN,
        params=_LP,
    ),
    Feature(
        "jvp",
        "tracing",
        "v, dv = torch.func.jvp(lambda x: torch.tanh($lin(x)), (h,), (y,))\nh = v + 0.3 * dv",
        _LIN,
        params=_LP,
    ),
    Feature("vmap", "tracing", "h = torch.func.vmap(lambda x: torch.tanh(x @ $w))(h)", f"$w = {_W}", params="[$w]"),
    Feature(
        "functional call",
        "tracing",
        "h = torch.func.functional_call($lin, {k: 0.5 * v for k, v in $lin.named_parameters()}, (h,))",
        _LIN,
        params=_LP,
    ),
    Feature("inference off", "core", "h = h * (0.5 if torch.is_inference_mode_enabled() else 1.0)"),
)
