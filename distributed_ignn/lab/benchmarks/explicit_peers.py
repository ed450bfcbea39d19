"""Explicit networks as peers: PyTorch Geometric's GCN and GraphSAGE, on the ranks of the job.

Trained on the full graph they are exact on every number of ranks (``models/explicit``). Trained on
samples, by PyTorch Geometric's own loaders, every rank holds the whole graph, takes its share of
every batch, and the gradients are summed. Validation is exact on the full graph for all of them.

Letters: n nodes, O owned nodes, F features, C classes, B nodes of a batch that carry loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, functional

from distributed_ignn.comm.apart import apart
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import PartitionConfig
from distributed_ignn.distributed_graph import DistributedGraph
from distributed_ignn.graph.data import csr_from_edges
from distributed_ignn.graph.partitioning.metis import choose_provider, run_metis
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload
from distributed_ignn.lab.benchmarks.courses import Effort, timed
from distributed_ignn.training.losses.objective import Objective

# torch_geometric.nn is imported where it is used: it makes tensors, and then it is too late for a
# command to ask for huge pages (``use_huge_pages``)

LAYERS = 3
FAN_OUT = (15, 10, 5)
"""Neighbours that are sampled of a node, layer by layer."""

BATCH = 1024
"""Training nodes in a batch, of all ranks."""

CLUSTER_NODES, CLUSTERS = 160, 32
"""Nodes of a cluster and clusters of a batch, as for ogbn-products (Chiang et al. 2019)."""

Batches = Callable[[int], Iterable[Any]]
"""Batches of this rank in an epoch, as many on every rank."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is built and stepped; width, dropout and weight decay are the settings'.

    Args:
        network: name of the class in ``torch_geometric.nn``.
        lr: learning rate of Adam.
    """

    network: str
    lr: float

    def build(self, workload: Workload, graph: DistributedGraph) -> Module:
        """A network of ``LAYERS`` layers, the same on every rank."""
        import torch_geometric.nn

        config = workload.config
        torch.manual_seed(config.seed)
        network: type[Module] = getattr(torch_geometric.nn, self.network)
        built = network(
            graph.num_features, workload.width, LAYERS, graph.num_classes, config.model.dropout
        )
        return built.to(workload.comm.device)

    def optimiser(self, module: Module, workload: Workload) -> torch.optim.Optimizer:
        """Adam."""
        decay = float(workload.config.train.weight_decay)
        return torch.optim.Adam(module.parameters(), self.lr, weight_decay=decay)


class _Judge:
    """A network on the full graph, exact on every number of ranks; keeps the best weights.

    Args:
        module: built, not yet bound to the graph.
        graph: this rank's part.
        workload: of the benchmark.
    """

    def __init__(self, module: Module, graph: DistributedGraph, workload: Workload) -> None:
        from distributed_ignn.models.explicit.exact import exact

        train = workload.config.train
        self.graph = graph
        self.network = exact(module, graph, seed=workload.config.seed)
        smoothing = float(train.label_smoothing)
        self.objective = Objective(graph.shard, graph.comm, train.loss, smoothing)
        self._best = -1.0
        self._weights: dict[str, Tensor] = {}

    def logits(self) -> Tensor:
        """[O, C]; every rank calls it."""
        found: Tensor = self.network(self.graph.x, self.graph.edge_index)
        return found

    @torch.no_grad()
    def measure(self, split: str) -> float:
        """The metric of a split; every rank calls it."""
        self.network.eval()
        return self.objective.metrics(self.logits(), (split,))[split]

    def validate(self) -> float:
        """See ``Contender``."""
        val = self.measure("val")
        if val > self._best:
            self._best = val
            self._weights = {k: v.clone() for k, v in self.network.state_dict().items()}
        return val

    def test(self) -> float:
        """See ``Contender``."""
        self.network.load_state_dict(self._weights)
        return self.measure("test")


class FullBatch:
    """One exact step on the full graph in every epoch.

    Args:
        recipe: of the network.
        workload: of the benchmark.
    """

    def __init__(self, recipe: Recipe, workload: Workload) -> None:
        graph = DistributedGraph(workload.shard, workload.comm, torch.float32)
        self._comm = workload.comm
        self._judge = _Judge(recipe.build(workload, graph), graph, workload)
        self._optimiser = recipe.optimiser(self._judge.network, workload)
        self._passes = _passes(recipe.network) / workload.comm.world_size
        self.validate, self.test = self._judge.validate, self._judge.test

    def epoch(self) -> Effort:
        """See ``Contender``."""
        return timed(self._comm, self._step)

    def _step(self) -> float:
        judge = self._judge
        judge.network.train()
        self._optimiser.zero_grad()
        judge.objective.loss(judge.logits()).backward()
        judge.graph.sum_gradients(judge.network)
        self._optimiser.step()
        return self._passes


class Sampled:
    """A step on every batch of a loader.

    Args:
        recipe: of the network.
        workload: of the benchmark.
        whole: the whole graph in this process.
        batches: of this rank.
    """

    def __init__(
        self, recipe: Recipe, workload: Workload, whole: DistributedGraph, batches: Batches
    ) -> None:
        self._comm, self._batches, self._epoch = workload.comm, batches, 0
        self._several = workload.shard.task == "multilabel"
        self._entries = max(1, whole.edge_index.shape[1])
        # validation reads the same network on the ranks' parts
        self._parts = DistributedGraph(workload.shard, workload.comm, torch.float32)
        self._network = recipe.build(workload, whole)
        self._judge = _Judge(recipe.build(workload, whole), self._parts, workload)
        self._optimiser = recipe.optimiser(self._network, workload)
        self._passes = _passes(recipe.network)
        self.test = self._judge.test

    def validate(self) -> float:
        """See ``Contender``."""
        self._judge.network.load_state_dict(self._network.state_dict())
        return self._judge.validate()

    def epoch(self) -> Effort:
        """See ``Contender``."""
        self._epoch += 1
        return timed(self._comm, self._pass)

    def _pass(self) -> float:
        self._network.train()
        edges = sum(self._step(batch) for batch in self._batches(self._epoch))
        return self._passes * edges / self._entries

    def _step(self, batch: Any) -> int:
        """One step on this rank's share of a batch; the number of its edges."""
        self._optimiser.zero_grad()
        losses = self._losses(batch.to(self._comm.device))
        count = float(self._comm.sum(torch.tensor([losses.numel()])))
        if count > 0.0:
            (losses.sum() / count).backward()
            self._parts.sum_gradients(self._network)
            self._optimiser.step()
        return int(batch.edge_index.shape[1])

    def _losses(self, batch: Any) -> Tensor:
        """Of the training nodes in a batch, [B], or [B, C] where nodes have several labels."""
        logits = self._network(batch.x, batch.edge_index)[batch.carries]
        labels = batch.y[batch.carries]
        if self._several:
            target = labels.to(logits)
            return functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return functional.cross_entropy(logits, labels, reduction="none")


