"""The ranks of a trial on a Ray cluster: processes that Tune keeps, and that train as one job."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from distributed_ignn.lab.studies.search.rung import Rung, train_rung
from distributed_ignn.launchers.this_rank import on_this_rank


class Ranks:
    """The ranks of the trials of one place: this process, and others that it starts beside.

    Args:
        path: where they find the package.
        count: how many there are.
        each: what each takes of the cluster.
    """

    def __init__(self, path: str, count: int, each: Mapping[str, float]) -> None:
        import ray

        own = ray.get_runtime_context().get_node_id()
        others = [_start_rank(path, index, each) for index in range(1, count)]
        nodes = ray.get([other.node.remote() for other in others])
        # ranks of one machine stand together, those of this one first
        order = sorted(range(len(others)), key=lambda i: (nodes[i] != own, nodes[i], i))
        self._others = [others[i] for i in order]
        self._nodes = [own, *(nodes[i] for i in order)]
        self._share_gpus()

    def _share_gpus(self) -> None:
        """Let the ranks of one machine see all GPUs of each other, as ranks of torchrun do."""
        import ray

        seen = [_own_gpus(), *ray.get([other.gpus.remote() for other in self._others])]
        beside: dict[str, set[str]] = {}
        for node, gpus in zip(self._nodes, seen, strict=True):
            beside.setdefault(node, set()).update(gpus)
        names = [",".join(sorted(beside[node])) for node in self._nodes]
        _see(names[0])
        ray.get([o.see.remote(gpus) for o, gpus in zip(self._others, names[1:], strict=True)])

    def train(self, text: str) -> dict[str, Any]:
        """Train the rung that a JSON text describes; what ``train_rung`` returns."""
        import ray

        places = self._places()
        others = [
            other.train.remote(place, text)
            for other, place in zip(self._others, places[1:], strict=True)
        ]
        found = train_as_rank(places[0], text)
        ray.get(others)
        return found

    def _places(self) -> list[dict[str, str]]:
        """The environment of each rank, as torchrun would set it; empty for a single one."""
        if not self._others:
            return [{}]
        import ray.util

        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        common = {
            "WORLD_SIZE": str(len(self._nodes)),
            "MASTER_ADDR": ray.util.get_node_ip_address(),
            "MASTER_PORT": str(port),
        }
        return [common | _place(self._nodes, rank) for rank in range(len(self._nodes))]


def _place(nodes: Sequence[str], rank: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(nodes[:rank].count(nodes[rank])),
        "LOCAL_WORLD_SIZE": str(nodes.count(nodes[rank])),
    }


def _start_rank(path: str, index: int, each: Mapping[str, float]) -> Any:
    """A process for another rank, in the place that Tune keeps for it."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    class Rank:
        def __init__(self) -> None:
            import sys

            sys.path[:0] = path.split(":")

        def node(self) -> str:
            found: str = ray.get_runtime_context().get_node_id()
            return found

        def gpus(self) -> list[str]:
            from distributed_ignn.lab.studies.search import ray_ranks

            return ray_ranks._own_gpus()

        def see(self, gpus: str) -> None:
            from distributed_ignn.lab.studies.search import ray_ranks

            ray_ranks._see(gpus)

        def train(self, place: dict[str, str], text: str) -> None:
            from distributed_ignn.lab.studies.search.ray_ranks import train_as_rank

            train_as_rank(place, text)

    group: Any = ray.util.get_current_placement_group()
    where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    options = {"num_cpus": each["CPU"], "num_gpus": each.get("GPU", 0)}
    return ray.remote(Rank).options(scheduling_strategy=where, **options).remote()


def _own_gpus() -> list[str]:
    import ray

    return [str(gpu) for gpu in ray.get_gpu_ids()]


def _see(gpus: str) -> None:
    """Before torch has looked for any."""
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus


def train_as_rank(place: Mapping[str, str], text: str) -> dict[str, Any]:
    """Train a rung as one rank.

    Args:
        place: the environment that makes this process a rank.
        text: the rung as JSON.
    """
    rung = Rung.from_json(json.loads(text))
    with _in_place(place):
        return on_this_rank(partial(train_rung, rung=rung), rung.run.device, rung.run.comm)


@contextmanager
def _in_place(place: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= place
    try:
        yield
    finally:
        for name in place:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
