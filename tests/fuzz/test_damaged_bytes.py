"""Any bytes in any file: they load to something that holds every rule, or are refused in a line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutations import Damage, apply_all, damages
from tests.fuzz.targets import TARGETS, check, everything_below

pytestmark = [
    # loaders of libraries compile helpers on import, and numpy warns of empty tables
    pytest.mark.filterwarnings("ignore"),
]

#: A file of another kind, pieces of which end up in the damaged one.
_FOREIGN = b"".join(bytes([n]) * 3 + b"\x80\x02cos\nsystem\nq\x00." for n in range(40))


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to read in; caches of readers go beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "room"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_the_file_is_valid_before_the_damage(name: str, room: Path) -> None:
    target = TARGETS[name]
    target.make(room)
    content = (room / target.file).read_bytes()
    assert check(target, room, content) is None


@pytest.mark.parametrize("name", TARGETS)
@given(changes=damages())
def test_damaged_bytes(name: str, room: Path, changes: list[Damage]) -> None:
    target = TARGETS[name]
    for leftover in room.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    target.make(room)
    content = (room / target.file).read_bytes()
    before = everything_below(room)
    check(target, room, apply_all(content, changes, _FOREIGN))
    new = {path for path in everything_below(room) - before if "/.cache" not in path}
    assert not new
    assert {path.name for path in room.parent.iterdir()} <= {"room", "cache"}


@pytest.mark.parametrize("name", TARGETS)
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes(name: str, room: Path, content: bytes) -> None:
    target = TARGETS[name]
    if not any(room.iterdir()):
        target.make(room)
    check(target, room, content)
