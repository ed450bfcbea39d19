"""One evaluation of the map: exchange, sparse product, dense product, ReLU.

Baselines: the plain way (``yardstick``) on rows in a plain user's order and in ours, one process
with the whole graph, and the copy limit. A profile says where the time goes: the same evaluation
with ranks that do not wait for each other's rows is its computation, and what the evaluation takes
beyond that is the exposed exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from distributed_ignn.benchmarks.bandwidth import COPY_LIMIT, ProductSize, copy_task
from distributed_ignn.benchmarks.report import Figure, Report, check_alike, compare, interleave
from distributed_ignn.benchmarks.silence import SilentCommunicator
from distributed_ignn.benchmarks.workload import Workload
from distributed_ignn.benchmarks.yardstick import PlainLayout, Yardstick
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.propagate import Propagation
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.cell import EquilibriumCell

YARDSTICK, OURS, ALONE = "plain torch, ascending ids", "ours", "one process"
_PLAIN_OURS = "plain torch, our order"
_COPY, _SILENT = "copy", "ours without the exchange"
_EXCHANGE, _REDUCTION, _DENSE = "exchange alone", "reduction alone", "dense product and ReLU"
_REDUCED = 8  # numbers that a step of Anderson with M = 5 sums over ranks, and a few more

Map = Callable[[], object]


class Evaluation:
    """The library's map at a fixed state, on one shard.

    Args:
        shard: a part of the graph.
        comm: whose rank the part belongs to.
        weights: W_c [D, D].
        bias, state: b and z [O, D].
    """

    def __init__(
        self,
        shard: GraphShard,
        comm: Communicator,
        weights: list[Tensor],
        bias: Tensor,
        state: Tensor,
    ) -> None:
        self._propagation = Propagation(shard, comm, state.dtype)
        self._cell = EquilibriumCell(self._propagation, weights, bias)
        self._state = state

    def __call__(self) -> Tensor:
        """f(z) [O, D]."""
        return self._cell(self._state, None)[0]

    def exchange(self) -> Tensor:
        """The halo rows [H, D], waited for."""
        return self._propagation.halo.start(self._state).wait()


@torch.no_grad()
def run(workload: Workload) -> Report:
    """Measure on all ranks of the job; every rank calls it."""
    comm, shard = workload.comm, workload.shard
    weights, bias, state = _numbers(workload, shard)
    plain = {
        YARDSTICK: Yardstick(shard, comm, weights, bias, PlainLayout.ascending(shard)),
        _PLAIN_OURS: Yardstick(shard, comm, weights, bias, PlainLayout.ours(shard)),
    }
    ours = Evaluation(shard, comm, weights, bias, state)
    variants: dict[str, Map] = {
        name: partial(yardstick, state[yardstick.rows]) for name, yardstick in plain.items()
    }
    variants[OURS] = ours
    results = {
        name: (torch.empty_like(state).index_copy_(0, yardstick.rows, yardstick(z)),)
        for name, yardstick in plain.items()
        for z in (state[yardstick.rows],)
    }
    check_alike({**results, OURS: (ours(),)}, comm)
    sent = comm.traffic.snapshot()
    ours()
    exchanged = comm.traffic.since(sent).exchange_bytes
    copy, copied = copy_task(comm)
    tasks = {**variants, **_pieces(workload, ours, weights, bias, state), _COPY: copy}
    if comm.world_size > 1 and workload.single:
        tasks[ALONE] = _alone(workload)
    seconds = interleave(tasks, workload.rounds, comm)
    bandwidth = copied / seconds[_COPY]
    figures = compare({n: seconds[n] for n in variants}, "seconds", YARDSTICK)
    if ALONE in seconds:
        figures += _efficiency(seconds, variants, comm)
    figures += _limit(workload, seconds, variants, bandwidth)
    figures += _profile(seconds, comm)
    settings = {
        **workload.settings(),
        "copy_bytes_per_second": bandwidth,
        "bytes_per_exchange": int(comm.sum(torch.tensor([exchanged]))),
    }
    return Report("iteration", settings, figures)


def _numbers(workload: Workload, shard: GraphShard) -> tuple[list[Tensor], Tensor, Tensor]:
    """W_c, b and z, the same weights on every rank."""
    torch.manual_seed(0)
    width, device = workload.width, workload.comm.device
    weights = [torch.randn(width, width, device=device) / width for _ in shard.channels]
    bias, state = (torch.rand(shard.num_owned, width, device=device) for _ in range(2))
    return weights, bias, state


def _alone(workload: Workload) -> Map:
    """The whole graph on the first rank, while the others wait."""
    if not workload.comm.is_main:
        return lambda: None
    whole = workload.whole()
    alone = Communicator(device=workload.comm.device)
    return Evaluation(whole, alone, *_numbers(workload, whole))


def _pieces(
    workload: Workload, ours: Evaluation, weights: list[Tensor], bias: Tensor, state: Tensor
) -> dict[str, Map]:
    """What an evaluation is made of, each alone."""
    comm = workload.comm
    silent = SilentCommunicator(comm)
    numbers = torch.ones(_REDUCED, dtype=torch.float64)

    def dense() -> Tensor:
        total = bias
        for weight in weights:
            total = torch.addmm(total, state, weight)
        return total.relu_()

    return {
        _SILENT: Evaluation(workload.shard, silent, weights, bias, state),
        _DENSE: dense,
        _EXCHANGE: ours.exchange,
        _REDUCTION: lambda: comm.sum(numbers.fill_(1.0)),
    }


def _efficiency(
    seconds: Mapping[str, float], variants: Mapping[str, Map], comm: Communicator
) -> tuple[Figure, ...]:
    """T1 / (P T_P): the time of one process over the busy time of all ranks."""
    ranks = comm.world_size
    busy = {f"{name}, {ranks} ranks": ranks * seconds[name] for name in variants}
    return compare({ALONE: seconds[ALONE], **busy}, "seconds x ranks", ALONE, "parallel efficiency")


def _limit(
    workload: Workload,
    seconds: Mapping[str, float],
    variants: Mapping[str, Map],
    bandwidth: float,
) -> tuple[Figure, ...]:
    """The products' bytes and three passes over [O, D] of the largest part, at copy speed.

    The passes: the product is read, b is read, and the result is written.
    """
    shard = workload.shard
    entries = [c.owned.num_entries + c.boundary.num_entries for c in shard.channels]
    moved = sum(
        ProductSize(
            shard.num_owned, shard.num_owned + shard.num_halo, count, workload.width
        ).ideal_bytes
        for count in entries
    )
    moved += 3 * shard.num_owned * workload.width * 4
    largest = int(workload.comm.max(torch.tensor([moved])))
    found = {name: seconds[name] for name in variants}
    return compare({COPY_LIMIT: largest / bandwidth, **found}, "seconds", COPY_LIMIT, "bytes")


def _profile(seconds: Mapping[str, float], comm: Communicator) -> tuple[Figure, ...]:
    """Parts of our evaluation; a ratio is how often a part fits into the whole."""
    parts = {
        OURS: seconds[OURS],
        "sparse product": max(seconds[_SILENT] - seconds[_DENSE], 0.0),
        _DENSE: seconds[_DENSE],
    }
    if comm.world_size > 1:
        parts |= {
            "exposed exchange": max(seconds[OURS] - seconds[_SILENT], 0.0),
            _EXCHANGE: seconds[_EXCHANGE],
            _REDUCTION: seconds[_REDUCTION],
        }
    return compare(parts, "seconds", OURS, "profile")
