"""A search as Ray tasks: ``fit`` is a plain function there, and what it returns is a folder.

    pip install 'distributed-ignn[ray]'
    python examples/ray_task.py

Each task trains in a process of its own, with as many threads as it has CPUs. On a cluster the
output folders belong on a file system that all machines share.
"""

from __future__ import annotations

import logging

import ray
import torch
from torch_geometric.data import Data
from torch_geometric.transforms import RandomNodeSplit
from torch_geometric.utils import to_undirected

import distributed_ignn as di


def make_graph() -> Data:
    """Rings of one class each, where every tenth node alone shows which: the others have to ask."""
    classes, size = 3, 60
    y = torch.arange(classes).repeat_interleave(size)
    node = torch.arange(classes * size)
    after = node - node % size + (node + 1) % size
    x = torch.nn.functional.one_hot(y, classes).float() * (node % 10 == 0)[:, None]
    torch.manual_seed(0)
    data = Data(x=x, edge_index=to_undirected(torch.stack([node, after])), y=y)
    return RandomNodeSplit(num_val=0.2, num_test=0.4)(data)


def main() -> None:
    """Train with three bounds on the weights at once, and predict with the best."""
    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.WARNING)
    data = ray.put(make_graph())
    fit = ray.remote(num_cpus=1)(di.fit)
    settings = {"hidden": 8, "epochs": 40, "lr": 0.01, "init": "identity"}
    runs = ray.get([fit.remote(data, settings, kappa=kappa) for kappa in (0.3, 0.6, 0.95)])
    for run in runs:
        summary = run.summary
        print(f"kappa {run.config.model.kappa}: validation accuracy {summary['best_val']:.2f}")
    best = max(runs, key=lambda run: run.summary["best_val"])
    print(best.predict())
    ray.shutdown()


if __name__ == "__main__":
    main()
