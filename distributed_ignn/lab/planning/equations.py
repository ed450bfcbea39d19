"""The equations: seconds of one operation on one rank of P, from amounts and a hardware profile.

    product     (E + 2 R) D s / g(D s, N D s)           E entries, R rows written, N rows read from
    dense       f / d                               f operations
    pass        x / b(a)                            x bytes over arrays of a bytes
    fresh       x / q  for arrays of at least the threshold, else 0
    exchange    max_l (x_l / w_l) + sum_l k_l t_l   links l inside the box and outside it
    reduction   u_in log2(min(P, G)) + u_out log2(ceil(P / G))
    together    max(a, c) + (1 - hidden) min(a, c)  two things at once

s bytes of a number, D columns, g gather rate, d dense rate, b stream rate, q rate of new memory,
x_l bytes that the rank sends over link l (or receives, if more), w_l its share of that link,
k_l ranks it sends to over it, t_l seconds of a message, u_l seconds of a doubling, G ranks of a
box. Rates are those of one rank while min(P, G) of them work in a box; what a box shares (memory,
cores, the network) is divided by them. Ranks are spread evenly over parts: of P - 1 other parts,
min(P, G) - 1 lie in the same box and send the same share of the halo. A partition that keeps
neighbours in one box does better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distributed_ignn.lab.planning.hardware import Link, Profile


@dataclass(frozen=True, slots=True)
class Machine:
    """A profile with P ranks on it.

    Args:
        profile: of the boxes.
        ranks: P.
    """

    profile: Profile
    ranks: int

    @property
    def together(self) -> int:
        """Ranks that work in one box: min(P, G)."""
        return min(self.ranks, self.profile.ranks_per_box)

    def product(
        self, entries: float, rows_out: float, rows_in: float, row: float, locality: float
    ) -> float:
        """A sparse product.

        Args:
            entries: E.
            rows_out, rows_in: R, N.
            row: D s, bytes.
            locality: 1 for clustered columns, 0 for scattered ones.
        """
        if entries == 0 or row == 0:
            return 0.0
        moved = (entries + 2 * rows_out) * row
        gather = self.profile.gather
        return moved * gather.seconds(row, rows_in * row, self.together, locality)

    def dense(self, operations: float) -> float:
        """Rows times a [D, D] matrix in the map."""
        return operations / self.profile.dense.each(self.together)

    def plain_dense(self, operations: float) -> float:
        """Other dense products."""
        return operations / self.profile.plain_dense.each(self.together)

    def stream(self, moved: float, array: float) -> float:
        """Passes over arrays of ``array`` bytes that move ``moved`` bytes in all."""
        return moved / self.profile.stream.each(array, self.together)

    def history(self, moved: float, array: float) -> float:
        """The same by Anderson's history; its own new arrays included."""
        return moved / self.profile.history.each(array, self.together)

    def fresh(self, arrays: float, array: float) -> float:
        """``arrays`` new arrays of ``array`` bytes each, beyond what filling them takes."""
        new = self.profile.fresh
        if new is None or array < new.threshold:
            return 0.0
        return arrays * array / new.rate.each(self.together)

    def masks(self, entries: float) -> float:
        """Entries of a dropout mask."""
        return entries / self.profile.masks.each(self.together)

    def pack(self, moved: float) -> float:
        """Rows picked out of an array."""
        return moved / self.profile.pack.each(self.together)

    def scatter(self, moved: float) -> float:
        """Rows added into an array."""
        return moved / self.profile.scatter.each(self.together)

    def codec(self, raw: float) -> float:
        """Fp32 rows of ``raw`` bytes encoded and decoded."""
        return raw / self.profile.codec.each(self.together)

    def operations(self, count: float) -> float:
        """The start of so many operations, where the rank may wait for its core."""
        return count * self.profile.operation_seconds * self.profile.crowding(self.together)

    def exchange(self, sent: float, neighbours: int) -> float:
        """Bytes on their way: ``sent`` bytes to ``neighbours`` ranks, as many coming back."""
        if self.ranks == 1 or neighbours == 0:
            return 0.0
        near = (self.together - 1) / (self.ranks - 1)
        waits = self.profile.crowding(self.together)
        inside = self._link(self.profile.inside, sent * near, neighbours * near, waits)
        outside = self._link(
            self.profile.outside, sent * (1 - near), neighbours * (1 - near), waits
        )
        return max(inside[0], outside[0]) + inside[1] + outside[1]

    def _link(self, link: Link, sent: float, messages: float, waits: float) -> tuple[float, float]:
        """Seconds of the bytes, and of the messages."""
        return sent / link.rate.each(self.together), messages * link.message_seconds * waits

    def reduction(self) -> float:
        """An all-reduce of a few numbers."""
        if self.ranks == 1:
            return 0.0
        boxes = math.ceil(self.ranks / self.together)
        waits = self.profile.crowding(self.together)
        inside = self.profile.inside.reduction_seconds * math.log2(self.together)
        return waits * inside + self.profile.outside.reduction_seconds * math.log2(boxes)

    def overlap(self, first: float, second: float) -> float:
        """Two things at once."""
        return max(first, second) + (1.0 - self.profile.hidden) * min(first, second)
