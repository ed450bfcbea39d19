"""Train two PyG models on a divided graph: the losses are those of one process.

python examples/exact_layers.py
torchrun --standalone --nproc-per-node 2 examples/exact_layers.py
"""

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch_geometric.nn import GAT, GraphSAGE

import distributed_ignn as di
from distributed_ignn.config import DataConfig, SyntheticConfig
from distributed_ignn.graph.datasets import load_dataset


def train(model: torch.nn.Module, graph: di.DistributedGraph) -> None:
    """A plain loop: only ``graph.mean`` and ``graph.sum_gradients`` know of other ranks."""
    di.nn.exact(model, graph)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train = graph.train_index  # this rank's training nodes; it may have none
    for epoch in range(10):
        optimizer.zero_grad()
        out = model(graph.x, graph.edge_index)  # rows of this rank's nodes
        loss = graph.mean(cross_entropy(out[train], graph.y[train], reduction="none"))
        loss.backward()
        graph.sum_gradients(model)
        optimizer.step()
        if graph.rank == 0:
            print(f"{type(model).__name__} epoch {epoch} loss {loss.item():.12f}")


torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
data = load_dataset(
    "synthetic-products", Path("data"), DataConfig(synthetic=SyntheticConfig(scale=0.0005))
)
# a large graph is divided once, by ignn partition, and opened: DistributedGraph.open("shards")
with di.DistributedGraph.divide(data) as graph:  # or a Data, the same on every rank
    train(GAT(graph.num_features, 16, 2, graph.num_classes, heads=4), graph)
    train(GraphSAGE(graph.num_features, 32, 3, graph.num_classes), graph)
