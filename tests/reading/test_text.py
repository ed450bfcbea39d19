"""JSON and YAML that parse elsewhere and are refused here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distributed_ignn.config import load_yaml
from distributed_ignn.errors import UserError
from distributed_ignn.reading.plain_files import in_one_line, open_plain, read_plain
from distributed_ignn.reading.strict_json import parse_json, read_json
from distributed_ignn.reading.strict_yaml import parse_yaml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested more than 64"),
        ("[" * 65 + "]" * 65, "nested more than 64"),
        ('{"a":' * 100_000, "nested more than 64"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
        ('{"x": {"a": 1, "a": 1}}', "'a' stands twice"),
        ("NaN", "NaN is not"),
        ("[-Infinity]", "-Infinity is not"),
        ("1e999", "too large"),
        ("-1e400", "too large"),
        ("9" * 41, "41 digits"),
        ("9" * 100_000, "digits"),
        ('"\\ud800"', "surrogates"),
        ('{"\\udfff": 1}', "surrogates"),
        ("", "Expecting value"),
        ("1 2", "Extra data"),
        ("'a'", "Expecting value"),
    ],
)
def test_json_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)
    with pytest.raises(ValueError, match=message):
        parse_json(text.encode())


def test_json_that_is_read(tmp_path: Path) -> None:
    text = '{"a": [1, -2.5, null, true, "\\u00e9"], "b": {"a": 1}}'
    expected = {"a": [1, -2.5, None, True, "\u00e9"], "b": {"a": 1}}
    assert parse_json(text) == expected
    (tmp_path / "a.json").write_text(text)
    assert read_json(tmp_path / "a.json") == expected
    with pytest.raises(OSError, match="larger than the 20 bytes allowed"):
        read_json(tmp_path / "a.json", limit=20)
    with pytest.raises(ValueError, match="utf-8"):
        parse_json(b"\xff\xfe1\x00")


BILLION = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BILLION, "the reference in line 2 is not allowed"),
        ("a: &a [*a]", "the reference in line 1"),
        ("base: &b {x: 1}\nother:\n  <<: *b\n", "the reference in line 3"),
        ("[" * 10_000, "nested more than 32"),
        ("a: " + "{b: " * 40, "nested more than 32"),
        ("- " * 5_000 + "x", "nested more than 32"),
        ("a: 1\na: 2", "'a' is written twice, again in line 2"),
        ("1: x", "the key in line 1 is not a word"),
        ("{[1]: 2}", "the key in line 1"),
        ("? {a: 1}\n: 2", "the key in line 1"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: !!python/name:os.system ''", "could not determine a constructor"),
        ("a: 2001-99-99", "month must be"),
        ("a: !!timestamp x", "."),
        ("a: !!int x", "."),
        ("a: " + "9" * 5_000, "digits"),
        ("a: \x00", "special characters"),
        ("--- 1\n--- 2", "single document"),
        ("a: [", "."),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="is not valid YAML") as caught:
        load_yaml(tmp_path / "config.yaml")
    assert str(caught.value).isprintable()


def test_yaml_that_is_read() -> None:
    assert parse_yaml("a: {b: [1, 2.5, x, null, true]}\n") == {
        "a": {"b": [1, 2.5, "x", None, True]}
    }
    assert parse_yaml("") is None


def test_only_regular_files_of_limited_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_plain(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than the 4 bytes"):
        read_plain(tmp_path / "file", 4)
    with pytest.raises(OSError, match="not a regular file"):
        read_plain(Path("/dev/zero"), 4)
    with pytest.raises(IsADirectoryError):
        read_plain(tmp_path, 4)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_plain(tmp_path / "pipe", 4)
    (tmp_path / "link").symlink_to("file")
    assert read_plain(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="symbolic links"):
        open_plain(tmp_path / "link", follow_links=False)


def test_words_of_a_file_fit_one_line() -> None:
    assert in_one_line("a\n b\tc") == "a b c"
    assert in_one_line("\x1b[31mred\x00") == "\\x1b[31mred\\x00"
    assert len(in_one_line("x" * 10_000)) == 200
    assert in_one_line("\u202eabc").isprintable()
