"""The child's side of ``pool``: reads tasks from its standard input, writes events to a pipe of its own."""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
import traceback
from typing import Any


class Link:
    """How a task talks to the parent."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._messages.put(json.loads(line))
        os._exit(0)  # the parent is gone, or done; a kernel that hangs keeps nothing alive

    def receive(self) -> dict[str, Any]:
        """The next message."""
        return self._messages.get()

    def send(self, **event: Any) -> None:
        """Sends an event."""
        data = json.dumps(event).encode() + b"\n"
        while data:
            data = data[os.write(self._pipe, data) :]

    def wait_for_turn(self) -> None:
        """Says that all is prepared, and returns when nothing else runs on the machine."""
        self.send(event="ready")
        self.receive()


def device_error() -> str:
    """What is wrong with CUDA in this process; empty if nothing, or if it was never used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except Exception as error:
        return str(error).splitlines()[0]
    return ""


def main() -> None:
    """Executes tasks until there are no more."""
    link = Link(int(sys.argv[1]))
    while True:
        task = link.receive()
        module, _, function = task["call"].partition(":")
        end: dict[str, Any] = {"event": "end"}
        try:
            end |= {
                "kind": "done",
                "value": getattr(importlib.import_module(module), function)(link, **task["arguments"]),
            }
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split())[:500]
            end |= {"kind": "raised", "reason": f"{type(error).__name__}: {text}"}
        broken = device_error()
        if broken:
            end |= {"kind": "raised", "broken": True, "reason": end.get("reason") or f"CUDA is in error: {broken}"}
        link.send(**end)


if __name__ == "__main__":
    main()
