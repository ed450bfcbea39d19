"""The short form of the fault campaign, and that its judgement can fail."""

from __future__ import annotations

import copy
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.campaign import Campaign, Outcome, sound
from tests.faults.soak import Watched
from tests.faults.victim import ray
from tests.jobs import Job, differences, records, send


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_random_kills_lose_nothing(tmp_path: Path) -> None:
    """Under torchrun, and of whole jobs that go on with another number of ranks."""
    said: list[str] = []
    campaign = Campaign(tmp_path, seed=3, say=said.append, epochs=12)
    for outcome, kills in ((campaign.torchrun(2), 2), (campaign.resize(1, with_ray=False), 1)):
        assert sound(outcome), (outcome, said)
        assert outcome.kills == kills


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_random_kills_of_ray_workers_lose_nothing(tmp_path: Path) -> None:
    assert sound(Campaign(tmp_path, seed=3).ray(2))


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seconds", [0.0, 5.0, 5.7, 6.4, 7.1])
def test_a_ray_worker_that_dies_while_all_start_is_replaced(tmp_path: Path, seconds: float) -> None:
    """Ray by itself gives up where it dies after its own start and before its first step."""
    output = tmp_path / "run"
    job = Job(ray(2, "--train.epochs", "2", "--output", str(output), restarts=3), tmp_path)
    (first, *_) = job.until(lambda: len(job.ranks()) == 2 and job.ranks(), 120)
    time.sleep(seconds)
    send(first, signal.SIGKILL)
    assert job.wait(300) == 0, job.text
    assert len(records(output)) == 2


def _result() -> dict[str, Any]:
    return {
        "metrics": [{"epoch": 1, "loss": 0.5}],
        "summary": {"best_val": 0.5},
        "state": {"epoch": 1},
        "tensors": {"common.safetensors": {"w": torch.ones(3), "b": torch.zeros(2)}},
    }


def test_the_smallest_difference_is_seen() -> None:
    whole, other = _result(), copy.deepcopy(_result())
    assert differences(whole, other) == []
    other["tensors"]["common.safetensors"]["w"][1] += 1e-7
    other["metrics"][0]["loss"] += 1e-17  # lost in rounding
    assert differences(whole, other) == ["common.safetensors: w"]
    other["metrics"][0]["loss"] += 1e-15
    assert differences(whole, other) == ["metrics", "common.safetensors: w"]
    del other["tensors"]["common.safetensors"]["b"]
    assert "tensors in common.safetensors" in differences(whole, other)


@pytest.mark.parametrize(
    "changes", [{"recoveries": 1}, {"identical": 0}, {"problems": ["left something"]}]
)
def test_an_outcome_is_sound_only_if_all_is_well(changes: dict[str, Any]) -> None:
    fine = {"kind": "torchrun", "runs": 1, "kills": 2, "recoveries": 2, "identical": 1}
    assert sound(Outcome(**fine))  # type: ignore[arg-type]
    assert not sound(Outcome(**(fine | changes)))  # type: ignore[arg-type]


def test_a_soak_sees_what_grows() -> None:
    even, rising = [100.0, 101.0] * 20, [100.0 + 0.3 * i for i in range(40)]
    assert Watched(even, [12, 13] * 20, [8] * 40).flat()
    assert not Watched(rising, [12] * 40, [8] * 40).flat()
    assert not Watched(even, [12 + i // 10 for i in range(40)], [8] * 40).flat()
    assert not Watched(even, [12] * 40, [8 + i // 10 for i in range(40)]).flat()
    assert not Watched(even, [12] * 34 + [13] * 6, [8] * 40).flat()  # late, and for good
