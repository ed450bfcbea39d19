"""Ray Train as launcher: the same numbers as torchrun, and one line for each mistake."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_ignn.config import RunConfig
from distributed_ignn.errors import JobError, UserError
from distributed_ignn.launchers import ray_cluster, ray_launch
from distributed_ignn.launchers import ray_messages as messages
from distributed_ignn.launchers.ray_messages import Course
from tests.jobs import environment

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "launch" / "train.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TINY = shlex.split(
    "--dataset chains --device cpu --data.chains.length 5 --data.chains.chains-per-class 20 "
    "--data.chains.features 4 --data.chains.noise 0.1 --partition.method random --model.hidden 8 "
    "--train.epochs 4 --train.checkpoint-every 2"
)

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed; pip install 'distributed-ignn[ray]'",
)


class Program:
    """A command in a process group of its own, killed as a whole when its time is up.

    Args:
        arguments: of Python.
        folder: where it runs.
    """

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, timeout: float) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        try:
            output, errors = self._process.communicate(timeout=timeout)
        finally:
            self.kill()
        return self._process.returncode, output, errors

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@needs_ray
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_ray_gives_the_numbers_of_torchrun(tmp_path: Path) -> None:
    reference = Program([*TORCHRUN, TRAIN, *TINY, "--output", "torchrun"], tmp_path)
    try:
        ray = Program([TRAIN, *TINY, "--workers", "2", "--output", "ray"], tmp_path)
        code, output, errors = ray.finish(150)
    finally:
        expected = reference.finish(60)
    assert expected[0] == 0, expected[2]
    assert code == 0, errors
    losses = _losses(tmp_path / "ray")
    assert len(losses) == 4
    assert losses == _losses(tmp_path / "torchrun")
    # what a person sees is what torchrun shows: rank 0's lines, once and without a prefix
    assert output.count("chains: finished") == 1
    assert "\nepoch 4/4  loss" in output
    summary = json.loads((tmp_path / "ray" / "summary.json").read_text())
    assert summary["world_size"] == 2
    assert summary["halo_bytes_per_exchange"] > 0
    # Ray refers to our checkpoints and has copied none
    reported = json.loads((tmp_path / "ray" / "checkpoint_manager_snapshot.json").read_text())
    names = [result["checkpoint_dir_name"] for result in reported["checkpoint_results"]]
    assert names == ["checkpoints/epoch-000002", "checkpoints/epoch-000004"]
    assert len(list((tmp_path / "ray").rglob("common.safetensors"))) == 2


def test_without_ray_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # makes its import fail
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")  # all are put back after the test
    for name in ("HEALTH_CHECK_INTERVAL_S", "PREEMPTION_POLL_INTERVAL_S", "COLLECTIVE_TIMEOUT_S"):
        monkeypatch.setenv(f"RAY_TRAIN_{name}", "2")
    config = RunConfig(dataset="chains", output=tmp_path / "run", workers=2)
    with pytest.raises(UserError, match=r"pip install 'distributed-ignn\[ray\]'.*torchrun"):
        ray_launch.train_on_ray(config)
    assert not (tmp_path / "run").exists()


def test_an_output_of_another_run_is_refused_before_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    config = RunConfig(dataset="chains", output=tmp_path, workers=2)
    with pytest.raises(UserError, match="already holds a run"):
        ray_launch.check_output(config)
    ray_launch.check_output(config.model_copy(update={"resume": "auto"}))


@pytest.fixture
def _cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.usefixtures("_cuda_build")
@pytest.mark.parametrize(
    ("settings", "found", "share"),
    [
        ({"gpus": 2}, 2, 1.0),
        ({"workers": 2}, 8, 1.0),
        ({"workers": 3, "device": "cuda"}, 2, 0.5),
        ({"workers": 4}, 1, 0.25),
        ({"workers": 2}, 0, 0.0),
        ({"workers": 2, "device": "cpu"}, 8, 0.0),
    ],
)
def test_gpu_share_of_a_process(settings: dict[str, object], found: int, share: float) -> None:
    config = RunConfig.model_validate({"dataset": "chains", **settings})
    assert ray_cluster.choose_gpu_share(config, found) == share
    backend = ray_cluster.choose_group_backend(config, ray_cluster.processes(config), share)
    assert backend == ("nccl" if share == 1 else "gloo")


@pytest.mark.usefixtures("_cuda_build")
@pytest.mark.parametrize(
    ("settings", "found", "message"),
    [
        ({"gpus": 8}, 2, "gpus = 8 but Ray found 2 GPUs; use --gpus 2"),
        ({"gpus": 1}, 0, "gpus = 1 but Ray found 0 GPUs; use --workers N --device cpu"),
        ({"workers": 2, "device": "cuda"}, 0, "device = cuda but Ray found no GPU"),
    ],
)
def test_too_few_gpus_are_refused(settings: dict[str, object], found: int, message: str) -> None:
    config = RunConfig.model_validate({"dataset": "chains", **settings})
    with pytest.raises(UserError) as caught:
        ray_cluster.choose_gpu_share(config, found)
    assert str(caught.value).startswith(message)


def test_gpus_need_a_torch_that_can_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(UserError, match="built without GPU support"):
        ray_cluster.choose_gpu_share(RunConfig(dataset="chains", gpus=1), 1)
    assert ray_cluster.choose_gpu_share(RunConfig(dataset="chains", workers=1), 1) == 0.0


def test_nccl_is_refused_where_processes_share_a_gpu() -> None:
    config = RunConfig.model_validate(
        {"dataset": "chains", "workers": 2, "comm": {"backend": "nccl"}}
    )
    with pytest.raises(UserError, match="one GPU for each of the 2 processes"):
        ray_cluster.choose_group_backend(config, 2, 0.5)


def test_waiting_for_a_busy_cluster_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig(dataset="chains", gpus=4)
    each = {"CPU": 1.0, "GPU": 1.0}
    ray_launch.announce_wait(config, each, {"CPU": 8.0, "GPU": 4.0})
    assert capsys.readouterr().out == ""
    # Ray leaves a resource out when nothing of it is free
    ray_launch.announce_wait(config, each, {"CPU": 8.0})
    assert capsys.readouterr().out == "waiting for 4 GPUs of the Ray cluster, 0 free ...\n"


def _failed_attempt(course: Course, trace: str | None, *, checkpoint: bool) -> None:
    course.take(messages.STARTED, "")
    if checkpoint:
        course.take(messages.CHECKPOINT, "")
    if trace is not None:
        course.take(messages.TRACE, trace)
    for _ in range(3):  # Ray says it again and again until all processes have ended
        course.take(messages.FAILED, "rank 0 failed")


def test_the_same_error_again_without_a_step_forward_is_hopeless() -> None:
    course = Course()
    _failed_attempt(course, "trace A", checkpoint=True)
    assert (course.failures, course.repeated) == (1, False)
    _failed_attempt(course, "trace A", checkpoint=True)  # a checkpoint has been written since
    assert (course.failures, course.repeated) == (2, False)
    _failed_attempt(course, "trace B", checkpoint=False)
    assert (course.failures, course.repeated) == (3, False)
    _failed_attempt(course, "trace B", checkpoint=False)
    assert (course.failures, course.repeated) == (4, True)


def test_lost_processes_are_never_hopeless() -> None:
    course = Course()
    for _ in range(3):
        _failed_attempt(course, None, checkpoint=False)
    assert (course.failures, course.repeated) == (3, False)


def test_a_request_to_stop_is_passed_on_with_its_line() -> None:
    course = Course()
    course.take(messages.STOPPED, "15 stopped by SIGTERM after epoch 3")
    assert course.stopped == (15, "stopped by SIGTERM after epoch 3")


def test_who_is_lost_is_said_in_short() -> None:
    course = Course()
    course.take(messages.STARTED, "")
    course.take(messages.LOST, "rank 1 (last seen in epoch 6, step) was lost; rank 0 was in ...")
    course.take(messages.LOST, "rank 2 lost the others in epoch 6, step (Broken pipe); go on ...")
    course.take(messages.FAILED, "rank 0 failed")
    assert course.failure == "rank 1 (last seen in epoch 6, step) was lost"
    course.take(messages.STARTED, "")
    course.take(messages.LOST, "rank 2 lost the others in epoch 7, step (Broken pipe); go on ...")
    course.take(messages.FAILED, "rank 2 failed")
    assert course.failure == "rank 2 lost the others in epoch 7, step"


@needs_ray
def test_a_folder_with_too_long_a_name_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / ("a" * 100)
    folder.mkdir()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    with pytest.raises(UserError, match="is too long for its sockets; name a shorter one") as told:
        ray_cluster.connect()
    assert str(folder) in str(told.value)


@needs_ray
@pytest.mark.parametrize(
    ("lost", "restarts", "ends"),
    [(2, 2, None), (3, 2, "after 2 restarts .*; start it again with --resume auto$")],
)
def test_a_worker_lost_while_starting_makes_the_driver_join_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lost: int, restarts: int, ends: str | None
) -> None:
    """What it held is given back only when the driver leaves the cluster."""
    calls: list[str] = []
    nothing: dict[str, Any] = {"prepare": lambda *_: None, "connect": lambda: True}
    nothing["resources_of_each"] = lambda *_: {"CPU": 1.0}
    for name, action in nothing.items():
        monkeypatch.setattr(ray_launch.cluster, name, action)
    for name in ("check_lasting", "announce_wait"):
        monkeypatch.setattr(ray_launch, name, lambda *_: None)
    for name in ("shutdown", "available_resources"):
        monkeypatch.setattr(f"ray.{name}", lambda name=name: calls.append(name))

    resumed: list[object] = []

    def fit(run: RunConfig, each: dict[str, float]) -> None:
        calls.append("fit")
        resumed.append(run.resume)
        (run.output / "config.yaml").touch()  # the run has begun
        if calls.count("fit") <= lost:
            raise ray_launch._LostWhileStartingError("a worker was lost while starting")

    monkeypatch.setattr(ray_launch, "_fit", fit)
    config = RunConfig(dataset="chains", output=tmp_path / "run", workers=2, restarts=restarts)
    with nullcontext() if ends is None else pytest.raises(JobError, match=ends):
        ray_launch.train_on_ray(config)
    assert calls.count("fit") == calls.count("shutdown") == 3
    assert resumed == [None, "auto", "auto"]
