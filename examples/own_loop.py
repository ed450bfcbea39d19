"""Train ImplicitGNN in a plain PyTorch loop: your own data, loss, optimiser and schedule.

    python examples/own_loop.py
    python examples/own_loop.py --dataset citeseer --data-root DATA --seed 1

Arguments are those of ``ignn train``, of which this loop reads: the dataset and ``data``, ``seed``,
``model``, ``forward.tolerance`` and ``forward.max_steps`` (of both solves), and of ``train`` the
learning rate, weight decay, epochs, label smoothing, and consistency with its samples and
temperature, so that it trains the model of a run with the loss of a run. All else is left out
without a word: ``forward.method`` (it is Anderson), ``forward.beta`` and all of ``adjoint``,
``schedule`` and ``solver``; ``train.loss`` (cross-entropy), ``train.ema``, ``train.patience``,
``train.eval_every`` (it is every epoch), ``train.dtype`` and whatever else ``train`` has; the
device, the number of processes, and ``output``, since nothing is written. Without any argument, the
generated graph ``chains`` is used, which takes a few seconds.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from distributed_ignn.config import RunConfig, decided, parse_args
from distributed_ignn.graph.data import CSRMatrix, GraphData
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.nn import ImplicitGNN

SMALL = ["--dataset", "chains", "--data.chains.length", "10", "--train.epochs", "20"]


def edge_index(graph: CSRMatrix) -> Tensor:
    """Edges [2, E] from source to target, as PyG has them."""
    return torch.stack([graph.col.long(), graph.rows()])


def features(data: GraphData) -> Tensor:
    """x [n, F], sparse where the dataset's is."""
    x = data.features
    if isinstance(x, CSRMatrix):
        value = torch.ones(x.num_entries) if x.value is None else x.value
        entries = torch.stack([x.rows(), x.col.long()])
        size = (x.num_rows, x.num_cols)
        return torch.sparse_coo_tensor(entries, value, size, check_invariants=True)
    if x is None:
        raise SystemExit("this example is about graphs with features")
    return x


def build(data: GraphData, config: RunConfig) -> ImplicitGNN:
    """The model, with the settings of the dataset's configuration."""
    settings = config.model.model_dump(exclude={"hidden"})
    return ImplicitGNN(
        data.num_features,
        config.model.hidden,
        data.num_classes,
        channels=len(data.graphs),
        solver="anderson",
        tolerance=config.forward.tolerance,
        max_steps=config.forward.max_steps,
        **settings,
    )


def consistency(logits: list[Tensor], temperature: float) -> Tensor:
    """How far predictions under different dropout are from their sharpened mean (GRAND)."""
    found = torch.stack(logits).softmax(dim=2)
    target = found.detach().mean(dim=0).pow(1.0 / temperature)
    target = target / target.sum(dim=1, keepdim=True)
    return (found - target).square().sum(dim=2).mean()


def loss_of(draws: list[Tensor], data: GraphData, config: RunConfig) -> Tensor:
    """Cross-entropy on the training nodes, and consistency on all where it is asked for."""
    rows, train = data.train_nodes, config.train
    labelled = [
        F.cross_entropy(
            logits[rows], data.labels[rows], label_smoothing=float(train.label_smoothing)
        )
        for logits in draws
    ]
    total = torch.stack(labelled).mean()
    weight = float(train.consistency)
    if weight > 0.0:
        total = total + weight * consistency(draws, train.consistency_temperature)
    return total


def accuracy(logits: Tensor, labels: Tensor, nodes: Tensor) -> float:
    """Share of ``nodes`` whose label is predicted."""
    return float((logits[nodes].argmax(dim=1) == labels[nodes]).double().mean())


def main(argv: list[str]) -> None:
    """Train, choose the epoch on validation nodes, and read the test nodes once."""
    config = parse_args(argv or SMALL)
    torch.manual_seed(config.seed)
    data = load_dataset(config.dataset, config.data_root, config.data)
    config = decided(config, data.train_nodes.numel(), data.num_classes)
    x, edges = features(data), [edge_index(graph) for graph in data.graphs]
    model = build(data, config)
    decay = float(config.train.weight_decay)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.train.lr, weight_decay=decay)
    best, test, samples = 0.0, 0.0, 1
    if float(config.train.consistency) > 0.0:
        samples = config.train.consistency_samples
    for epoch in range(1, config.train.epochs + 1):
        model.train()
        outputs = [model(x, edges) for _ in range(samples)]
        loss = loss_of([out.logits for out in outputs], data, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            logits = model(x, edges).logits
        val = accuracy(logits, data.labels, data.val_nodes)
        if val > best:
            best, test = val, accuracy(logits, data.labels, data.test_nodes)
        if epoch % 20 == 0:
            info = outputs[0].info
            print(
                f"epoch {epoch}  loss {float(loss.detach()):.4f}  val {val:.4f}  evaluations "
                f"{info.evaluations} + {info.adjoint_evaluations}"
            )
    print(f"best validation {best:.4f}, test there {test:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
