"""Other programs that check: compute-sanitizer, and the tests that need a GPU. Run in a child, which waits for them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.gpu.environment import tool
from bench.gpu.pool import ROOT
from bench.gpu.worker import Link

Result = dict[str, Any]


def sanitize(link: Link, backend: str, kind: str, seconds: float) -> Result:
    """compute-sanitizer's ``kind`` ("memcheck", "racecheck") over a small solve and its gradient."""
    result: Result = {"kind": kind, "backend": backend, "outcome": "skipped", "reason": ""}
    path = tool("compute-sanitizer")
    if path is None:
        return result | {"reason": "compute-sanitizer is not installed"}
    command = [path, "--tool", kind, "--print-limit", "5", "--error-exitcode", "99"]
    # Without the cache every tensor is an allocation, so that an access beside one is beside the other.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            [*command, sys.executable, "-m", "bench.gpu.tiny", backend],
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=ROOT,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return result | {"reason": f"more than {seconds:g} s"}
    return result | judge_sanitizer(done.stdout + done.stderr, done.returncode)


def judge_sanitizer(text: str, code: int) -> Result:
    """Outcome and reason from what compute-sanitizer printed."""
    lines = [line.strip("= ").strip() for line in text.splitlines() if line.startswith("=====")]
    counts = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (?:errors?|hazards?)", text)
    if "solved" in text and counts and int(counts[-1]) == 0 and code == 0:
        return {"outcome": "passed", "reason": ""}
    if "cannot run this solve" in text:
        return {"outcome": "refused", "reason": text.strip().splitlines()[-1][:300]}
    if counts and int(counts[-1]) > 0:
        return {"outcome": "failed", "reason": f"{counts[-1]} findings: {'; '.join(filter(None, lines))[:600]}"}
    return {"outcome": "skipped", "reason": f"exit code {code}: {' '.join(text.split())[-400:]}"}


def pytests(link: Link, seconds: float, workers: int, marker: str = "gpu") -> list[Result]:
    """The tests with a marker, one result each. Only files that have it are collected: the others may need more."""
    files = marked(marker)
    if find_spec("pytest") is None or not files:
        reason = "pytest is not installed" if files else f"no test is marked {marker!r}"
        return [{"kind": "pytest", "backend": "", "outcome": "skipped", "reason": reason}]
    command = [sys.executable, "-m", "pytest", "-m", marker, "-q", "-p", "no:cacheprovider", *files]
    if find_spec("xdist") is not None and workers > 1:
        command += ["-n", str(workers)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.xml"
        late, text, code = False, "", 0
        try:
            done = subprocess.run(
                [*command, f"--junitxml={path}"], capture_output=True, text=True, timeout=seconds, cwd=ROOT
            )
            text, code = done.stdout + done.stderr, done.returncode
        except subprocess.TimeoutExpired:
            late = True
        results = read_junit(path.read_text(encoding="utf-8")) if path.is_file() else []
    if late:
        reason = f"the tests took more than {seconds:g} s"
        return [*results, {"kind": "pytest", "backend": "", "outcome": "skipped", "reason": reason}]
    if code not in (0, 1, 5):  # 5: no test has the marker
        results.append({"kind": "pytest", "backend": "", "outcome": "error", "reason": " ".join(text.split())[-400:]})
    return results


def marked(marker: str) -> list[str]:
    """Files of tests in which a marker is used."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in paths if f"mark.{marker}" in path.read_text(encoding="utf-8")]


def read_junit(text: str) -> list[Result]:
    """One result for each test of a report in JUnit's format."""
    results = []
    for case in ElementTree.fromstring(text).iter("testcase"):
        result: Result = {"kind": "pytest", "backend": "", "field": f"{case.get('classname')}::{case.get('name')}"}
        result |= {"outcome": "passed", "reason": "", "seconds": float(case.get("time") or 0)}
        for tag, outcome in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
            found = case.find(tag)
            if found is not None:
                result |= {"outcome": outcome, "reason": " ".join((found.get("message") or "").split())[:400]}
        results.append(result)
    return results
