"""Damage to files: of their bytes, and of the values in documents that still parse."""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
_WORDS = (
    b"\x00",
    b"\xff" * 8,
    b"../../",
    b"/etc/passwd",
    b"}" * 40,
    b"[" * 200,
    b"\n",
    b"\x93NUMPY",
    b"PK\x01\x02",
    b"cos\nsystem\n(S'true'\ntR.",
    b"-1",
    b"1e999",
    b"9" * 60,
    b"NaN",
)
_KINDS = ("flip", "set", "cut", "drop", "repeat", "insert", "splice", "number")


@dataclass(frozen=True)
class Damage:
    """One change of bytes; ``place`` and ``size`` count in 1/65536 of the content."""

    kind: str
    place: int
    size: int
    choice: int

    def apply(self, content: bytes, other: bytes) -> bytes:
        """``content`` changed; ``other`` is a file of another kind to take pieces from."""
        at = self.place * len(content) >> 16
        length = 1 + (self.size * min(len(content), 512) >> 16)
        head, tail = content[:at], content[at:]
        word = _WORDS[self.choice % len(_WORDS)]
        number = _NUMBERS[self.choice % len(_NUMBERS)]
        results = {
            "flip": head + bytes([(tail[0] if tail else 0) ^ (1 << self.choice % 8)]) + tail[1:],
            "set": head + bytes([number & 0xFF]) + tail[1:],
            "cut": head,
            "drop": head + tail[length:],
            "repeat": head + tail[:length] + tail,
            "insert": head + word + tail,
            "splice": head + other[at % max(len(other), 1) :][:length] + tail[length:],
            "number": head + struct.pack("<Q", number)[: (1, 2, 4, 8)[self.size % 4]] + tail[8:],
        }
        return results[self.kind]


def damages() -> st.SearchStrategy[list[Damage]]:
    """One to four changes."""
    whole = st.integers(0, 65_535)
    one = st.builds(Damage, st.sampled_from(_KINDS), whole, whole, st.integers(0, 167))
    return st.lists(one, min_size=1, max_size=4)


def apply_all(content: bytes, changes: list[Damage], other: bytes) -> bytes:
    """``content`` after all changes."""
    for change in changes:
        content = change.apply(content, other)
    return content


#: Values that no document should hold where it holds another one.
STRANGE: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    10**30,
    -0.5,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../etc/passwd",
    "/etc/passwd",
    "two\nlines",
    "\x1b[31mred",
    "\ud800",
    "a" * 5_000,
    [],
    {},
    [[]],
    {"": None},
    [1, "a", None],
)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a document, as the keys that lead there."""
    yield path
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def changed_documents(draw: st.DrawFn, document: Any) -> Any:
    """A document of which one to three values were replaced, removed, wrapped or added."""
    found = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(found))))
        value = copy.deepcopy(draw(st.sampled_from(STRANGE)))
        action = draw(st.sampled_from(("replace", "remove", "wrap", "add")))
        found = _changed(found, path, value, action)
    return found


def _changed(document: Any, path: tuple[Any, ...], value: Any, action: str) -> Any:
    if not path:
        return {"replace": value, "wrap": [document], "add": [document, value]}.get(action)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    if action == "remove":
        del holder[key]
    elif action == "wrap":
        holder[key] = [holder[key]]
    elif action == "add" and isinstance(holder, list):
        holder.insert(key, value)
    elif action == "add":
        holder[f"{key}x"] = value
    else:
        holder[key] = value
    return document
