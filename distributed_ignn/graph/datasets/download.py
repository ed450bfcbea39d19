"""Fetching published files: atomic, checked, and with one clear line when there is no network.

Also says where derived files (caches) may be written. What a file means is left to its reader.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import stat
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed_ignn.errors import UserError
from distributed_ignn.files import git_blob_id, sync, temporary_sibling
from distributed_ignn.graph.datasets.checks import brief
from distributed_ignn.reading.plain_files import in_one_line

logger = logging.getLogger(__name__)

#: Of a download where the caller names no other; the largest file fetched so has 330 MB.
DOWNLOAD_LIMIT = 4 * 2**30
_SCHEMES = ("https", "file")
_SILENCE_SECONDS = 60.0
_PIECE = 2**20


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
    """``target`` if it exists, else a fresh download of ``url`` under that name.

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
    logger.info("downloading %s from %s", target.name, source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            found = _download(url, temporary, limit)
            if sha256 is not None and found != sha256:
                raise ValueError(f"its sha256 is {found}, not {sha256}")
            if blob is not None and (name := git_blob_id(temporary)) != blob:
                raise ValueError(f"its git blob id is {name}, not {blob}")
            logger.info("%s has sha256 %s", target.name, found)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{target.name} is neither in {target.parent} nor could it be downloaded from {source} "
            f"({_reason(error)}); put the file into that folder or name another with --data-root"
        ) from error
    except ValueError as error:
        raise UserError(
            f"the download of {target.name} from {source} does not have its published content "
            f"({brief(error)}); fetch it by hand and put it into {target.parent}"
        ) from error
    return target


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """A redirection must not lead to where anybody on the way can change the file."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(OSError(f"redirected to {in_one_line(newurl)}, no https"))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, path: Path, limit: int) -> str:
    """Write what ``url`` delivers to ``path`` and return its sha256.

    Raises:
        OSError: it cannot be fetched or written.
        ValueError: it is not https, larger than ``limit``, or ends early.
    """
    if urllib.parse.urlsplit(url).scheme not in _SCHEMES:
        raise ValueError(f"{in_one_line(url)} is not https")
    opener = urllib.request.build_opener(_HttpsOnly)
    digest, size = hashlib.sha256(), 0
    with opener.open(url, timeout=_SILENCE_SECONDS) as source, path.open("xb") as stream:
        announced = source.headers.get("Content-Length")
        while piece := source.read(_PIECE):
            size += len(piece)
            if size > limit:
                raise ValueError(f"it has more than the {limit:,} bytes allowed")
            digest.update(piece)
            stream.write(piece)
    if announced is not None and announced != str(size):
        raise ValueError(f"{size:,} bytes came where {in_one_line(announced)} were announced")
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None)  # urllib wraps the cause
    return brief(reason) if isinstance(reason, BaseException) else brief(error)


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
