"""A generated graph with the statistics of ogbn-products, at any scale.

A degree-corrected planted partition with three nested levels: communities, the classes that they
belong to, and the whole graph. Degrees are heavy-tailed, features are noisy, so neighbours tell
more about a node's class than its own features do. Time and memory grow linearly with the size
but for sorting the edges. Letters: n nodes, m undirected edges, F features, C classes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData, csr_from_edges

if TYPE_CHECKING:
    from distributed_ignn.config import SyntheticConfig

logger = logging.getLogger(__name__)

#: ogbn-products (Hu et al., NeurIPS 2020).
NUM_NODES, NUM_EDGES = 2_449_029, 61_859_140
NUM_TRAIN, NUM_VALIDATION = 196_615, 39_323
#: Largest degree over mean degree there (17,481 over 50.5).
_MAX_DEGREE_RATIO = 346.0

_COMMUNITY_SIZE = 1_000
_MIN_NODES = 100
#: Of the edges that leave a community, the share that stays inside its class.
_CLASS_SHARE = 0.5
#: Lengths of a class centre and of a community's offset from it, in units of one noise deviation.
_CLASS_RADIUS, _COMMUNITY_RADIUS = 1.0, 1.0
_BATCH = 4_000_000


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Nodes in order of their community, and communities in order of their class.

    community: int64 [n], community of each node, ascending.
    class_of: int64 [communities], ascending.
    """

    community: np.ndarray
    class_of: np.ndarray


