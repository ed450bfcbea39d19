"""Clusters that cannot be joined or used: one line for each, before anything waits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from distributed_ignn.commands import train as train_command
from distributed_ignn.errors import UserError
from distributed_ignn.launchers import ray_cluster
from tests.launch.test_ray import TINY, needs_ray

pytestmark = [needs_ray, pytest.mark.filterwarnings("ignore:::ray")]  # it warns of its own code


@pytest.fixture
def _many_small(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"Alive": True, "Resources": {"CPU": 2.0}}
    gone = {"Alive": False, "Resources": {"CPU": 64.0}}
    monkeypatch.setattr("ray.nodes", lambda: [machine, machine, gone])


@pytest.mark.usefixtures("_many_small")
def test_workers_that_fit_on_no_machine_are_refused() -> None:
    ray_cluster.check_room("workers", 4, {"CPU": 1.0})
    ray_cluster.check_room("workers", 4, {"CPU": 0.5, "GPU": 0.0})
    ray_cluster.check_room("workers", 20, {"CPU": 0.2})
    with pytest.raises(UserError, match=r"workers = 1 with 3 CPUs each do not fit .* hold 0 such"):
        ray_cluster.check_room("workers", 1, {"CPU": 3.0})


def _raise_other_versions(**_: Any) -> None:
    """What ``ray.init`` raises, in Ray's own words."""
    from ray._private.utils import check_version_info

    there = {"ray_version": "2.50.1", "python_version": "3.10.4"}
    check_version_info(there, "node 10.0.0.2")


@pytest.mark.parametrize("address", ["127.0.0.1", None])
def test_another_ray_or_python_in_the_cluster_is_one_line(
    address: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray

    for name, value in (("is_initialized", False), ("shutdown", None)):
        monkeypatch.setattr(ray, name, lambda value=value: value)
    monkeypatch.setattr(ray, "init", _raise_other_versions)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    output = tmp_path / "out"
    assert train_command.main([*TINY, "--workers", "2", "--output", str(output)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    python = ".".join(map(str, sys.version_info[:3]))
    where = f"at RAY_ADDRESS = {address}" if address else "on this machine"
    assert f"cluster {where} has Ray 2.50.1 and Python 3.10.4" in told
    assert f"this program Ray {ray.__version__} and Python {python}" in told
    assert "same environment, or set RAY_ADDRESS=local" in told
    assert not output.exists()


def test_ray_s_client_is_refused_with_the_way_in(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr("ray.util.client.RayAPIStub.is_connected", lambda _: True)
    with pytest.raises(UserError, match=r"ray\.init\('ray://\.\.\.'\); send it there with ray job"):
        ray_cluster.connect()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    with pytest.raises(UserError, match=r"RAY_ADDRESS = ray://10\.0\.0\.1:10001 .* ray job submit"):
        ray_cluster.connect()
