"""Steps that take long are told every few seconds, the innermost of them alone."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from distributed_ignn import long_steps
from distributed_ignn.long_steps import LongStep, long_step

pytestmark = pytest.mark.cheap


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(long_steps, "_FIRST_SECONDS", 0.05)
    caplog.set_level(logging.INFO)


def test_a_line_has_amount_share_time_rate_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told = LongStep("downloading x.zip", 1_000_000_000)
    assert told.line() == "downloading x.zip: 0 bytes of 1.0 GB (0%), 0 s"
    told.begin_at(400_000_000)  # of an earlier attempt
    told.advance(100_000_000)
    now = 110.0
    line = "downloading x.zip: 500.0 MB of 1.0 GB (50%), 10 s, 10.0 MB/s, about 50 s left"
    assert told.line() == line
    now = 120.0
    assert told.line() == "downloading x.zip: 500.0 MB of 1.0 GB (50%), 20 s"  # it has stopped
    assert LongStep("dividing").line() == "dividing: 0 s"
    parts = LongStep("writing", 8, "parts")
    parts.advance(2)
    now = 140.0
    assert parts.line() == "writing: 2 of 8 parts (25%), 20 s, about 60 s left"


def test_a_step_that_ends_soon_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with long_step("reading"):
        pass
    assert caplog.messages == []


def test_only_the_innermost_speaks_and_each_says_when_it_is_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = threading.active_count()
    with long_step("reading"):
        time.sleep(0.2)
        with long_step("unpacking", 10):
            silent_from = len(caplog.messages)
            time.sleep(0.25)
            inner = caplog.messages[silent_from:]
        time.sleep(0.2)
    assert inner
    assert all(line.startswith("unpacking: 0 bytes of 10 bytes") for line in inner)
    assert caplog.messages[0].startswith("reading: ")
    done = [line.partition(" in ")[0] for line in caplog.messages if "done" in line]
    assert done == ["unpacking: done", "reading: done"]
    assert threading.active_count() == before


def test_a_step_that_fails_is_not_done(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        time.sleep(0.2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), long_step("reading"):
        fail()
    assert caplog.messages
    assert not any("done" in line for line in caplog.messages)


def test_lines_grow_rarer_in_a_long_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_steps, "_FIRST_SECONDS", 5.0)
    told = LongStep("dividing")
    now = time.monotonic()
    found = []
    for late in (0.0, 100.0, 300.0, 36_000.0):
        monkeypatch.setattr(time, "monotonic", lambda late=late: now + late)
        found.append(round(told._pause()))
    assert found == [5, 5, 15, 30]
