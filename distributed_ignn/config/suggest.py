"""The closest known word to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """``" (did you mean 'x'?)"`` for the closest known word, or an empty string.

    Args:
        word: what was given.
        known: what there is.
        likeness: that it has at least, as ``difflib`` has it, in [0, 1].
    """
    folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=likeness)
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""
