"""A script in a process of its own, with torchdiffeq itself or with fastode under its name."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

LIBRARIES = ("torchdiffeq", "fastode")
_INSTALL = "from fastode.compat.torchdiffeq import install; install()"


def results(script: str) -> dict[str, Any]:
    """What the script prints as JSON in its last line, for each library; it is told nothing of the change."""
    found = {}
    for library in LIBRARIES:
        start = _INSTALL if library == "fastode" else ""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", f"{start}\n{script}"], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        found[library] = json.loads(done.stdout.splitlines()[-1])
    return found
