"""What lies at a URL, through fsspec: whole objects, read, written, listed and removed.

An object store has neither folders nor renaming, and an object is there whole or not at all. So
nothing is appended to and nothing is moved here; order is what callers keep: whatever makes the
others valid goes last.

Trouble with the network is met by a few more tries, each told in a line. Credentials and addresses
are those of the environment, as fsspec's packages read them.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from distributed_ignn.errors import JobError, UserError
from distributed_ignn.files import temporary_sibling
from distributed_ignn.urls.url import Url

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds between two tries.
PAUSES = (0.5, 2.0, 5.0)
_LONGEST = 200
_HALF = re.compile(r"\..+\.tmp")
#: What fsspec reads a kind of URL with, besides what the environment says.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        # one more try of the library's own; the others are told, see above
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"total_max_attempts": 2, "mode": "standard"},
        },
    },
    "gs": {"use_listings_cache": False},
    "file": {"auto_mkdir": True},
    "memory": {},
}
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
#: Packages whose exceptions tell of the network, unless they are among the next.
_NETWORK = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "fsspec", "asyncio")
_REFUSED = ("Credentials", "Token", "Profile", "Region", "ParamValidation", "Forbidden")


class UnreachableError(UserError):
    """A place did not answer, in any of several tries; later it may."""

    exit_code = JobError.EXIT_CODE


class ObjectStore:
    """The objects below one URL, named by their paths from there.

    Args:
        url: the place; its kind has to be installed.
        patient: whether to try again where it does not answer.

    Raises:
        UserError: by every method, where the place refuses, or a disk is full.
        UnreachableError: by every method, where the place does not answer.
    """

    def __init__(self, url: Url, *, patient: bool = True) -> None:
        self.url = url
        self._patient = patient

    @cached_property
    def file_system(self) -> Any:
        """The fsspec file system that it is in; the package is imported here."""
        import fsspec

        options = _OPTIONS[self.url.scheme]
        # boto reads it too; fsspec keeps one file system for the same options
        address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if address and self.url.scheme == "s3":
            options = options | {"endpoint_url": address}
        return fsspec.filesystem(self.url.scheme, **options)

    def _path(self, name: str) -> str:
        return f"{self.url.key}/{name}" if name else self.url.key

    def listing(self, below: str = "") -> dict[str, str]:
        """The objects below a name, each with what changes when it is written anew.

        What a writer that was killed has left of one is none.
        """

        def found() -> dict[str, Any]:
            items: dict[str, Any] = self.file_system.find(self._path(below), detail=True)
            return items

        start = f"{self.url.key}/"
        nothing: dict[str, Any] = {}
        items = self._try(found, f"list {self.url / below}", nothing)
        return {
            path.removeprefix(start): f"{item.get('ETag')} {item['size']} {_time_of(item)}"
            for path, item in items.items()
            if path.startswith(start)
            and not path.endswith("/")  # some tools make such
            and not _HALF.fullmatch(path.rpartition("/")[2])
        }

    def probe(self) -> None:
        """Write an object and remove it, to know that this can be done."""
        name = f".{uuid.uuid4().hex}.tmp"
        self.write(name, b"")
        self.remove([name])

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return self.modified(name) is not None

    def modified(self, name: str) -> datetime | None:
        """When an object was written, by the clock of the place; None where there is none."""
        return self._try(
            lambda: self.file_system.modified(self._path(name)), f"look at {self.url / name}", None
        )

    def read(self, name: str) -> bytes | None:
        """A small object; None where there is none."""
        return self._try(
            lambda: self.file_system.cat_file(self._path(name)), f"read {self.url / name}", None
        )

    def write(self, name: str, data: bytes) -> None:
        """A small object, which takes the place of an older one."""
        self._write(lambda path: self.file_system.pipe_file(path, data), name)

    def push(self, source: Path, name: str) -> None:
        """A file as an object, which takes the place of an older one; not one that is gone."""
        try:
            self._write(lambda path: self.file_system.put_file(str(source), path), name)
        except UserError:
            if source.exists():
                raise

    def fetch(self, name: str, target: Path) -> bool:
        """An object as a file, which is there whole or not at all; whether there is such an object.

        Raises:
            UserError, UnreachableError: see the class.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_sibling(target)

        def get() -> bool:
            size = self.file_system.info(self._path(name))["size"]
            self.file_system.get_file(self._path(name), str(temporary))
            if temporary.stat().st_size != size:
                raise OSError(errno.EIO, f"{temporary.stat().st_size} of {size} bytes came")
            return True

        try:
            if not self._try(get, f"read {self.url / name}", False):
                return False
            os.replace(temporary, target)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, names: Iterable[str]) -> None:
        """Objects, in this order; those that are gone already are passed over."""
        for name in names:
            path = self._path(name)
            self._try(
                lambda path=path: self.file_system.rm_file(path),  # type: ignore[misc]
                f"remove {self.url / name}",
                None,
            )

    def _write(self, put: Callable[[str], object], name: str) -> None:
        path = self._path(name)

        def whole() -> bool:
            if self.url.scheme != "file":
                put(path)
                return True
            # a file grows in the sight of all who read it
            hidden = temporary_sibling(Path(path))
            try:
                put(str(hidden))
                self.file_system.mv(str(hidden), path)
            finally:
                hidden.unlink(missing_ok=True)
            return True

        if not self._try(whole, f"write {self.url / name}", False):
            raise UserError(
                f"cannot write {self.url / name}: there is no {_container(self.url)}; make it, or "
                "name another place"
            )

    def _try(self, action: Callable[[], T], doing: str, absent: T) -> T:
        """What ``action`` returns, after several tries if need be; ``absent`` where nothing is."""
        tries = 0
        while True:
            try:
                return action()
            except FileNotFoundError:
                return absent
            except Exception as error:
                told = self._refusal(error)
                if told is not None:
                    raise UserError(f"cannot {doing}: {told}") from error
                if not _is_trouble(error):
                    raise
                reason = _one_line(error)
                if tries == (len(PAUSES) if self._patient else 0):
                    raise UnreachableError(
                        f"cannot {doing}: no answer after {tries + 1} tries ({reason}); see to the "
                        "network and start again; a training goes on with --resume auto"
                    ) from error
                pause = PAUSES[tries]
                logger.warning("cannot %s (%s); trying again in %g s", doing, reason, pause)
            time.sleep(pause)
            tries += 1

    def _refusal(self, error: Exception) -> str | None:
        """Why it is of no use to try again; None where it may be."""
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return f"{error.strerror}; TMPDIR names another folder for what is fetched and sent"
        told = f"{type(error).__name__} {str(error).partition(':')[0]}"
        denied = isinstance(error, PermissionError) or any(word in told for word in _REFUSED)
        if denied and self.url.scheme in ("s3", "gs"):
            return (
                f"access is refused ({_one_line(error)}); give credentials that may read and write "
                f"{_container(self.url)} in the environment"
            )
        if isinstance(error, OSError) and self.url.scheme == "file":
            return f"{error.strerror or _one_line(error)}; name another place"
        return None


def _container(url: Url) -> str:
    return f"bucket {url.parts[1]}" if url.scheme in ("s3", "gs") else f"place {url}"


def _time_of(item: dict[str, Any]) -> object:
    """When a listed object was written, by any of the names that fsspec's packages have for it."""
    names = ("LastModified", "updated", "mtime", "created")
    return next((item[name] for name in names if name in item), None)


def _is_trouble(error: Exception) -> bool:
    """Whether an exception may be the network's, and not a mistake of this program."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or not packages.isdisjoint(_NETWORK)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
