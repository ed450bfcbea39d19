"""Two runs never write to one folder, and nothing is left of a lock that was let go."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from distributed_ignn.errors import UserError
from distributed_ignn.runs.output.lock import LOCK, OutputLock


def test_one_at_a_time(tmp_path: Path) -> None:
    first, second = OutputLock(tmp_path), OutputLock(tmp_path)
    first.take(0.0)
    with pytest.raises(UserError, match="is in use by another run"):
        second.take(0.3)
    second.release()  # which it does not hold
    assert (tmp_path / LOCK).exists()
    first.release()
    second.take(0.0)
    with pytest.raises(UserError, match="is in use by another run"):
        first.take(0.0)
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_removed_by_who_held_it_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has opened it before and locks it after that would meet nobody there."""
    first, second = OutputLock(tmp_path), OutputLock(tmp_path)
    first.take(0.0)
    flock = fcntl.flock

    def late(file: int, how: int) -> None:
        first.release()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    second.take(5.0)
    with pytest.raises(UserError):
        OutputLock(tmp_path).take(0.0)
    second.release()


def test_a_folder_that_nobody_can_write_to(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OutputLock(tmp_path / "absent").take(0.0)
