"""``python -m fastode`` is the console script ``fastode``."""

from fastode.cli import main

if __name__ == "__main__":
    main(prog_name="fastode")
