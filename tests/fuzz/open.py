"""Features and layouts of results with open faults, which ``docs/reliability.md`` explains; ``--open`` tries them."""

OPEN = frozenset(
    {
        "cached weights",
        "cached weights in a dict",
        "decay in ctypes",
        "gradient mode asked",
        "previous value used",
        "random numbers of numpy",
        "random numbers of python",
        "requires grad asked",
        "spectral norm in train",
    }
)
