"""Paths that a command will write to, looked at before it works for long."""

from __future__ import annotations

from pathlib import Path

from distributed_ignn.errors import UserError
from distributed_ignn.urls.url import Url


def check_output(flag: str, path: Path | None, *, folder: bool = False) -> None:
    """Refuse a path that can never be written, before work is done that would be lost.

    Args:
        flag: that named it.
        path: a file to be written, or a folder; None is nothing to check.
        folder: which of them.

    Raises:
        UserError: a folder is in the place of the file, or a file in the place of a folder.
    """
    if path is None or isinstance(path, Url):  # of a URL nothing can be known without asking it
        return
    if not folder and path.is_dir():
        raise UserError(f"{flag} {path} is a folder; name a file, as in {flag} {path / 'NAME'}")
    above = path if folder else path.absolute().parent
    nearest = next(place for place in (above, *above.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{flag} {path} cannot be written: {nearest} is a file; name another path")
