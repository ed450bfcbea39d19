"""Halo exchanges: bytes per second by codec, and what an exchange adds to an evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from distributed_ignn.comm.codecs import CODECS
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks import exchange
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload
from distributed_ignn.lab.benchmarks.interleaving import interleave
from distributed_ignn.lab.benchmarks.iteration import Evaluation, draw_numbers, propagation_of
from distributed_ignn.lab.benchmarks.silence import SilentCommunicator
from distributed_ignn.propagation.propagate import choose_codec
from tests.gpu.prepared_graphs import Preparation, open_graph
from tests.gpu.setting import Budget, Setting
from tests.gpu.verdicts import Check, judge, measured

_SLOWEST_CHOICE = 1.25  # of the fastest codec's time: what comm.halo auto may take


def look(budget: Budget, graphs: Preparation) -> Iterator[Check]:
    """Between two ranks, and between all."""
    setting = budget.setting
    for ranks in [count for count in setting.worlds() if count > 1]:
        graphs.wait(setting.sizes.links, ranks, budget.left())
        found = budget.ranks(exchanges, ranks)[0]
        where = f"{ranks} ranks, {setting.backend(ranks)}"
        for codec, (rate, seconds) in found["rates"].items():
            note = f"{seconds * 1e6:,.0f} us"
            yield measured(f"{where}, {codec}: fp32 rows sent by a rank", rate / 1e9, "GB/s", note)
        for codec, seconds in found["added"].items():
            share = seconds / found["alone"]
            note = f"{seconds * 1e6:,.0f} us of an evaluation of {found['alone'] * 1e6:,.0f} us"
            yield measured(f"{where}, {codec}: added by the exchange", share, "%", note)
        times = {c: found["alone"] + s for c, s in found["added"].items()}
        chosen = found["chosen"]
        yield judge(
            f"{where}: comm.halo auto against the fastest codec",
            times[chosen] / min(times.values()),
            "",
            _SLOWEST_CHOICE,
            least=False,
            counts=setting.counts(ranks),
            note=f"auto takes {chosen}",
        )


@torch.no_grad()
def exchanges(comm: Communicator, setting: Setting) -> dict[str, object]:
    """Rates by codec, of fp32 bytes whatever is sent, and seconds that an evaluation takes more."""
    scale = setting.sizes.links
    width = str(setting.sizes.judged)
    with open_graph(comm, setting, scale, "--model.hidden", width) as workload:
        report = exchange.run(workload)
        seconds = {f.name: f.value for f in report.figures if f.unit == "seconds" and not f.section}
        sent = next(f.value for f in report.figures if f.unit == "bytes" and f.name == "fp32")
        rates = {name: (sent / comm.world_size / value, value) for name, value in seconds.items()}
        return {
            "rates": rates,
            "chosen": choose_codec("auto", comm),
            **_added(workload),
        }


def _added(workload: Workload) -> dict[str, object]:
    """An evaluation with ranks that answer at once, and what each codec takes beyond it."""
    comm, shard = workload.comm, workload.shard
    numbers = draw_numbers(workload, shard)
    silent = propagation_of(workload, shard, SilentCommunicator(comm))
    propagation = propagation_of(workload, shard, comm)
    tasks = {"alone": Evaluation(silent, *numbers)}
    tasks |= {str(codec): Evaluation(propagation, *numbers, codec) for codec in CODECS}
    seconds = interleave(tasks, workload.rounds, comm)
    alone = seconds.pop("alone")
    return {"alone": alone, "added": {c: max(0.0, s - alone) for c, s in seconds.items()}}
