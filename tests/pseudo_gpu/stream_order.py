"""Whether streams wait for each other where they touch the same memory.

Every stream knows how far it has waited for the others. Memory that one stream writes may be
touched by another only once that has waited for it, and so may memory be written that another one
reads.
Nothing is checked before a program makes a stream of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

Ticks = dict[int, int]
"""By stream, how much of its work is done."""


class StreamOrder:
    """The work of all streams of a process, in the order of the program."""

    def __init__(self) -> None:
        self.watched = False
        self._now = 0
        self._seen: dict[int, Ticks] = defaultdict(
            dict
        )  # by stream, what its next work comes after
        self._done: Ticks = {}  # what the host has waited for
        self._writes: dict[int, tuple[int, int]] = {}  # by storage: stream and tick
        self._reads: dict[int, Ticks] = defaultdict(dict)

    def note(self, stream: int, touched: Iterable[int], written: Iterable[int]) -> str | None:
        """Enter an operation; what is wrong with its order, if anything.

        Args:
            stream: where it runs.
            touched: storages that it reads or writes.
            written: those that it writes.
        """
        wrong = None
        written = set(written)
        self._now += 1
        for storage in set(touched) | written:
            writer, tick = self._writes.get(storage, (stream, 0))
            if not self._before(stream, writer, tick):
                wrong = "uses what another stream writes, and does not wait for it"
            if storage in written:
                for reader, tick in self._reads.pop(storage, {}).items():
                    if not self._before(stream, reader, tick):
                        wrong = "overwrites what another stream reads, and does not wait for it"
                self._writes[storage] = stream, self._now
            else:
                self._reads[storage][stream] = self._now
        return wrong

    def _before(self, stream: int, other: int, tick: int) -> bool:
        known = max(self._seen[stream].get(other, 0), self._done.get(other, 0))
        return other == stream or tick <= known

    def mark(self, stream: int) -> Ticks:
        """What is done once the stream has come to where it is now."""
        return {**self._seen[stream], stream: self._now}

    def wait(self, stream: int, mark: Ticks) -> None:
        """What the stream does next comes after a mark."""
        _advance(self._seen[stream], mark)

    def host_waits(self, mark: Ticks) -> None:
        """What any stream does next comes after a mark."""
        _advance(self._done, mark)

    def host_waits_for_all(self) -> None:
        self.host_waits(dict.fromkeys([*self._seen, *self._done], self._now))

    def forget(self, storage: int) -> None:
        """Memory was freed."""
        self._writes.pop(storage, None)
        self._reads.pop(storage, None)


def _advance(known: Ticks, mark: Ticks) -> None:
    for stream, tick in mark.items():
        known[stream] = max(known.get(stream, 0), tick)
