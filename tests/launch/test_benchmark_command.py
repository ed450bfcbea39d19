"""The benchmark command, from its arguments to the file of figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed_ignn.commands.benchmark import main
from distributed_ignn.lab.benchmarks.short_flags import spelled_out, with_graph

_SMALL = ("--scale", "0.0005", "--width=8", "--rounds", "1", "--device", "cpu")


def test_short_flags_are_settings_and_a_graph_is_there_unless_one_is_named() -> None:
    assert spelled_out(["x", "--scale", "2", "--width=3"])[-4:] == [
        "x",
        "--data.synthetic.scale",
        "2",
        "--model.hidden=3",
    ]
    generated = {"dataset": "synthetic-products", "data": {"synthetic": {"scale": 0.01}}}
    assert with_graph({}, None) == generated
    assert with_graph({"data": {"synthetic": {"scale": 2.0}}}, None)["data"] == {
        "synthetic": {"scale": 2.0}
    }
    assert with_graph({"dataset": "acm"}, None) == {"dataset": "acm"}
    assert with_graph({"seed": 1}, Path("run.yaml")) == {"seed": 1}


def test_figures_are_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures" / "exchange.json"
    assert main(["exchange", *_SMALL, "--json", str(file)]) == 0
    assert "ratio = fp32 / variant" in " ".join(capsys.readouterr().out.split())
    stored = json.loads(file.read_text())
    assert stored["benchmark"] == "exchange"
    assert stored["settings"]["width"] == 8
    assert stored["settings"]["nodes"] == round(2_449_029 * 0.0005)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("iteration", "--run", "runs/x"), "--run has no effect on iteration; drop it (solver, "),
        (("solver", "--run", "runs/x", "--codecs", "int4"), "drop it (codecs reads it)"),
        (("solver", "runs/x", "--train.lr", "1"), "train.lr = 1 has no effect on a study of a tra"),
        (("solver", "runs/x", "--width", "8"), "model.hidden = 8 has no effect on a study"),
        (("codecs", "runs/x", "--config", "a.yaml"), "--config a.yaml has no effect on a trained"),
        (
            ("epoch", "--methods", "anderson", "--solver.lambda1", "9"),
            "solver.lambda1 = 9.0 has no effect with forward.method = anderson",
        ),
        (
            ("epoch", "--forward.method", "picard", "--methods", "neural"),
            "method neural is not measured, but picard, anderson; choose one of these, or add --f",
        ),
        (("sparsifier", "--run", "runs/x", "--keep", "2"), "--keep 2 must be at most 1"),
        (("epoch", "--method", "picard"), "did you mean '--methods'"),
        (("iteration", "--scale", "0"), "data.synthetic.scale"),
        (("iteration", "--partition.dir", "shards", *_SMALL), "--shards DIR"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
