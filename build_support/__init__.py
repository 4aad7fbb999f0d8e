"""How ``setup.py`` builds ``fastode._C``: find compilers, decide on CUDA, write a ninja file, run it.

Needs only the standard library, pybind11 and ninja, so that it works in pip's isolated build environment.
"""


class BuildError(RuntimeError):
    """The extension cannot be built; the message says why and what to do about it."""


def say(message: str) -> None:
    """Print one line of the build's decisions (``pip install -v`` shows them)."""
    print(f"fastode build: {message}", flush=True)
