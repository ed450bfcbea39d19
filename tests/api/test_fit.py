"""``fit`` and ``Run`` on one process and two, in a process that belongs to the user."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch_geometric.data import Data

import distributed_ignn as di
from distributed_ignn.commands.predict import main as predict_command
from distributed_ignn.commands.train import main as train_command
from tests.api.small_data import QUICK, small_data
from tests.graph.test_own_formats import write_ogb

DATA = small_data()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def one(folder: Path) -> di.Run:
    torch.set_num_threads(1)
    return di.fit(DATA, QUICK, output=folder / "one")


@pytest.fixture(scope="module")
def two(folder: Path) -> di.Run:
    torch.set_num_threads(1)
    return di.fit(DATA, QUICK, output=folder / "two", ranks=2)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_ranks_give_the_predictions_of_one(one: di.Run, two: di.Run) -> None:
    ours, theirs = one.predict(), two.predict()
    assert (one.summary["world_size"], two.summary["world_size"]) == (1, 2)
    assert torch.equal(ours.labels, theirs.labels)
    assert torch.allclose(ours.logits, theirs.logits, rtol=0, atol=1e-7)
    assert torch.allclose(one.embeddings(), two.embeddings(), rtol=0, atol=1e-7)
    # what is compared is not a constant
    assert ours.probabilities.std() > 0.01
    losses = np.array([[record["loss"] for record in run.history] for run in (one, two)])
    assert losses.shape == (2, 6)
    assert np.allclose(losses[0], losses[1], rtol=0, atol=1e-8)


def test_a_prediction_is_whole_and_says_how_far_it_has_come(one: di.Run) -> None:
    out = one.predict()
    assert out.embeddings is not None
    assert (out.logits.shape, out.embeddings.shape) == ((60, 2), (60, 8))
    assert out.logits.dtype is torch.float64
    assert torch.allclose(out.probabilities.sum(dim=1), torch.ones(60, dtype=torch.float64))
    test = float((out.labels == DATA.y)[DATA.test_mask].float().mean())
    assert test == pytest.approx(one.summary["test_at_best_val"])
    assert out.converged
    assert out.residual <= out.tolerance == one.summary["tolerance"] <= 1e-10
    assert out.certified_distance is not None
    assert 0 < out.certified_distance < 1e-6
    loose = one.predict(tolerance=1e-2)
    assert loose.evaluations < out.evaluations
    assert 1e-10 < loose.residual <= 1e-2
    for wrong in ({"steps": 2.5}, {"tolerance": "a"}, {"nodes": "nodes.csv", "data": DATA}):
        with pytest.raises(di.UserError, match=rf"^{next(iter(wrong))} = "):
            one.predict(**wrong)
    short = one.predict(steps=2)
    assert (short.evaluations, short.converged) == (2, False)
    assert "NOT CONVERGED" in repr(short)
    with pytest.raises(di.UserError, match="has not converged"):
        one.predict(steps=2, require_converged=True)


def test_rows_are_in_the_order_of_the_data(one: di.Run, two: di.Run) -> None:
    """The same graph under other numbers: every node keeps its row."""
    order = torch.randperm(60)
    place = torch.argsort(order)
    moved = Data(x=DATA.x[order], edge_index=place[DATA.edge_index])
    for run in (one, two):
        assert torch.allclose(run.predict(moved).logits, run.predict().logits[order], atol=1e-7)
        assert not torch.allclose(run.predict(moved).logits, run.predict().logits, atol=1e-3)


def test_another_graph_is_solved_anew(one: di.Run, tmp_path: Path) -> None:
    other = small_data(90, seed=1)
    out = one.predict(Data(x=other.x, edge_index=other.edge_index))
    assert out.logits.shape == (90, 2)
    assert out.converged
    assert float((out.labels == other.y).float().mean()) > 0.6
    torch.save(other, tmp_path / "other.pt")
    assert torch.equal(one.predict(tmp_path / "other.pt").logits, out.logits)
    assert out.embeddings is not None
    assert torch.equal(one.embeddings(other), out.embeddings)
    with pytest.raises(di.UserError, match=r"data has 1 feature columns and .* was trained on 2"):
        one.predict(Data(x=other.x[:, :1], edge_index=other.edge_index))
    with pytest.raises(di.UserError, match=r"data: features are missing; give x \[nodes"):
        one.predict(Data(edge_index=other.edge_index))


def test_another_graph_gets_the_channels_that_were_trained(tmp_path: Path) -> None:
    """Whatever ``auto`` would make of it: here every edge has its way back."""
    one_way = DATA.clone()
    one_way.edge_index = DATA.edge_index[:, DATA.edge_index[0] < DATA.edge_index[1]]
    run = di.fit(one_way, {**QUICK, "data": {"directions": "auto"}}, output=tmp_path / "run")
    assert run.predict(one_way).logits.shape == (60, 2)
    assert torch.allclose(run.predict(one_way).logits, run.predict().logits, rtol=0, atol=1e-7)
    assert run.predict(Data(x=DATA.x, edge_index=DATA.edge_index)).converged


@pytest.mark.parametrize(
    ("kind", "how", "lines"),
    [("graphsage", "auto", 1), ("graphsage", "ignore", 0), ("gcn", "auto", 0)],
)
def test_weights_that_a_kind_does_not_read_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, how: str, lines: int
) -> None:
    weighted = DATA.clone()
    weighted.edge_weight = torch.rand(weighted.edge_index.shape[1]) + 0.5
    settings = {"kind": kind, "data": {"edge_weights": how}, "epochs": 1}
    di.fit(weighted, settings, output=tmp_path / "run")
    told = [r.getMessage() for r in caplog.records if "model.kind" in r.getMessage()]
    assert len(told) == lines
    for line in told:
        assert line.startswith("the edges have weights and model.kind = graphsage reads none: ")
        assert "set data.edge_weights = ignore, or take one of gcn, sgc, " in line


@pytest.mark.parametrize(
    ("comm", "told"),
    [
        ({"halo": "int4", "stale": True}, "comm.halo = int4, comm.stale = true"),
        ({"shared_memory": False}, "comm.shared_memory = false"),
        ({"halo": "fp32"}, None),
    ],
)
def test_settings_of_exchanges_are_said_to_be_idle_on_one_rank(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, comm: dict[str, object], told: str | None
) -> None:
    settings = {**QUICK, "epochs": 1, "comm": comm}
    di.fit(DATA, settings, output=tmp_path / "run")
    found = [r.getMessage() for r in caplog.records if "exchanges" in r.getMessage()]
    line = "no effect with one rank, which exchanges no rows: {}; drop this, or train with more"
    assert found == ([] if told is None else [line.format(told)])


def test_settings_of_ray_are_refused() -> None:
    with pytest.raises(di.UserError, match=r"^restarts = 3 has no effect without Ray, .*; drop it"):
        di.fit(DATA, restarts=3)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, []),
        (
            {"input_dropout": 0.25, "injection_layers": 2},
            ["model.input_dropout = 0.25, model.injection_layers = 2; drop them"],
        ),
        ({"kind": "gcn", "input_dropout": 0.25}, []),
    ],
)
def test_settings_of_features_that_there_are_none_of_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], told: list[str]
) -> None:
    bare = DATA.clone()
    del bare.x
    bare.num_nodes = DATA.num_nodes
    di.fit(bare, {**settings, "epochs": 1}, output=tmp_path / "run")
    lines = [r.getMessage() for r in caplog.records if "has no features" in r.getMessage()]
    start = "the graph has no features, and the embedding of its nodes is b itself: no effect of "
    assert lines == [start + line for line in told]


def test_the_same_cell_twice(elsewhere: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runs = [di.fit(DATA, QUICK) for _ in range(2)]
    assert [run.path for run in runs] == [
        elsewhere / "runs" / name for name in ("memory-seed0", "memory-seed0-2")
    ]
    assert torch.equal(runs[0].predict().logits, runs[1].predict().logits)
    assert capfd.readouterr() == ("", "")


def test_the_process_is_left_as_it_was(
    elsewhere: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected = di.fit(DATA, QUICK).predict().logits

    def state() -> list[Any]:
        library = logging.getLogger("distributed_ignn")
        return [
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            signal.getsignal(signal.SIGINT),
            signal.getsignal(signal.SIGTERM),
            threading.excepthook,
            [library.level, library.propagate, list(library.handlers)],
            dict(os.environ),
            threading.active_count(),
        ]

    torch.set_default_dtype(torch.float16)
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            before = state()
            found = di.fit(DATA, QUICK).predict().logits
            assert state() == before
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
    assert not torch.distributed.is_initialized()
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert capfd.readouterr() == ("", "")
    assert [r for r in caplog.records if r.levelno < logging.WARNING] == []


def test_it_works_beside_others_in_a_thread(elsewhere: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda seed: di.fit(DATA, QUICK, seed=seed), (0, 0)))
    assert runs[0].path != runs[1].path
    assert [len(run.history) for run in runs] == [6, 6]


def test_what_it_shows_is_asked_for(elsewhere: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = di.fit(DATA, QUICK, verbose=True)
    printed = capfd.readouterr()
    assert "epoch 6/6" in printed.out
    assert "test accuracy at best validation" in printed.out
    assert "test accuracy at best validation" in repr(run)
    assert "<td>test accuracy at best validation</td>" in run._repr_html_()


def test_history_is_a_table_in_one_call(one: di.Run, tmp_path: Path) -> None:
    table = pytest.importorskip("pandas").DataFrame(one.history)
    assert list(table["epoch"]) == [1, 2, 3, 4, 5, 6]
    assert table["loss"].iloc[-1] < table["loss"].iloc[0]
    figure = one.plot_convergence(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert [ax.get_title() for ax in figure.axes] == [
        "loss",
        "metric",
        "map evaluations per solve",
        "relative residual",
    ]
    with pytest.raises(di.UserError, match=r"plot.jpg says no kind of picture; end it in .png"):
        one.plot_convergence(tmp_path / "plot.jpg")
    with pytest.raises(di.UserError, match="cannot write the figure"):
        one.plot_convergence(tmp_path / "none" / "plot.png")


def test_a_run_is_its_folder(one: di.Run, two: di.Run, tmp_path: Path) -> None:
    for run in (one, two):
        moved = tmp_path / run.path.name
        moved.symlink_to(run.path)
        assert torch.equal(di.load(moved).predict().logits, run.predict().logits)
        assert pickle.loads(pickle.dumps(run)) == run == di.load(str(run.path))
        assert run.config.model.hidden == 8
        assert predict_command([str(run.path), "--out", str(tmp_path / "p.parquet")]) == 0
        column = pq.read_table(tmp_path / "p.parquet")["prediction"].to_pylist()
        assert column == run.predict().labels.tolist()
    with pytest.raises(di.UserError, match="is not a run folder"):
        di.load(tmp_path)


def test_a_run_goes_on_with_other_ranks_and_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    whole = di.fit(DATA, QUICK, epochs=9, output=tmp_path / "whole")
    assert di.fit(DATA, QUICK, epochs=3, output=output, ranks=2).summary["epochs"] == 3
    assert di.fit(DATA, QUICK, output=output, resume="auto").summary["epochs"] == 6
    settings = ["--config", str(output / "config.yaml"), "--resume", "auto"]
    assert train_command([*settings, "--train.epochs", "9"]) == 0
    run = di.load(output)
    assert run.summary["epochs"] == 9
    assert torch.allclose(run.predict().logits, whole.predict().logits, rtol=0, atol=1e-6)
    other = DATA.clone()
    other.x = other.x + 1
    with pytest.raises(di.UserError, match="holds a run on another graph"):
        di.fit(other, QUICK, output=output, resume="auto")
    with pytest.raises(di.UserError, match="already holds a run"):
        di.fit(DATA, QUICK, output=output)
    assert train_command([*settings, "--data.feature-norm", "l2"]) == 2
    assert "it is in memory no more" in capsys.readouterr().err
    assert train_command(["--dataset", "memory", "--output", str(tmp_path / "x")]) == 2
    assert "a Python program had in memory" in capsys.readouterr().err


def test_a_name_starts_from_its_own_settings_and_a_path_from_the_defaults(elsewhere: Path) -> None:
    chains = {"length": 4, "chains_per_class": 20, "features": 4, "noise": 0.1}
    named = di.fit("chains", {"data": {"chains": chains}}, epochs=1)
    assert named.path == elsewhere / "runs" / "chains-seed0"
    assert named.config.forward.method == "neural"
    torch.save(DATA, "mine.pt")
    path = di.fit(Path("mine.pt"), QUICK)
    assert path.path == elsewhere / "runs" / "mine-seed0"
    assert torch.equal(path.predict().logits, di.fit(DATA, QUICK).predict().logits)


def test_a_path_may_have_any_ending_or_be_a_folder(elsewhere: Path) -> None:
    torch.save(DATA, "mine.pt")
    torch.save(DATA, "mine.pth")
    expected = di.fit("mine.pt", QUICK, epochs=1)
    for ranks in (1, 2):
        other = di.fit(Path("mine.pth"), QUICK, epochs=1, ranks=ranks)
        found = (other.config.dataset, other.config.data.path)
        assert found == ("file", elsewhere / "mine.pth")
        logits = expected.predict().logits
        assert torch.allclose(other.predict().logits, logits, rtol=0, atol=1e-7)
    run = di.fit(write_ogb(elsewhere / "ogb"), QUICK, epochs=1)
    assert run.config.data.path == elsewhere / "ogb"
    assert run.predict().labels.shape == (6,)
    Path("other").mkdir()
    with pytest.raises(di.UserError, match=r"other is a folder; give the path of a"):
        di.fit("other", QUICK)


def test_another_kind_of_model_trains_resumes_and_predicts(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"hidden": 8, "lr": 0.02, "dtype": "float64", "checkpoint_every": 2}
    whole = di.fit(DATA, settings, kind="gat", epochs=6, output=folder / "gat")
    di.fit(DATA, settings, kind="gat", epochs=3, output=folder / "again")
    again = di.fit(DATA, settings, kind="gat", epochs=6, output=folder / "again", resume="auto")
    losses = [[record["loss"] for record in run.history] for run in (whole, again)]
    assert losses[0] == losses[1]
    assert whole.summary["kind"] == "gat"
    assert not [key for key in whole.summary if "evaluations" in key or "residual" in key]
    assert "residual" not in whole.history[-1]
    tags = EventAccumulator(str(folder / "gat")).Reload().Tags()["scalars"]
    assert {"loss/training", "final/best_val"} <= {*tags}
    assert not [tag for tag in tags if "evaluations" in tag or "residual" in tag]
    found = whole.predict()
    assert found.scores["val"] == whole.summary["best_val"]
    assert (found.residual, found.converged) == (0.0, True)
    assert torch.equal(found.logits, again.predict().logits)
    assert "residual" not in repr(found)
    assert whole.predict(small_data(40, seed=1)).labels.shape == (40,)
    with pytest.raises(di.UserError, match=r"^steps = 3 has no effect on .* model.kind = gat has"):
        whole.predict(steps=3)
    whole.plot_convergence(folder / "gat.png")
    assert "gat" in repr(whole)
