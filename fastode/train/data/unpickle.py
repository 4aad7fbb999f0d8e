"""Read the pickles of CIFAR-10 without executing anything from them.

A pickle is a program that may call any function. Here every name in it is looked up in a table of five stand-ins of
our own, which only take note of what they are given; the arrays are built afterwards from the bytes that were noted,
by our own code. Any other name is refused, and no numpy or standard library function can be reached.
"""

import io
import pickle
from typing import Any

import numpy as np


class _StandIn:
    """Something a pickle may name. It has no attributes to set, so a pickle cannot change it either."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a pickle tried to change the state of a name")


class _NdarrayName(_StandIn):
    """Stands for the class numpy.ndarray, as the first argument of _reconstruct."""

    __slots__ = ()


class Array:
    """Stands for a numpy array: shape and bytes as noted, numbers only after `value`."""

    __slots__ = ("_state",)

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def value(self) -> np.ndarray:
        """The uint8 array; pickle.UnpicklingError for anything else."""
        try:
            _version, shape, dtype, fortran, raw = self._state
            if not isinstance(dtype, _Dtype) or dtype.code != "u1" or not isinstance(raw, bytes):
                raise ValueError("only arrays of bytes are admitted")
            return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")
        except (AttributeError, TypeError, ValueError) as error:
            raise pickle.UnpicklingError(f"not an array of bytes: {error}") from error


class _Reconstruct(_StandIn):
    """Stands for numpy.core.multiarray._reconstruct(numpy.ndarray, shape, typecode)."""

    __slots__ = ()

    def __call__(self, cls: Any, shape: Any, typecode: Any) -> Array:
        if not isinstance(cls, _NdarrayName):
            raise pickle.UnpicklingError("an array of an unexpected class")
        return Array()


class _Dtype:
    __slots__ = ("code",)

    def __init__(self, code: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields: without meaning for bytes."""


class _MakeDtype(_StandIn):
    """Stands for numpy.dtype(code, align, copy)."""

    __slots__ = ()

    def __call__(self, code: Any, *_: Any) -> _Dtype:
        return _Dtype(code.decode("ascii") if isinstance(code, bytes) else code)


class _Encode(_StandIn):
    """Stands for _codecs.encode, with which Python 3 writes bytes into pickles of protocol 2."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("text in an unexpected encoding")
        return text.encode("latin1")


_NAMES: dict[tuple[str, str], _StandIn] = {
    ("numpy", "ndarray"): _NdarrayName(),
    ("numpy", "dtype"): _MakeDtype(),
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
    ("_codecs", "encode"): _Encode(),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not needed to read images") from None


def loads(raw: bytes) -> Any:
    """The lists, dicts, numbers, strings and `Array`s in the pickle ``raw``.

    Raises:
        pickle.UnpicklingError: the pickle is damaged, or asks for anything but those.
    """
    try:
        # Python 2 wrote the published files: their strings are bytes.
        return _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise pickle.UnpicklingError(f"damaged: {type(error).__name__}: {error}") from error
