"""Tasks for the tests of bench.gpu.pool that do all that a task must not do."""

import ctypes
import os
import subprocess
import time


def good(link, value):
    link.send(event="seen", value=value)
    return {"value": value, "pid": os.getpid()}


def raises(link):
    raise ValueError("no such luck\nin many lines")


def crashes(link):
    print("last words", flush=True)
    ctypes.string_at(0)


def hangs(link):
    subprocess.Popen(["sleep", "1000"])
    time.sleep(1000)


def takes_turns(link, path, seconds=0.2):
    """Writes down when it had the machine to itself, and when others prepared."""
    with open(path, "a") as file:
        print("prepare", os.getpid(), file=file, flush=True)
        time.sleep(seconds)
        link.wait_for_turn()
        print("start", os.getpid(), file=file, flush=True)
        time.sleep(seconds)
        print("end", os.getpid(), file=file, flush=True)
    return {}


def asks_and_hangs(link):
    link.wait_for_turn()
    time.sleep(1000)


def contest(link, case, libraries, without, how, **settings):
    """A case in which the library "bad" brings the process down in a way of its choice."""
    for mode in ("forward", "gradient"):
        for library in libraries:
            if [mode, library] in without:
                continue
            link.send(event="at", mode=mode, library=library)
            if library == "bad":
                {"crashes": crashes, "hangs": hangs, "raises": raises}[how](link)
    link.wait_for_turn()
    for mode in ("forward", "gradient"):
        rows = [
            {"kind": "compare", "case": case, "mode": mode, "library": library, "failed": "", "median_ms": 1.0}
            for library in libraries
            if [mode, library] not in without
        ]
        link.send(event="rows", mode=mode, rows=rows)
    return {}


def dies(link, **check):
    crashes(link)


def announces_and_hangs(link, path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)
