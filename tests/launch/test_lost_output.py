"""Standard output that is full, closed or no longer read: the run goes on, and says so once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from distributed_ignn.cli import LOST_OUTPUT, run_main
from distributed_ignn.errors import UserError
from tests.jobs import environment, records
from tests.launch.test_ray import TINY, TORCHRUN, TRAIN

# what a shell does with standard output, and how the line tells it
WAYS = {
    "> /dev/full": "No space left on device",
    ">&-": "it is closed",
    "| head -1": "Broken pipe",
}
_PIPED = "set -o pipefail; "


def _started(command: Sequence[str], folder: Path, ways: Sequence[str]) -> list[tuple[int, str]]:
    """Exit code and standard error of a command for each way, all at once."""
    running = [
        subprocess.Popen(
            ["bash", "-c", f'{_PIPED}"$@" {way}', "bash", *command, "--output", str(number)],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for number, way in enumerate(ways)
    ]
    try:
        return [(p.wait(100), p.communicate()[1]) for p in running]
    finally:
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("starter", "ways"),
    [([], list(WAYS)), (TORCHRUN, ["| head -1"])],
    ids=["one process", "torchrun"],
)
def test_training_goes_on_without_standard_output(
    tmp_path: Path, starter: list[str], ways: list[str]
) -> None:
    ended = _started([sys.executable, *starter, TRAIN, *TINY], tmp_path, ways)
    for number, (code, errors) in enumerate(ended):
        # of torchrun, which has its own report about a rank that ends with another code than 0
        assert code == (1 if starter else LOST_OUTPUT), errors
        own = errors.partition("torch/distributed/elastic")[0]
        assert own.count("warning: standard output cannot be written") == 1, errors
        assert f"({WAYS[ways[number]]})" in own
        assert "Traceback" not in own, errors
        folder = tmp_path / str(number)
        assert [record["epoch"] for record in records(folder)] == [1, 2, 3, 4]
        assert (folder / "summary.json").exists()
        assert (folder / "checkpoints" / "epoch-000004").exists()


def test_ranks_that_torchrun_would_start_again_end_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would lose the same once more, and train nothing."""
    monkeypatch.setattr(sys, "stdout", None)
    assert run_main(lambda: print("lost")) == LOST_OUTPUT
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert run_main(lambda: print("lost")) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    assert run_main(lambda: print("lost")) == LOST_OUTPUT
    assert capsys.readouterr().err.count("ends with code 74") == 2


def test_a_reason_of_the_command_itself_wins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistaken() -> None:
        print("lost", flush=True)
        raise UserError("a mistake")

    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_main(mistaken) == 2
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space left"):
            full.close()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "(No space left on device)" in told[0]
    assert told[1] == "error: a mistake"


def test_help_that_cannot_be_shown_is_no_success() -> None:
    command = [sys.executable, "-m", "distributed_ignn", "--help"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == LOST_OUTPUT
    assert done.stderr.count("\n") == 1
