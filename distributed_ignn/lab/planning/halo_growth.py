"""How the halo grows with the number of parts.

Law: of the n - m nodes outside a part of m = n / P nodes, a part reads

    h(m) = (n - m) (1 - exp(-c m^a)),

where c m^a is how often a node outside is named on average. Parts drawn by lot have a = 1 and
c m = degree / P, nearly: every row names the same share of the others. On a d-dimensional mesh a is
(d - 1) / d as long as h is small. With two or more partitions of a graph, c and a are fitted to the
logarithms (least squares); with one, a is assumed and c goes through it.

Letters: n nodes, e entries, P parts, m nodes of a part, H halo rows, B boundary rows, E_b boundary
entries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from distributed_ignn.errors import UserError
from distributed_ignn.lab.planning.workload import Part

ASSUMED_EXPONENT = 0.75
"""a, where one partition cannot tell; the generated graph with the statistics of ogbn-products has
0.76 at 2 to 32 parts (scale 0.02, METIS)."""

IMBALANCE = 1.05
"""Largest part over the mean one; what the partitioner is asked for."""

_ENTRIES_PER_HALO_ROW = 3.0
_ROWS_PER_HALO_ROW = 1.0


@dataclass(frozen=True, slots=True)
class Cut:
    """One partition, as means over its parts.

    Args:
        parts: P.
        halo: H.
        boundary: B.
        boundary_entries: E_b.
    """

    parts: int
    halo: float
    boundary: float
    boundary_entries: float


class Growth(Protocol):
    """The mean part of a graph cut into P parts."""

    @property
    def text(self) -> str:
        """The law in words."""
        ...

    @property
    def origin(self) -> str:
        """What it comes from."""
        ...

    def cut(self, nodes: int, entries: int, parts: int) -> Cut:
        """For n nodes and e entries."""
        ...


@dataclass(frozen=True, slots=True)
class PowerGrowth:
    """The law above; boundary rows and entries in fixed proportion to the halo.

    Args:
        factor: c.
        exponent: a.
        rows_per_halo_row: B / H.
        entries_per_halo_row: E_b / H.
        origin: what c and a come from.
    """

    factor: float
    exponent: float
    rows_per_halo_row: float = _ROWS_PER_HALO_ROW
    entries_per_halo_row: float = _ENTRIES_PER_HALO_ROW
    origin: str = "assumed"

    @property
    def text(self) -> str:
        return (
            f"(n - m) (1 - exp(-{self.factor:.4g} m^{self.exponent:.3f})) rows, m = nodes of a part"
        )

    def cut(self, nodes: int, entries: int, parts: int) -> Cut:
        if parts == 1:
            return Cut(1, 0.0, 0.0, 0.0)
        mean, per_part = nodes / parts, entries / parts
        halo = -(nodes - mean) * math.expm1(-self.factor * mean**self.exponent)
        most = per_part * (1.0 - 1.0 / parts)
        crossing = min(most, max(halo, self.entries_per_halo_row * halo))
        halo = min(halo, most)  # every halo row is named by an entry
        return Cut(parts, halo, min(mean, self.rows_per_halo_row * halo, crossing), crossing)


@dataclass(frozen=True, slots=True)
class RandomGrowth:
    """Parts drawn by lot: the most that any partition of the graph has to send, nearly."""

    origin: str = "no structure of the graph is used"

    @property
    def text(self) -> str:
        return "parts drawn by lot"

    def cut(self, nodes: int, entries: int, parts: int) -> Cut:
        mean, degree = nodes / parts, entries / nodes
        outside = 1.0 - 1.0 / parts
        # a node of mean degree misses a part with (1 - 1/P)^degree
        missed = outside**degree if parts > 1 else 1.0
        reads = 1.0 - (1.0 / parts) ** degree
        return Cut(parts, (nodes - mean) * (1.0 - missed), mean * reads, mean * degree * outside)


def fit_growth(nodes: int, cuts: Sequence[Cut]) -> PowerGrowth:
    """The law through measured cuts of one graph of n nodes.

    Args:
        nodes: n.
        cuts: one or more with a halo; those of a single part say nothing.

    Raises:
        UserError: none of them has a halo.
    """
    telling = [cut for cut in cuts if cut.halo > 0]
    if not telling:
        raise UserError(
            "no partition with halo rows to learn their growth from; give shards of at least 2 "
            "parts, or --halo-growth"
        )
    logs = [
        (math.log(nodes / cut.parts), math.log(_named(nodes, cut.parts, cut.halo)))
        for cut in telling
    ]
    mean_x = sum(x for x, _ in logs) / len(logs)
    mean_y = sum(y for _, y in logs) / len(logs)
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    exponent = ASSUMED_EXPONENT
    if spread > 0:
        exponent = sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread
    known = ", ".join(str(cut.parts) for cut in telling)
    how = "fitted to" if spread > 0 else f"exponent {ASSUMED_EXPONENT} assumed, through"
    total = sum(cut.halo for cut in telling)
    return PowerGrowth(
        math.exp(mean_y - exponent * mean_x),
        exponent,
        sum(cut.boundary for cut in telling) / total,
        sum(cut.boundary_entries for cut in telling) / total,
        f"{how} shards of {known} parts",
    )


def _named(nodes: int, parts: int, halo: float) -> float:
    """c m^a of a part with this halo; of a halo of all others, as if it missed one."""
    others = nodes - nodes / parts
    return -math.log1p(-min(halo / others, 1.0 - 1.0 / (others + 1.0)))


def parse_growth(text: str, nodes: int) -> Growth:
    """``random``, or ``RATIO@P`` or ``RATIO@P:EXPONENT``: halo over owned rows at P parts.

    Raises:
        UserError: it is neither.
    """
    if text == "random":
        return RandomGrowth()
    found = re.fullmatch(r"([\d.eE+-]+)@(\d+)(?::([\d.]+))?", text)
    try:
        ratio, parts = (float(found[1]), int(found[2])) if found else (0.0, 0)
        exponent = float(found[3]) if found and found[3] else ASSUMED_EXPONENT
    except ValueError:
        ratio, parts, exponent = 0.0, 0, 0.0
    if not (ratio > 0 and parts > 1 and 0 < exponent <= 1):
        raise UserError(
            f"--halo-growth {text} is neither random nor RATIO@P[:EXPONENT], as in 0.8@8:0.85: "
            "halo rows over owned rows at P parts (P above 1) and a power in (0, 1]"
        )
    mean = nodes / parts
    if ratio > parts - 1:
        raise UserError(f"--halo-growth {text}: {parts} parts cannot read {ratio} times their rows")
    factor = _named(nodes, parts, ratio * mean) / mean**exponent
    return PowerGrowth(factor, exponent, origin=f"assumed as {text}")


def typical_part(
    growth: Growth,
    nodes: int,
    entries: int,
    parts: int,
    neighbours: int | None = None,
    imbalance: float = IMBALANCE,
) -> Part:
    """The largest part to expect: the mean one times ``imbalance``, which one part alone has not.

    Args:
        growth: the law.
        nodes, entries: n, and e without self-loops.
        parts: P.
        neighbours: parts that a part exchanges with, if not all others.
        imbalance: largest part over the mean one.

    Raises:
        UserError: there are more parts than nodes.
    """
    if parts > nodes:
        raise UserError(f"{parts} parts for {nodes} nodes: a part would be empty")
    cut = growth.cut(nodes, entries, parts)
    more = imbalance if parts > 1 else 1.0
    owned = nodes / parts * more
    boundary = min(owned, cut.boundary * more)
    others = parts - 1
    return Part(
        nodes=nodes,
        parts=parts,
        owned=owned,
        interior=owned - boundary,
        halo=cut.halo * more,
        sent=cut.halo * more,
        owned_entries=(entries / parts - cut.boundary_entries) * more + owned,
        boundary_entries=cut.boundary_entries * more,
        neighbours=others if neighbours is None else min(neighbours, others),
    )
