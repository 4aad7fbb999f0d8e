"""``python -m bench``, the same as ``fastode bench``."""

from bench.cli import main

main(prog_name="fastode bench")
