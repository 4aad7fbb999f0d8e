"""Watches a field while it is recorded: nothing may come in or go out unseen, and what is not understood ends it.

The interpreter's profiler shows every call of Python code and of C functions. Operations on tensors, and attributes of
tensors, are seen by the recorder; what objects hold is the business of ``describe``.
"""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

from fastode.program import trust
from fastode.program.describe import Executed, shown
from fastode.program.trace import KEEP_OUTSIDE, NotAProgram, line_of

_AS_INPUT = "hand what it needs to the field as a number, a tensor or an entry of controls"
_WATCHED, _TRUSTED, _IGNORED = "watched", "trusted", "ignored"
"""Ignored is the import of a module, and what is called since something has been freed: no doing of the field's."""
_IMPORTS = "<frozen importlib._bootstrap>"


class Watch:
    """A context in which the user's code is watched; what it has executed is added up in ``executed``.

    Args:
        executed: the code that ran, in this and in earlier contexts.
        arrive: called before code that has not run before; returns why it must not run, or None.
        after: called at the end; returns the path of something that the code has changed, or None.
    """

    def __init__(self, executed: Executed, arrive: Callable[[], str | None], after: Callable[[], str | None]) -> None:
        self.executed = executed
        self._after = after
        self.refusal: NotAProgram | None = None
        self._arrive = arrive
        self._before: Any = None
        # Calls under way at which watching changed: code of torch that trusted code calls, and the user's in turn.
        self._inside: list[tuple[types.FrameType, str]] = []
        self._collects = False

    def __enter__(self) -> Watch:
        self._before = sys.getprofile()
        if self._before is not None and not isinstance(self._before, types.FunctionType | types.MethodType):
            self._before.disable()  # a profiler written in C, which sys.setprofile cannot put back
        self._collects = gc.isenabled()
        gc.disable()  # it calls functions that are no part of the field
        sys.setprofile(self._event)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        sys.setprofile(None)
        if isinstance(self._before, types.FunctionType | types.MethodType):
            sys.setprofile(self._before)
        elif self._before is not None:
            self._before.enable()
        if self._collects:
            gc.enable()
        changed = self._after()
        if self.refusal is not None:  # the field may have caught it
            raise self.refusal from None
        if changed is not None and error is None:
            raise NotAProgram(f"calling the field changes {shown(changed)}", None, KEEP_OUTSIDE)

    def outside(self) -> Callable[[], None]:
        """Stops watching; the result goes on with it."""
        sys.setprofile(None)
        return self._go_on

    def _go_on(self) -> None:
        sys.setprofile(self._event)

    def _event(self, frame: types.FrameType, event: str, arg: Any) -> None:
        if self._inside and event == "return" and frame is self._inside[-1][0]:
            self._inside.pop()
            return
        state = self._inside[-1][1] if self._inside else _WATCHED
        if state == _IGNORED:
            return
        if event == "c_call":
            if state != _WATCHED or frame.f_code not in self.executed.codes:
                return
            if arg is trust.ASKS_FOR_GRADIENT:
                self.executed.asks_for_gradient = True
            elif not trust.is_pure(arg):
                module = getattr(arg, "__module__", None) or ""
                name = f"{module}.{arg.__qualname__}".removeprefix("builtins.").lstrip(".")
                self._refuse(f"it calls {name}(), which may read or change something beside its arguments", frame)
        elif event == "call":
            code = frame.f_code
            verdict = trust.verdict(code)
            if code.co_filename == _IMPORTS:  # before all: it calls hooks of anyone's, pytest's for example
                self._inside.append((frame, _IGNORED))
                return
            if verdict == trust.TRUSTED or (state == _TRUSTED and trust.is_of_torch_or_python(code)):
                return
            if _is_farewell(frame):
                self._inside.append((frame, _IGNORED))
                return
            if state == _TRUSTED:
                self._inside.append((frame, _WATCHED))
            if verdict != trust.USER:
                self._refuse(verdict, frame.f_back)
            elif trust.is_of_torch_or_python(code) and not self._is_users(frame.f_back):
                self._inside.append((frame, _TRUSTED))  # it is part of what trusted code does
            elif code not in self.executed.codes and not _makes_a_named_tuple(frame):
                self._run(code, frame)

    def _is_users(self, frame: types.FrameType | None) -> bool:
        return frame is not None and frame.f_code in self.executed.codes

    def _run(self, code: types.CodeType, frame: types.FrameType) -> None:
        self.executed.add(code)
        reason = self._arrive()
        if reason is not None:
            self._refuse(reason, frame)

    def _refuse(self, reason: str, frame: types.FrameType | None) -> None:
        self.refusal = self.refusal or NotAProgram(reason, line_of(frame), _AS_INPUT)
        raise self.refusal


def _makes_a_named_tuple(frame: types.FrameType) -> bool:
    """Whether a frame is the constructor that ``collections.namedtuple`` writes; torch's results have such types."""
    return frame.f_code.co_names == ("_tuple_new",) and frame.f_globals.get("_tuple_new") is tuple.__new__


def _is_farewell(frame: types.FrameType) -> bool:
    """Whether a frame is a call of whoever wanted to know that an object is no more."""
    code = frame.f_code
    if not 1 <= code.co_argcount <= 3:
        return False
    given = (frame.f_locals.get(name) for name in code.co_varnames[: min(code.co_argcount, 2)])
    return any(isinstance(argument, weakref.ref) and argument() is None for argument in given)
