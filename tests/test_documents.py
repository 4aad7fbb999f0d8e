"""Every block of Python in README.md and docs/ runs as printed, from an empty file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```|^    (print\(fastode\.[^#\n]*)", re.DOTALL | re.MULTILINE)
BLOCKS = {
    f"{page.name}-{number}": next(filter(None, parts))
    for page in PAGES
    for number, parts in enumerate(PYTHON.findall(page.read_text(encoding="utf-8")))
}


@pytest.mark.parametrize("block", BLOCKS)
def test_block(block, tmp_path):
    (tmp_path / "example.py").write_text(BLOCKS[block])
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "example.py"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-800:]
