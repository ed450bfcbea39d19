"""A search through Ray Tune: what its search algorithm tells it, and one on a cluster."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_ignn.commands import search as command
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.lab.studies.search import ray_ranks, ray_search
from distributed_ignn.lab.studies.search.halving import Job
from distributed_ignn.lab.studies.search.ray_ranks import Ranks
from distributed_ignn.lab.studies.search.ray_search import Steps
from distributed_ignn.lab.studies.search.rung import Rung
from tests.api.small_data import small_data

ROOT = Path(__file__).resolve().parents[3]
RUN = RunConfig.model_validate({"dataset": "own.npz"})


@dataclass
class _Driver:
    """Hands out some jobs, and remembers what it is told."""

    jobs: list[Job]
    heard: list[tuple[Job, Any]] = field(default_factory=list)
    broken: bool = False

    @property
    def search(self) -> _Driver:
        return self

    def next(self) -> tuple[Job, Rung] | None:
        if not self.jobs:
            return None
        job = self.jobs.pop(0)
        return job, Rung(RUN, job.until, job.limit)

    def told(self, job: Job, found: Any) -> None:
        self.heard.append((job, found))
        if self.broken:
            raise UserError("cannot write")


def _steps(count: int = 2) -> tuple[Steps, Any]:
    driver: Any = _Driver([Job(number, 0, 5) for number in range(1, count + 1)])
    return Steps(driver), driver


@pytest.mark.cheap
def test_tune_is_told_the_next_steps_and_tells_what_came_of_them() -> None:
    steps, driver = _steps()
    first = steps.next("a")
    assert first is not None
    assert Rung.from_json(json.loads(first["rung"])) == Rung(RUN, 5)
    assert steps.next("b") is not None
    assert steps.next("c") is None
    assert not steps.are_done()  # two are being trained
    steps.ended("b", {"found": json.dumps({"epochs": 5})}, lost=False)
    assert steps.next("c") is None
    assert not steps.are_done()
    steps.ended("a", None, lost=True)
    assert [(job.trial, found) for job, found in driver.heard] == [
        (2, {"epochs": 5}),
        (1, {"failure": "its processes were lost more often than restarts allows"}),
    ]
    assert steps.next("c") is None
    assert steps.are_done()
    assert steps.over


@pytest.mark.cheap
def test_a_step_that_was_broken_off_is_neither_a_result_nor_a_failure() -> None:
    steps, driver = _steps(1)
    steps.next("a")
    steps.ended("a", {}, lost=False)
    assert driver.heard == []


@pytest.mark.cheap
def test_what_cannot_go_on_ends_when_the_others_have() -> None:
    steps, driver = _steps(3)
    steps.next("a")
    steps.next("b")
    driver.broken = True
    steps.ended("a", {"found": "{}"}, lost=False)
    assert steps.next("c") is None
    assert not steps.are_done()
    steps.ended("b", {"found": "{}"}, lost=False)
    assert steps.next("c") is None
    assert steps.are_done()
    assert not steps.over
    assert str(steps.problem) == "cannot write"


@pytest.mark.cheap
def test_ranks_of_a_trial_have_the_places_that_torchrun_would_give() -> None:
    nodes = ["a", "a", "b"]
    assert [ray_ranks._place(nodes, rank) for rank in range(3)] == [
        {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        {"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
        {"RANK": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
    ]
    alone: Any = Ranks.__new__(Ranks)
    alone._others = []
    assert alone._places() == [{}]


@pytest.mark.cheap
def test_a_cluster_is_taken_whole_unless_something_is_said() -> None:
    found = {"CPU": 8.0, "GPU": 2.0}
    assert ray_search._sized(RUN, found).gpus == 2
    on_cpus = RUN.model_copy(update={"device": "cpu"})
    assert ray_search._sized(on_cpus, found).workers == 8
    asked = RUN.model_copy(update={"workers": 3})
    assert ray_search._sized(asked, found) == asked


@pytest.mark.cheap
@pytest.mark.parametrize(
    ("changes", "address", "expected"),
    [
        ({}, None, False),
        ({"gpus": 1}, None, False),
        ({"gpus": 2}, None, True),
        ({"workers": 1}, None, True),
        ({}, "10.0.0.1:6379", True),
    ],
)
def test_when_a_search_is_for_ray(
    changes: dict[str, int], address: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    options = command._Options.model_validate({})
    config = RUN.model_copy(update=changes)
    assert command._is_for_ray(options, config) == expected
    here = command._Options.model_validate({"jobs": 2})
    if not changes:
        assert not command._is_for_ray(here, config)


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed; pip install 'distributed-ignn[ray]'",
)
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_search_on_a_cluster_with_two_ranks_a_trial(tmp_path: Path) -> None:
    data: Any = small_data()
    np.savez(tmp_path / "own.npz", **{k: v.numpy() for k, v in data.to_dict().items()})
    arguments = (
        "-m distributed_ignn search own.npz --workers 2 --ranks-per-trial 2 --trials 3 "
        "--train.epochs 4 --device cpu --out found"
    )
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_ADDRESS": "local",
        "RAY_AUTH_MODE": "disabled",
    }
    done = subprocess.run(
        [sys.executable, *arguments.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "3 trials of 3, " in done.stdout
    record = json.loads((tmp_path / "found" / "search.json").read_text())
    assert record["failed"] == 0
    assert record["trials"][0]["runs"]["0"][-1]["epochs"] == 4
    # Tune's own files are gone, and nothing has evaluated the test nodes
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == [
        *("best.yaml", "runs", "search.json", "shards")
    ]
    assert not list(tmp_path.rglob("summary.json"))
    starts = list((tmp_path / "found" / "runs").glob("*/logs/rank-00001.jsonl"))
    assert len(starts) == 3
