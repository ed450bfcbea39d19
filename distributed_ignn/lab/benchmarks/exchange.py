"""The halo exchange alone: bytes and time by codec, in one piece and part by part.

Baseline: fp32 rows. ``plain all_to_all`` sends the same rows ready packed: what the network itself
takes. The state changes from call to call, as in an iteration, so that a codec has a change to
write.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distributed_ignn.comm.codecs import CODECS
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload
from distributed_ignn.lab.benchmarks.interleaving import Report, compare, interleave
from distributed_ignn.lab.benchmarks.waiting import clock_figures, clocked
from distributed_ignn.lab.benchmarks.yardstick import PlainExchange, PlainLayout
from distributed_ignn.propagation.halo import HaloExchange, HaloLink

FP32, WIRE = "fp32", "plain all_to_all"
Task = Callable[[], object]


@torch.no_grad()
def run(workload: Workload) -> Report:
    """Measure on all ranks of the job; every rank calls it."""
    comm, shard = workload.comm, workload.shard
    torch.manual_seed(0)
    state = torch.rand(shard.num_owned, workload.width, device=comm.device)
    halo = HaloExchange.from_shard(shard, comm)
    tasks = {str(codec): exchange_task(halo, codec, state) for codec in CODECS}
    plain = PlainExchange(shard, comm, PlainLayout.ours(shard))
    packed = plain.pack(state)
    tasks[WIRE] = lambda: plain.send(packed)
    sizes = {name: float(sent_bytes(workload, task)) for name, task in tasks.items()}
    seconds = interleave(tasks, workload.rounds, comm)
    figures = compare(seconds, "seconds", FP32) + compare(sizes, "bytes", FP32)
    waits = {n: clocked(comm, task, workload.rounds) for n, task in tasks.items() if n != WIRE}
    figures += clock_figures(waits, FP32)
    return Report("exchange", workload.settings(), figures)


def exchange_task(halo: HaloExchange, codec: str, state: Tensor) -> Task:
    """Pack, send, wait and unpack; of ``state`` and of another one in turn."""
    link = HaloLink(halo, codec, transposed=False, stale=False)
    states = [state, state * 0.9]

    def exchange() -> object:
        states.reverse()
        link.send(states[0])
        return link.wait()

    return exchange


def sent_bytes(workload: Workload, task: Task) -> int:
    """What one call sends in exchanges, all ranks together."""
    task()  # a codec writes its first rows in another way
    before = workload.comm.traffic.snapshot()
    task()
    sent = workload.comm.traffic.since(before).exchange_bytes
    return int(workload.comm.sum(torch.tensor([sent])))
