"""When the solver is trained."""

from __future__ import annotations

import pytest

from distributed_ignn.config import ScheduleConfig
from distributed_ignn.training.schedule import Schedule

CONFIG = ScheduleConfig(warmup_epochs=3, warmup_solver_steps=7, model_steps=4, solver_steps=2)


def test_phases_follow_the_warm_up_at_regular_distances() -> None:
    schedule = Schedule(CONFIG, epochs=13, active=True)
    steps = [schedule.solver_steps_before(epoch) for epoch in range(13)]
    assert steps == [0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 2, 0]
    assert schedule.total_solver_steps == 11


def test_without_a_warm_up_the_solver_comes_first() -> None:
    config = CONFIG.model_copy(update={"warmup_epochs": 0})
    schedule = Schedule(config, epochs=5, active=True)
    assert [schedule.solver_steps_before(epoch) for epoch in range(5)] == [7, 0, 0, 0, 2]
    assert schedule.trains


def test_a_run_that_ends_with_the_warm_up_trains_no_solver() -> None:
    for epochs, trains in ((3, False), (4, True)):
        schedule = Schedule(CONFIG, epochs=epochs, active=True)
        assert schedule.trains == trains == (schedule.total_solver_steps > 0)
    assert not Schedule(CONFIG, epochs=13, active=False).trains


def test_nothing_is_trained_without_a_learned_solver() -> None:
    schedule = Schedule(CONFIG, epochs=13, active=False)
    assert [schedule.solver_steps_before(epoch) for epoch in range(13)] == [0] * 13
    assert schedule.total_solver_steps == 0
    assert schedule.solver_progress(0) == 1.0


def test_progress_rises_evenly_to_one_at_the_last_step() -> None:
    schedule = Schedule(CONFIG, epochs=13, active=True)
    progress = [schedule.solver_progress(step) for step in range(11)]
    assert progress == pytest.approx([(step + 1) / 11 for step in range(11)])
    # a run that was resumed with fewer epochs may already have taken more steps than are planned
    assert schedule.solver_progress(30) == 1.0
