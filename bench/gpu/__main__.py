"""``python -m bench.gpu --out DIR [--quick]``."""

import sys

try:
    from bench.gpu.cli import main
except ImportError as error:
    print(f"cannot run: {error}. fastode is built by: pip install --no-build-isolation -e .", file=sys.stderr)
    sys.exit(2)

main(prog_name="python -m bench.gpu")
