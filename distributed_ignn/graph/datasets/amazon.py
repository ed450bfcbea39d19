"""Amazon-all as the IGNN paper uses it: the SNAP com-Amazon graph with product types as labels.

Nodes are products, edges join products bought together, and a product belongs to any number of
ground-truth communities; those of at least 5,000 products are the 58 classes. There are no
features. Files: ``com-amazon.ungraph.txt.gz`` (two ids a line, ``#`` starts a comment) and
``com-amazon.all.dedup.cmty.txt.gz`` (one community a line). Letters: n nodes, C classes.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData, csr_from_edges
from distributed_ignn.graph.datasets.checks import brief
from distributed_ignn.graph.datasets.download import fetch
from distributed_ignn.reading.archives import open_gzip

logger = logging.getLogger(__name__)

GRAPH_FILE = "com-amazon.ungraph.txt.gz"
COMMUNITY_FILE = "com-amazon.all.dedup.cmty.txt.gz"
MIN_COMMUNITY = 5_000
#: Of the labelled nodes, as in the paper.
TEST_FRACTION = 0.10
#: Validation is as large as the test split: the remaining 84 % would only slow each evaluation.
VAL_FRACTION = 0.10

_UNPACKED_LIMIT = 256 * 2**20  # the published files have 13 MB and less
_LINE_LIMIT = 4 * 2**20

_URL = "https://snap.stanford.edu/data/bigdata/communities/"
_SOURCE = "snap.stanford.edu (com-Amazon)"


def load_amazon(
    data_root: Path,
    *,
    min_community: int = MIN_COMMUNITY,
    train_fraction: float = 0.06,
    seed: int = 0,
) -> GraphData:
    """The whole graph; labels float32 [n, C] with one column per kept community, features None.

    Of the L nodes in at least one kept community, ``round(0.1 L)`` are for test, as many for
    validation, and ``floor(train_fraction L)`` for training. The test nodes do not depend on
    ``train_fraction``.

    Args:
        data_root: the two files lie in, or are downloaded to, ``data_root/amazon-all``.
        min_community: smallest community that counts as a class.
        train_fraction: of the labelled nodes; 0.05 to 0.09 in the IGNN paper, and 0.06 gives the
            16,970 training nodes of the IGNN-Solver paper.
        seed: draws the split.

    Raises:
        UserError: missing or malformed files, or no community is large enough.
    """
    folder = data_root / "amazon-all"
    edges = _read_edges(fetch(_URL + GRAPH_FILE, folder / GRAPH_FILE, source=_SOURCE))
    path = fetch(_URL + COMMUNITY_FILE, folder / COMMUNITY_FILE, source=_SOURCE)
    ids, compact = np.unique(edges, return_inverse=True)
    source, target = torch.from_numpy(compact.reshape(edges.shape)).unbind(1)
    labels = _labels(path, ids, min_community)
    labelled = labels.any(dim=1).nonzero().flatten()
    train, val, test = _split(labelled, train_fraction, seed)
    return GraphData(
        name="amazon-all",
        graphs=(csr_from_edges(source, target, ids.size),),
        features=None,
        labels=labels,
        num_classes=labels.shape[1],
        task="multilabel",
        train_nodes=train,
        val_nodes=val,
        test_nodes=test,
    )


def _read_edges(path: Path) -> np.ndarray:
    try:
        with open_gzip(path, _UNPACKED_LIMIT) as stream:
            edges = np.loadtxt(stream, dtype=np.int64, comments="#", ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not an edge list ({brief(error)}); delete it to fetch it again"
        ) from error
    if edges.shape[0] == 0 or edges.shape[1] != 2:
        raise UserError(
            f"{path} is not an edge list of two ids a line; delete it to fetch it again"
        )
    return edges


def _labels(path: Path, ids: np.ndarray, min_community: int) -> Tensor:
    """One column per community of at least ``min_community`` nodes, in the order of the file."""
    communities = []
    try:
        with open_gzip(path, _UNPACKED_LIMIT) as stream:
            while line := stream.readline(_LINE_LIMIT):
                if len(line) == _LINE_LIMIT:
                    raise ValueError(f"a line has more than {_LINE_LIMIT:,} bytes")
                members = line.split()
                if len(members) >= min_community:
                    communities.append(np.unique(np.array(members).astype(np.int64)))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a community list ({brief(error)}); delete it to fetch it again"
        ) from error
    if not communities:
        raise UserError(f"{path}: no community has {min_community:,} nodes or more")
    labels = torch.zeros(ids.size, len(communities))
    outside = 0
    for column, community in enumerate(communities):
        known = np.isin(community, ids, assume_unique=True)
        if not known.any():
            raise UserError(f"{path}: a community names no node that is in {GRAPH_FILE}")
        outside += int((~known).sum())
        rows = np.searchsorted(ids, community[known])
        labels[torch.from_numpy(rows), column] = 1.0
    logger.info("%d communities have at least %d nodes", len(communities), min_community)
    if outside:
        logger.warning(
            "%s: %d memberships of products that no edge of %s names are left out",
            path.name,
            outside,
            GRAPH_FILE,
        )
    return labels


def _split(labelled: Tensor, train_fraction: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    total = labelled.numel()
    num_test, num_val = round(TEST_FRACTION * total), round(VAL_FRACTION * total)
    # Without the small term 0.06 * 100 would round down to 5.
    num_train = math.floor(train_fraction * total + 1e-9)
    if not 0 < num_train <= total - num_test - num_val:
        raise UserError(
            f"data.train_fraction = {train_fraction} of {total} labelled nodes leaves amazon-all "
            "an empty split; the paper uses 0.05 to 0.09"
        )
    order = labelled[torch.from_numpy(np.random.default_rng(seed).permutation(total))]
    test, val, train, _ = order.split(
        [num_test, num_val, num_train, total - num_test - num_val - num_train]
    )
    return torch.sort(train).values, torch.sort(val).values, torch.sort(test).values
