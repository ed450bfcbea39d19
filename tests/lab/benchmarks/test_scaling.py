"""Scaling studies: which points, which efficiency, and one real study on a tiny graph."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from distributed_ignn.commands.scaling import main
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks.link import LinkSettings
from distributed_ignn.lab.benchmarks.scaling import Row, points, to_csv, with_efficiency
from distributed_ignn.lab.benchmarks.scaling_plot import draw

_CONFIG = RunConfig.model_validate(
    {"dataset": "synthetic-products", "data": {"synthetic": {"scale": 0.001}}}
)
_TINY = (
    *("--scale", "0.0005", "--width", "8", "--device", "cpu", "--rounds", "1"),
    *("--method", "picard", "--data.synthetic.features", "8"),
)


def row(study: str, ranks: int, seconds: float, **values: float) -> Row:
    return Row(
        study,
        ranks,
        "none",
        "fp32",
        nodes=100,
        entries=1000,
        seconds_epoch=seconds,
        seconds_solve=values.get("solve", seconds),
        evaluations_solve=values.get("evaluations", 1.0),
        bytes_epoch=0.0,
        bytes_solve=0.0,
        seconds_exposed=0.0,
        peak_memory_bytes=1,
    )


def test_points_cover_codecs_and_links_once_there_is_an_exchange() -> None:
    link = LinkSettings("200mbit", 2.0)
    found = list(points("strong", _CONFIG, (1, 2), ("fp32", "int4"), link))
    assert [(p.ranks, p.link_name, p.config.comm.halo) for p in found] == [
        (1, "none", "fp32"),
        (2, "none", "fp32"),
        (2, "none", "int4"),
        (2, "200mbit+2ms", "fp32"),
        (2, "200mbit+2ms", "int4"),
    ]
    assert len({p.name() for p in found}) == len(found)
    assert len({p.shards() for p in found}) == 1  # one graph, whatever the ranks and codecs
    assert found[1].name(3) != found[1].name(4)


def test_a_weak_study_grows_the_graph() -> None:
    found = list(points("weak", _CONFIG, (1, 4), ("fp32",), None))
    assert [p.config.data.synthetic.scale for p in found] == [0.001, 0.004]
    assert len({p.shards() for p in found}) == 2
    with pytest.raises(UserError, match="acm cannot"):
        list(points("weak", RunConfig.model_validate({"dataset": "acm"}), (1,), ("fp32",), None))


def test_efficiency_is_against_one_rank_of_the_same_study() -> None:
    rows = [
        row("strong", 1, 8.0, solve=4.0, evaluations=8),
        row("strong", 4, 2.5, solve=1.0, evaluations=5),
        row("weak", 2, 3.0),
    ]
    strong, four, weak = with_efficiency(rows)
    assert strong.efficiency_epoch == strong.efficiency_evaluation == 1.0
    assert four.efficiency_epoch == pytest.approx(8.0 / (4 * 2.5))
    assert four.efficiency_evaluation == pytest.approx(0.5 / (4 * 0.2))
    assert math.isnan(weak.efficiency_epoch)
    (grown,) = with_efficiency([row("weak", 1, 2.0), row("weak", 2, 2.5)])[1:]
    assert grown.efficiency_epoch == pytest.approx(0.8)


def test_what_is_not_known_is_empty_in_the_file_and_absent_from_the_plot() -> None:
    rows = [row("weak", 2, 3.0), row("weak", 4, 3.0)]
    (first, _) = csv.DictReader(to_csv(rows).splitlines())
    assert first["ranks"] == "2"
    assert first["efficiency_epoch"] == ""
    panels = draw(rows, "title").axes
    assert {"weak: seconds per epoch", "weak: parallel efficiency of an epoch"} < {
        axes.get_title() for axes in panels
    }


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_study_on_a_tiny_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    command = ["strong", "--ranks", "1", "2", "--out", str(out), "--timeout", "100", *_TINY]
    assert main(command) == 0
    assert "strong scaling" in capsys.readouterr().out
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")
    with (out / "scaling.csv").open() as file:
        one, two = csv.DictReader(file)
    assert (one["ranks"], two["ranks"]) == ("1", "2")
    assert one["nodes"] == two["nodes"]
    assert float(one["bytes_epoch"]) == 0.0 < float(two["bytes_epoch"])
    assert float(two["efficiency_epoch"]) == pytest.approx(
        float(one["seconds_epoch"]) / (2 * float(two["seconds_epoch"]))
    )
    written = {path: path.stat().st_mtime_ns for path in (out / "points").iterdir()}
    assert main(command) == 0  # nothing is measured again
    assert {path: path.stat().st_mtime_ns for path in (out / "points").iterdir()} == written


def test_a_point_that_takes_too_long_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    arguments = ["--ranks", "1", "--out", str(out), "--timeout", "0.2", *_TINY]
    assert main(["strong", *arguments]) == 2
    printed = capsys.readouterr().err
    assert "1 of 1 points failed" in printed
    assert "did not finish within 0.2 s" in printed
    assert not (out / "scaling.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("strong", "--ranks", "0"), "must be at least 1"),
        (("strong", "--rounds", "0"), "--rounds 0 must be at least 1"),
        (("strong", "--link", "fast", "--device", "cpu"), "200mbit"),
        (("strong", "--link", "1mbit", "--ranks", "1", "--device", "cpu"), "at least 2 ranks"),
        (("strong", "--comm.halo", "int4"), "--halo"),
        (("strong", "--delay", "3"), "--delay has no effect without --link"),
        (
            ("strong", "--method", "anderson", "--solver.lambda1", "9"),
            "solver.lambda1 = 9.0 has no effect with forward.method = anderson",
        ),
        (("weak", "--dataset", "acm", "--ranks", "1"), "acm cannot"),
        (("strong", "--rank", "2"), "did you mean '--ranks'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
