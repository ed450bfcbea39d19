"""Training jobs as a user starts them, how to hurt them, and what has to be the same afterwards."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from distributed_ignn.training.checkpoint import list_checkpoints

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "launch" / "train.py")
INJECTED = "tests.faults.injected"

# Every part of a run that has a state: warm starts, Adam, the learned solver and its training.
SETTINGS = shlex.split("""
    --dataset chains --device cpu --partition.method metis
    --data.chains.length 6 --data.chains.chains-per-class 20 --data.chains.features 4
    --data.chains.noise 0.1 --model.hidden 8 --model.dropout 0.2 --forward.method neural
    --solver.network mlp --solver.hidden 4 --solver.compress 2 --solver.steps 4
    --schedule.warmup-epochs 3 --schedule.warmup-solver-steps 4 --schedule.model-steps 4
    --train.checkpoint-every 2 --train.keep-checkpoints 3 --train.threads 1
    --train.log-level debug
""")
# what differs between two runs that are the same
_TIMES = ("seconds", "solver_seconds", "seconds_total", "seconds_solver_training")
_MEMORY = ("peak_memory_bytes", "memory_budget_bytes", "memory_bound_bytes")


class Job:
    """A program in a session of its own, which ends with all that it has started.

    Args:
        arguments: of Python.
        folder: where it runs; its output goes to a file there.
        environment: variables to set besides.
    """

    def __init__(
        self, arguments: list[str], folder: Path, environment: dict[str, str] | None = None
    ) -> None:
        own = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        kept = {k: v for k, v in os.environ.items() if k not in own}
        kept |= {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_ADDRESS": "local",  # never join a cluster that happens to run here
            "RAY_AUTH_MODE": "disabled",  # and leave no token in the home folder
            "RAY_worker_niceness": "0",  # Ray's 15 leaves the time to whatever else runs
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"job-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=kept | (environment or {}),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float) -> int:
        """Its exit code; it is killed if it takes longer.

        Raises:
            AssertionError: it did take longer.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise AssertionError(f"still running after {seconds} s:\n{self.text[-3000:]}") from None

    def processes(self) -> dict[int, str]:
        """Process ids of what it has started and is alive, with their command lines."""
        return {pid: _command(pid) for pid in _descendants(self.process.pid)}

    def ranks(self) -> list[int]:
        """Process ids of the ranks, under torchrun or Ray, as far as they have started."""
        return [
            pid
            for pid, command in self.processes().items()
            if (command.startswith("ray::") and "TrainWorker" in command)
            or TRAIN in command
            or INJECTED in command
        ]

    def kill_all(self) -> None:
        """End the whole job at once."""
        for pid in [*_descendants(self.process.pid), self.process.pid]:
            send(pid, signal.SIGKILL)
        self.process.wait()

    def __del__(self) -> None:
        """A test that fails leaves nothing running."""
        if self.running:
            self.kill_all()

    def until(self, condition: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait until ``condition()`` is true and return it.

        Raises:
            AssertionError: it did not become true while the job ran.
        """
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if not self.running or time.monotonic() > deadline:
                raise AssertionError(f"in vain waited for:\n{self.text[-3000:]}")
            time.sleep(0.02)
        return found


def torchrun(ranks: int, *arguments: str, restarts: int = 0) -> list[str]:
    """The command of a job under torchrun."""
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*starter, "--max-restarts", str(restarts), TRAIN, *SETTINGS, *arguments]


def ray(workers: int, *arguments: str, restarts: int = 0) -> list[str]:
    """The command of a job on a Ray cluster of its own."""
    own = ["--workers", str(workers), "--restarts", str(restarts)]
    return [TRAIN, *SETTINGS, *own, *arguments]


def send(pid: int, signum: int) -> bool:
    """Send a signal; False if the process is gone."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True


def _descendants(pid: int) -> Iterator[int]:
    """All processes below one; also those of a session of their own."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return
    for child in children:
        yield child
        yield from _descendants(child)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def records(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, each of which has to be whole.

    Raises:
        ValueError: one is not.
    """
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def result(output: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on what happened to it on the way."""
    summary = json.loads((output / "summary.json").read_text())
    newest = list_checkpoints(output / "checkpoints")[-1]
    state = json.loads((newest / "state.json").read_text())
    del state["sha256"], state["state_sha256"]
    return {
        "metrics": [_lasting(record) for record in records(output)],
        "summary": _lasting(summary),
        "state": _lasting(state),
        "tensors": {path.name: load_file(path) for path in sorted(newest.glob("*.safetensors"))},
    }


def _lasting(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in (*_TIMES, *_MEMORY)}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not bitwise the same in two results."""
    found = [key for key in ("metrics", "summary", "state") if one[key] != other[key]]
    if one["tensors"].keys() != other["tensors"].keys():
        return [*found, "files of the checkpoint"]
    for name, tensors in one["tensors"].items():
        twins = other["tensors"][name]
        if tensors.keys() != twins.keys():
            found.append(f"tensors in {name}")
            continue
        found += [f"{name}: {k}" for k, v in tensors.items() if not torch.equal(v, twins[k])]
    return found


def remains(output: Path) -> list[str]:
    """What a job should not leave behind, in its folder and in shared memory."""
    hidden = [str(path) for path in output.rglob(".*") if path.name.endswith(".tmp")]
    return hidden + [str(path) for path in Path("/dev/shm").glob("ignn-*")]
