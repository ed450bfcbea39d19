"""Fetching published files: whole, checked, once, and with one clear line when there is no network.

Also says where derived files (caches) may be written. What a file means is left to its reader.
"""

from __future__ import annotations

import logging
import os
import stat
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distributed_ignn.errors import UserError
from distributed_ignn.files import FileLock, git_blob_id, sha256_file, sync, temporary_sibling
from distributed_ignn.graph.datasets.checks import brief
from distributed_ignn.long_steps import long_step
from distributed_ignn.reading.plain_files import in_one_line

if TYPE_CHECKING:
    from distributed_ignn.graph.datasets.transfer import Part

logger = logging.getLogger(__name__)

#: Of a download where the caller names no other; the largest file fetched so has 330 MB.
DOWNLOAD_LIMIT = 4 * 2**30
_POLL_SECONDS = 0.2


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that takes its place when the block ends without error."""
    temporary = temporary_sibling(target)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fetch(
    url: str,
    target: Path,
    *,
    source: str,
    sha256: str | None = None,
    blob: str | None = None,
    limit: int = DOWNLOAD_LIMIT,
) -> Path:
    """``target`` if it exists, else a download of ``url`` under that name.

    What has arrived of a download that was cut is kept and gone on with, see ``transfer.py``. Where
    two processes want the same file, one of them waits for the other.

    Args:
        url: address of the file, https (or file); redirections lead to https only.
        target: where the file belongs.
        source: what to name in the message as the publisher, such as a repository.
        sha256: expected sum of a download; None logs the sum instead.
        blob: expected git blob id of a download, see ``git_blob_id``; None where it is not known.
        limit: bytes to fetch at most.

    Raises:
        UserError: no network, a folder that cannot be written, a file that is too large or cut
            short, or a wrong sum.
    """
    if target.is_file():
        return target
    kept = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(target) as resumable:
            if target.is_file():  # another process has fetched it
                return target
            logger.info("downloading %s from %s", target.name, source)
            path = target.with_name(f".{target.name}.part")
            part = _part(path if resumable else temporary_sibling(target), url, target.name)
            try:
                _complete(part, target, limit, _Sums(sha256, blob))
            except ValueError:
                part.drop()
                raise
            finally:
                if resumable:
                    kept = part.kept()
                else:  # under a name that no later attempt looks for
                    part.drop()
    except OSError as error:
        rest = f"; {kept:,} bytes are kept, the same command goes on from there" if kept else ""
        raise UserError(
            f"{target.name} is neither in {target.parent} nor could it be downloaded from {source} "
            f"({brief(error)}); put the file into that folder or name another with --data-root"
            f"{rest}"
        ) from error
    except ValueError as error:
        raise UserError(
            f"the download of {target.name} from {source} does not have its published content "
            f"({brief(error)}); fetch it by hand and put it into {target.parent}"
        ) from error
    return target


@contextmanager
def exclusive(target: Path) -> Iterator[bool]:
    """Keep other processes from making ``target`` at the same time; wait until they have.

    Yields:
        Whether the file system can do that.

    Raises:
        OSError: the folder cannot be written.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    if not lock.take():
        logger.info("another process makes %s; waiting for it", target)
        with long_step(f"waiting for another process that makes {target.name}"):
            while not lock.take():
                time.sleep(_POLL_SECONDS)
    try:
        yield lock.keeps_out
    finally:
        lock.release()


@dataclass(frozen=True, slots=True)
class _Sums:
    """What the content is known by; None where it is not."""

    sha256: str | None
    blob: str | None

    def check(self, path: Path, name: str) -> None:
        """Compare.

        Raises:
            ValueError: the file is another.
        """
        found = sha256_file(path)
        if self.sha256 is not None and found != self.sha256:
            raise ValueError(f"its sha256 is {found}, not {self.sha256}")
        if self.blob is not None and (other := git_blob_id(path)) != self.blob:
            raise ValueError(f"its git blob id is {other}, not {self.blob}")
        logger.info("%s has sha256 %s", name, found)


def _part(path: Path, url: str, name: str) -> Part:
    """What is to be downloaded; imported late, since what fetches nothing needs no library."""
    from distributed_ignn.graph.datasets.transfer import Part

    return Part(path, url, name)


def transfer(part: Part, limit: int) -> None:
    """See ``transfer.py``; imported late as well."""
    from distributed_ignn.graph.datasets.transfer import transfer as over_the_network

    over_the_network(part, limit)


def _complete(part: Part, target: Path, limit: int, sums: _Sums) -> None:
    """Download what is missing, check the whole and give it its name.

    Raises:
        OSError, ValueError: see ``transfer``; or it is another file than the published one.
    """
    transfer(part, limit)
    try:
        sums.check(part.path, target.name)
    except ValueError as error:
        if not part.resumed:
            raise
        logger.warning("%s, after it was resumed (%s); fetching it anew", target.name, error)
        part.drop()
        transfer(part, limit)
        sums.check(part.path, target.name)
    sync(part.path)
    part.become(target)
    sync(target.parent)


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """All bytes of one zip member, refused above ``limit`` bytes."""
    check_member_size(archive, info, limit)
    with archive.open(info) as stream:
        return stream.read()


def check_member_size(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> None:
    """Refuse a member whose declared size exceeds ``limit``; zipfile never yields more than that.

    Raises:
        UserError: the member is too large.
    """
    if info.file_size > limit:
        raise UserError(
            f"{archive.filename}: member {in_one_line(info.filename)} unpacks to "
            f"{info.file_size:,} bytes, at most {limit:,} are allowed; replace the zip by "
            "the published one"
        )


def cache_folder(preferred: Path, kind: str) -> Path:
    """A folder for derived files: ``preferred`` where it can be written, else the user's cache.

    Args:
        preferred: folder beside the data.
        kind: name of the folder under ``$XDG_CACHE_HOME/distributed_ignn`` (or ``~/.cache/...``).

    Raises:
        UserError: neither can be written.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    fallback = home / "distributed_ignn" / kind
    for folder in (preferred, fallback):
        if _may_write(folder):
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                return folder
    raise UserError(
        f"neither {preferred} nor {fallback} can be written; set XDG_CACHE_HOME to a "
        "writable folder"
    )


def _may_write(folder: Path) -> bool:
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if existing is None:
        return False
    # The mode is asked too: to an administrator every folder looks writable, yet one without any
    # write bit was made read-only on purpose.
    marked = existing.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    return bool(marked) and os.access(existing, os.W_OK)
