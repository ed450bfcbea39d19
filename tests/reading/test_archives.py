"""Archives made to do harm: names that lead out of the folder, links, devices, bombs."""

from __future__ import annotations

import gzip
import os
import stat
import zipfile
import zlib
from pathlib import Path

import pytest

from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets import pyg_ogb
from distributed_ignn.reading.archives import Limits, check_gzip, open_gzip, open_zip, unpack

MODES = {
    "link": stat.S_IFLNK | 0o777,
    "character device": stat.S_IFCHR | 0o666,
    "block device": stat.S_IFBLK | 0o666,
    "pipe": stat.S_IFIFO | 0o666,
    "socket": stat.S_IFSOCK | 0o666,
}
NAMES = [
    "../outside",
    "a/../../outside",
    "..",
    "/outside",
    "//outside",
    "~/outside",
    "..\\outside",
    "C:\\outside",
    "c:outside",
    "line\nbreak",
    "a" * 2_000,
]


def _zip(path: Path, members: dict[str | zipfile.ZipInfo, bytes], method: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _refused(path: Path, folder: Path, limits: Limits | None = None) -> str:
    before = set(folder.parent.iterdir())
    with pytest.raises(ValueError, match=r".") as caught:
        unpack(path, folder, limits)
    assert set(folder.parent.iterdir()) == before  # refused before anything is written
    return str(caught.value)


def test_files_and_folders_come_out(tmp_path: Path) -> None:
    members: dict[str | zipfile.ZipInfo, bytes] = {"a/b.txt": b"x" * 5_000, "c": b"", "d/": b""}
    unpack(_zip(tmp_path / "a.zip", members, zipfile.ZIP_DEFLATED), tmp_path / "out")
    assert (tmp_path / "out" / "a" / "b.txt").read_bytes() == b"x" * 5_000
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "c", "d"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    path = _zip(tmp_path / "a.zip", {"fine": b"1", name: b"2"})
    assert "member" in _refused(path, tmp_path / "out")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("kind", MODES)
def test_links_and_devices(tmp_path: Path, kind: str) -> None:
    info = zipfile.ZipInfo("trap")
    info.external_attr = MODES[kind] << 16
    path = _zip(tmp_path / "a.zip", {info: b"/etc", "trap/file": b"in /etc"})
    assert "link or a device" in _refused(path, tmp_path / "out")


def test_a_member_that_is_file_and_folder(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"a": b"file", "a/b": b"below it"})
    with pytest.raises(OSError, match=r"."):
        unpack(path, tmp_path / "out")


def test_the_same_name_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"2")
    assert "two members are called a" in _refused(path, tmp_path / "out")


def test_bombs(tmp_path: Path) -> None:
    zeros = bytes(4 * 2**20)
    path = _zip(tmp_path / "a.zip", {"zeros": zeros}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    tight = Limits(free=2**20)
    assert "times as many" in _refused(path, tmp_path / "out", tight)
    # beside a large member that hardly shrinks
    noise = os.urandom(2**20)
    path = _zip(tmp_path / "b.zip", {"noise": noise, "zeros": zeros}, zipfile.ZIP_DEFLATED)
    assert "member zeros" in _refused(path, tmp_path / "out", tight)
    many: dict[str | zipfile.ZipInfo, bytes] = {str(n): b"" for n in range(20)}
    path = _zip(tmp_path / "c.zip", many)
    assert "20 members" in _refused(path, tmp_path / "out", Limits(members=10))
    path = _zip(tmp_path / "d.zip", {"a": noise, "b": noise})
    assert "2,097,152 bytes" in _refused(path, tmp_path / "out", Limits(total=2**20))


def test_a_bomb_that_lies_about_its_size(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"zeros": bytes(4 * 2**20)}, zipfile.ZIP_DEFLATED)
    content = path.read_bytes().replace(
        (4 * 2**20).to_bytes(4, "little"), (9).to_bytes(4, "little")
    )
    path.write_bytes(content)
    with pytest.raises(ValueError, match="CRC"):
        unpack(path, tmp_path / "out", Limits(free=2**20))
    assert (tmp_path / "out" / "zeros").stat().st_size <= 9


def test_overlapping_members_count_in_full(tmp_path: Path) -> None:
    """Many entries of the directory may point to the same packed bytes."""
    path = _zip(tmp_path / "a.zip", {"a": os.urandom(2**16)})
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entry = content[start:end]
    entries = b"".join(entry[:-1] + bytes([65 + n]) for n in range(20))
    tail = bytearray(content[end:])
    tail[8:12] = (20).to_bytes(2, "little") * 2
    tail[12:16] = len(entries).to_bytes(4, "little")
    path.write_bytes(content[:start] + entries + bytes(tail))
    assert "1,310,720 bytes" in _refused(path, tmp_path / "out", Limits(total=2**20))


def test_more_than_the_disk_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _zip(tmp_path / "a.zip", {"a": bytes(1_000)})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ValueError, match="the disk has 10 left"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods(tmp_path: Path, method: int) -> None:
    path = _zip(tmp_path / "a.zip", {"a": bytes(1_000)}, method)
    assert "packed by method" in _refused(path, tmp_path / "out")


def test_encrypted_members(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"a": b"x"})
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    path.write_bytes(content)
    assert "is encrypted" in _refused(path, tmp_path / "out")


def test_pipes_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"), open_zip(tmp_path / "pipe"):
        pass


def test_gzip_bombs(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"12 34\n" * 100_000))
    check_gzip(path, 600_000)
    with pytest.raises(ValueError, match="more than the 599,999 bytes"):
        check_gzip(path, 599_999)
    path.write_bytes(gzip.compress(bytes(2**20)))
    with pytest.raises(ValueError, match="more than"), open_gzip(path, 1_000) as stream:
        stream.readline()
    # several members in one file count together
    path.write_bytes(gzip.compress(bytes(600)) * 2)
    with pytest.raises(ValueError, match="more than"):
        check_gzip(path, 1_000)
    path.write_bytes(gzip.compress(bytes(600))[:-6])
    with pytest.raises(ValueError, match="end-of-stream"):
        check_gzip(path, 1_000)
    path.write_bytes(b"\x1f\x8b\x08\x00" + zlib.compress(b"x"))
    with pytest.raises((ValueError, OSError)):
        check_gzip(path, 1_000)


@pytest.mark.parametrize("trap", ["name", "link"])
def test_a_published_archive_that_was_replaced(tmp_path: Path, trap: str) -> None:
    info = zipfile.ZipInfo("arxiv/../../../outside" if trap == "name" else "arxiv")
    info.external_attr = (MODES["link"] if trap == "link" else stat.S_IFREG) << 16
    origin = _zip(tmp_path / "arxiv.zip", {"arxiv/raw/edge.csv.gz": b"", info: b"/etc"})
    root = tmp_path / "root"
    with pytest.raises(UserError, match="cannot be unpacked") as caught:
        pyg_ogb._fetch_unpacked(origin.as_uri(), root / "ogbn_arxiv", inner="arxiv", files=())
    assert str(caught.value).isprintable()
    assert os.listdir(root) == ["arxiv.zip"]
    assert not (tmp_path / "outside").exists()
