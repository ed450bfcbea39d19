"""Pairs of nodes for a random graph with nested communities and heavy-tailed degrees.

A degree-corrected planted partition with many levels. Positions 0..n-1 are sorted by community,
and a group of any level is a range of them. Calibrated with ogbn-products' degrees so that METIS
cuts 3 to 5 per cent of the entries between two halves, each of which reads 20 to 30 per cent of all
nodes from the other: 4.4 and 25 per cent at 100,000 nodes, 3.3 and 23 at 306,129, 3.5 and 22 at
2,449,029. Letters: n nodes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Pairs = tuple[NDArray[np.int32], NDArray[np.int32]]

#: Levels of groups wider than a community; the same at every size, so that the cut is, too.
_LEVELS = 4
#: Share of the edges of one level over that of the next narrower one, outside communities.
_DECAY = 0.95
#: Share of the nodes that have edges in the whole graph; it grows to 1 towards the communities.
_FAR_REACHING = 0.4
#: Neighbours in a group over the nodes of it, at most: what is more goes to a wider group.
_DENSITY = 0.25
_BATCH = 2_000_000


class Tree:
    """Bounds of the groups of every level, narrowest level first, the whole graph last.

    Args:
        sizes: nodes of every community.
    """

    def __init__(self, sizes: NDArray[np.int64]) -> None:
        communities = np.concatenate([[0], np.cumsum(sizes)])
        groups = sizes.size ** (1 - np.arange(_LEVELS + 1) / _LEVELS)
        self.bounds = [
            communities[np.linspace(0, sizes.size, count + 1).round().astype(np.int64)]
            for count in groups.round().astype(np.int64)
        ]

    @property
    def num_nodes(self) -> int:
        return int(self.bounds[0][-1])


def power_law(
    rng: np.random.Generator, n: int, *, mean: float, largest: float, exponent: float
) -> NDArray[np.float32]:
    """Expected degrees [n]: a power law, cut at ``largest``, with the given mean."""
    weight = rng.random(n, dtype=np.float32) ** np.float32(-1.0 / (exponent - 1.0))
    for _ in range(20):  # cutting the tail lowers the mean, scaling up lengthens the tail
        weight = np.minimum(weight * np.float32(mean / weight.mean(dtype=np.float64)), largest)
    return np.maximum(weight, 1.0)


def draw_pairs(
    rng: np.random.Generator, tree: Tree, degree: NDArray[np.float32], inside: float | None
) -> Iterator[Pairs]:
    """Pairs of positions, about half of the sum of ``degree``; repeats and loops are possible.

    Args:
        degree: expected degree of every position.
        inside: share of the pairs inside a community; None draws all from the whole graph.
    """
    if inside is None:
        yield from _pair_up(rng, _rounded(rng, degree), tree.bounds[-1])
        return
    reach = rng.random(degree.size, dtype=np.float32)
    shares = _shares(len(tree.bounds) - 1)
    total = sum(np.where(reach < far, share, np.float32(0)) for share, far in shares)
    outside = degree * np.float32(1.0 - inside) / total
    carried = degree * np.float32(inside)
    for level, bounds in enumerate(tree.bounds):
        wanted = carried
        if level > 0:
            share, far = shares[level - 1]
            wanted = wanted + outside * np.where(reach < far, share, np.float32(0))
        size = np.diff(bounds)
        room = np.repeat(_DENSITY * size, size) if size.size > 1 else np.inf
        taken = np.minimum(wanted, room)
        carried = wanted - taken
        yield from _pair_up(rng, _rounded(rng, taken), bounds)


def _shares(levels: int) -> list[tuple[np.float32, np.float32]]:
    """Per level above the communities: weight among the nodes that reach it, and their share."""
    far = np.linspace(1.0, _FAR_REACHING, levels, dtype=np.float32)
    return list(zip(_DECAY ** np.arange(levels, dtype=np.float32) / far, far, strict=True))


def _rounded(rng: np.random.Generator, degree: np.ndarray) -> NDArray[np.int64]:
    """Integers with the given expectations."""
    return np.floor(degree + rng.random(degree.size, dtype=np.float32)).astype(np.int64)


def _pair_up(
    rng: np.random.Generator, degree: NDArray[np.int64], bounds: NDArray[np.int64]
) -> Iterator[Pairs]:
    """Half of the ends, each with an end drawn from the same group."""
    ends = np.repeat(np.arange(degree.size, dtype=np.int32), degree)
    first = np.concatenate([[0], np.cumsum(degree)])[bounds]
    for start in range(0, ends.size, 2 * _BATCH):
        own = np.arange(start, min(start + 2 * _BATCH, ends.size), 2)
        group = np.searchsorted(first, own, side="right") - 1
        other = first[group] + (rng.random(own.size) * (first[group + 1] - first[group])).astype(
            np.int64
        )
        yield ends[own], ends[other]
