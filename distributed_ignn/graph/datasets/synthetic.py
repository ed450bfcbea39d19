"""A generated graph with the statistics of ogbn-products, at any scale.

Nodes lie in communities of about a thousand, communities in a tree of ever wider groups. Degrees
are heavy-tailed; an edge is drawn inside the community or, with decaying probability, inside a
wider group, and only some nodes reach far. Features are noisy, so neighbours tell more about a
node's class than its own features do. ``nested.py`` draws the edges. Letters: n nodes, m undirected
edges, F features, C classes.
"""

from __future__ import annotations

import logging
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData, csr_from_blocks
from distributed_ignn.graph.datasets.nested import Pairs, Tree, draw_pairs, power_law

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
#: Lengths of a class centre and of a community's offset from it, in units of one noise deviation.
_CLASS_RADIUS, _COMMUNITY_RADIUS = 1.0, 1.0
_BATCH = 4_000_000
_ATTEMPTS = 40


def make_products(config: SyntheticConfig) -> GraphData:
    """The graph of one seed: dense float32 features [n, F], random split of OGB's proportions.

    n is 2,449,029 times ``config.scale``; the mean degree is ``config.mean_degree`` or that of
    ogbn-products, as long as n nodes have room for it. The number of edges is met within one per
    cent. The peak of memory is the pairs (8 m bytes) and the adjacency (8 m) with half of it again,
    or the adjacency and the features (4 n F), whichever is more.

    Raises:
        UserError: a scale so small that classes and splits would be empty.
    """
    n = round(NUM_NODES * config.scale)
    if n < max(_MIN_NODES, 2 * config.classes):
        raise UserError(
            f"data.synthetic.scale: {config.scale} gives {n} nodes, too few for {config.classes} "
            f"classes; use at least {max(_MIN_NODES, 2 * config.classes) / NUM_NODES:.1g}"
        )
    mean_degree = config.mean_degree or 2 * NUM_EDGES / NUM_NODES
    # At most a quarter of all pairs, so that drawing pairs without repeats ends soon.
    edges = min(round(n * mean_degree / 2), n * (n - 1) // 8)
    sizes, class_of = _communities(n, config)
    # Shuffled ids: the order of the communities must not tell a partitioner where to cut.
    place = np.random.default_rng([config.seed, 3]).permutation(n).astype(np.int32)
    graph = _graph(Tree(sizes), place, edges, config)
    logger.info("generated %d nodes and %d edges", n, graph.num_entries // 2)
    community = np.empty(n, np.int32)
    community[place] = np.repeat(np.arange(sizes.size, dtype=np.int32), sizes)
    train, val, test = _split(n, config)
    return GraphData(
        name="synthetic-products",
        graphs=(graph,),
        features=_features(community, class_of, config),
        labels=torch.from_numpy(class_of[community]),
        num_classes=config.classes,
        task="multiclass",
        train_nodes=train,
        val_nodes=val,
        test_nodes=test,
    )


def _communities(n: int, config: SyntheticConfig) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of the communities and their classes, ascending, both int64 [communities]."""
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
    return 2 + rng.multinomial(n - 2 * communities, weight / weight.sum()), class_of


def _graph(tree: Tree, place: np.ndarray, edges: int, config: SyntheticConfig) -> CSRMatrix:
    """Symmetric adjacency with ``edges`` edges within half a per cent; node i is place[i]."""
    n = tree.num_nodes
    mean = 2 * edges / n
    degree = power_law(
        np.random.default_rng([config.seed, 1]),
        n,
        mean=mean,
        largest=min(_MAX_DEGREE_RATIO * mean, n / 4),
        exponent=config.exponent,
    )
    pairs: list[Pairs] = []
    missing = edges
    for attempt in count():
        # Communities fill up, so what they cannot take goes to the whole graph in the end.
        inside = config.homophily if attempt < 3 else None
        rng = np.random.default_rng([config.seed, 2, attempt])
        for low, high in draw_pairs(rng, tree, degree * np.float32(missing / edges), inside):
            pairs.append((place[low], place[high]))
        graph = csr_from_blocks(lambda: iter(pairs), n)
        missing = edges - graph.num_entries // 2
        if missing <= edges // 200 or attempt == _ATTEMPTS:
            return graph
        del graph  # the next one needs its room
    raise AssertionError("unreachable: the attempts do not end")


def _features(community: np.ndarray, class_of: np.ndarray, config: SyntheticConfig) -> Tensor:
    """Centre of the class, offset of the community and noise, float32 [n, F]."""
    rng = np.random.default_rng([config.seed, 4])
    width = config.features
    centre = rng.standard_normal((config.classes, width)) * (_CLASS_RADIUS / width**0.5)
    offset = rng.standard_normal((class_of.size, width)) * (_COMMUNITY_RADIUS / width**0.5)
    mean = (centre[class_of] + offset).astype(np.float32)
    features = rng.standard_normal((community.size, width), dtype=np.float32)
    features *= np.float32(config.feature_noise)
    for start in range(0, community.size, _BATCH // width + 1):  # no second array of the size of X
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
