"""Two PyG models on a divided graph: the losses are those of one process.

python examples/exact_layers.py
torchrun --standalone --nproc-per-node 2 examples/exact_layers.py
"""

import torch
from torch.nn.functional import cross_entropy, elu
from torch_geometric.nn import GATConv, GraphSAGE

import distributed_ignn as di
from distributed_ignn.config import DataConfig
from distributed_ignn.graph.datasets import load_dataset


class GAT(torch.nn.Module):
    """Two layers."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first, self.last = GATConv(features, 8, heads=4), GATConv(32, classes)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.last(elu(self.first(x, edge_index)), edge_index)


def train(model: torch.nn.Module, graph: di.DistributedGraph, name: str) -> None:
    """A plain loop; what belongs to the ranks is in graph.mean and graph.sum_gradients."""
    model = di.nn.exact(model, graph)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    index = graph.train_index  # this rank's training nodes; a rank may have none
    for epoch in range(5):
        optimizer.zero_grad()
        out = model(graph.x, graph.edge_index)  # rows of this rank's nodes
        loss = graph.mean(cross_entropy(out[index], graph.y[index], reduction="none"))
        loss.backward()
        graph.sum_gradients(model)
        optimizer.step()
        if graph.rank == 0:
            print(f"{name} epoch {epoch} loss {loss.item():.14f}")


torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
data = load_dataset("chains", None, DataConfig())
with di.DistributedGraph.divide(data) as graph:  # or open("shards/"), after ignn partition
    train(GAT(graph.num_features, graph.num_classes), graph, "GAT")
    train(GraphSAGE(graph.num_features, 32, 3, graph.num_classes), graph, "GraphSAGE")
