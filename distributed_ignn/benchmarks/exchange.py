"""The halo exchange alone: bytes and time by codec, in one piece and part by part.

Baseline: fp32 rows. ``plain all_to_all`` sends the same rows ready packed: what the network itself
takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.benchmarks.report import Report, compare, interleave
from distributed_ignn.benchmarks.workload import Workload
from distributed_ignn.benchmarks.yardstick import PlainExchange, PlainLayout
from distributed_ignn.graph.halo import HaloExchange

FP32, WIRE = "fp32", "plain all_to_all"


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One way to exchange.

    Args:
        whole: pack, send, wait and unpack.
        parts: the same, part by part, each repeatable alone.
    """

    whole: Callable[[], object]
    parts: Mapping[str, Callable[[], object]]


def _fp32(workload: Workload, state: Tensor) -> Variant:
    halo = HaloExchange.from_shard(workload.shard, workload.comm)
    packed = state.index_select(0, halo.send_index)
    counts = halo.send_counts, halo.recv_counts
    return Variant(
        lambda: halo.start(state).wait(),
        {
            "pack": lambda: state.index_select(0, halo.send_index),
            "send": lambda: workload.comm.start_exchange(packed, *counts).wait(),
        },
    )


def _wire(workload: Workload, state: Tensor) -> Variant:
    plain = PlainExchange(workload.shard, workload.comm, PlainLayout.ours(workload.shard))
    packed = plain.pack(state)
    return Variant(lambda: plain.send(packed), {})


#: By name; a codec is one more line.
VARIANTS: dict[str, Callable[[Workload, Tensor], Variant]] = {FP32: _fp32, WIRE: _wire}


@torch.no_grad()
def run(workload: Workload) -> Report:
    """Measure on all ranks of the job; every rank calls it."""
    comm, shard = workload.comm, workload.shard
    torch.manual_seed(0)
    state = torch.rand(shard.num_owned, workload.width, device=comm.device)
    variants = {name: build(workload, state) for name, build in VARIANTS.items()}
    sizes = {name: float(_bytes(workload, variant)) for name, variant in variants.items()}
    tasks = {name: variant.whole for name, variant in variants.items()}
    parts = {
        f"{name}: {part}": task
        for name, variant in variants.items()
        for part, task in variant.parts.items()
    }
    seconds = interleave(tasks | parts, workload.rounds, comm)
    figures = compare({n: seconds[n] for n in variants}, "seconds", FP32)
    figures += compare(sizes, "bytes", FP32)
    figures += compare({n: seconds[n] for n in (FP32, *parts)}, "seconds", FP32, "parts")
    return Report("exchange", workload.settings(), figures)


def _bytes(workload: Workload, variant: Variant) -> int:
    """What one exchange sends, all ranks together."""
    before = workload.comm.traffic.snapshot()
    variant.whole()
    sent = workload.comm.traffic.since(before).exchange_bytes
    return int(workload.comm.sum(torch.tensor([sent])))
