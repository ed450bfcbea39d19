"""Whole searches: chosen by validation alone, resumable, and a file that ``train`` takes."""

from __future__ import annotations

import json
import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.commands import search
from distributed_ignn.commands.search import main
from distributed_ignn.config import parse_args
from distributed_ignn.errors import Stopped, UserError
from distributed_ignn.lab.studies.search import session
from distributed_ignn.lab.studies.search.halving import Budget
from distributed_ignn.lab.studies.search.rung import Rung, train_rung
from distributed_ignn.lab.studies.search.session import Request, search_here
from distributed_ignn.lab.studies.search.space import KNOWN_OWN, restricted
from distributed_ignn.training.confirmation import Confirmation
from distributed_ignn.training.trainer import Trainer
from tests.api.small_data import small_data
from tests.ranks import run_ranks

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

QUICK = [
    *("--train.eval-every", "1"),
    "--device",
    "cpu",
    "--train.threads",
    "1",
    "--train.epochs",
    "8",
]
CHAINS = [
    *("--dataset", "chains", *QUICK, "--data.chains.length", "5"),
    *("--data.chains.chains-per-class", "8", "--forward.method", "anderson"),
]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph of one's own with 60 nodes."""
    data: Any = small_data()
    path = tmp_path / "own.npz"
    np.savez(path, **{key: value.numpy() for key, value in data.to_dict().items()})
    return path


