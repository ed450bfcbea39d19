"""Zip and gzip files that may have been made to do harm: bombs, links, names that leave the folder.

A bomb is a small file that unpacks to more than any disk or memory holds. The directory of a zip
declares the size of every member and ``zipfile`` never yields more, so the check of these sizes,
before anything is unpacked, is a limit on what comes out.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from distributed_ignn.long_steps import LongStep, long_step
from distributed_ignn.reading.plain_files import in_one_line, open_plain

_COPY_BYTES = 2**20
_LONGEST_NAME = 1024
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

#: What damaged archives raise in Python's own modules, besides OSError and ValueError.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error,
    RuntimeError, IndexError, KeyError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may hold.

    Args:
        total: bytes of all members, unpacked.
        members: their number.
        ratio: unpacked bytes for each packed one; it counts from ``free`` bytes on.
        free: bytes that may come out whatever the ratio; rows of zeros shrink a thousandfold.
    """

    total: int = 2**40
    members: int = 100_000
    ratio: int = 100
    free: int = 2**30


class NoRoomError(ValueError):
    """What is to be written does not fit the disk."""

    errno = errno.ENOSPC


def check_room(folder: Path, size: int) -> None:
    """Refuse to unpack what the disk of ``folder`` has no room for.

    Raises:
        OSError: the folder is not there.
        NoRoomError: so many bytes are missing.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise NoRoomError(
            f"it unpacks to {size:,} bytes and the disk has {free:,} left, {size - free:,} too few"
        )


@contextmanager
def open_zip(path: Path, limits: Limits | None = None) -> Iterator[zipfile.ZipFile]:
    """A zip whose declared sizes are within ``limits``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no zip, damaged (also where the caller meets the damage), or too large.
    """
    with as_value_error(), open_plain(path) as stream, zipfile.ZipFile(stream) as archive:
        _check_sizes(archive, limits or Limits())
        yield archive


@contextmanager
def as_value_error() -> Iterator[None]:
    """The many errors of damaged archives as one."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(in_one_line(error) or type(error).__name__) from error


def _check_sizes(archive: zipfile.ZipFile, limits: Limits) -> None:
    members = archive.infolist()
    if len(members) > limits.members:
        raise ValueError(f"{len(members):,} members, at most {limits.members:,} are unpacked")
    names = set()
    total = 0
    for info in members:
        name = in_one_line(info.filename)
        if info.filename in names:
            raise ValueError(f"two members are called {name}")
        names.add(info.filename)
        if info.flag_bits & 0x1:
            raise ValueError(f"member {name} is encrypted")
        if info.compress_type not in _METHODS:
            raise ValueError(f"member {name} is packed by method {info.compress_type}")
        total += info.file_size
        # each by itself: a large member that hardly shrinks must not hide a small bomb
        if info.file_size > max(limits.free, limits.ratio * info.compress_size):
            raise ValueError(
                f"member {name} unpacks {info.compress_size:,} bytes to {info.file_size:,}, more "
                f"than {limits.ratio} times as many"
            )
    if total > limits.total:
        raise ValueError(f"it unpacks to {total:,} bytes, at most {limits.total:,} are allowed")


def unpack(path: Path, folder: Path, limits: Limits | None = None) -> None:
    """Unpack a zip into a new ``folder``: files and folders only, none of them outside.

    Nothing is written where a member is a link or a device, or its name is absolute or leads out
    of the folder.

    Raises:
        OSError: it cannot be read, or ``folder`` not be written.
        ValueError: as ``open_zip``, or a member that is refused; ``folder`` may be half-filled
            where the damage shows only in the bytes of a member.
    """
    with open_zip(path, limits) as archive:
        targets = [(info, folder / _safe_name(info)) for info in archive.infolist()]
        total = sum(info.file_size for info, _ in targets)
        folder.mkdir(parents=True)
        check_room(folder, total)
        with long_step(f"unpacking {path.name}", total) as told:
            for info, target in targets:
                if info.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, target.open("xb") as stream:
                    copy_told(source, stream, told)


def copy_told(source: IO[bytes], stream: IO[bytes], told: LongStep) -> None:
    """Copy to the end, and count the bytes."""
    while piece := source.read(_COPY_BYTES):
        stream.write(piece)
        told.advance(len(piece))


def _safe_name(info: zipfile.ZipInfo) -> PurePosixPath:
    """The path of a member below the folder.

    Raises:
        ValueError: it leads elsewhere, or the member is neither a file nor a folder.
    """
    name, shown = info.filename, in_one_line(info.filename)
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or path.parts[:1] == ("~",)
    if outside or "\\" in name or ":" in name or not path.parts or len(name) > _LONGEST_NAME:
        raise ValueError(f"the name of member {shown!r} leads out of the folder")
    if any(not c.isprintable() for c in name):
        raise ValueError(f"the name of member {shown!r} has control characters")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(f"member {shown} is a link or a device, only files are unpacked")
    return path


@contextmanager
def open_gzip(path: Path, limit: int) -> Iterator[BinaryIO]:
    """The unpacked bytes of a gzip file, as a stream that ends in an error after ``limit`` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged or unpacks to more (also where the caller meets it).
    """
    with as_value_error(), open_plain(path) as packed, gzip.GzipFile(fileobj=packed) as stream:
        yield cast(BinaryIO, _Limited(stream, limit))


def check_gzip(path: Path, limit: int) -> None:
    """Unpack a gzip file once without keeping it, for readers that know no limit.

    Raises:
        OSError, ValueError: as ``open_gzip``.
    """
    with open_gzip(path, limit) as stream:
        while stream.read(_COPY_BYTES):
            pass


class _Limited:
    """The reading half of a stream, up to a number of bytes."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._limit, self._left = stream, limit, limit

    def read(self, size: int = -1) -> bytes:
        return self._counted(self._stream.read(self._at_most(size)))

    def readline(self, size: int = -1) -> bytes:
        return self._counted(self._stream.readline(self._at_most(size)))

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def _at_most(self, size: int) -> int:
        return self._left + 1 if size < 0 else min(size, self._left + 1)

    def _counted(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than the {self._limit:,} bytes allowed")
        return piece
