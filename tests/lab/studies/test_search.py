"""The search: every combination once, chosen on validation, test figures only of the chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed_ignn.commands.search import main
from distributed_ignn.config import parse_args

SMALL = [
    *("--dataset", "chains", "--device", "cpu", "--train.threads", "1", "--train.epochs", "6"),
    *("--data.chains.length", "5", "--data.chains.chains-per-class", "8"),
    *("--forward.method", "anderson", "--train.async-checkpoints", "false"),
]


def _search(*arguments: str) -> int:
    return main([*SMALL, *arguments])


def test_the_best_on_validation_is_kept_and_finished_runs_are_not_repeated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    grid = ["--grid", "model.hidden=2,8", "--grid", "train.lr=0.000001,0.02"]
    arguments = [*grid, "--seeds", "0,1", "--out", str(out)]
    assert _search(*arguments) == 0
    shown = capfd.readouterr()
    statement = json.loads((out / "search.json").read_text())
    results = statement["results"]
    assert len(results) == 4
    means = [sum(found["validation"]) / 2 for found in results]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1]
    chosen = statement["chosen"]
    assert chosen["settings"] == results[0]["settings"]
    assert chosen["settings"]["train.lr"] == "0.02"
    # only the chosen combination's test figures are read, after all have been trained
    summaries = [json.loads(path.read_text()) for path in out.glob("runs/*/summary.json")]
    assert len(summaries) == 8
    assert chosen["test"] == [
        json.loads((out / "runs" / name / "summary.json").read_text())["test_at_best_val"]
        for name in (f"{_name(chosen['settings'])}+seed={seed}" for seed in (0, 1))
    ]
    assert "test" not in shown.err
    assert shown.out.count("test accuracy") == 1
    assert "4 of 4: model.hidden = 8, train.lr = 0.02" in shown.err
    config = parse_args(["--config", str(out / "best.yaml")])
    assert (config.model.hidden, config.train.lr) == (
        int(chosen["settings"]["model.hidden"]),
        0.02,
    )
    assert config.output == Path("runs/chains-seed0")
    assert config.data.chains.length == 5
    # again, with a value more: the eight runs are taken as they are
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}
    assert _search(*grid[:3], "train.lr=0.000001,0.02,0.01", *arguments[4:]) == 0
    assert len(list(out.glob("runs/*"))) == 12
    assert {path: path.stat().st_mtime_ns for path in before} == before


def _name(settings: dict[str, str]) -> str:
    return "+".join(f"{name}={value}" for name, value in settings.items())


def test_a_combination_that_fails_is_told_and_loses(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    assert _search("--grid", "train.memory_limit=0.0001,0", "--out", str(out)) == 0
    shown = capfd.readouterr()
    assert "failed: " in shown.err
    assert "failed" in shown.out
    statement = json.loads((out / "search.json").read_text())
    assert statement["chosen"]["settings"] == {"train.memory_limit": "0"}
    assert statement["results"][1]["validation"] == []
    assert _search("--grid", "train.memory_limit=0.0001", "--out", str(tmp_path / "none")) == 2
    assert "all 1 combinations failed; the first: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--grid is missing"),
        (["--grid", "model.hidden"], "model.hidden=32,64"),
        (["--grid", "model.hiden=3"], "no setting (did you mean 'model.hidden'?)"),
        (["--grid", "model.hidden=3,3"], "twice"),
        (["--grid", "model.hidden=3,0"], "model.hidden = '0' must be at least 1"),
        (["--grid", "seed=1,2"], "it takes --seeds and --out"),
        (["--grid", "model.hidden=3", "--seeds", "0,0"], "--seeds 0,0 names a number twice"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _search(*arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