@pytest.fixture(autouse=True)
def _no_test_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever evaluates test nodes in this process fails."""
    measure = Confirmation.measure

    def without_test(self: Confirmation, state: Any, splits: tuple[str, ...]) -> dict[str, float]:
        assert "test" not in splits
        return measure(self, state, splits)

    monkeypatch.setattr(Confirmation, "measure", without_test)


def _record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "search.json").read_text())
    return found


def _lines(out: Path) -> dict[str, list[int]]:
    """Epochs in the metrics of each run."""
    return {
        path.parent.name: [json.loads(line)["epoch"] for line in path.read_text().splitlines()]
        for path in out.glob("runs/*/metrics.jsonl")
    }


def test_a_search_finds_settings_by_validation_alone(
    graph: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    command = [str(graph), *QUICK, "--train.epochs", "4", "--trials", "9", "--out", str(out)]
    assert main(command) == 0
    shown = capfd.readouterr()
    record = _record(out)
    trials = record["trials"]
    assert [trial["origin"] for trial in trials] == [
        "default",
        *(*KNOWN_OWN, "citeseer", "acm", "flickr", "chains"),
        "drawn",
    ]
    assert trials[0]["settings"] == {}
    # no epoch twice, and each run as far as its last rung
    for trial in trials:
        assert trial["failure"] is None
        assert [step["epochs"] for step in trial["runs"]["0"]] in ([1], [1, 2], [1, 2, 4])
    epochs = sorted(map(len, _lines(out).values()))
    assert epochs == sorted(trial["runs"]["0"][-1]["epochs"] for trial in trials)
    assert all(trial["runs"]["0"][-1]["over"] for trial in trials[:8])  # those that are known
    assert all(line == list(range(1, len(line) + 1)) for line in _lines(out).values())
    # the best of those that are trained to the end, which the best of all is
    ends = {trial["number"]: trial["runs"]["0"][-1] for trial in trials}
    chosen = record["chosen"]
    assert ends[chosen["trial"]]["over"]
    assert chosen["validation"] == [max(end["validation"] for end in ends.values())]
    # what was tried, and how often
    for name, values in record["space"].items():
        assert sum(record["tried"][name].values()) == 9, (name, values)
    # nobody was shown a test figure, and there is none
    assert not list(out.rglob("summary.json"))
    assert "test" not in (shown.out + shown.err).replace(str(tmp_path), "")
    assert "trial 9 of 9 (drawn): " in shown.err
    assert "best first" in shown.out
    # what it leaves is a run
    text = (out / "best.yaml").read_text()
    assert text.startswith("# Found by ignn search in ")
    config = parse_args(["--config", str(out / "best.yaml")])
    assert config.dataset == str(graph)
    assert (config.output, config.partition.dir) == (out / "best", None)
    for name, value in chosen["settings"].items():
        found: Any = config
        for key in name.split("."):
            found = getattr(found, key)
        assert str(found) == value or float(found) == float(value)
    # the same again trains nothing; more trials go on from there
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/metrics.jsonl")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert main([*command, "--trials", "10"]) == 0
    assert [t["settings"] for t in _record(out)["trials"][:9]] == [t["settings"] for t in trials]
    assert len(_record(out)["trials"]) == 10


def test_a_search_that_is_stopped_goes_on_with_the_same_epochs(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_args(["--dataset", str(graph), *QUICK])

    def request(name: str) -> Request:
        return Request(config, trials=2, out=tmp_path / name)

    def run(name: str) -> None:
        assert search_here(request(name), Communicator(), shows=False, owns_process=False)

    run("whole")
    left = [11]
    train_epoch = Trainer.train_epoch

    def interrupted(self: Trainer) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Stopped(15, "stopped by SIGTERM after epoch N with a checkpoint")
        return train_epoch(self)

    monkeypatch.setattr(Trainer, "train_epoch", interrupted)
    with pytest.raises(Stopped, match="stopped by SIGTERM; the same command goes on from here"):
        run("parts")
    run("parts")
    whole, parts = (_record(tmp_path / name)["trials"] for name in ("whole", "parts"))
    for trial in whole + parts:
        for step in trial["runs"]["0"]:
            step["seconds"] = 0.0
    assert parts == whole
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")


def test_a_budget_ends_a_search(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which an epoch takes a hundred seconds."""
    train_epoch, now = Trainer.train_epoch, [0.0]

    def timed(self: Trainer) -> Any:
        now[0] += 100.0
        return train_epoch(self)

    monkeypatch.setattr(Trainer, "train_epoch", timed)
    monkeypatch.setattr(session, "Budget", partial(Budget, clock=lambda: now[0]))
    out = tmp_path / "found"
    assert main([str(graph), *QUICK, "--budget", "20min", "--out", str(out)]) == 0
    record = _record(out)
    best = record["trials"][record["chosen"]["trial"] - 1]
    assert best["runs"]["0"][-1]["over"]
    # at the latest in the last moment a rung began, and then the best had to be finished
    assert 1200.0 <= record["seconds"] == now[0] <= 1200.0 + 400.0 + 600.0


def test_a_trial_without_time_is_given_up_with_a_checkpoint(tmp_path: Path) -> None:
    run = parse_args([*CHAINS, "--output", str(tmp_path / "run")])
    found = train_rung(Communicator(), Rung(run, 4, 0.0))
    assert set(found) == {"failure"}
    assert re.fullmatch(r"given up after \d+ s, no time was left for it", found["failure"])
    assert (run.output / "checkpoints" / "epoch-000001").is_dir()
    assert train_rung(Communicator(), Rung(run, 4))["epochs"] == 4


def test_a_signal_in_the_last_epoch_of_a_rung_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_epoch = Trainer.train_epoch

    def asked(self: Trainer) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return train_epoch(self)

    monkeypatch.setattr(Trainer, "train_epoch", asked)
    run = parse_args([*CHAINS, "--train.epochs", "1", "--output", str(tmp_path / "run")])
    with pytest.raises(Stopped, match="stopped by SIGTERM; this run has ended"):
        train_rung(Communicator(), Rung(run, 1))
    assert train_rung(Communicator(), Rung(run, 1))["epochs"] == 1


