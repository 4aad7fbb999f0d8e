"""python -m bench.stiff."""

from __future__ import annotations

import csv
from pathlib import Path

from click.testing import CliRunner

from bench.stiff import main


def test_table(tmp_path: Path) -> None:
    out = tmp_path / "new"
    done = CliRunner().invoke(
        main, ["--only", "fastode rodas5p", "--batch", "2", "--rounds", "2", "--rtol", "1e-4", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    with (out / "stiff.csv").open() as file:
        assert file.readline().startswith("# ")
        rows = list(csv.DictReader(file))
    assert [row["library"] for row in rows] == ["fastode rodas5p", "fastode rodas5p gradient"]
    for row in rows:
        assert 0 < float(row["best_ms"]) <= float(row["median_ms"])
        assert float(row["error"]) < 20  # tolerances, after many steps


def test_unknown_library() -> None:
    done = CliRunner().invoke(main, ["--only", "nobody"])
    assert done.exit_code == 2
    assert "nobody" in done.output
