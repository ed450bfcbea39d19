"""A place by URL, as the settings hold it: a path that no function for files takes."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import NoReturn

from distributed_ignn.errors import UserError

_FORM = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
#: Wildcards, and what would begin a user's name, a query or a fragment.
_RESERVED = re.compile(r"[*?\[\]#@\\]|[^ -~]")


@dataclass(frozen=True, slots=True)
class Scheme:
    """A kind of URL.

    Args:
        package: that fsspec reads it with.
        extra: of this package, which brings that; None where nothing has to be installed.
        start: what a URL of it begins with.
    """

    package: str
    extra: str | None
    start: str

    @property
    def missing(self) -> bool:
        """Whether its package is not installed; it is not imported for that."""
        return importlib.util.find_spec(self.package) is None


SCHEMES = {
    "s3": Scheme("s3fs", "s3", "s3://"),
    "gs": Scheme("gcsfs", "gcs", "gs://"),
    "file": Scheme("fsspec", None, "file:///"),
    "memory": Scheme("fsspec", None, "memory://"),
}
"""The kinds that are understood, by the word before the colon."""


class Url(PosixPath):
    """The place that a URL names, with a path's joining, ``parent``, ``name`` and ``suffix``.

    No file of this machine is meant: to open, list or make one by it is a ``TypeError``, where a
    path of the same letters would be a folder called ``s3:`` below the working folder. Make one
    with ``as_path``.
    """

    @property
    def scheme(self) -> str:
        """The word before the colon."""
        return self.parts[0].removesuffix(":")

    @property
    def key(self) -> str:
        """The path that fsspec takes: ``bucket/run``, or ``/run`` where there are no buckets."""
        rest = "/".join(self.parts[1:])
        return f"/{rest}" if self.scheme in ("file", "memory") else rest

    def __str__(self) -> str:
        start = SCHEMES[self.scheme].start
        return start + "/".join(self.parts[1:])

    def __fspath__(self) -> NoReturn:
        raise TypeError(f"{self} is a URL and no file of this machine")


def url_scheme(value: object) -> str | None:
    """The word before the colon of what looks like a URL; None for any other value."""
    if isinstance(value, Url):
        return value.scheme
    found = _FORM.match(str(value)) if isinstance(value, str | Path) else None
    return found[1] if found else None


def refuse_url(value: object, reads: str, way_out: str) -> None:
    """Refuse what looks like a URL where a path is read.

    As a path, it would be a folder called ``s3:`` below the working folder, and the message would
    be that of a folder that is not there.

    Args:
        value: anything.
        reads: what reads a path, and of what.
        way_out: what to do instead.

    Raises:
        UserError: it looks like a URL.
    """
    if url_scheme(value) is not None:
        raise UserError(f"{value} is a URL, and {reads}; {way_out}")


def as_path(value: str | Path) -> Path:
    """A ``Url`` of what looks like one, any other text as the path that it is.

    Raises:
        ValueError: it looks like a URL and is of a kind that is not understood, or not well formed.
    """
    name = url_scheme(value)
    if name is None or isinstance(value, Url):
        return Path(value) if name is None else Url(value)
    known = ", ".join(scheme.start for scheme in SCHEMES.values())
    if name not in SCHEMES:
        raise ValueError(
            f"is a URL of a kind that is not understood, those are {known}: mount what {name}: "
            "names and give the path, or copy there afterwards"
        )
    start, text = SCHEMES[name].start, str(value)
    steps = text.removeprefix(start).rstrip("/").split("/")
    if not text.startswith(start) or "" in steps or len(steps) < (1 if name == "memory" else 2):
        raise ValueError(f"is no whole URL; write it as {start}{_EXAMPLES[name]}")
    if _RESERVED.search(text) or {".", ".."} & set(steps):
        raise ValueError(
            "has a character or a step that names of objects cannot have here (any of * ? [ ] # @ "
            "\\, a step . or .., or none of ASCII); choose another name"
        )
    return Url(text)


_EXAMPLES = {"s3": "BUCKET/PATH", "gs": "BUCKET/PATH", "file": "FOLDER/PATH", "memory": "PATH"}


def lacking(path: object) -> str | None:
    """What has to be installed before a place can be used, as half a sentence; None if nothing."""
    if not isinstance(path, Url) or not SCHEMES[path.scheme].missing:
        return None
    scheme = SCHEMES[path.scheme]
    named = f"distributed-ignn[{scheme.extra}]" if scheme.extra else scheme.package
    return (
        f"needs the package {scheme.package}, which is not installed: pip install '{named}', or "
        "give the path of a folder"
    )
