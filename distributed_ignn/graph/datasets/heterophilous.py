"""A generated graph of unlike neighbours: a block model with features (Deshpande et al. 2018).

Classes lie on a ring. Of the edges a share, the homophily, joins nodes of one class, and every
other edge joins a node to one of the next or of the last class on the ring, so which classes
neighbours have tells a node's own as well as if they had it themselves. A node's features are the
centre of its class and noise. Letters: n nodes, m undirected edges, F features, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.graph.data import CSRMatrix, GraphData, csr_from_edges

if TYPE_CHECKING:
    from distributed_ignn.config import HeterophilousConfig

_SPARE = 1.2  # edges drawn for each that is missing: some are loops or there already


def make_heterophilous(config: HeterophilousConfig) -> GraphData:
    """The graph of one seed: dense float32 features [n, F] and a random split by node.

    Classes have equally many nodes, up to one. The numbers of edges inside classes and between
    them are exactly those of the settings.
    """
    order = np.random.default_rng([config.seed, 0]).permutation(config.nodes)
    labels = np.empty(config.nodes, np.int64)
    labels[order] = np.arange(config.nodes) % config.classes
    train, val, test = _split(config)
    return GraphData(
        name="heterophilous",
        graphs=(_graph(order, config),),
        features=_features(labels, config),
        labels=torch.from_numpy(labels),
        num_classes=config.classes,
        task="multiclass",
        train_nodes=train,
        val_nodes=val,
        test_nodes=test,
    )


def _graph(order: np.ndarray, config: HeterophilousConfig) -> CSRMatrix:
    """Symmetric adjacency; node ``order[i]`` has class i mod C."""
    inside, between = config.edges
    keys = [
        _distinct(np.random.default_rng([config.seed, 1]), inside, 0, config),
        _distinct(np.random.default_rng([config.seed, 2]), between, 1, config),
    ]
    low, high = np.divmod(np.concatenate(keys), config.nodes)
    source, target = torch.from_numpy(order[low]), torch.from_numpy(order[high])
    return csr_from_edges(source, target, config.nodes)


def _distinct(
    rng: np.random.Generator, wanted: int, distance: int, config: HeterophilousConfig
) -> np.ndarray:
    """So many different pairs of places i < j as i n + j, int64, in no order.

    Args:
        rng: draws.
        wanted: pairs; at most half of those there are.
        distance: of the two classes on the ring.
        config: nodes and classes.
    """
    found = np.empty(0, np.int64)
    while found.size < wanted:
        missing = int(_SPARE * (wanted - found.size)) + 1
        one = rng.integers(config.nodes, size=missing)
        # a place of the class that lies ``distance`` further; those beyond the last are no place
        rows = -(-config.nodes // config.classes)
        other = rng.integers(rows, size=missing) * config.classes
        other += (one + distance) % config.classes
        real = (other < config.nodes) & (other != one)
        low, high = np.minimum(one, other)[real], np.maximum(one, other)[real]
        found = np.union1d(found, low * config.nodes + high)
    return rng.permutation(found)[:wanted]


def _features(labels: np.ndarray, config: HeterophilousConfig) -> Tensor:
    """Centre of the class and noise of standard deviation 1, float32 [n, F]."""
    rng = np.random.default_rng([config.seed, 3])
    centres = rng.standard_normal((config.classes, config.features))
    centres *= config.signal / np.linalg.norm(centres, axis=1, keepdims=True)
    noise = rng.standard_normal((config.nodes, config.features), dtype=np.float32)
    noise += centres.astype(np.float32)[labels]
    return torch.from_numpy(noise)


def _split(config: HeterophilousConfig) -> tuple[Tensor, Tensor, Tensor]:
    n = config.nodes
    order = torch.from_numpy(np.random.default_rng([config.seed, 4]).permutation(n))
    num_train, num_val = round(config.train_fraction * n), round(config.val_fraction * n)
    parts = order.split([num_train, num_val, n - num_train - num_val])
    train, val, test = (torch.sort(part).values for part in parts)
    return train, val, test
