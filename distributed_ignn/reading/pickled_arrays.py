"""Numpy's arrays in a pickle, made by hand from type, shape and bytes.

Numpy's own way takes a description of the type that can be forged into a pointer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from distributed_ignn.reading.pickles import Described
from distributed_ignn.reading.plain_files import in_one_line

_OTHER = "an array of another type than numbers or words"
_REBUILT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_BUFFERS = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_NO_BYTES = ("__builtin__.bytes", "builtins.bytes")


def is_array(found: Described) -> bool:
    """Whether a record is that of an array or of a number of numpy's."""
    return found.name in (*_REBUILT, *_BUFFERS, *_SCALARS)


def array_of(found: Described) -> np.ndarray:
    """The array that a record describes: numbers, booleans or words.

    Raises:
        ValueError: it holds anything else, or type, shape and bytes do not belong together.
    """
    try:
        if found.name in _BUFFERS:
            content, kind, shape, order = found.args
            return _filled(content, kind, shape, fortran=order == "F")
        if found.name in _SCALARS:
            kind, content = found.args
            return _filled(content, kind, (), fortran=False)
        if not isinstance(found.state, tuple) or len(found.state) != 5:
            raise ValueError("an array without content")
        _, shape, kind, fortran, content = found.state
        return _filled(content, kind, shape, fortran=bool(fortran))
    except TypeError as error:
        raise ValueError(in_one_line(error)) from error


def _filled(content: Any, kind: Any, shape: Any, *, fortran: bool) -> np.ndarray:
    plain = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not plain or len(shape) > 32:
        raise ValueError("an array without a shape")
    if isinstance(content, list):  # of objects
        return _words(content, shape)
    dtype = _dtype(kind)
    content = _bytes(content)
    if dtype.itemsize * math.prod(shape) != len(content):
        raise ValueError("an array of another size than it says")
    flat = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
    whole = flat.reshape(shape, order="F" if fortran else "C")
    return whole.astype(dtype.newbyteorder("="), copy=True)


def _words(content: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """An array of objects, if all of them are words."""
    if len(shape) != 1 or not content or not all(type(word) is str for word in content):
        raise ValueError(_OTHER)
    longest = max(map(len, content))
    if longest * len(content) > 2**28:  # numpy gives every word the room of the longest
        raise ValueError("an array of words that are too long")
    return np.array(content)


def _dtype(kind: Any) -> np.dtype:
    """The type, of which only letter, size and byte order are taken."""
    if not isinstance(kind, Described) or kind.name != "numpy.dtype" or not kind.args:
        raise ValueError(_OTHER)
    code = kind.args[0]
    if not isinstance(code, str) or code[:1] not in "biufU" or not code[1:].isdecimal():
        raise ValueError(_OTHER)
    state = kind.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
    if order not in ("<", ">", "|", "="):
        raise ValueError(_OTHER)
    return np.dtype(f"{order}{code}")


def _bytes(content: Any) -> bytes | bytearray:
    """Bytes, which the older protocols write as the text that encodes to them."""
    if isinstance(content, Described) and content.name in _NO_BYTES and not content.args:
        return b""
    if isinstance(content, Described) and content.name == "_codecs.encode":
        text, code = content.args
        if not isinstance(text, str) or code != "latin1":
            raise ValueError("an array without content")
        return text.encode(code)
    if not isinstance(content, bytes | bytearray):
        raise ValueError("an array without content")
    return content
