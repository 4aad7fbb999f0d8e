"""How each library runs a case."""

from bench.libraries.base import DoesNotApply, Library, Run, Work
from bench.libraries.diffrax import Diffrax
from bench.libraries.ours import OURS
from bench.libraries.scipy import Scipy
from bench.libraries.torchdiffeq import Torchdiffeq
from bench.libraries.torchode import Torchode

PEERS: list[Library] = [Torchdiffeq(adjoint=False), Torchdiffeq(adjoint=True), Torchode(), Diffrax(), Scipy()]
LIBRARIES: dict[str, Library] = {library.name: library for library in [*OURS, *PEERS]}
DEFAULT = tuple(name for name in LIBRARIES if name != "fastode reference")
"""The reference backend is the specification, not meant to be fast; ``--library`` adds it."""

__all__ = ["DEFAULT", "LIBRARIES", "OURS", "PEERS", "DoesNotApply", "Library", "Run", "Work"]
