"""A program of its own that shows how a field fails."""

from __future__ import annotations

from tests.fuzz.fields import CATALOGUE, CLASSIC, END, THREE_EIGHTHS, Spec, text_of

_SCRIPT = """
import sys

import fastode

BATCH, STEPS, END, GRADIENTS = {batch}, {steps}, {end}, {gradients}
{join}


def loop(y, extra):
    h = END / STEPS
    for n in range(STEPS):
        ks = []
        for row in {a}:
            s = (n + sum(row)) * h
            t = torch.full((BATCH, 1), s) if {batched} else torch.tensor(s)
            stage = y + sum((h * w * k for w, k in zip(row, ks)), torch.zeros_like(y))
            ks.append(join(field(t, split(stage), *extra)).clone())
        y = y + sum(h * w * k for w, k in zip({b}, ks))
    return y


def engine(y, extra):
    {engine}


rng = torch.Generator().manual_seed({seed})
drawn = [torch.randn(BATCH, {size}, generator=rng, dtype=torch.float64) for _ in range(3)]
y0, c, weights = ({magnitude} * drawn[0]).to(torch.{dtype}), drawn[1].to(torch.{dtype}), drawn[2].to(torch.{dtype})
run = {{"engine": engine, "loop": loop}}[sys.argv[1]]


def seed():
    torch.manual_seed({seed}), random.seed({seed}), np.random.seed({seed})


for number, change in enumerate([None, *{order}]):
    if change is not None:
        changes[change]()
    if GRADIENTS:
        y, e = y0.clone().requires_grad_(), [c.clone().requires_grad_()] if {controls} else []
        seed()
        (run(y, e) * weights).sum().backward()
        print(number, "gradients", y.grad.flatten()[:6].tolist(), [p.grad for p in params()])
        for p in params():
            p.grad = None
    seed()
    with torch.no_grad():
        print(number, "values", run(y0.clone(), [c] if {controls} else []).flatten()[:6].tolist())
    print(number, "effects", effects())
"""


def script(spec: Spec) -> str:
    """A program of its own that shows a failure: run it with ``engine``, and with ``loop`` for what is right."""
    joins = {
        "tensor": "split = join = lambda y: y",
        "tuple": "split, join = lambda y: (y[:, :1], y[:, 1:]), lambda y: torch.cat(y, -1)",
        "dict": 'split, join = lambda y: {"a": y[:, :1], "b": y[:, 1:]}, lambda y: torch.cat([y["a"], y["b"]], -1)',
    }
    last = {
        "tensor": "ys[-1]",
        "tuple": "torch.cat([y[-1] for y in ys], -1)",
        "dict": "join({k: y[-1] for k, y in ys.items()})",
    }
    if spec.api == "solve":
        call = (
            "ys = fastode.solve(field, split(y), [0.0, END], controls=extra[0] if extra else None, "
            f'method="rk4_classic", step_size=END / STEPS).ys\n    return {last[spec.state]}'
        )
    else:
        more = ", adjoint_params=tuple(p for p in params() if p.requires_grad)" if spec.api == "odeint_adjoint" else ""
        call = (
            f"ys = fastode.{spec.api}(field, split(y), torch.tensor([0.0, END]), "
            f'method="rk4", options={{"step_size": END / STEPS}}{more})\n    return {last[spec.state]}'
        )
    seeded = "torch.manual_seed(0)\n"
    text = text_of(spec).replace(seeded, f"torch.set_default_dtype(torch.{spec.dtype})\n{seeded}", 1)
    a, b = CLASSIC if spec.api == "solve" else THREE_EIGHTHS
    names = {
        **vars(spec),
        "end": END,
        "gradients": spec.mode == "gradients",
        "join": joins[spec.state],
        "a": a,
        "b": b,
    }
    names |= {"batched": spec.api == "solve", "engine": call, "order": list(spec.order)}
    names |= {"controls": any(CATALOGUE[f].controls for f in spec.features)}
    return f"# {spec!r}\n{text}{_SCRIPT.format(**names)}"
