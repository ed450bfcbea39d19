"""Matrices of MATLAB's ``.mat`` files, versions 4 to 7, each looked at before memory is taken.

SciPy's own reader of versions 5 to 7 ends the process on some damaged files, so the few kinds of
elements are understood here; cells, structures and objects, which may be nested without end, are
not touched. It reads version 4.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import scipy.io
import scipy.sparse as sp

from distributed_ignn.reading.archives import Limits
from distributed_ignn.reading.plain_files import in_one_line, open_plain

MAT5, MAT73, HDF5 = b"MATLAB 5.0 MAT-file", b"MATLAB 7.3 MAT-file", b"\x89HDF\r\n\x1a\n"
"""How the files begin; those of version 4 begin with nothing of their own."""

_HEADER = 128  # bytes, of a file of version 5
_MATRIX, _PACKED = 14, 15
_WORDS, _SPARSE = 4, 5
_CLASSES = dict(enumerate(("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"), 6))
_KINDS = {
    **dict.fromkeys((_SPARSE, *_CLASSES), "numbers"),
    **{1: "a cell array", 2: "a structure", 3: "an object", _WORDS: "words"},
}
#: How the numbers of an element are stored; the last are characters in three encodings.
_TYPES = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"},
    **{16: "u1", 17: "u2", 18: "u4"},
}
_VERSION_4_LIMIT = 2**33
_PIECE = 2**20
_MOST_VARIABLES = 10_000


@dataclass(frozen=True, slots=True)
class MatVariable:
    """A variable of a file.

    Args:
        name: its name.
        shape: rows, columns and so on; (-1, -1) of a sparse one of version 4, which says it last.
        kind: ``numbers``, ``words``, or in words what else it is.
        read: its value: an array, or a sparse matrix whose indices have been looked at.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[], np.ndarray | sp.coo_array]


def mat_variables(path: Path) -> dict[str, MatVariable]:
    """The variables of a file by name; their values are read when they are asked for.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is of another version, damaged, or claims more than it has (reading a
            variable raises it, too).
    """
    with open_plain(path) as stream:
        head = stream.read(_HEADER)
        if head.startswith((MAT73, HDF5)):
            raise ValueError("version 7.3, which is HDF5")
        new = head.startswith(MAT5)
        found = list(_version_5(stream, head, path) if new else _version_4(stream))
    names = [variable.name for variable in found]
    if not names:
        raise ValueError("no variable")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two variables called {in_one_line(twice)}")
    return {variable.name: variable for variable in found}


def _version_5(stream: BinaryIO, head: bytes, path: Path) -> Iterator[MatVariable]:
    if len(head) < _HEADER or head[126:] not in (b"IM", b"MI"):
        raise ValueError("its header is damaged")
    order: Literal["<", ">"] = "<" if head[126:] == b"IM" else ">"
    size, place = stream.seek(0, io.SEEK_END), _HEADER
    for _ in range(_MOST_VARIABLES):
        if place >= size:
            return
        stream.seek(place)
        kind, length = _numbers(order + "II", stream.read(8))
        if kind not in (_MATRIX, _PACKED) or place + 8 + length > size:
            raise ValueError("a variable is cut short, or none")
        part = _Part(path, head, place, length, packed=kind == _PACKED)
        yield part.variable(order)
        place += 8 + length
    raise ValueError(f"more than {_MOST_VARIABLES:,} variables")


@dataclass(frozen=True, slots=True)
class _Part:
    """Where a variable of version 5 lies in its file."""

    path: Path
    head: bytes
    place: int
    length: int
    packed: bool

    def content(self, most: int | None = None) -> bytes:
        """The matrix with its tag, unpacked; the first ``most`` bytes of it, if that is given."""
        with open_plain(self.path) as stream:
            stream.seek(self.place + (8 if self.packed else 0))
            there = self.length + (0 if self.packed else 8)
            if not self.packed:
                return stream.read(there if most is None else min(most, there))
            return _unpacked(stream, there, most)

    def variable(self, order: Literal["<", ">"]) -> MatVariable:
        matrix = _Matrix(self.content(_PIECE), order)
        return MatVariable(
            matrix.name,
            matrix.shape,
            _KINDS.get(matrix.kind, "an object"),
            lambda: _Matrix(self.content(), order).value(),
        )


