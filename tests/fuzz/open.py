"""Features and layouts of results with open faults, which ``docs/reliability.md`` explains; ``--open`` tries them."""

OPEN = frozenset(
    {
        "decay in ctypes",
        "previous value used",
        "random numbers of numpy",
        "random numbers of python",
        "spectral norm in train",
    }
)