def make_products(config: SyntheticConfig) -> GraphData:
    """The graph of one seed: dense float32 features [n, F], random split of OGB's proportions.

    n is 2,449,029 times ``config.scale`` and the mean degree stays that of ogbn-products, as long
    as n nodes have room for it; the number of edges is met within one per cent.

    Raises:
        UserError: a scale so small that classes and splits would be empty.
    """
    n = round(NUM_NODES * config.scale)
    if n < max(_MIN_NODES, 2 * config.classes):
        raise UserError(
            f"data.synthetic.scale: {config.scale} gives {n} nodes, too few for {config.classes} "
            f"classes; use at least {max(_MIN_NODES, 2 * config.classes) / NUM_NODES:.1g}"
        )
    blocks = _make_blocks(n, config)
    # At most a quarter of all pairs, so that drawing pairs without repeats ends soon.
    edges = min(round(NUM_EDGES * config.scale), n * (n - 1) // 8)
    low, high = _draw_edges(blocks, edges, config)
    logger.info("generated %d nodes and %d edges", n, low.size)
    # Shuffled ids: the order of the blocks must not tell a partitioner where to cut.
    place = np.random.default_rng([config.seed, 3]).permutation(n)
    node_class = np.empty(n, np.int64)
    node_class[place] = blocks.class_of[blocks.community]
    train, val, test = _split(n, config)
    return GraphData(
        name="synthetic-products",
        graphs=(csr_from_edges(torch.from_numpy(place[low]), torch.from_numpy(place[high]), n),),
        features=_features(blocks, place, config),
        labels=torch.from_numpy(node_class),
        num_classes=config.classes,
        task="multiclass",
        train_nodes=train,
        val_nodes=val,
        test_nodes=test,
    )


def _make_blocks(n: int, config: SyntheticConfig) -> _Blocks:
    rng = np.random.default_rng([config.seed, 0])
    wanted = config.communities or n // _COMMUNITY_SIZE
    communities = min(max(wanted, config.classes), n // 2)
    # Every class has one community; the others fall to classes of unequal popularity.
    popularity = 1.0 / np.arange(1, config.classes + 1)
    extra = rng.choice(
        config.classes, communities - config.classes, p=popularity / popularity.sum()
    )
    class_of = np.sort(np.concatenate([np.arange(config.classes), extra]))
    weight = rng.lognormal(0.0, 0.5, communities)
    sizes = 2 + rng.multinomial(n - 2 * communities, weight / weight.sum())
    return _Blocks(np.repeat(np.arange(communities), sizes), class_of)


def _degrees(n: int, edges: int, config: SyntheticConfig) -> np.ndarray:
    """Wanted degrees, int64 [n]: a truncated power law with the right mean, at least one each."""
    rng = np.random.default_rng([config.seed, 1])
    mean = 2 * edges / n
    weight = rng.random(n) ** (-1.0 / (config.exponent - 1.0))
    largest = min(_MAX_DEGREE_RATIO * mean, n / 4)
    for _ in range(20):  # cutting the tail lowers the mean, scaling up lengthens the tail
        weight = np.minimum(weight * (mean / weight.mean()), largest)
    return np.maximum(1, np.floor(weight + rng.random(n))).astype(np.int64)


def _draw_edges(
    blocks: _Blocks, edges: int, config: SyntheticConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Different pairs low < high of node positions, int64 [about ``edges``]."""
    n = blocks.community.size
    rng = np.random.default_rng([config.seed, 2])
    stubs = _Stubs(blocks, _degrees(n, edges, config))
    keys = np.empty(0, np.int64)
    for attempt in range(40):
        missing = edges - keys.size
        if missing <= edges // 200:
            break
        # Small communities fill up, so what they cannot take goes to the whole graph in the end.
        inside = config.homophily if attempt < 3 else 0.0
        new = [
            stubs.draw(rng, min(_BATCH, missing - done), inside)
            for done in range(0, missing, _BATCH)
        ]
        keys = _distinct(np.concatenate([keys, *new]))
    return keys // n, keys % n


def _distinct(keys: np.ndarray) -> np.ndarray:
    # numpy.unique hashes, which takes ten times as long on keys with this much structure.
    keys.sort()
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])]


class _Stubs:
    """Each node as often as its degree, in order of position: sampling is one look-up."""

    def __init__(self, blocks: _Blocks, degrees: np.ndarray) -> None:
        self.num_nodes = degrees.size
        self.node = np.repeat(np.arange(degrees.size, dtype=np.int32), degrees)
        first = np.concatenate([[0], np.cumsum(degrees)])
        self.community = blocks.community
        self.class_of = blocks.class_of
        starts = np.searchsorted(blocks.community, np.arange(blocks.class_of.size + 1))
        self.community_start = first[starts]
        classes = np.arange(blocks.class_of[-1] + 2)
        self.class_start = self.community_start[np.searchsorted(blocks.class_of, classes)]

    def draw(self, rng: np.random.Generator, count: int, inside: float) -> np.ndarray:
        """Keys low * n + high of ``count`` draws, self-loops left out, repeats possible."""
        source = self.node[rng.integers(0, self.node.size, count)]
        community = self.community[source]
        level = rng.random(count)
        in_class = level < inside + _CLASS_SHARE * (1.0 - inside)
        of_class = self.class_of[community]
        start = np.where(in_class, self.class_start[of_class], 0)
        end = np.where(in_class, self.class_start[of_class + 1], self.node.size)
        in_community = level < inside
        start = np.where(in_community, self.community_start[community], start)
        end = np.where(in_community, self.community_start[community + 1], end)
        target = self.node[start + (rng.random(count) * (end - start)).astype(np.int64)]
        low, high = np.minimum(source, target), np.maximum(source, target)
        keys = low.astype(np.int64) * self.num_nodes + high
        return keys[low < high]


def _features(blocks: _Blocks, place: np.ndarray, config: SyntheticConfig) -> Tensor:
    rng = np.random.default_rng([config.seed, 4])
    width = config.features
    centre = rng.standard_normal((config.classes, width)) * (_CLASS_RADIUS / width**0.5)
    offset = rng.standard_normal((blocks.class_of.size, width)) * (_COMMUNITY_RADIUS / width**0.5)
    mean = (centre[blocks.class_of] + offset).astype(np.float32)
    features = rng.standard_normal((place.size, width), dtype=np.float32)
    features *= np.float32(config.feature_noise)
    community = np.empty_like(blocks.community)
    community[place] = blocks.community
    for start in range(0, place.size, _BATCH // width + 1):  # no second array of the size of X
        rows = slice(start, start + _BATCH // width + 1)
        features[rows] += mean[community[rows]]
    return torch.from_numpy(features)


def _split(n: int, config: SyntheticConfig) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.from_numpy(np.random.default_rng([config.seed, 5]).permutation(n))
    num_train = max(1, round(n * NUM_TRAIN / NUM_NODES))
    num_val = max(1, round(n * NUM_VALIDATION / NUM_NODES))
    parts = order.split([num_train, num_val, n - num_train - num_val])
    train, val, test = (torch.sort(part).values for part in parts)
    return train, val, test
