"""Files that are either complete or absent, whatever interrupts their writing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_HELD = (errno.EAGAIN, errno.EACCES)
_NOT_KNOWN = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class FileLock:
    """A lock (flock) on a file of its own, which the kernel lets go of whatever ends the process.

    Args:
        path: the file; it is there while the lock is held.

    Attributes:
        keeps_out: whether the file system knows locks; else everybody holds one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self.keeps_out = True

    def take(self) -> bool:
        """Hold it, if nobody else does.

        Raises:
            OSError: the file cannot be created.
        """
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                os.close(file)
                return False
            if error.errno not in _NOT_KNOWN:
                os.close(file)
                raise
            self.keeps_out = False
        if os.fstat(file).st_nlink == 0:  # removed by who had it before: a file that nobody meets
            os.close(file)
            return False
        self._file = file
        return True

    def release(self) -> None:
        """Let others have it; does nothing where it is not held."""
        if self._file is not None:
            with suppress(OSError):  # the folder has become read-only, or is gone
                self._path.unlink()
            os.close(self._file)
            self._file = None


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a file that replaces ``path`` only once it is complete and on disk.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; ``path`` is as before.
    """
    temporary = temporary_sibling(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """As ``atomic_write_bytes``, in UTF-8."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path, value: Any) -> None:
    """As ``atomic_write_bytes``, indented and with a final line break; refuses NaN and infinity."""
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file and bring it onto the disk; not atomic by itself.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    ready: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory; others need no copy
        ready[key] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    try:
        save_file(ready, path, metadata)
    except SafetensorError as error:
        raise OSError(" ".join(str(error).split())) from error
    path.chmod(path.parent.stat().st_mode & 0o666)  # save_file lets nobody else read it
    sync(path)


def temporary_sibling(path: Path) -> Path:
    """An unused hidden name in the folder of ``path``, from which a rename is atomic.

    What processes that this one could see have left under such names, because they were killed
    while they wrote ``path``, is removed.
    """
    mine = f".{path.name}.{_hashed(f'{socket.gethostname()} {place()}')}"
    left = re.compile(rf"{re.escape(mine)}-(\d+)-[0-9a-f]{{12}}\.tmp")
    with suppress(OSError):  # the folder may be missing still
        for found in list(path.parent.iterdir()):
            name = left.fullmatch(found.name)
            if name is not None and _is_gone(int(name[1])):
                _remove(found)
    return path.parent / f"{mine}-{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp"


def place() -> str:
    """The same for processes that see each other in ``/proc``: machine and space of process ids.

    Where that cannot be told it is another every time.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    return uuid.uuid4().hex


def _hashed(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # /proc may hide the processes of others
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def git_blob_id(path: Path) -> str:
    """The id that git gives to the content of a file: what a hosted repository publishes of it."""
    digest = hashlib.sha1(usedforsecurity=False)
    digest.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
