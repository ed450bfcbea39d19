"""The long-range benchmark of the IGNN paper (Gu et al., NeurIPS 2020), generated.

Every node of a chain carries the chain's label, but only the first node's features tell it, so a
model must carry information over ``length`` - 1 edges. Letters: n nodes, F features, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from distributed_ignn.graph.data import CSRMatrix, GraphData, csr_from_edges

if TYPE_CHECKING:
    from distributed_ignn.config import ChainsConfig


def make_chains(config: ChainsConfig) -> GraphData:
    """Chains with their features, labels and a random split by node; the same for the same seed.

    Features are a CSRMatrix [n, F] with one entry per chain when ``noise`` is 0, else dense
    float32 with Gaussian noise of that standard deviation on every entry.
    """
    chains = config.classes * config.chains_per_class
    n = chains * config.length
    chain_class = torch.arange(config.classes).repeat_interleave(config.chains_per_class)
    labels = chain_class.repeat_interleave(config.length)
    source = torch.arange(n)[torch.arange(n) % config.length < config.length - 1]
    train, val, test = _split(n, config)
    return GraphData(
        name="chains",
        graphs=(csr_from_edges(source, source + 1, n),),
        features=_features(config, chain_class),
        labels=labels,
        num_classes=config.classes,
        task="multiclass",
        train_nodes=train,
        val_nodes=val,
        test_nodes=test,
    )


def _features(config: ChainsConfig, chain_class: torch.Tensor) -> CSRMatrix | torch.Tensor:
    n = chain_class.numel() * config.length
    first = torch.arange(chain_class.numel()) * config.length
    if config.noise == 0:
        rowptr = torch.zeros(n + 1, dtype=torch.int64)
        rowptr[first + 1] = 1
        col = chain_class.to(torch.int32)
        return CSRMatrix(torch.cumsum(rowptr, 0), col, None, config.features)
    generator = np.random.default_rng([config.seed, 1])
    noise = generator.standard_normal((n, config.features), dtype=np.float32)
    features = torch.from_numpy(noise) * config.noise
    features[first, chain_class] += 1.0
    return features


def _split(n: int, config: ChainsConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    order = torch.from_numpy(np.random.default_rng([config.seed, 0]).permutation(n))
    num_train, num_val = round(config.train_fraction * n), round(config.val_fraction * n)
    parts = order.split([num_train, num_val, n - num_train - num_val])
    train, val, test = (torch.sort(part).values for part in parts)
    return train, val, test
