"""Training jobs as a user starts them, how to hurt them, and what has to be the same afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from distributed_ignn.runs.checkpoints.checkpoint import list_checkpoints

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT / "launch" / "train.py")

# how Ray names a worker, and how torchrun calls a script or module
_RANK = re.compile(r"^ray::.*TrainWorker|^\S+ -u .*(launch/train\.py|tests\.faults\.injected)")
_MAPPING_SECONDS = 10.0
# what differs between two runs that are the same
_TIMES = ("seconds", "solver_seconds", "seconds_total", "seconds_solver_training")
_MEMORY = ("peak_memory_bytes", "memory_budget_bytes", "memory_bound_bytes")


def environment() -> dict[str, str]:
    """Of every job: nothing of a launcher that these tests may run under."""
    own = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if k not in own}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_ADDRESS": "local",  # never join a cluster that happens to run here
        "RAY_AUTH_MODE": "disabled",  # and leave no token in the home folder
    }


class Job:
    """A program in a session of its own, which ends with all that it has started.

    Args:
        command: and its arguments.
        folder: where it runs; its output goes to a file there.
        extra: variables of the environment to set besides.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, extra: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"job-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment() | dict(extra or {}),
                stdin=subprocess.DEVNULL,
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

    def ranks(self) -> list[int]:
        """Process ids of the ranks, under torchrun or Ray, as far as they have started."""
        return ranks(descendants(self.process.pid))

    def descendants(self) -> list[int]:
        """Process ids of all that it has started."""
        return [*descendants(self.process.pid)]

    def kill_all(self) -> None:
        """End the whole job at once."""
        for pid in [*descendants(self.process.pid), self.process.pid]:
            send(pid, signal.SIGKILL)
        self.process.wait()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing running, as a test that fails might; see ``contextlib.closing``."""
        if self.running:
            self.kill_all()

    def reach(self, epoch: int, output: Path) -> None:
        """Wait until the run has done so many epochs."""
        self.until(lambda: len(records(output)) >= epoch, 90)

    def says(self, text: str) -> None:
        """Wait until it has printed a text."""
        self.until(lambda: text in self.text)

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


def send(pid: int, signum: int) -> bool:
    """Send a signal; False if the process is gone."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True


def ranks(pids: Iterable[int]) -> list[int]:
    """Those of the processes that are ranks, under torchrun or Ray."""
    return [pid for pid in pids if _RANK.search(_command(pid))]


def descendants(pid: int) -> Iterator[int]:
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
        yield from descendants(child)


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
    del state["sha256"], state["state_sha256"], state["parts"]["seconds"]
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
    """What a job should not leave behind, in its folder and in shared memory.

    A job of another test has such files too, for as long as it takes two ranks to map them.
    """
    hidden = [str(path) for path in output.rglob(".*") if path.name.endswith(".tmp")]
    shared = set(Path("/dev/shm").glob("ignn-*"))
    deadline = time.monotonic() + _MAPPING_SECONDS
    while shared and time.monotonic() < deadline:
        time.sleep(0.1)
        shared &= set(Path("/dev/shm").glob("ignn-*"))
    return hidden + sorted(map(str, shared))
