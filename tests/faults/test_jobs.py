"""Jobs as users start them, hurt for real: they go on by themselves, or end with one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distributed_ignn.runs.checkpoints.checkpoint import list_checkpoints
from distributed_ignn.runs.output.rank_log import log_path
from tests.faults.victim import INJECTED, alone, torchrun
from tests.jobs import ROOT, Job, differences, records, remains, result, send

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

EPOCHS = ["--train.epochs", "12"]
LONG = ["--train.epochs", "100000"]  # of jobs that are ended


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("quiet")
    job = Job(torchrun(2, *EPOCHS, "--output", str(folder / "run")), folder)
    assert job.wait(90) == 0, job.text
    return result(folder / "run")


#: Where a rank is killed, in the order in which a run gets there.
_KILLED: dict[str, dict[str, Any]] = {
    "partitioning": {"rank": 0, "at": "file", "phase": "finding shards", "count": 4},
    "exchange": {"rank": 1, "at": "exchange", "phase": "backward solve and step", "count": 60},
    "solver": {"rank": 1, "at": "exchange", "phase": "training the solver", "count": 5},
    "checkpoint": {"rank": 0, "at": "file", "phase": "writing a checkpoint", "count": 7},
    "its own part": {"rank": 1, "at": "file", "phase": "writing a checkpoint", "count": 1},
}


@pytest.mark.parametrize(
    ("steps", "in_background"),
    [
        (("partitioning", "exchange", "its own part"), "false"),
        pytest.param(tuple(_KILLED), "false", marks=pytest.mark.long),
        pytest.param(tuple(_KILLED), "true", marks=pytest.mark.long),
    ],
)
def test_killed_at_chosen_steps_it_ends_as_if_nothing_had_happened(
    tmp_path: Path, quiet: dict[str, Any], steps: tuple[str, ...], in_background: str
) -> None:
    """torchrun starts it again after each."""
    faults = [{"signal": "SIGKILL"} | _KILLED[step] for step in steps]
    output = tmp_path / "run"
    arguments = [*EPOCHS, "--output", str(output), "--train.async-checkpoints", in_background]
    command = torchrun(2, *arguments, restarts=len(faults), program=INJECTED)
    job = Job(command, tmp_path, {"FAULTS": json.dumps(faults)})
    assert job.wait(200) == 0, job.text
    assert job.text.count("exitcode: -9") == len(faults)
    assert differences(quiet, result(output)) == []
    assert remains(output) == []
    # who was left said who was lost and where, and wrote a report
    assert "error: rank 1 (last seen in " in job.text
    assert "was lost; rank 0 was in " in job.text
    reports = sorted((output / "crash").glob("*/report.json"))
    assert reports
    report = json.loads(reports[-1].read_bytes())
    assert report["ranks"]["1"]["error"] == "no report"
    # who waits for the others in a checkpoint, or trains on meanwhile
    where = {"false": "runs/checkpoints/checkpoint_store.py", "true": "training/trainer.py"}[
        in_background
    ]
    assert where in " ".join(report["ranks"]["0"]["stack"])
    assert report["versions"]["torch"]
    assert report["config"]["dataset"] == "chains"
    assert report["last_metrics"]["epoch"] >= 2


def test_a_stopped_rank_is_named_and_the_job_starts_again(
    tmp_path: Path, quiet: dict[str, Any]
) -> None:
    """SIGSTOP in an exchange. torchrun gives a rank 30 s to react to SIGTERM before SIGKILL."""
    stop = {"signal": "SIGSTOP", "rank": 1, "at": "exchange", "count": 500}
    output = tmp_path / "run"
    arguments = [*EPOCHS, "--output", str(output), "--comm.hang-seconds", "4"]
    command = torchrun(2, *arguments, restarts=1, program=INJECTED)
    job = Job(command, tmp_path, {"FAULTS": json.dumps([stop])})
    job.says("error: no answer for 4 s from rank 1 (last seen in epoch ")
    (stopped,) = [pid for pid in job.ranks() if _state(pid) == "T"]
    send(stopped, signal.SIGKILL)  # as torchrun would, later
    assert job.wait(100) == 0, job.text
    assert job.text.count("\nerror: ") == 1
    assert differences(quiet, result(output)) == []


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize(
    ("signum", "code"),
    [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long), (signal.SIGINT, 130)],
)
def test_a_signal_ends_the_run_after_a_checkpoint(
    tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    output = tmp_path / "run"
    job = Job(alone(*LONG, "--output", str(output)), tmp_path)
    job.reach(3, output)
    send(job.process.pid, signum)
    assert job.wait(30) == code
    assert job.text.splitlines()[-1].startswith(f"stopped by {signum.name} after epoch ")
    assert "Traceback" not in job.text
    done = len(records(output))
    assert list_checkpoints(output / "checkpoints")[-1].name == f"epoch-{done:06d}"
    assert f"after epoch {done} " in job.text


@pytest.mark.long
def test_a_second_signal_ends_at_once_and_the_grace_time_is_kept(tmp_path: Path) -> None:
    """Where an epoch takes longer than anybody waits."""
    slow = ["--schedule.warmup-solver-steps", "100000000"]
    for name, grace, seconds in (("twice", "1000", 4.0), ("late", "3", 4.0)):
        output = tmp_path / name
        arguments = [*LONG, *slow, "--output", str(output), "--train.grace-seconds", grace]
        job = Job(alone(*arguments), tmp_path / "logs")
        job.until(partial(_in_phase, log_path(output, 0), "training the solver"))
        began = time.monotonic()
        send(job.process.pid, signal.SIGTERM)
        if name == "twice":
            job.says("send it again to end at once")
            time.sleep(2.2)  # sooner it might be the same request, see stopping.py
            send(job.process.pid, signal.SIGTERM)
        assert job.wait(20) == 143
        assert time.monotonic() - began < seconds + 4
        assert "Traceback" not in job.text
    assert "did not end within 3 s (train.grace_seconds)" in job.text


def _in_phase(path: Path, phase: str) -> bool:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return False
    return any(json.loads(line)["phase"] == phase for line in lines)


def test_a_signal_to_one_rank_stops_all_and_they_go_on_when_started_again(tmp_path: Path) -> None:
    output = tmp_path / "run"
    job = Job(torchrun(2, *LONG, "--output", str(output)), tmp_path)
    job.reach(3, output)
    other = json.loads(log_path(output, 1).read_bytes().splitlines()[-1])["pid"]
    send(other, signal.SIGTERM)
    assert job.wait(40) == 1  # torchrun's own
    assert "exitcode: 143" in job.text
    done = len(records(output))
    assert list_checkpoints(output / "checkpoints")[-1].name == f"epoch-{done:06d}"
    arguments = ["--train.epochs", str(done + 2), "--output", str(output), "--resume", "auto"]
    again = Job(torchrun(2, *arguments), tmp_path)
    assert again.wait(60) == 0, again.text
    assert f"resumed after epoch {done} of {done + 2}" in again.text


def test_a_run_that_goes_on_waits_for_the_one_before_it(tmp_path: Path) -> None:
    """A job is started again while its ranks are still there; each record is written once."""
    output = tmp_path / "run"
    first = Job(alone(*LONG, "--output", str(output)), tmp_path)
    first.reach(3, output)
    arguments = ["--train.epochs", "100001", "--output", str(output), "--resume", "auto"]
    second = Job(alone(*arguments), tmp_path)
    second.says(f"output = {output} is in use by another run; waiting up to 130 s for its end")
    send(first.process.pid, signal.SIGKILL)
    second.says("resumed after epoch ")
    done = len(records(output))
    second.reach(done + 2, output)
    send(second.process.pid, signal.SIGTERM)
    assert second.wait(30) == 143
    epochs = [record["epoch"] for record in records(output)]
    assert epochs == list(range(1, len(epochs) + 1))


@contextmanager
def _mounted(kind: str, folder: Path, *options: str) -> Iterator[None]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", *options, kind, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"mounting needs rights that are missing here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_with_one_line_and_the_last_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with _mounted("tmpfs", disk, "-t", "tmpfs", "-o", "size=4m"):
        output = disk / "run"
        job = Job(torchrun(2, *LONG, "--output", str(output)), tmp_path)
        job.until(lambda: len(list_checkpoints(output / "checkpoints")) >= 2)
        _fill(disk / "filler")
        assert job.wait(60) == 1  # torchrun's own; the ranks' is 2
        (line,) = [line for line in job.text.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in line
        assert str(output) in line
        assert "exitcode: 2 " in job.text or "exitcode: 2)" in job.text
        assert "Traceback" not in job.text.split("error: ")[0]
        kept = list_checkpoints(output / "checkpoints")
        assert kept
        assert [r["epoch"] for r in records(output)] == list(range(1, len(records(output)) + 1))
        (disk / "filler").unlink()
        newest = int(kept[-1].name.split("-")[1])
        arguments = ["--train.epochs", str(newest + 2), "--output", str(output)]
        again = Job(torchrun(2, *arguments, "--resume", "auto"), tmp_path)
        assert again.wait(60) == 0, again.text
        assert f"resumed after epoch {newest} of " in again.text


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_a_folder_that_becomes_read_only_ends_with_one_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with _mounted("tmpfs", disk, "-t", "tmpfs", "-o", "size=20m"):
        output = disk / "run"
        job = Job(alone(*LONG, "--output", str(output)), tmp_path)
        job.until(lambda: len(list_checkpoints(output / "checkpoints")) >= 2)
        # files that are open stay writable, so the next checkpoint meets it
        subprocess.run(["mount", "-o", "bind", str(disk), str(disk)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
            code = job.wait(60)
            assert code == 2, job.text
            errors = [line for line in job.text.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1
            assert "Read-only file system" in errors[0]
            assert "Traceback" not in job.text
            assert list_checkpoints(output / "checkpoints")
            assert records(output)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.long
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """Of a run that was killed; the one before it gives the same result."""
    output = tmp_path / "run"
    job = Job(torchrun(2, *LONG, "--output", str(output)), tmp_path)
    job.until(lambda: len(list_checkpoints(output / "checkpoints")) >= 3)
    job.kill_all()
    before, newest = list_checkpoints(output / "checkpoints")[-2:]
    file = newest / "rank-00001-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    epoch = int(before.name.split("-")[1])
    arguments = ["--train.epochs", str(epoch + 1), "--output", str(output), "--resume", "auto"]
    again = Job(torchrun(2, *arguments), tmp_path)
    assert again.wait(60) == 0, again.text
    warnings = [line for line in again.text.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert f"{file} is damaged" in warnings[0]
    assert warnings[0].endswith("going back to the one before")
    assert f"resumed after epoch {epoch} of " in again.text


@pytest.mark.long
def test_a_second_job_on_the_same_output_is_refused_with_restarts_too(tmp_path: Path) -> None:
    """torchrun starts it again after the refusal, which must not look like a second attempt."""
    output = tmp_path / "run"
    first = Job(torchrun(1, "--train.epochs", "1", "--output", str(output)), tmp_path)
    assert first.wait(60) == 0, first.text
    content = (output / "metrics.jsonl").read_bytes()
    second = Job(torchrun(1, "--train.epochs", "2", "--output", str(output), restarts=1), tmp_path)
    assert second.wait(60) == 1
    assert second.text.count("already holds a run") == 2
    assert (output / "metrics.jsonl").read_bytes() == content


@pytest.mark.long
def test_no_thread_handle_or_byte_is_lost_from_epoch_to_epoch(tmp_path: Path) -> None:
    """A short form of the soak, see soak.py."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak", "--minutes", "0.4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_from_a_named_checkpoint_starts_again_from_its_own_newest(tmp_path: Path) -> None:
    first = Job(alone("--train.epochs", "4", "--output", str(tmp_path / "old")), tmp_path)
    assert first.wait(90) == 0, first.text
    named, output = tmp_path / "old" / "checkpoints" / "epoch-000002", tmp_path / "new"
    long = [*LONG, "--resume", str(named), "--output", str(output)]
    with closing(Job(torchrun(1, *long, restarts=1), tmp_path)) as job:
        job.until(lambda: (output / "checkpoints" / "epoch-000008").exists(), 90)
        (rank,) = job.ranks()
        send(rank, signal.SIGKILL)
        log = log_path(output, 0)
        job.until(lambda: log.read_text().count("resumed after epoch") == 2)
        messages = [json.loads(line)["message"] for line in log.read_text().splitlines()]
    resumed = [int(line.split()[-1]) for line in messages if line.startswith("resumed after epoch")]
    assert resumed[0] == 2
    assert resumed[1] >= 8
