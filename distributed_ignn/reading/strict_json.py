"""JSON as this library writes it: small, each key once, finite numbers, not deep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from distributed_ignn.reading.plain_files import read_plain

#: Far above what is written: the manifest of 10,000 parts has 5 MB.
JSON_LIMIT = 64 * 2**20
_DEEPEST = 64
_MOST_DIGITS = 40


def read_json(path: Path, *, limit: int = JSON_LIMIT) -> Any:
    """The value in a JSON file of at most ``limit`` bytes.

    Raises:
        OSError: the file cannot be read or is larger.
        ValueError: see ``parse_json``.
    """
    return parse_json(read_plain(path, limit))


def parse_json(content: bytes | str) -> Any:
    """The value that JSON describes, in UTF-8.

    Raises:
        ValueError: it is not JSON, a key stands twice in one object, a number is not finite or has
            more than 40 digits, text is no Unicode, or values are nested more than 64 deep.
    """
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    try:
        value = json.loads(
            text,
            object_pairs_hook=_each_once,
            parse_constant=_not_finite,
            parse_float=_finite,
            parse_int=_short,
        )
    except RecursionError:
        raise ValueError(f"values are nested more than {_DEEPEST} deep") from None
    _check_values(value)
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return found


def _not_finite(word: str) -> float:
    raise ValueError(f"{word} is not a number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is too large")
    return value


def _short(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits, at most {_MOST_DIGITS} are read")
    return int(digits)


def _check_values(value: Any) -> None:
    """Without recursion, as deep values would end it."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode()  # half of a surrogate pair is a ValueError
            elif isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
        level = below
        if not level:
            return
    raise ValueError(f"values are nested more than {_DEEPEST} deep")
