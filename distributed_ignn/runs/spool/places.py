"""What a rank reads and writes by URL, in folders of its machine; of a run without, nothing.

Everything is written into a folder as it always was, and sent from there; what is to be read is
fetched there first. So whole files, locks and mapping stay what they are, and only here is it known
that there is another place. The folders are new for every attempt and go with it: what lies at the
URL is all that an attempt leaves to the next, on whatever machine that starts.

To send and fetch takes as long as it takes, so that no rank may wait for it in a collective:
``Places.wait`` is for that.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import torch

from distributed_ignn.comm.apart import apart
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import JobError, Stopped, UserError
from distributed_ignn.files import FileLock
from distributed_ignn.runs.spool.mirror import Mirror
from distributed_ignn.urls.object_store import UnreachableError
from distributed_ignn.urls.url import Url, as_path, lacking, url_scheme

logger = logging.getLogger(__name__)
T = TypeVar("T")

_KEPT = "kept-"
_POLL_SECONDS = 0.05


class Places:
    """The places of one attempt on this rank.

    Args:
        comm: this rank's communicator.
        root: folder of this machine for all of them; None where no URL is named.
    """

    def __init__(self, comm: Communicator, root: Path | None = None) -> None:
        self._comm = comm
        self._root = root
        self._mirrors: dict[str, Mirror] = {}
        self.cut = False  # whether a place did not answer

    @property
    def any(self) -> bool:
        """Whether URLs are named."""
        return self._root is not None

    def mirror(self, url: Url) -> Mirror:
        """The place of a URL."""
        if self._root is None:
            raise RuntimeError(f"{url} was not expected")
        name = str(url)
        if name not in self._mirrors:
            problem = lacking(url)
            if problem is not None:
                raise UserError(f"{url} {problem}")
            digest = hashlib.sha256(name.encode()).hexdigest()[:12]
            self._mirrors[name] = Mirror(url, self._root / digest / url.name)
        return self._mirrors[name]

    def local(self, path: Path) -> Path:
        """The folder of this machine for a path; itself if it is no URL."""
        return self.mirror(path).folder if isinstance(path, Url) else path

    def local_file(self, path: Path) -> Path:
        """As ``local``, of a file."""
        if not isinstance(path, Url):
            return path
        return self.local(path.parent) / path.name

    def of(self, path: Path) -> Mirror | None:
        """The place that a path of this machine belongs to; None where it is of no URL."""
        found = [each for each in self._mirrors.values() if path.is_relative_to(each.folder)]
        return found[0] if found else None

    def fetch(self, path: Path) -> None:
        """Let a file of a place be there; nothing is done for others."""
        mirror = self.of(path)
        if mirror is not None:
            mirror.fetch(path)

    def push(self, path: Path) -> None:
        """Send a file of a place; nothing is done for others."""
        mirror = self.of(path)
        if mirror is not None:
            mirror.push(path)

    def origin(self, path: Path) -> Path:
        """What stands for a path of this machine in what is written and said."""
        mirror = self.of(path)
        return path if mirror is None else mirror.url / mirror.name(path)

    def named(self, text: str) -> str:
        """A line in which folders of this machine are called what they stand for."""
        for mirror in self._mirrors.values():
            text = text.replace(str(mirror.folder), str(mirror.url))
        return text

    def wait(
        self,
        action: Callable[[], T],
        *,
        works: bool = True,
        doing: str = "go on",
        way_out: str = "",
    ) -> T | None:
        """What ``action`` returns where this rank works; every rank calls it.

        Where it may have to do with a URL, no rank is in a collective meanwhile.

        Args:
            action: the work, which must not talk to other ranks.
            works: whether this rank does it; None is returned where not.
            doing, way_out: see ``Communicator.together``.

        Raises:
            UserError: the first failing rank's message, on every rank.
            JobError: a place did not answer, or a rank at work was lost (on every rank).
        """
        if self._root is None:
            return self._comm.together(
                lambda: action() if works else None, doing=doing, way_out=way_out
            )
        try:
            result = apart(
                self._comm,
                lambda: self._noting(action),
                works=works,
                doing=doing,
                way_out=way_out,
            )
        except UserError as error:
            self.cut = bool(self._comm.max(torch.tensor([int(self.cut)])).item())
            if self.cut:
                raise JobError(str(error), told=not self._comm.is_main) from error
            raise
        # the process that keeps the store must not end while others still look there
        self._comm.barrier()
        return result

    def _noting(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except UnreachableError:
            self.cut = True
            raise

    def keep(self) -> Path | None:
        """Let the folders stay, because what is in them could not be sent; where they are."""
        if self._root is None or not self._root.is_dir():
            return None
        kept = self._root.with_name(f"{_KEPT}{self._root.name}")
        self._root.rename(kept)
        self._root = kept
        return kept


def expect(*paths: object) -> list[Url]:
    """The URLs among some values.

    Raises:
        UserError: the package for one is not installed.
    """
    urls = [path for path in paths if isinstance(path, Url)]
    for url in urls:
        problem = lacking(url)
        if problem is not None:
            raise UserError(f"{url} {problem}")
    return urls


def stated(text: str) -> Path:
    """A path from a record, which may be a URL.

    Raises:
        ValueError: it is one that is not understood.
    """
    return Path(text) if url_scheme(text) is None else as_path(text)


@contextmanager
def opened(comm: Communicator, urls: list[Url]) -> Iterator[Places]:
    """Places inside, whose folders are removed afterwards; every rank enters it.

    Args:
        comm: this rank's communicator.
        urls: those that are named; without any, nothing is made, and no rank is asked.

    Raises:
        UserError, JobError, Stopped: of what is inside, with folders called what they stand for.
    """
    if not urls:
        yield Places(comm)
        return
    in_one = [str(url) for url in urls if url.scheme == "memory"]
    if in_one and comm.world_size > 1:
        raise UserError(
            f"{in_one[0]} is in the memory of one process, and there are {comm.world_size} ranks; "
            "name a place that all of them see"
        )
    own = _Folder() if comm.local_rank == 0 else None
    try:
        made = comm.together(
            lambda: own.make() if own is not None else None,
            doing=f"make a folder in {tempfile.gettempdir()}",
            way_out="TMPDIR names another one",
        )
        gathered = comm.gather_json(made)
        root = next(name for name in reversed(gathered[: comm.rank + 1]) if name is not None)
        places = Places(comm, Path(root))
        for url in urls:
            places.mirror(url)
        with renamed_log(places):
            try:
                yield places
            except (UserError, JobError, Stopped) as error:
                error.args = (places.named(str(error)), *error.args[1:])
                raise
    finally:
        if own is not None:
            own.remove()


class _Folder:
    """A folder in the temporary one, which later attempts clear if this process is killed."""

    def __init__(self) -> None:
        self._above = Path(tempfile.gettempdir()) / f"ignn-{os.getuid()}"
        self._path = self._above / f"run-{uuid.uuid4().hex[:12]}"
        self._lock = FileLock(self._above / f"{self._path.name}.lock")

    def make(self) -> str:
        self._above.mkdir(mode=0o700, exist_ok=True)
        if self._above.stat().st_uid != os.getuid():
            raise UserError(
                f"{self._above} belongs to another user; remove it, or let TMPDIR name another "
                "folder"
            )
        while not self._lock.take():  # somebody is looking whether it is left over
            time.sleep(_POLL_SECONDS)
        for lock in self._above.glob("run-*.lock") if self._lock.keeps_out else ():
            folder, other = lock.with_suffix(""), FileLock(lock)
            if folder != self._path and other.take():
                shutil.rmtree(folder, ignore_errors=True)
                other.release()
        self._path.mkdir()
        return str(self._path)

    def remove(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        self._lock.release()
        with suppress(OSError):  # others are there
            self._above.rmdir()


class _Named(logging.Filter):
    def __init__(self, places: Places) -> None:
        super().__init__()
        self._places = places

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._places.named(record.getMessage()), ()
        return True


@contextmanager
def renamed_log(places: Places) -> Iterator[None]:
    """Let the lines of all handlers that are there call folders what they stand for."""
    handlers = list(logging.getLogger("distributed_ignn").handlers)
    named = _Named(places)
    for handler in handlers:
        handler.addFilter(named)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(named)