class _Matrix:
    """A variable of version 5 by its header; ``value`` needs all of its content.

    Args:
        content: with its tag, or the beginning of it.
        order: of the bytes, as ``struct`` and numpy name it.
    """

    def __init__(self, content: bytes, order: Literal["<", ">"]) -> None:
        self._content, self._order = content, order
        tag, self._length = _numbers(f"{order}II", content[:8])
        self._place = 8
        flags = self._next()
        if tag != _MATRIX or flags.size != 2:
            raise ValueError("a variable without a header")
        self.kind = int(flags[0]) & 0xFF
        self._complex = bool(int(flags[0]) & 0x800)
        self.shape = tuple(int(n) for n in self._next())
        self.name = self._next().tobytes().decode("latin1")
        if len(self.shape) < 2 or min(self.shape) < 0 or not self.name:
            raise ValueError("a variable without a shape or a name")

    def _next(self) -> np.ndarray:
        """The numbers of the next element; up to four bytes of them stand in its tag."""
        (tag,) = _numbers(f"{self._order}I", self._content[self._place : self._place + 4])
        small = tag >> 16
        if small:
            kind, length, start = tag & 0xFFFF, small, self._place + 4
            self._place += 8
        else:
            kind = tag
            (length,) = _numbers(
                f"{self._order}I", self._content[self._place + 4 : self._place + 8]
            )
            start = self._place + 8
            self._place = start + -(-length // 8) * 8
        dtype = np.dtype(_TYPES.get(kind, "V")).newbyteorder(self._order)
        if dtype.kind == "V" or length % dtype.itemsize or start + length > len(self._content):
            raise ValueError("a variable is cut short, or holds something else than numbers")
        found = np.frombuffer(self._content, dtype, length // dtype.itemsize, start)
        return found.astype(dtype.newbyteorder("="))

    def value(self) -> np.ndarray | sp.coo_array:
        if self._length + 8 > len(self._content):
            raise ValueError(f"{in_one_line(self.name)} is cut short")
        if self._complex:
            raise ValueError(f"{in_one_line(self.name)} holds complex numbers")
        if self.kind == _SPARSE:
            return self._sparse()
        numbers = self._next()
        if numbers.size != math.prod(self.shape):
            raise ValueError(f"{in_one_line(self.name)} claims more numbers than are there")
        if self.kind == _WORDS:
            signs = np.array([chr(n) if n < 0xD800 else "?" for n in numbers.tolist()], "U1")
            rows = signs.reshape(self.shape, order="F").reshape(self.shape[0], -1)
            return np.array(["".join(row) for row in rows.tolist()] or [""])
        # what is stored may be of a smaller type than what was saved
        return numbers.reshape(self.shape, order="F").astype(_CLASSES[self.kind], copy=False)

    def _sparse(self) -> sp.coo_array:
        row, pointer, data = (self._next() for _ in range(3))
        entries = int(pointer[-1]) if pointer.size else 0
        parts = data[:entries], row[:entries], pointer
        matrix = _quiet(lambda: sp.csc_array(parts, shape=self.shape))
        _quiet(lambda: matrix.check_format(full_check=True))
        return sp.coo_array(matrix)


def _unpacked(stream: BinaryIO, length: int, most: int | None) -> bytes:
    """What so many packed bytes hold, within the limits of archives."""
    limits, pieces, total = Limits(), [], 0
    allowed = max(limits.free, limits.ratio * length)
    machine, left = zlib.decompressobj(), length
    try:
        while not machine.eof and (most is None or total < most):
            packed = machine.unconsumed_tail
            if not packed:
                packed = stream.read(min(left, _PIECE))
                left -= len(packed)
                if not packed:
                    raise ValueError("a variable is cut short")
            piece = machine.decompress(packed, _PIECE)
            pieces.append(piece)
            total += len(piece)
            if total > allowed:
                raise ValueError(f"a variable of {length:,} bytes unpacks to more than {allowed:,}")
    except zlib.error as error:
        raise ValueError(in_one_line(error)) from error
    return b"".join(pieces)


def _version_4(stream: BinaryIO) -> Iterator[MatVariable]:
    if stream.seek(0, io.SEEK_END) > _VERSION_4_LIMIT:
        raise ValueError(f"more than the {_VERSION_4_LIMIT:,} bytes allowed of version 4")
    stream.seek(0)
    content = stream.read()
    # the first number says the kind of machine in its thousands: 0, or 1 with the bytes turned
    order = "<" if int.from_bytes(content[:4], "little") < 1000 else ">"
    place = 0
    while place < len(content):
        head = _numbers(f"{order}5i", content[place : place + 20])
        kind, rows, columns, imaginary, name_length = head
        if kind // 1000 != (order == ">") or kind % 1000 >= 60 or kind % 10 > 2:
            raise ValueError("it is no file of MATLAB's")
        size = (8, 4, 4, 2, 2, 1)[kind % 100 // 10]
        end = place + 20 + name_length + rows * columns * size * (2 if imaginary else 1)
        if min(rows, columns, name_length - 1) < 0 or end > len(content):
            raise ValueError("a variable is cut short, or none")
        name = content[place + 20 : place + 19 + name_length].decode("latin1")
        part = content[place:end]

        def read(part: bytes = part, name: str = name) -> np.ndarray | sp.coo_array:
            return _value(part, name)

        # the rows of a sparse one are its entries
        shape = (-1, -1) if kind % 10 == 2 else (rows, columns)
        yield MatVariable(name, shape, "words" if kind % 10 == 1 else "numbers", read)
        place = end


def _numbers(layout: str, content: bytes) -> tuple[int, ...]:
    try:
        return struct.unpack(layout, content)
    except struct.error as error:
        raise ValueError("a variable is cut short") from error


def _value(content: bytes, name: str) -> np.ndarray | sp.coo_array:
    """The value of the only variable in the content of a file of version 4."""
    found = _quiet(lambda: scipy.io.loadmat(io.BytesIO(content))).get(name)
    if sp.issparse(found):
        found = _quiet(lambda: sp.coo_array(found))
    if not isinstance(found, np.ndarray | sp.coo_array) or found.dtype.kind not in "biufU":
        raise ValueError(f"{in_one_line(name)} holds something else than real numbers")
    return found


def _quiet(action: Callable[[], Any]) -> Any:
    """What SciPy returns; whatever it objects to as one kind of error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return action()
    except Exception as error:  # its readers raise whatever damaged numbers lead them to
        raise ValueError(in_one_line(error) or type(error).__name__) from error
