"""The clock counts while somebody has it run, and keeps nothing of a GPU's queue otherwise."""

from __future__ import annotations

import time

import pytest
import torch

from distributed_ignn.comm.clock import Clock
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.waiting import clocked

MILLISECONDS = 3.0


class _Event:
    """A timing event that counts how many there are; one is recorded every few milliseconds."""

    made = 0
    now = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        type(self).made += 1

    def record(self) -> None:
        type(self).now += MILLISECONDS
        self.at = type(self).now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: _Event) -> float:
        return later.at - self.at


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> type[_Event]:
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(_Event, "made", 0)
    return _Event


def test_no_event_is_made_while_nobody_measures(events: type[_Event]) -> None:
    clock = Clock(torch.device("cuda", 0))
    for _ in range(1000):
        with clock.measure("product"):
            pass
    assert events.made == 0
    assert clock.read() == {}


def test_events_are_read_once_and_let_go(events: type[_Event]) -> None:
    clock = Clock(torch.device("cuda", 0))
    with clock.running():
        with clock.running(), clock.measure("product"):
            pass
        with clock.measure("product"):  # the inner one has not switched the outer one off
            pass
    with clock.measure("product"):
        pass
    assert events.made == 4
    assert clock.read() == {"product": pytest.approx(2 * MILLISECONDS / 1e3)}
    assert clock.read() == clock.read()
    assert not clock._marks


def test_benchmarks_read_what_passes_inside() -> None:
    comm = Communicator()

    def task() -> None:
        with comm.clock.measure("product"):
            time.sleep(0.01)

    task()
    assert clocked(comm, task, 2)["product"] >= 0.01
    task()
    assert comm.clock.read()["product"] < 0.03 + 0.01
    assert comm.clock.read().keys() == {"product"}


def test_the_clock_stops_where_a_task_fails() -> None:
    clock = Clock(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), clock.running():
        raise ZeroDivisionError
    with clock.measure("product"):
        pass
    assert clock.read() == {}
