"""Number arrays in numpy's formats, checked before any memory is taken.

The header of a ``.npy`` file declares type and shape, and numpy takes memory for these before it
looks at what follows. Here the declared size has to be the size of what is there.
"""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from distributed_ignn.reading.archives import Limits, open_zip
from distributed_ignn.reading.plain_files import in_one_line, open_plain

_HEADER_LIMIT = 10_000  # numpy's own
_KINDS = "biuf"


def read_npz(
    path: Path,
    names: Iterable[str] | None = None,
    *,
    kinds: str = _KINDS,
    limits: Limits | None = None,
) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file, in the byte order of this machine.

    Args:
        path: of the file.
        names: those wanted, as far as they are there; None takes all.
        kinds: numpy's letters of the types that are read; integers, floats and booleans.
        limits: on the archive.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no archive of such arrays, is damaged or too large.
    """
    arrays = {}
    with open_zip(path, limits) as archive:
        for name in _members(archive) if names is None else names:
            if name in _members(archive):
                info = archive.getinfo(f"{name}.npy")
                with archive.open(info) as stream:
                    arrays[name] = _read_member(stream, info.file_size, name, kinds)
    return arrays


def npz_names(path: Path, *, limits: Limits | None = None) -> list[str]:
    """Names of the arrays of an ``.npz`` file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no archive of arrays, or breaks a limit.
    """
    with open_zip(path, limits) as archive:
        return _members(archive)


def check_npz(
    path: Path,
    names: Iterable[str] | None = None,
    *,
    kinds: str = _KINDS,
    limits: Limits | None = None,
) -> None:
    """Check declared types and sizes, for libraries that read the file themselves.

    Args:
        path: of the file.
        names: the arrays that are going to be read, as far as they are there; None takes all.
        kinds, limits: as of ``read_npz``.

    Raises:
        OSError, ValueError: as ``read_npz``.
    """
    with open_zip(path, limits) as archive:
        members = _members(archive)
        for name in members if names is None else sorted(set(members) & set(names)):
            info = archive.getinfo(f"{name}.npy")
            with archive.open(info) as stream:
                _read_header(stream, info.file_size, name, kinds)


def map_npy(path: Path, *, kinds: str = _KINDS) -> np.ndarray:
    """The array of an ``.npy`` file, memory-mapped; writing into it does not change the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such array, or not as long as its header says.
    """
    with open_plain(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        shape, _, dtype = _read_header(stream, size, path.name, kinds)
    if math.prod(shape) == 0:  # nothing to map
        return np.zeros(shape, dtype)
    mapped: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    return mapped


def _members(archive: zipfile.ZipFile) -> list[str]:
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    strange = [name for name in names if not name.endswith(".npy")]
    if strange:
        raise ValueError(f"member {in_one_line(strange[0])} is not an array")
    return [name.removesuffix(".npy") for name in names]


def _read_member(stream: IO[bytes], size: int, name: str, kinds: str) -> np.ndarray:
    shape, fortran, dtype = _read_header(stream, size, name, kinds)
    array = np.empty(math.prod(shape), dtype)
    view = array.view(np.uint8).data
    filled = 0
    while filled < array.nbytes:
        piece = stream.read(min(array.nbytes - filled, 2**24))
        if not piece:
            raise ValueError(f"array {in_one_line(name)} is cut short")
        view[filled : filled + len(piece)] = piece
        filled += len(piece)
    if stream.read(1):  # also makes zipfile compare the checksum
        raise ValueError(f"array {in_one_line(name)} is longer than its header says")
    whole = array.reshape(shape, order="F" if fortran else "C")
    return whole.astype(dtype.newbyteorder("="), copy=False)


def _read_header(
    stream: IO[bytes], size: int, name: str, kinds: str
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array whose file has ``size`` bytes in all."""
    what = f"array {in_one_line(name)}"
    start = stream.tell()
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format version {version[0]}.{version[1]}")
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = reader(stream, max_header_size=_HEADER_LIMIT)
    except (ValueError, TypeError, SyntaxError, LookupError, RecursionError, MemoryError,
            OverflowError, tokenize.TokenError) as error:  # fmt: skip
        # the header is a Python literal, and the errors are those of its parser
        raise ValueError(f"{what} has no valid header ({in_one_line(error)})") from error
    # numpy takes memory for words of no letters as for those of one
    if dtype.kind not in kinds or dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"{what} holds values of type {in_one_line(dtype)}")
    if any(type(length) is not int or length < 0 for length in shape) or len(shape) > 32:
        raise ValueError(f"{what} has no valid shape")
    # the header was read from the stream, which need not tell its place in the file
    declared, there = math.prod(shape) * dtype.itemsize, size - (stream.tell() - start)
    if declared != there:
        raise ValueError(f"{what} declares {declared:,} bytes and has {there:,}")
    return shape, fortran, dtype
