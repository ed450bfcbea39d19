"""Signals as requests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from distributed_ignn.comm.activity import Activity
from distributed_ignn.runs import stopping
from distributed_ignn.runs.stopping import SIGNALS, StopRequest

pytestmark = pytest.mark.cheap


@pytest.fixture
def hangup() -> Iterator[None]:
    """Whatever is made of the signal, it is as before afterwards."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_a_signal_during_steps_is_remembered(signum: signal.Signals) -> None:
    request = StopRequest(60.0, Activity(), announce=False, may_exit=False)
    before = signal.getsignal(signum)
    with request.listening(), request.deferred():
        os.kill(os.getpid(), signum)
        assert request() == signum
    assert signal.getsignal(signum) == before


def test_a_run_goes_on_without_its_terminal_where_that_is_asked_for(hangup: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    request = StopRequest(60.0, Activity(), announce=False, may_exit=False)
    with request.listening(), request.deferred():
        os.kill(os.getpid(), signal.SIGHUP)
        assert request() is None


def test_the_grace_time_is_that_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run of the process may be under way when it is over."""
    ended: list[int] = []
    monkeypatch.setattr(stopping.os, "_exit", ended.append)
    request = StopRequest(0.1, Activity(), announce=False)
    with request.listening(), request.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)
    assert not ended
