"""Files opened with a limit, and words of theirs made fit for a message of one line."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

_LONGEST_WORDS = 200
_LINE_END = re.compile(r"\r\n|\n|\r")


def open_plain(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file to read; a pipe or a device would block, or never end.

    Args:
        path: of the file.
        follow_links: whether ``path`` itself may be a symbolic link.

    Raises:
        OSError: it is missing, not readable, no regular file, or a link where none is allowed.
    """
    link = 0 if follow_links else os.O_NOFOLLOW
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | link)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_plain(path: Path, limit: int, *, follow_links: bool = True) -> bytes:
    """All bytes of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: as ``open_plain``, or the file is larger.
    """
    with open_plain(path, follow_links=follow_links) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than the {limit:,} bytes allowed", str(path))
    return content


def lines_of(text: str) -> list[str]:
    """Lines of a file, which end in LF, CR or both; other programs know no further line ends."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def in_one_line(words: object, longest: int = _LONGEST_WORDS) -> str:
    """Words that came with a file, without line breaks and control characters, cut to a length."""
    text = " ".join(str(words).split())
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= longest else text[: longest - 3] + "..."
