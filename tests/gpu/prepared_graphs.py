"""The graphs of ``make gpu``, generated and divided beside the first checks.

One process per scale, ``python -m tests.gpu.prepared_graphs SETTING SCALE PARTS...``; whoever needs
a graph waits for its manifest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.graph.storage.shard_store import MANIFEST
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload, open_workload, prepare
from tests.gpu.setting import SIZES, Setting

_FEW_CORES = 8
_POLL_SECONDS = 0.2


def folder_of(setting: Setting, scale: float) -> Path:
    """Of the divided graph of one scale; the shards of N parts lie in its folder N."""
    return Path(setting.folder) / f"{scale:g}"


def open_graph(
    comm: Communicator,
    setting: Setting,
    scale: float,
    *flags: str,
    rounds: int | None = None,
    methods: Sequence[str] = (),
) -> AbstractContextManager[Workload]:
    """The graph of one scale on all ranks, once it has been divided; every rank calls it.

    Args:
        flags: settings of the run that measures.
        rounds: of a measurement; those of the setting by default.
        methods: see ``Workload``.
    """
    return open_workload(
        setting.config(scale, *flags),
        comm,
        rounds=rounds or setting.sizes.rounds,
        shards=folder_of(setting, scale),
        single=False,
        methods=methods,
    )


class Preparation:
    """The processes that generate and divide the graphs.

    Args:
        setting: whose folder they write to.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        scales = setting.sizes.scales
        side_by_side = len(os.sched_getaffinity(0)) >= _FEW_CORES
        groups = [[scale] for scale in scales] if side_by_side else [list(scales)]
        self._running = {tuple(group): self._start(group) for group in groups}

    def _start(self, scales: Sequence[float]) -> subprocess.Popen[bytes]:
        setting = self._setting
        name = next(name for name, sizes in SIZES.items() if sizes == setting.sizes)
        arguments = json.dumps(asdict(setting) | {"sizes": name}), *map(str, scales)
        log = (Path(self._setting.folder) / f"prepare-{scales[0]:g}.log").open("wb")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", __name__, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, scale: float, parts: int, seconds: float) -> Path:
        """The folder of a graph once it is divided into ``parts``.

        Raises:
            UserError: it is not there in time, or whoever makes it has failed.
        """
        folder = folder_of(self._setting, scale)
        deadline = time.monotonic() + seconds
        process = next(p for scales, p in self._running.items() if scale in scales)
        while not (folder / str(parts) / MANIFEST).exists():
            ended = process.poll()
            if ended is not None and not (folder / str(parts) / MANIFEST).exists():
                raise UserError(f"the graph of scale {scale:g} could not be made: {self._words()}")
            if time.monotonic() > deadline:
                raise UserError(
                    f"the graph of scale {scale:g} in {parts} parts was not there in time"
                )
            time.sleep(_POLL_SECONDS)
        return folder

    def _words(self) -> str:
        """The last line that any of the processes has said."""
        logs = sorted(Path(self._setting.folder).glob("prepare-*.log"))
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        return lines[-1] if lines else "no message"

    def close(self) -> None:
        """End what still runs."""
        for process in self._running.values():
            if process.poll() is None:
                os.killpg(process.pid, 9)
            process.wait()


def parts_of(setting: Setting, scale: float) -> list[int]:
    """Numbers of parts that a graph is needed in; the largest one alone and for every GPU."""
    sizes = setting.sizes
    wanted = {1} if scale == sizes.products else set()
    if scale == sizes.links:
        wanted |= set(setting.worlds())
    if scale in sizes.epochs:
        largest = len(sizes.epochs) > 1 and scale == max(sizes.epochs)
        wanted |= {1, max(setting.gpus, 1)} if largest else set(setting.doubling())
    return sorted(wanted)


def _main(text: str, scales: Sequence[str]) -> None:
    values = json.loads(text)
    setting = Setting(sizes=SIZES[values.pop("sizes")], **values)
    torch.set_num_threads(4)
    for scale in map(float, scales):
        # each number of parts can be used as soon as it is there
        prepare(setting.config(scale), folder_of(setting, scale), parts_of(setting, scale))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
