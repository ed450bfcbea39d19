"""FixedPoint: make an equilibrium of any layer, here of PyG's SAGEConv, and train through it.

    python examples/fixed_point.py

The label of a node is its community's, and only a few nodes of each show their features: the
equilibrium carries them to all others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric import seed_everything
from torch_geometric.nn import SAGEConv
from torch_geometric.utils import barabasi_albert_graph

from distributed_ignn.nn import FixedPoint

COMMUNITIES, SIZE, WIDTH = 4, 100, 16


class Net(nn.Module):
    """Encode, solve, read out: z = SAGEConv(z, edge_index) + encode(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(COMMUNITIES, WIDTH)
        # bound keeps the map a contraction, whatever the optimiser does
        self.layer = FixedPoint(
            SAGEConv(WIDTH, WIDTH), solver="anderson", tolerance=1e-5, bound=0.95
        )
        self.read_out = nn.Linear(WIDTH, COMMUNITIES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits [n, C] of features [n, C] and edges [2, E]."""
        logits: Tensor = self.read_out(self.layer(self.encode(x), edge_index))
        return logits


def make_graph() -> tuple[Tensor, Tensor, Tensor]:
    """Features, edges and labels of separate communities; every tenth node shows its label."""
    edges = [barabasi_albert_graph(SIZE, 2) + SIZE * number for number in range(COMMUNITIES)]
    labels = torch.arange(COMMUNITIES).repeat_interleave(SIZE)
    shown = F.one_hot(labels, COMMUNITIES).float()
    shown[torch.arange(labels.numel()) % 10 != 0] = 0.0
    return shown, torch.cat(edges, dim=1), labels


def main() -> None:
    """Train on a third of the nodes and compare the gradient with that of a plain loop."""
    seed_everything(0)  # PyG draws graphs with NumPy
    x, edge_index, labels = make_graph()
    train = torch.rand(labels.numel()) < 1 / 3
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(1, 61):
        loss = F.cross_entropy(model(x, edge_index)[train], labels[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if epoch % 20 == 0:
            info = model.layer.info
            print(
                f"epoch {epoch}  loss {float(loss.detach()):.4f}  evaluations {info.evaluations} + "
                f"{info.adjoint_evaluations}  residual {info.residual:.0e}"
            )
    with torch.no_grad():
        hits = model(x, edge_index)[~train].argmax(dim=1) == labels[~train]
    print(f"accuracy on the other nodes {float(hits.double().mean()):.3f}")
    compare(x, edge_index)


def compare(x: Tensor, edge_index: Tensor) -> None:
    """The implicit gradient beside that of 200 recorded steps, in float64."""
    conv = SAGEConv(COMMUNITIES, COMMUNITIES).double()
    layer = FixedPoint(conv, tolerance=1e-12, max_steps=200, bound=0.9)
    implicit = layer(x.double(), edge_index)
    found = torch.autograd.grad(implicit.square().sum(), list(conv.parameters()))
    z = torch.zeros_like(x, dtype=torch.float64)
    for _ in range(200):
        z = conv(z, edge_index) + x
    expected = torch.autograd.grad(z.square().sum(), list(conv.parameters()))
    worst = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    print(f"gradient of 200 unrolled steps: largest difference {worst:.0e}")


if __name__ == "__main__":
    main()
