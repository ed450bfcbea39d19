"""Labels as people write them: words, or numbers among objects, with gaps where none is known.

Letters: n nodes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from distributed_ignn.errors import UserError


def numbered(labels: Any, origin: Path) -> tuple[Any, tuple[str, ...]]:
    """Labels as numbers, as far as they are words or objects.

    Words are numbered in the order of the alphabet; an empty one is no label, -1. None, NaN and
    what pandas has for a missing value are no label either; among numbers they become NaN.

    Args:
        labels: words [n] or [n, 1], objects, or anything else, which comes back as it is.
        origin: where they come from, the first word of a message.

    Returns:
        The numbers, and the words that they stand for, if any.

    Raises:
        UserError: there are several words a node.
    """
    if isinstance(labels, np.ndarray) and labels.dtype == object:
        gaps = np.array([_is_gap(each) for each in labels.flat], dtype=bool).reshape(labels.shape)
        there = labels[~gaps]
        if len(there) and all(isinstance(each, str) for each in there):
            return _number_words(np.where(gaps, "", labels).astype(str), origin)
        if all(isinstance(each, int | float | np.number) for each in there):
            return np.where(gaps, np.nan, labels).astype(np.float64), ()
        return labels, ()
    words = type(labels) is list and labels and all(isinstance(each, str) for each in labels)
    if words or (isinstance(labels, np.ndarray) and labels.dtype.kind == "U"):
        return _number_words(np.asarray(labels), origin)
    return labels, ()


def _is_gap(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _number_words(words: np.ndarray, origin: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    shown = words.reshape(-1) if words.shape[1:] == (1,) else words
    if shown.ndim != 1:
        raise UserError(
            f"{origin}: y holds words and has shape {shown.shape}; give one word a node, or for "
            "several labels a column of 0 and 1 for each"
        )
    names, numbers = np.unique(shown, return_inverse=True)
    numbers = numbers.astype(np.int64)
    if names.size and names[0] == "":
        names, numbers = names[1:], numbers - 1
    return numbers, tuple(str(name) for name in names)
