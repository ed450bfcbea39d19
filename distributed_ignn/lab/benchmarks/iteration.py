"""One evaluation of the map: exchange, sparse product, dense product, ReLU.

Baselines: the plain way (``yardstick``) on rows in a plain user's order and in ours, one process
with the whole graph, and the copy limit. A profile says where the time goes: the same evaluation
with ranks that get zeros at once is its computation, and what the evaluation takes beyond that is
what the exchange adds, by waiting or by keeping the processor busy. The library's own clock shows
how long a rank waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from distributed_ignn.comm.codecs import CODECS
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.lab.benchmarks.bandwidth import COPY_LIMIT, ProductSize, copy_task
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload
from distributed_ignn.lab.benchmarks.exchange import sent_bytes
from distributed_ignn.lab.benchmarks.interleaving import (
    Figure,
    Report,
    check_alike,
    compare,
    interleave,
)
from distributed_ignn.lab.benchmarks.silence import SilentCommunicator
from distributed_ignn.lab.benchmarks.waiting import clock_figures, clocked
from distributed_ignn.lab.benchmarks.yardstick import PlainLayout, Yardstick
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.propagation.halo import HaloExchange, HaloLink
from distributed_ignn.propagation.propagate import Propagation, PropagationOptions
from distributed_ignn.solvers.dense import affine

YARDSTICK, OURS, ALONE = "plain torch, ascending ids", "ours", "one process"
_PLAIN_OURS = "plain torch, our order"
_COPY, _SILENT = "copy", "ours without the exchange"
_EXCHANGE, _REDUCTION, _DENSE = "exchange alone", "reduction alone", "dense product and ReLU"
_REDUCED = 8  # numbers that a step of Anderson with M = 5 sums over ranks, and a few more

Map = Callable[[], object]


class Evaluation:
    """The library's map, on one shard, with halo rows written one way or another.

    Args:
        propagation: of the shard; evaluations may share it.
        weights: W_c [D, D].
        bias, state: b and z [O, D]; every other call is at 0.9 z, so that there is a change.
        codec, stale: see ``HaloLink``.
    """

    def __init__(
        self,
        propagation: Propagation,
        weights: list[Tensor],
        bias: Tensor,
        state: Tensor,
        codec: str = "fp32",
        stale: bool = False,
    ) -> None:
        self._propagation = propagation
        self._link = HaloLink(propagation.halo, codec, transposed=False, stale=stale)
        propagation.link = self._link
        self._cell = EquilibriumCell(propagation, weights, bias)
        self._states = [state * 0.9, state]

    def __call__(self) -> Tensor:
        """f(z) [O, D]."""
        self._propagation.link = self._link
        self._states.reverse()
        return self._cell(self._states[0], None).image


#: Ways of ours by name: codec of the halo rows, and whether they may be one evaluation old.
WAYS: dict[str, tuple[str, bool]] = {
    OURS: ("fp32", False),
    **{f"{OURS}, {codec}": (codec, False) for codec in CODECS if codec != "fp32"},
    f"{OURS}, stale": ("fp32", True),
    f"{OURS}, int4, stale": ("int4", True),
}


@torch.no_grad()
def run(workload: Workload) -> Report:
    """Measure on all ranks of the job; every rank calls it."""
    comm, shard = workload.comm, workload.shard
    numbers = draw_numbers(workload, shard)
    propagation = propagation_of(workload, shard, comm)
    plain = {
        name: Yardstick(shard, comm, numbers.weights, numbers.bias, layout)
        for name, layout in (
            (YARDSTICK, PlainLayout.ascending(shard)),
            (_PLAIN_OURS, PlainLayout.ours(shard)),
        )
    }
    ways = WAYS if comm.world_size > 1 else {OURS: WAYS[OURS]}
    ours = {name: Evaluation(propagation, *numbers, *way) for name, way in ways.items()}
    check_alike({**_plain_results(plain, numbers.state), OURS: (ours[OURS](),)}, comm)
    variants: dict[str, Map] = {n: partial(y, numbers.state[y.rows]) for n, y in plain.items()}
    variants |= ours
    sizes = {name: float(sent_bytes(workload, variant)) for name, variant in variants.items()}
    copy, copied = copy_task(comm)
    tasks = {**variants, **_pieces(workload, numbers), _COPY: copy}
    if comm.world_size > 1 and workload.single:
        tasks[ALONE] = _alone(workload)
    seconds = interleave(tasks, workload.rounds, comm)
    bandwidth = copied / seconds[_COPY]
    figures = compare({n: seconds[n] for n in variants}, "seconds", YARDSTICK)
    figures += compare(sizes, "bytes", YARDSTICK)
    if ALONE in seconds:
        figures += _efficiency(seconds, variants, comm)
    figures += _limit(workload, seconds, variants, bandwidth)
    figures += _profile(workload, seconds)
    waits = {name: clocked(comm, way, workload.rounds) for name, way in ours.items()}
    figures += clock_figures(waits, OURS)
    settings = {
        **workload.settings(),
        "copy_bytes_per_second": bandwidth,
        "bytes_per_exchange": int(sizes[OURS]),
    }
    return Report("iteration", settings, figures)


def _plain_results(plain: Mapping[str, Yardstick], state: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Of one evaluation each, in our order."""
    return {
        name: (torch.empty_like(state).index_copy_(0, y.rows, y(state[y.rows])),)
        for name, y in plain.items()
    }


