"""Benchmarks agree with what they measure; no test depends on time."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.interleaving import Report, check_alike, compare, interleave


def test_ratios_are_baseline_over_value() -> None:
    figures = compare({"slow": 2.0, "fast": 0.5, "never": math.inf}, "seconds", "slow")
    assert [figure.ratio for figure in figures] == [1.0, 4.0, 0.0]
    figures = compare({"a": 0.0, "b": 0.0, "c": 2.0}, "evaluations", "a")
    assert [figure.ratio for figure in figures] == [1.0, 1.0, 0.0]
    assert compare({"a": 3.0, "b": 0.0}, "evaluations", "a")[1].ratio == math.inf


def test_every_variant_runs_once_per_round_and_once_to_warm_up() -> None:
    calls: list[str] = []
    variants = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    found = interleave(variants, 3, Communicator())
    assert calls == ["a", "b"] * 4
    assert set(found) == {"a", "b"}


def test_a_variant_that_never_arrives_is_null_in_json(tmp_path: Path) -> None:
    report = Report("solver", {}, compare({"a": 1.0, "b": math.inf}, "seconds", "a"))
    report.write(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert [figure["value"] for figure in stored["figures"]] == [1.0, None]


def test_tables_fit_eighty_columns_and_name_their_baseline_once() -> None:
    values = {"anderson, initialiser": 1.25, "anderson, zero": 123.456, "never": math.inf}
    figures = [
        figure
        for tolerance in (1e-1, 1e-4)
        for unit in ("evaluations", "seconds")
        for figure in compare(values, unit, "anderson, zero", f"residual {tolerance:g}")
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    Report("solver", {}, tuple(figures)).show(console)
    first, second = console.export_text().split("solver, ")[1:]
    for text, title in ((first, "residual 0.1"), (second, "residual 0.0001")):
        assert text.splitlines()[0].strip() == f"{title}; ratio = anderson, zero / variant"
        (row,) = (line for line in text.splitlines() if "anderson, initialiser" in line)
        assert re.findall(r"[\d.]+", row) == ["1.25", "98.76", "1.25", "98.76"]
        (row,) = (line for line in text.splitlines() if "never" in line)
        assert re.findall(r"[-\d.]+", row) == ["-", "0.00", "-", "0.00"]


def test_variants_that_differ_are_not_compared() -> None:
    same, other = torch.ones(3), torch.tensor([1.0, 1.0, 1.1])
    check_alike({"a": (same,), "b": (same + 1e-6,)}, Communicator())
    with pytest.raises(RuntimeError, match=r"b differs from a by 0\.1"):
        check_alike({"a": (same,), "b": (other,)}, Communicator())
    with pytest.raises(RuntimeError, match="nan"):
        check_alike({"a": (same,), "b": (same * math.nan,)}, Communicator())
