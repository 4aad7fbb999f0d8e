"""Scripts that train with torchdiffeq, in the manner of its published examples: each runs with either library.

``tests/clients`` compares the results, ``python -m bench.clients`` the times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.clients.bouncing_ball import BouncingBall
from bench.clients.client import Client, Training, error, with_library
from bench.clients.density import Density
from bench.clients.images import Images
from bench.clients.latent import Latent
from bench.clients.spiral import Spiral

CLIENTS: dict[str, Callable[..., Client]] = {
    "spiral": Spiral,
    "spiral-adjoint": partial(Spiral, adjoint=True),
    "bouncing-ball": BouncingBall,
    "bouncing-ball-adjoint": partial(BouncingBall, adjoint=True),
    "density": Density,
    "latent": Latent,
    "latent-no-counter": partial(Latent, counts=False),
    "images": Images,
}

__all__ = ["CLIENTS", "Client", "Training", "error", "with_library"]
