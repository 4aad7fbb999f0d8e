"""python -m bench.clients."""

from __future__ import annotations

import csv
from pathlib import Path

from click.testing import CliRunner

from bench.clients.__main__ import main


def test_table(tmp_path: Path) -> None:
    out = tmp_path / "new"
    done = CliRunner().invoke(
        main, ["--client", "bouncing-ball", "--rounds", "2", "--note", "a remark", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    with (out / "clients.csv").open() as file:
        assert "a remark" in file.readline()
        (row,) = csv.DictReader(file)
    assert row["client"] == "bouncing-ball"
    assert float(row["torchdiffeq_ms"]) > 0
    assert float(row["times_least"]) <= float(row["times"]) <= float(row["times_most"])
    for library in ("torchdiffeq", "fastode"):
        assert float(row[f"{library}_error"]) < 1e-6
    assert abs(float(row["fastode_loss"]) - float(row["torchdiffeq_loss"])) < 1e-5 * float(row["torchdiffeq_loss"])


def test_unknown_client() -> None:
    done = CliRunner().invoke(main, ["--client", "nobody"])
    assert done.exit_code == 2
    assert "nobody" in done.output
