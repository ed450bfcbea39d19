"""Launches and syncs of a GPU's host in forecasts; a CPU's are operations, as before."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from distributed_ignn.lab.planning.epoch import EpochModel
from distributed_ignn.lab.planning.equations import Machine
from distributed_ignn.lab.planning.forecast import forecast
from distributed_ignn.lab.planning.hardware import Asked, Profile
from distributed_ignn.lab.planning.host_work import CODEC, EPOCH, EXCHANGE, HostWork, estimated
from distributed_ignn.lab.planning.report import forecasts_json, show_host_work
from distributed_ignn.solvers.methods import METHODS
from tests.lab.planning.small import WORK, machine, part

_ANDERSON = replace(WORK, method="anderson", forward=3, adjoint=2, validation=1)


def _shown(profile: Profile, work: object = _ANDERSON) -> str:
    text = io.StringIO()
    found = forecast(part, (1, 2), work, profile)  # type: ignore[arg-type]
    show_host_work(Console(file=text, width=120), profile, found)
    return text.getvalue()


def test_every_method_has_an_estimate() -> None:
    found = {name: estimated(name).launches for name in METHODS}
    assert found["picard"] < found["broyden"] < found["anderson"] < found["neural"]


def test_an_epoch_counts_its_evaluations_and_the_rest() -> None:
    profile = machine(sync_seconds=1e-5)
    cost = EpochModel(part(2), _ANDERSON, Machine(profile, 2)).epoch()
    each = estimated("anderson")
    assert cost.launches == 6 * each.launches + EPOCH.launches
    assert cost.syncs == 6 * each.syncs + EPOCH.syncs
    assert cost.starting == pytest.approx(1e-6 * cost.launches + 1e-5 * cost.syncs)
    free = EpochModel(part(2), _ANDERSON, Machine(machine(operation_seconds=0.0), 2)).epoch()
    assert cost.seconds == pytest.approx(free.seconds + cost.starting)
    alone = HostWork(profile, "anderson", 1, True).evaluation()
    assert alone.asked.launches == each.launches - EXCHANGE.launches
    coded = HostWork(profile, "anderson", 2, True).evaluation()
    assert coded.asked.syncs == each.syncs + CODEC.syncs


def test_measured_counts_take_the_place_of_estimates_and_are_marked() -> None:
    profile = machine(asked={"anderson": {"launches": 12.0, "syncs": 1.0}}, origin="measured")
    found = HostWork(profile, "anderson", 2, False).evaluation()
    assert found == (Asked(launches=12, syncs=1), True)
    assert not HostWork(profile, "picard", 2, False).evaluation().measured
    assert not HostWork(profile, "anderson", 2, True).evaluation().measured
    shown = _shown(profile)
    assert "12, 1 │" in shown
    assert "measured │" in shown
    assert "a launch takes 1 us and a sync unknown, measured" in shown
    assert "estimated │" in _shown(machine())
    (first, *_) = forecasts_json(forecast(part, (2,), _ANDERSON, profile))
    assert first["evaluation"] == {"launches": 12.0, "syncs": 1.0, "measured": True}


def test_a_cpu_has_no_launches() -> None:
    profile = machine(cores_per_box=4)
    cost = EpochModel(part(2), _ANDERSON, Machine(profile, 2)).epoch()
    assert (cost.launches, cost.syncs) == (0.0, 0.0)
    assert cost.starting > 0.0
    assert _shown(profile) == ""
