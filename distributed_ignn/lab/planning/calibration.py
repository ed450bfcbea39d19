"""This machine as a hardware profile: probes with one rank, then with one for each core or GPU.

A rate of one rank alone and the sum over all ranks at once tell what cores share; a GPU's rates are
its own. The link is the loopback, or what NCCL finds between the GPUs, unless another one is given.
Links between boxes cannot be measured on one box; they are taken to be like the link measured here.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from distributed_ignn.config import CommConfig, DataConfig, PartitionConfig, SyntheticConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData, csr_from_entries
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning.metis import PROVIDERS, is_installed
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.storage.shard_file import write_shard_file
from distributed_ignn.lab.planning.hardware import (
    Curve,
    Fresh,
    Gather,
    GatherRows,
    Link,
    Point,
    Profile,
    Rate,
)
from distributed_ignn.lab.planning.probes import (
    GPU_SIZES,
    SIZES,
    WIDTHS,
    Measured,
    Sizes,
    measure,
)
from distributed_ignn.launchers.local import run_local
from distributed_ignn.launchers.this_rank import choose_device

_NODES = 2_449_029  # of the generated graph at scale 1
_SECONDS = 1800.0  # at most, for all probes
_UNWATCHED = CommConfig(hang_seconds=0.0)  # no thread beside what is measured
_CLUSTER = 2000  # nodes that lie together in the clustered order

Tell = Callable[[str], None]


def calibrate(
    name: str,
    tell: Tell,
    link: Link | None = None,
    sizes: Sizes | None = None,
    device: str = "cpu",
) -> Profile:
    """Measure this machine; a minute or two, best with nothing else running.

    Args:
        name: of the profile.
        tell: told what is being measured.
        link: between boxes, if it is known.
        sizes: of the arrays that are measured with; by default what suits the device.
        device: auto, cpu or cuda.

    Raises:
        UserError: there is no such device; or there is one GPU, so that no link can be measured,
            and none is given.
    """
    on_gpu = choose_device(device, 0).type == "cuda"
    sizes = sizes or (GPU_SIZES if on_gpu else SIZES)
    if on_gpu:
        return _of_gpus(name, tell, link, sizes)
    cores = len(os.sched_getaffinity(0))
    ranks = max(2, cores)
    with tempfile.TemporaryDirectory() as folder:
        tell("generating graphs")
        _write_graphs(Path(folder), sizes)
        tell("measuring one rank")
        alone = run_local(measure, 1, folder, sizes, timeout=_SECONDS)
        tell(f"measuring {ranks} ranks at once")
        together = run_local(measure, ranks, folder, sizes, comm=_UNWATCHED, timeout=_SECONDS)
    return _profile(name, (_mean(alone), _mean(together)), sizes, ranks, cores, link)


def _of_gpus(name: str, tell: Tell, link: Link | None, sizes: Sizes) -> Profile:
    """One rank alone, then one on each GPU, which is what counts; the link is that of NCCL."""
    ranks = torch.cuda.device_count()
    if ranks == 1 and link is None:
        raise UserError(
            "there is one GPU, and no link to others can be measured with it; give that of the "
            "machine with --network-gbit G, or measure the CPU with --device cpu"
        )
    with tempfile.TemporaryDirectory() as folder:
        tell("generating graphs")
        _write_graphs(Path(folder), sizes)
        tell(f"measuring {ranks} GPUs at once" if ranks > 1 else "measuring the GPU")
        settings = _UNWATCHED.model_copy(update={"backend": "nccl" if ranks > 1 else "auto"})
        found = run_local(
            measure, ranks, folder, sizes, device="cuda", comm=settings, timeout=_SECONDS
        )
    return _profile_of_gpus(name, _mean(found), sizes, ranks, link)


def _write_graphs(folder: Path, sizes: Sizes) -> None:
    """The generated graph at every size, its ids shuffled as they are, and in order of clusters."""
    for rows, _ in sizes:
        data = load_dataset(
            "synthetic-products",
            Path(),  # generated, nothing is read
            DataConfig(synthetic=SyntheticConfig(scale=rows / _NODES, features=1)),
        )
        for kind, found in (("scattered", data), ("clustered", _clustered(data))):
            (shard,) = build_shards(found, torch.zeros(found.num_nodes, dtype=torch.int64), 1)
            write_shard_file(folder / f"{kind}-{rows}", shard)


def _clustered(data: GraphData) -> GraphData:
    """The same graph with the nodes of a cluster side by side."""
    (graph,) = data.graphs
    clusters = max(2, data.num_nodes // _CLUSTER)
    part = assign_parts(data.graphs, clusters, _division()).part
    place = torch.empty_like(part)
    place[torch.argsort(part, stable=True)] = torch.arange(data.num_nodes)
    return replace(data, graphs=(_renamed(graph, place),))


def _division() -> PartitionConfig:
    """METIS where it is; what needs none elsewhere, whose clusters are nearly as good."""
    if any(is_installed(module) for module in PROVIDERS.values()):
        return PartitionConfig(objective="cut")
    return PartitionConfig(method="fennel")


def _renamed(graph: CSRMatrix, place: torch.Tensor) -> CSRMatrix:
    n = graph.num_rows
    return csr_from_entries(place[graph.rows()], place[graph.col], n, n)


def _mean(found: list[Measured]) -> Measured:
    """Over ranks: seconds and rates alike, since all of them measured at once."""
    return {key: statistics.mean(one[key] for one in found) for key in found[0]}


def _profile(
    name: str,
    found: tuple[Measured, Measured],
    sizes: Sizes,
    ranks: int,
    cores: int,
    link: Link | None,
) -> Profile:
    """From what one rank alone and all together were measured to reach on CPUs."""
    alone, together = found

    def rate(key: str) -> Rate:
        return Rate(rank=alone[key], box=together[key] * ranks)

    new = None
    if together["fresh"] > 0 and alone["fresh"] > 0:
        new = Fresh(threshold=together["fresh threshold"], rate=rate("fresh"))
    wire = Rate(rank=together["link"], box=together["link"] * ranks)
    return Profile(
        name=name,
        origin="measured",
        source=_source(ranks, cores),
        date=date.today().isoformat(),
        ranks_per_box=ranks,
        cores_per_box=cores,
        memory_bytes=_memory() / ranks,
        process_bytes=alone["process_bytes"],
        fresh=new,
        operation_seconds=alone["operation"],
        hidden=together["hidden"],
        **_rates(rate, sizes),
        **_links("loopback", wire, together, link),
    )


def _profile_of_gpus(
    name: str, found: Measured, sizes: Sizes, ranks: int, link: Link | None
) -> Profile:
    """From what the ranks reached, each on a GPU of its own."""
    about = torch.cuda.get_device_properties(0)
    links: dict[str, Any] = {}
    if link is not None:  # of the machine; a GPU alone has nobody to talk to inside
        links = {"inside": link, "networks": {"given": link}, "network": "given"}
    if ranks > 1:
        links = _links("between GPUs", Rate(rank=found["link"]), found, link)
    return Profile(
        name=name,
        origin="measured",
        source=(
            f"{ranks} x {about.name}, torch {torch.__version__}; ignn plan --calibrate, all GPUs "
            "at once, quartiles by events in their queues"
        ),
        date=date.today().isoformat(),
        ranks_per_box=ranks,
        memory_bytes=float(about.total_memory),
        process_bytes=found["process_bytes"],
        operation_seconds=found["operation"],
        hidden=found.get("hidden", 0.0),
        **_rates(lambda key: Rate(rank=found[key]), sizes),
        **links,
    )


def _links(name: str, wire: Rate, found: Measured, given: Link | None) -> dict[str, Any]:
    """The link that was measured, and the network."""
    measured = Link(
        rate=wire, message_seconds=found["message"], reduction_seconds=found["reduction"]
    )
    networks = {name: measured} if given is None else {"given": given}
    return {"inside": measured, "networks": networks, "network": next(iter(networks))}


def _rates(rate: Callable[[str], Rate], sizes: Sizes) -> dict[str, Any]:
    """What computes on arrays, by the names of a profile."""

    def curve(key: str) -> Curve:
        counts = [rows * width * 4 for rows, width in sizes]
        return Curve(points=tuple(Point(bytes=n, rate=rate(f"{key} {n}")) for n in counts))

    def gather(kind: str, width: int) -> Curve:
        points = [Point(bytes=n * width * 4, rate=rate(f"{kind} {n} {width}")) for n, _ in sizes]
        return Curve(points=tuple(points))

    largest = sizes[-1][0] * sizes[-1][1] * 4
    return {
        "stream": curve("stream"),
        "history": curve("history"),
        "gather": Gather(
            rows=tuple(
                GatherRows(
                    row_bytes=4 * width,
                    scattered=gather("scattered", width),
                    clustered=gather("clustered", width),
                )
                for width in WIDTHS
            )
        ),
        "dense": rate(f"dense {largest}"),
        "plain_dense": rate(f"plain_dense {largest}"),
        "masks": rate(f"masks {largest}"),
        "pack": rate("pack"),
        "scatter": rate("scatter"),
        "codec": rate("codec"),
    }


def _source(ranks: int, cores: int) -> str:
    cpu = _cpu_name() or platform.machine()
    return (
        f"{cpu}, {cores} cores, torch {torch.__version__}; medians of ignn plan --calibrate, "
        f"one rank alone and {ranks} ranks at once, one thread each, gloo over the loopback"
    )


def _cpu_name() -> str:
    """As /proc says it; empty where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def _memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def known_link(gigabits: float, message_seconds: float) -> Link:
    """A network that a box shares, from its line rate and latency.

    Args:
        gigabits: per second and box, each way.
        message_seconds: latency of a message; a reduction takes two of them per doubling.
    """
    total = gigabits * 1e9 / 8
    return Link(
        rate=Rate(rank=total, box=total),
        message_seconds=message_seconds,
        reduction_seconds=2 * message_seconds,
    )
