"""The small run of the cluster tests: starting it, waiting for its epochs, comparing results."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 20
# fp32: between machines rows would be written in four bits, whose rounding starts anew with each
# checkpoint. Random parts: many rows cross the cable.
TRAIN = [
    str(ROOT / "launch" / "train.py"),
    *shlex.split(
        "--dataset chains --device cpu --data.chains.length 5 --data.chains.chains-per-class 20 "
        "--data.chains.features 4 --data.chains.noise 0.1 --partition.method random "
        f"--model.hidden 8 --comm.halo fp32 --train.epochs {EPOCHS} --train.checkpoint-every 4 "
        "--forward.tolerance 1e-2 --adjoint.tolerance 1e-2"
    ),
]
_SAME = ("loss", "train_metric", "val_metric", "residual", "residual_adjoint", "solver_loss")


def environment() -> dict[str, str]:
    """Of every program here."""
    return {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Program:
    """A command in a process group of its own, which is killed as a whole at the end of ``with``.

    Args:
        command: and its arguments.
        log: what it prints is put there.
        extra: variables of the environment.
    """

    def __init__(
        self, command: Sequence[str], log: Path, extra: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment() | dict(extra or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def reach(self, epoch: int, output: Path, timeout: float = 90) -> None:
        """Wait until the run has done so many epochs."""
        deadline = time.monotonic() + timeout
        while done(output) < epoch:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, f"epoch {done(output)}\n{self.said()}"
            time.sleep(0.05)

    def says(self, text: str, timeout: float = 60) -> None:
        """Wait until the command has printed a text."""
        deadline = time.monotonic() + timeout
        while text not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def end(self, timeout: float = 120) -> int:
        """Wait for its end; its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not over after {timeout} s\n{self.said()}") from None

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def records(output: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; one that is being written is left out."""
    try:
        lines = (output / "metrics.jsonl").read_text().split("\n")
    except OSError:
        return []
    return [json.loads(line) for line in lines[:-1]]


def done(output: Path) -> int:
    """Epochs that a run has done."""
    return len(records(output))


def assert_same(output: Path, expected: Path) -> None:
    """Every epoch's numbers and the final weights, optimiser and random state, bit for bit."""
    found, wanted = records(output), records(expected)
    assert [r["epoch"] for r in found] == list(range(1, EPOCHS + 1))
    for key in _SAME:
        assert [r[key] for r in found] == [r[key] for r in wanted], key
    last = f"checkpoints/epoch-{EPOCHS:06d}/common.safetensors"
    assert _digest(output / last) == _digest(expected / last)
    # safetensors orders what it says about a file anew each time, so its bytes differ
    solvers = [load_file(folder / "solver.safetensors") for folder in (output, expected)]
    assert solvers[0].keys() == solvers[1].keys()
    for name, tensor in solvers[0].items():
        assert torch.equal(tensor, solvers[1][name]), name
    results = [json.loads((folder / "summary.json").read_text()) for folder in (output, expected)]
    for key in ("best_val", "test_at_best_val", "test_last", "residual_last"):
        assert results[0][key] == results[1][key], key


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ranks(pids: Sequence[int]) -> list[int]:
    """Those of the processes that are ranks of torchrun."""
    commands = {pid: _command(pid) for pid in pids}
    return [p for p, c in commands.items() if "launch/train.py" in c and "distributed.run" not in c]


def ray_workers(pids: Sequence[int]) -> list[int]:
    """Those of the processes that are ranks under Ray."""
    return [p for p in pids if "RayTrainWorker" in _command(p)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:  # it has just ended
        return ""