def _passes(network: str) -> float:
    """Passes over the entries of a graph, forward and backward.

    GraphSAGE sums features before it multiplies, so the first layer's sum has no backward pass.
    """
    return 2.0 * LAYERS - (network == "GraphSAGE")


def whole_graph(workload: Workload) -> DistributedGraph:
    """The graph as one part, in this process's main memory; every rank has its own copy."""
    return DistributedGraph(workload.whole(), Communicator(), torch.float32)


def missing_sampler() -> str | None:
    """One line that says why no neighbours can be sampled; None where they can."""
    import torch_geometric.typing as installed

    if installed.WITH_PYG_LIB or installed.WITH_TORCH_SPARSE:
        return None
    return (
        "sampled GraphSAGE is left out: NeighborLoader needs pyg-lib or torch-sparse (pip install "
        "--no-build-isolation torch-scatter torch-sparse builds the latter)"
    )


def sampled_batches(workload: Workload, whole: DistributedGraph) -> Batches:
    """PyTorch Geometric's NeighborLoader."""
    from torch_geometric.loader import NeighborLoader

    sampler = _share(range(whole.train_index.numel()), workload)
    with warnings.catch_warnings():
        # it announces that torch-sparse will not do for ever
        warnings.filterwarnings("ignore", ".*'pyg-lib' installation is deprecated", UserWarning)
        loader = NeighborLoader(
            _data(whole),
            list(FAN_OUT),
            input_nodes=whole.train_index,
            batch_size=max(1, BATCH // workload.comm.world_size),
            sampler=sampler,
        )

    def batches(epoch: int) -> Iterable[Any]:
        sampler.set_epoch(epoch)
        for batch in loader:
            batch.carries = torch.arange(batch.batch_size)
            yield batch

    return batches


def cluster_batches(workload: Workload, whole: DistributedGraph) -> Batches:
    """PyTorch Geometric's ClusterLoader, on clusters that are found as parts of a graph are."""
    from torch_geometric.loader import ClusterData, ClusterLoader

    count = min(max(2, whole.num_nodes // CLUSTER_NODES), whole.num_nodes)
    found = _clusters(workload, whole, count)

    class Clusters(ClusterData):
        """Takes clusters that are there, where its own METIS needs another library."""

        def _metis(self, edge_index: Tensor, num_nodes: int) -> Tensor:
            return found

    data = _data(whole)
    data.training = torch.zeros(whole.num_nodes, dtype=torch.bool)
    data.training[whole.train_index] = True
    sampler = _share(range(count), workload)
    size = max(1, CLUSTERS // workload.comm.world_size)
    loader = ClusterLoader(Clusters(data, count, log=False), batch_size=size, sampler=sampler)

    def batches(epoch: int) -> Iterable[Any]:
        sampler.set_epoch(epoch)
        for batch in loader:
            batch.carries = batch.training.nonzero()[:, 0]
            yield batch

    return batches


def _clusters(workload: Workload, whole: DistributedGraph, count: int) -> Tensor:
    """The cluster of every node by METIS, int64 [n]; the first rank finds them for all."""
    comm, size = workload.comm, whole.num_nodes
    settings = PartitionConfig(objective="cut", seed=workload.config.partition.seed)

    def divide() -> Tensor:
        source, target = whole.edge_index
        graph = csr_from_edges(source, target, size)
        load = torch.ones(size, dtype=torch.int64)
        return run_metis(choose_provider(settings), graph, count, load, settings)

    found = apart(comm, divide, works=comm.is_main)
    return comm.sum(torch.zeros(size, dtype=torch.int64) if found is None else found)


def _share(items: Any, workload: Workload) -> Any:
    """Draws this rank's items of every epoch, as many on every rank; all alike by the seed."""
    from torch.utils.data import DistributedSampler

    comm = workload.comm
    return DistributedSampler(
        items, comm.world_size, comm.rank, shuffle=True, seed=workload.config.seed
    )


def _data(whole: DistributedGraph) -> Any:
    """The graph as PyTorch Geometric has it, in main memory."""
    from torch_geometric.data import Data

    return Data(x=whole.x, y=whole.y, edge_index=whole.edge_index, num_nodes=whole.num_nodes)