def test_a_grid_alone_is_trained_whole_and_finished_runs_are_not_repeated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    grid = ["--grid", "model.hidden=2,8", "--grid", "train.lr=0.000001,0.02"]
    arguments = [*CHAINS, *grid, "--seeds", "0,1", "--out", str(out)]
    assert main(arguments) == 0
    shown = capfd.readouterr()
    record = _record(out)
    means = [
        sum(steps[-1]["validation"] for steps in trial["runs"].values()) / 2
        for trial in record["trials"]
    ]
    assert len(means) == 4
    assert record["chosen"]["trial"] == 1 + means.index(max(means))
    assert record["chosen"]["settings"]["train.lr"] == "0.02"
    assert sum(record["chosen"]["validation"]) / 2 == max(means) > min(means)
    assert sorted(map(len, _lines(out).values())) == [8] * 8
    assert "trial 4 of 4, seed 0 (grid): hidden 8, lr 0.02" in shown.err
    config = parse_args(["--config", str(out / "best.yaml")])
    assert config.train.lr == 0.02
    assert config.data.chains.length == 5
    # again, with a value more: the eight runs are taken as they are
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/metrics.jsonl")}
    more = ["--grid", "model.hidden=2,8", "train.lr=0.000001,0.02,0.01"]
    assert main([*CHAINS, *more, "--seeds", "0,1", "--out", str(out)]) == 0
    assert len(list(out.glob("runs/*"))) == 12
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_trial_that_fails_is_told_and_loses(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    assert main([*CHAINS, "--grid", "train.memory_limit=0.0001,0", "--out", str(out)]) == 0
    shown = capfd.readouterr()
    assert "trial 1 failed: " in shown.err
    assert "failed" in shown.out
    record = _record(out)
    assert record["failed"] == 1
    assert record["chosen"]["settings"] == {"train.memory_limit": "0"}
    assert "does not fit into memory" in record["trials"][0]["failure"]
    none = ["--grid", "train.memory_limit=0.0001", "--out", str(tmp_path / "none")]
    assert main([*CHAINS, *none]) == 2
    assert "all 1 trials failed; the first: " in capfd.readouterr().err


def test_data_that_are_refused_fail_one_trial(
    graph: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """60 nodes have no 80 neighbours."""
    out = tmp_path / "found"
    assert main([str(graph), *QUICK, "--grid", "data.knn=80,3", "--out", str(out)]) == 0
    assert "trial 1 failed: data.knn: 80 neighbours" in capfd.readouterr().err
    assert _record(out)["chosen"]["settings"] == {"data.knn": "3"}


def test_processes_of_this_machine_train_trials_side_by_side(
    graph: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    command = [str(graph), *QUICK, "--trials", "2", "--train.epochs", "1", "--out", str(out)]
    assert main([*command, "--jobs", "2"]) == 0
    assert "2 trials of 2, 2 trained to the end, 0 failed" in capfd.readouterr().out


def _search_on_ranks(comm: Communicator, graph: str, out: str) -> dict[str, Any]:
    config = parse_args(["--dataset", graph, *QUICK, "--train.epochs", "4"])
    search = search_here(Request(config, trials=2, out=Path(out)), comm, shows=False)
    assert (search is not None) == comm.is_main
    return {} if search is None else {"trial": search.conclude().number}


def test_the_ranks_of_a_job_train_each_trial_together(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    first, second = run_ranks(_search_on_ranks, 2, str(graph), str(out))
    assert second == {}
    record = _record(out)
    assert record["chosen"]["trial"] == first["trial"]
    assert record["trials"][0]["runs"]["0"][-1]["epochs"] == 4
    # the same as one process alone finds
    alone = tmp_path / "alone"
    config = parse_args(["--dataset", str(graph), *QUICK, "--train.epochs", "4"])
    search_here(Request(config, trials=2, out=alone), Communicator(), shows=False)
    for ours, theirs in zip(record["trials"], _record(alone)["trials"], strict=True):
        for one, other in zip(ours["runs"]["0"], theirs["runs"]["0"], strict=True):
            assert one["validation"] == pytest.approx(other["validation"], abs=1e-6)


def test_a_folder_with_another_search_is_refused(
    graph: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    command = [str(graph), *QUICK, "--trials", "1", "--out", str(out)]
    assert main(command) == 0
    assert main([*command, "--model.hidden", "16"]) == 2
    assert "holds a search with other settings; choose another --out" in capfd.readouterr().err
    before, arrays = (out / "search.json").read_bytes(), dict(np.load(graph))
    arrays["x"][0, 0] += 1
    np.savez(graph, **arrays)
    assert main(command) == 2
    assert "holds a search on a graph that has changed since" in capfd.readouterr().err
    assert (out / "search.json").read_bytes() == before
    (out / "search.json").write_text("{")
    assert main(command) == 2
    assert "cannot be read" in capfd.readouterr().err


def test_what_cannot_be_written_is_one_line(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session.Ledger, "write", lambda self: full(tmp_path, None))
    config = parse_args(["--dataset", str(graph), *QUICK])
    with pytest.raises(UserError, match=r"cannot write to --out .*: No space left on device"):
        search_here(Request(config, trials=1, out=tmp_path / "out"), Communicator(), shows=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "model.hidden"], "model.hidden=32,64"),
        (["--grid", "model.hiden=3"], "no setting (did you mean 'model.hidden'?)"),
        (["--grid", "model.hidden=3,3"], "twice"),
        (["--grid", "model.hidden=3,0"], "model.hidden = '0' must be at least 1"),
        (["--grid", "seed=1,2"], "it takes --seeds and --out"),
        (["--grid", "model.hidden=3", "--seeds", "0,0"], "--seeds 0,0 names a number twice"),
        (["--seed", "3"], "it takes --seeds and --out"),
        (["--output-dir", "x"], "--output is set by the search; it takes --seeds and --out"),
        (["--data.synthetic.scale", "2"], "scale = 2.0 has no effect with dataset = chains; drop"),
        (["--model.cell", "ignn", "--model.skew", "3"], "skew = 3.0 has no effect with model.cell"),
        (["--solver.lambda1", "2"], "lambda1 = 2.0 has no effect with forward.method = anderson"),
        (["--model.skew", "3", "--grid", "model.cell=ignn,eignn"], "skew = 3.0 has no effect with"),
        (["--budget", "10"], "must be a time with its unit, as in 90s, 10min or 2h"),
        (["--budget", "0s"], "must be above 0"),
        (["--trials", "0"], "--trials 0 must be at least 1"),
        (["--jobs", "2", "--workers", "2"], "give one of them"),
        (["own.npz"], "own.npz and --dataset both name a graph; give one of them"),
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
    assert main([*CHAINS, *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_setting_stays_as_given_whatever_another_tool_calls_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Request] = []
    monkeypatch.setattr(search, "_conduct", lambda request, *_: asked.append(request))
    names = ["--train.learning-rate=0.3", "--model.hidden-dim", "7", "--train.wd", "0"]
    assert main([*CHAINS, *names, "--out", str(tmp_path / "out")]) == 0
    (request,) = asked
    assert {"train.lr", "model.hidden", "train.weight_decay"} <= {*request.pinned}
    free = {axis.name for axis in restricted(request.grid, request.pinned)}
    assert not free & {*request.pinned}
    assert (request.config.train.lr, request.config.model.hidden) == (0.3, 7)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.skew", "3"],  # of mignn, a cell that is tried
        ["--model.skew", "3", "--grid", "model.cell=ignn,mignn"],
        ["--train.consistency-samples", "3"],
        ["--solver.compress", "4", "--grid", "forward.method=neural,picard"],
    ],
)
def test_what_one_trial_reads_is_taken(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []
    monkeypatch.setattr(search, "_conduct", lambda request, *_: asked.append(request))
    assert main([*CHAINS, *arguments]) == 0
    # all trials but the first learn a solver, and this file has none
    assert main(["--config", "long-range.yaml", "--solver.compress", "4"]) == 0
    assert len(asked) == 2
