"""Kill the writing process before every single change on disk: a reader finds old or new, whole.

Each case runs in a process of its own, which is killed for real; the changes are counted first.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import PartitionConfig
from distributed_ignn.files import atomic_write_json
from distributed_ignn.graph.partitioning import metis
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.storage.shard_store import find_shards, read_shard, write_shards
from distributed_ignn.runs.checkpoints.checkpoint import (
    Snapshot,
    list_checkpoints,
    load_newest,
)
from distributed_ignn.runs.checkpoints.checkpoint_store import CheckpointStore
from distributed_ignn.runs.output.records import RunRecorder, read_metrics
from distributed_ignn.training.epoch_record import EpochRecord
from tests.faults.injected import Fault, hurt_at_file_steps
from tests.parity.cases import make_data

NODES = torch.arange(50)


def killed_at(step: int, action: Callable[[], object]) -> int:
    """Run ``action`` in a forked process that is killed before so many changes on disk.

    Returns:
        How many changes it made in all if it got through, else 0.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fault = Fault(signal.SIGKILL, step)
            hurt_at_file_steps(fault)
            action()
            steps = fault.steps
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(str(steps).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if said:
        return int(said)
    assert os.WIFSIGNALED(status), "the writer failed by itself"
    assert os.WTERMSIG(status) == signal.SIGKILL
    return 0


def every_step(action: Callable[[int], object], check: Callable[[int], None]) -> int:
    """Kill ``action(step)`` at step 1, 2, ... until it gets through; check after each."""
    step = 1
    while not killed_at(step, partial(action, step)):
        check(step)
        step += 1
    check(step)
    return step - 1


def _snapshot(value: float, epoch: int) -> Snapshot:
    return Snapshot(
        {"epoch": epoch, "val_metric": value},
        {"model/weight": torch.full((7, 3), value)},
        {"warm/train": torch.full((50, 4), value)},
    )


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """With one more to write, one to remove, and the remains of the attempts before."""
    comm = Communicator()
    CheckpointStore(tmp_path, comm, keep=1).save(1, _snapshot(0.5, 1), NODES)

    def save(step: int) -> None:
        # its own: a forked process has no thread but the one that forks
        CheckpointStore(tmp_path, comm, keep=1).save(2 + step, _snapshot(0.125, 2 + step), NODES)

    def check(step: int) -> None:
        found = load_newest(tmp_path, comm, NODES)
        assert found is not None
        epoch = found.state["epoch"]
        assert float(found.common["model/weight"][0, 0]) == (0.5 if epoch == 1 else 0.125)
        assert epoch in (1, 2 + step, 1 + step)
        for path in list_checkpoints(tmp_path):
            assert (path / "state.json").is_file()

    assert every_step(save, check) > 10
    # the best, the newest, and nothing hidden
    CheckpointStore(tmp_path, comm, keep=1).save(99, _snapshot(0.25, 99), NODES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-000001", "epoch-000099"]


def test_shards_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    data = make_data("plain")
    config = PartitionConfig(method="contiguous")
    assignment = assign_parts(data.graphs, 2, config)

    def check(step: int) -> None:
        folder = tmp_path / "shards"
        if find_shards(folder, 2, config, {}) is None:
            assert not folder.exists()
            return
        assert step > 5
        assert sum(read_shard(folder, part).num_owned for part in (0, 1)) == data.num_nodes

    steps = every_step(lambda _: write_shards(tmp_path / "shards", data, assignment, config), check)
    assert steps > 5
    # nor is anything left of the attempts that were killed
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_json_file_is_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    atomic_write_json(path, {"step": 0})

    def check(step: int) -> None:
        assert json.loads(path.read_bytes())["step"] <= step

    assert every_step(lambda step: atomic_write_json(path, {"step": step}), check) >= 3
    assert [found.name for found in tmp_path.iterdir()] == ["file.json"]
    assert json.loads(path.read_bytes())["step"] >= 3


def _record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, 0.5, 0.1, 0.1, 1.0, 1, 1, 1, 0.0, 0.0, 0, 0, 0, None, 0.0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_the_metrics_are_valid_at_every_moment(tmp_path: Path) -> None:
    def run(step: int) -> None:
        recorder = RunRecorder(tmp_path, epochs_done=2)
        for epoch in (3, 4, 5):
            recorder.epoch(_record(epoch))
        recorder.close()

    recorder = RunRecorder(tmp_path)
    for epoch in (1, 2):
        recorder.epoch(_record(epoch))
    recorder.close()

    def check(step: int) -> None:
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(line)["epoch"] for line in lines]
        assert epochs == list(range(1, len(epochs) + 1))
        assert len(epochs) >= 2
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == len(epochs)

    assert every_step(run, check) > 5


_WAITS_FOR_METIS = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-P", *sys.argv[1:], str(os.getpid())])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_metis_does_not_outlive_its_rank(tmp_path: Path) -> None:
    """Held up here by a pipe in place of its request."""
    request = tmp_path / "request.json"
    os.mkfifo(request)
    script = Path(metis.__file__).with_name("metis_process.py")
    command = [sys.executable, "-c", _WAITS_FOR_METIS, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        child = int(rank.stdout.readline())
        held: list[int] = []
        assert _within(20, lambda: _opened(request, held))
        rank.kill()
    assert _within(10, lambda: not Path(f"/proc/{child}").exists())
    os.close(held[0])


def _opened(pipe: Path, held: list[int]) -> bool:
    """Whether somebody reads from the pipe, which then is open for writing too."""
    try:
        held.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