class Numbers(NamedTuple):
    """W_c [D, D], b and z [O, D]."""

    weights: list[Tensor]
    bias: Tensor
    state: Tensor


def draw_numbers(
    workload: Workload, shard: GraphShard, dtype: torch.dtype = torch.float32
) -> Numbers:
    """W_c, b and z of ``dtype``, the same weights on every rank."""
    torch.manual_seed(0)
    width, device = workload.width, workload.comm.device
    weights = [torch.randn(width, width, device=device) / width for _ in shard.channels]
    bias, state = (torch.rand(shard.num_owned, width, device=device) for _ in range(2))
    return Numbers([weight.to(dtype) for weight in weights], bias.to(dtype), state.to(dtype))


def propagation_of(
    workload: Workload,
    shard: GraphShard,
    comm: Communicator,
    dtype: torch.dtype = torch.float32,
) -> Propagation:
    """Of a shard, with the settings' kernel, for states of ``dtype``."""
    options = PropagationOptions(workload.config.train.kernel)
    return Propagation(shard, comm, dtype, options)


def _alone(workload: Workload) -> Map:
    """The whole graph on the first rank, while the others wait."""
    if not workload.comm.is_main:
        return lambda: None
    whole = workload.whole()
    numbers = draw_numbers(workload, whole)
    alone = Communicator(device=workload.comm.device)
    return Evaluation(propagation_of(workload, whole, alone), *numbers)


def _pieces(workload: Workload, numbers: Numbers) -> dict[str, Map]:
    """What an evaluation is made of, each alone."""
    comm, shard = workload.comm, workload.shard
    weights, bias, state = numbers
    silent = propagation_of(workload, shard, SilentCommunicator(comm))
    halo = HaloExchange.from_shard(shard, comm)
    summed = torch.ones(_REDUCED, dtype=torch.float64)

    def dense() -> Tensor:
        total = bias
        for weight in weights:
            total = affine(state, weight, total)
        return total.clamp_min_(0.0)

    return {
        _SILENT: Evaluation(silent, *numbers),
        _DENSE: dense,
        _EXCHANGE: lambda: halo.start(state).wait(),
        _REDUCTION: lambda: comm.sum(summed.fill_(1.0)),
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
    """The bytes of an evaluation of the largest part, at copy speed."""
    moved = torch.tensor([ideal_bytes(workload.shard, workload.width)])
    largest = int(workload.comm.max(moved))
    found = {name: seconds[name] for name in variants}
    return compare({COPY_LIMIT: largest / bandwidth, **found}, "seconds", COPY_LIMIT, "bytes")


def ideal_bytes(shard: GraphShard, width: int, item: int = 4) -> int:
    """The products' bytes and three passes over [O, D], with ``item`` bytes for a number.

    The passes: the product is read, b is read, and the result is written.
    """
    rows, halo = shard.num_owned, shard.num_halo
    entries = [c.owned.num_entries + c.boundary.num_entries for c in shard.channels]
    sizes = [ProductSize(rows, rows + halo, count, width, item) for count in entries]
    return sum(size.ideal_bytes for size in sizes) + 3 * rows * width * item


def _profile(workload: Workload, seconds: Mapping[str, float]) -> tuple[Figure, ...]:
    """Parts of our evaluation; a ratio is how often a part fits into the whole."""
    parts = {
        OURS: seconds[OURS],
        "sparse product": max(seconds[_SILENT] - seconds[_DENSE], 0.0),
        _DENSE: seconds[_DENSE],
    }
    if workload.comm.world_size > 1:
        parts |= {
            "what the exchange adds": max(seconds[OURS] - seconds[_SILENT], 0.0),
            _EXCHANGE: seconds[_EXCHANGE],
            _REDUCTION: seconds[_REDUCTION],
        }
    return compare(parts, "seconds", OURS, "profile")
