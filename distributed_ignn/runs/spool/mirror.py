"""One place by URL and the folder of this machine that stands for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from distributed_ignn.files import FileLock
from distributed_ignn.long_steps import long_step
from distributed_ignn.urls.object_store import ObjectStore
from distributed_ignn.urls.url import Url

_POLL_SECONDS = 0.05


class Mirror:
    """Copies between a place and its folder, file by file; no rank is waited for.

    Args:
        url: the place.
        folder: of this machine; ranks there share it.

    Raises:
        UserError: by every method, see ``ObjectStore``.
    """

    def __init__(self, url: Url, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self._same: dict[Path, tuple[int, int]] = {}  # files that are as the objects are
        self._listed: dict[str, str] = {}

    @cached_property
    def store(self) -> ObjectStore:
        """The objects; what reads them is imported at the first use."""
        return ObjectStore(self.url)

    def name(self, path: Path) -> str:
        """The object that a file in the folder stands for."""
        return path.relative_to(self.folder).as_posix()

    def fetch(self, path: Path) -> None:
        """Let a file be there, if there is such an object; other ranks may ask for the same."""
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        path.parent.mkdir(parents=True, exist_ok=True)
        while not path.exists():
            if not lock.take():
                time.sleep(_POLL_SECONDS)
                continue
            try:
                with long_step(f"fetching {self.url / self.name(path)}"):
                    if not path.exists() and not self.store.fetch(self.name(path), path):
                        return
            finally:
                lock.release()

    def fetch_changed(self, wanted: Callable[[str], bool]) -> dict[str, str]:
        """Let the folder have the objects of some names, those anew that changed since.

        Returns:
            All objects of the place, as ``ObjectStore.listing`` has them.
        """
        listed = self.store.listing()
        for name in filter(wanted, listed):
            path = self.folder / name
            if self._listed.get(name) != listed[name]:
                self.store.fetch(name, path)
                self._same[path] = _state(path)
        self._listed = listed
        return listed

    def push(self, path: Path) -> None:
        """Send a file of the folder."""
        before = _state(path)
        self.store.push(path, self.name(path))
        self._same[path] = before

    def push_changed(self, paths: Iterable[Path]) -> None:
        """Send those of the files that are not yet there as they are."""
        for path in paths:
            if self._same.get(path) != _state(path):
                self.push(path)

    def push_folder(self, folder: Path, last: str) -> None:
        """Send all files of a folder that is complete.

        Args:
            folder: below this one, or itself.
            last: name of the file that makes the others valid, and goes last.
        """
        others = sorted(p for p in folder.iterdir() if p.name != last and p.is_file())
        total = sum(path.stat().st_size for path in others)
        with long_step(f"sending {self.url / self.name(folder)}", total) as told:
            for path in others:
                self.push(path)
                told.advance(path.stat().st_size)
            self.push(folder / last)


def _state(path: Path) -> tuple[int, int]:
    """What tells a file from what it was before; nothing of one that is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
