"""Arrays whose header claims other than what follows."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from distributed_ignn.reading.arrays import check_npz, map_npy, read_npz


def _npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin1")
    length = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + text + content


def _header(descr: str = "'<f8'", shape: str = "(2,)", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


def _npz(path: Path, *arrays: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for n, content in enumerate(arrays):
            archive.writestr(f"a{n}.npy", content)
    return path


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {
        "plain": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big-endian": np.arange(4, dtype=">i4"),
        "one": np.array(7),
        "none": np.zeros((0, 3), np.float16),
        "flags": np.array([True, False]),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
        check_npz(tmp_path / "a.npz")
        found = read_npz(tmp_path / "a.npz")
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert np.array_equal(found[name], array)
            assert found[name].dtype == array.dtype.newbyteorder("=")
    assert list(read_npz(tmp_path / "a.npz", ["one", "absent"])) == ["one"]
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        mapped = map_npy(tmp_path / f"{name}.npy")
        assert np.array_equal(mapped, array)
        before = (tmp_path / f"{name}.npy").read_bytes()
        mapped[...] = 0
        assert (tmp_path / f"{name}.npy").read_bytes() == before


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (_header(shape="(1099511627776,)"), "declares 8,796,093,022,208 bytes and has 16"),
        (_header(shape="(2, 9223372036854775807)"), "declares"),
        (_header(shape="(4294967296, 4294967296, 2)"), "declares"),
        (_header(shape="(1,)"), "declares 8 bytes and has 16"),
        (_header(shape="(-2,)"), "no valid"),
        (_header(shape="(True,)"), "no valid"),
        (_header(shape="(2.0,)"), "no valid header"),
        (_header(shape="2"), "no valid header"),
        (_header(shape="(" + "1, " * 40 + ")"), "no valid"),
        (_header(descr="'|O'", shape="(2,)"), "type object"),
        (_header(descr="[('a', '<f8')]", shape="(2,)"), "values of type"),
        (_header(descr="[('a', '|O')]", shape="(2,)"), "values of type"),
        (_header(descr="'<M8[D]'", shape="(2,)"), "values of type"),
        (_header(descr="'<c16'", shape="(1,)"), "values of type complex128"),
        (_header(descr="'<f8' + '<f8'"), "no valid header"),
        (_header(descr="__import__('os').system('id')"), "no valid header"),
        (_header(descr="'f99'"), "no valid header"),
        (_header(fortran="1"), "no valid header"),
        ("{", "no valid header"),
        ("(" * 5_000, "no valid header"),
        ("[" * 9_999, "no valid header"),
        (" " * 20_000, "no valid header"),
        ("{'descr': '<f8'}", "no valid header"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: str, message: str) -> None:
    path = _npz(tmp_path / "a.npz", _npy(header, bytes(16)))
    for read in (read_npz, check_npz):
        with pytest.raises(ValueError, match=message):
            read(path)
    (tmp_path / "a.npy").write_bytes(_npy(header, bytes(16)))
    with pytest.raises(ValueError, match=message):
        map_npy(tmp_path / "a.npy")


def test_other_versions_and_members(tmp_path: Path) -> None:
    good = _header()
    assert read_npz(_npz(tmp_path / "a.npz", _npy(good, bytes(16), b"\x02\x00")))["a0"].size == 2
    with pytest.raises(ValueError, match="no valid header"):
        read_npz(_npz(tmp_path / "b.npz", _npy(good, bytes(16), b"\x03\x00")))
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("a.pkl", b"cos\nsystem\n.")
    with pytest.raises(ValueError, match="is not an array"):
        read_npz(tmp_path / "c.npz")
    np.save(tmp_path / "d.npz", np.zeros(3))
    (tmp_path / "d.npz.npy").rename(tmp_path / "d.npz")
    with pytest.raises(ValueError, match="not a zip"):
        read_npz(tmp_path / "d.npz")


def test_a_bomb(tmp_path: Path) -> None:
    """Twice a gibibyte of zeros, written in pieces, is two megabytes of file."""
    path = tmp_path / "a.npz"
    size = 3 * 2**29
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a0.npy", "w", force_zip64=True) as member,
    ):
        member.write(_npy(_header("'|u1'", f"({size},)")))
        for _ in range(size >> 24):
            member.write(bytes(1 << 24))
    with pytest.raises(ValueError, match="more than 100 times as many"):
        read_npz(path)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.mkdir, (tmp_path / "ran",)

    stream = io.BytesIO()
    np.savez(stream, y=np.array([Attack(), None], dtype=object))
    (tmp_path / "a.npz").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match="type object"):
        read_npz(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()
    np.load(io.BytesIO(stream.getvalue()), allow_pickle=True)["y"]
    assert (tmp_path / "ran").exists()  # the trap itself works


def test_words_of_no_letters(tmp_path: Path) -> None:
    """They take no byte of the file, and numpy takes four for each."""
    path = _npz(tmp_path / "a.npz", _npy(_header(descr="'<U0'", shape="(10000000000,)")))
    with pytest.raises(ValueError, match="holds values of type <U0"):
        read_npz(path, kinds="biufU")
