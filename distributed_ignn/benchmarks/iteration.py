"""One evaluation of the map: exchange, sparse product, dense product, ReLU.

Baseline ``yardstick``: what a careful user would write with torch alone. index_select of the rows
to send, all_to_all_single, concatenation with the own rows, one CSR product over all local columns
(64-bit indices, torch's default), dense product, ReLU; nothing overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distributed_ignn.benchmarks.report import Report, compare, interleave
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import DataConfig, PartitionConfig, SyntheticConfig
from distributed_ignn.graph.data import CSRMatrix, GraphData
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.halo import HaloExchange
from distributed_ignn.graph.partition import assign_parts
from distributed_ignn.graph.propagate import Propagation, normalised_blocks
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.sharding import build_shard
from distributed_ignn.models.cell import EquilibriumCell


@dataclass(frozen=True, slots=True)
class IterationOptions:
    """What is measured.

    Args:
        scale: of the synthetic graph; 1 is ogbn-products' size.
        width: D.
        rounds: interleaved rounds; the median counts.
    """

    scale: float = 0.01
    width: int = 128
    rounds: int = 15


class Yardstick:
    """The baseline described above, on one shard."""

    def __init__(self, shard: GraphShard, comm: Communicator, weight: Tensor, bias: Tensor) -> None:
        self._halo = HaloExchange.from_shard(shard, comm)
        self._weight, self._bias = weight, bias
        self._matrix = _local_matrix(shard).to(comm.device)

    def __call__(self, z: Tensor) -> Tensor:
        """relu(A_hat z W + b) for owned rows z [O, D]."""
        arrived = self._halo.start(z).wait()
        product = self._matrix @ torch.cat([z, arrived])
        return torch.relu(product @ self._weight + self._bias)


def _local_matrix(shard: GraphShard) -> Tensor:
    """All local rows [O, O + H] of channel 0 as one torch CSR matrix with 64-bit indices."""
    owned, boundary = normalised_blocks(shard.channels[0])
    rows = torch.cat([owned.rows(), boundary.rows() + shard.num_interior])
    cols = torch.cat([owned.col, boundary.col + shard.num_owned])
    values = torch.cat([_values(owned), _values(boundary)]).float()
    shape = (shard.num_owned, shard.num_owned + shard.num_halo)
    return torch.sparse_coo_tensor(
        torch.stack([rows, cols]), values, shape, check_invariants=False
    ).to_sparse_csr()


def _values(matrix: CSRMatrix) -> Tensor:
    if matrix.value is None:
        raise ValueError("a normalised block has values")
    return matrix.value


def run(options: IterationOptions, comm: Communicator) -> Report:
    """Measure on all ranks of the job; every rank calls it."""
    data = load_dataset(
        "synthetic-products",
        Path(),  # generated, nothing is read
        DataConfig(synthetic=SyntheticConfig(scale=options.scale)),
    )
    assignment = assign_parts(data.graphs, comm.world_size, PartitionConfig(objective="cut"))
    shard = build_shard(data, assignment.plan, comm.rank)
    torch.manual_seed(0)
    weight = torch.randn(options.width, options.width, device=comm.device) / options.width
    bias = torch.randn(shard.num_owned, options.width, device=comm.device)
    cell = EquilibriumCell(Propagation(shard, comm, torch.float32), [weight], bias)
    yardstick = Yardstick(shard, comm, weight, bias)
    z = torch.rand(shard.num_owned, options.width, device=comm.device)
    difference = comm.max((cell(z, None)[0] - yardstick(z)).abs().max().reshape(1).cpu())
    if float(difference) > 1e-4:
        raise RuntimeError(f"the variants differ by {float(difference)}")
    seconds = interleave(
        {"yardstick": lambda: yardstick(z), "overlapped": lambda: cell(z, None)},
        options.rounds,
        comm,
    )
    figures = compare(seconds, "seconds", "yardstick")
    if comm.world_size > 1:
        time_alone = _time_of_one_process(data, weight, options, comm) if comm.is_main else 0.0
        time_alone = float(comm.max(torch.tensor([time_alone], dtype=torch.float64)))
        busy = {
            "one process": time_alone,
            f"{comm.world_size} ranks": comm.world_size * seconds["overlapped"],
        }
        figures += compare(busy, "seconds x ranks", "one process", "parallel efficiency")
    entries = data.graphs[0].num_entries
    settings = {
        "nodes": data.num_nodes,
        "entries": entries,
        "width": options.width,
        "ranks": comm.world_size,
        "threads": torch.get_num_threads(),
        "device": comm.device.type,
        "halo_rows": assignment.stats.halo_rows,
        "bytes_per_exchange": assignment.stats.halo_rows * options.width * 4,
    }
    return Report("iteration", settings, figures)


def _time_of_one_process(
    data: GraphData, weight: Tensor, options: IterationOptions, comm: Communicator
) -> float:
    """Seconds of one evaluation on the whole graph, on this rank while the others wait."""
    alone = Communicator(device=comm.device)
    whole = build_shard(data, assign_parts(data.graphs, 1, PartitionConfig()).plan, 0)
    cell = EquilibriumCell(
        Propagation(whole, alone, torch.float32),
        [weight],
        torch.zeros(whole.num_owned, options.width, device=alone.device),
    )
    z = torch.rand(whole.num_owned, options.width, device=alone.device)
    return interleave({"one": lambda: cell(z, None)}, options.rounds, alone)["one"]
