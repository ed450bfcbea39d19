"""What a user's own table calls the nodes, kept beside a graph whose nodes are numbers.

Letters: n nodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

_NUMBERS, _ENDS, _TEXT = "number", "end", "text"


class NodeIds:
    """A whole number or a word for each of n nodes, in memory or mapped from a file.

    Args:
        tensors: ``number`` int64 [n]; or ``text`` uint8, the words in UTF-8 one after the other,
            and ``end`` int64 [n], where each ends.

    Raises:
        ValueError: they are nothing of that.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        numbers, ends, text = (tensors.get(name) for name in (_NUMBERS, _ENDS, _TEXT))
        self._all = numbers if ends is None else ends
        if self._all is None or self._all.dtype != torch.int64 or self._all.dim() != 1:
            raise ValueError("ids of nodes that are neither numbers nor words")
        if (ends is None) != (text is None) or (numbers is None) == (ends is None):
            raise ValueError("ids of nodes that are neither numbers nor words")
        if ends is not None and text is not None:
            bounds = torch.cat([ends.new_zeros(1), ends])
            whole = text.dtype == torch.uint8 and int(bounds[-1]) == text.numel()
            if not whole or bool((bounds.diff() < 0).any()):
                raise ValueError("ids of nodes that are cut short")

    @classmethod
    def of(cls, values: Sequence[int] | Sequence[str]) -> NodeIds:
        """From a list of numbers, or of words."""
        if all(isinstance(value, int) for value in values):
            return cls({_NUMBERS: torch.tensor(values, dtype=torch.int64)})
        words = [str(value).encode() for value in values]
        ends = torch.tensor([len(word) for word in words], dtype=torch.int64).cumsum(0)
        text = torch.from_numpy(np.frombuffer(bytearray(b"".join(words)), np.uint8))
        return cls({_ENDS: ends, _TEXT: text})

    def __len__(self) -> int:
        assert self._all is not None, "checked when it was made"
        return self._all.numel()

    @property
    def are_words(self) -> bool:
        return _ENDS in self.tensors

    @property
    def dtype(self) -> np.dtype:
        """Of an array of them."""
        if not self.are_words:
            return np.dtype(np.int64)
        ends = self.tensors[_ENDS]
        longest = torch.cat([ends[:1], ends.diff()]).max() if len(self) else 0
        return np.dtype(f"U{max(int(longest), 1)}")

    def some(self, first: int, last: int) -> list[int] | list[str]:
        """Those of the nodes [first, last)."""
        if not self.are_words:
            return [int(number) for number in self.tensors[_NUMBERS][first:last].tolist()]
        ends = self.tensors[_ENDS]
        begin = int(ends[first - 1]) if first > 0 else 0
        bounds = [begin, *ends[first:last].tolist()]
        text = self.tensors[_TEXT][begin : bounds[-1]].numpy().tobytes()
        return [
            text[a - begin : b - begin].decode("utf-8", "replace")
            for a, b in itertools.pairwise(bounds)
        ]
