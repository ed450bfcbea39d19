"""What a graph in memory may hold, what is refused, and how settings are named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch_geometric.data import Data, HeteroData

import distributed_ignn as di
from distributed_ignn.config import DataConfig, RunConfig, run_from_settings
from distributed_ignn.config.keywords import run_from, spelled_out
from distributed_ignn.graph.datasets import graph_in_memory, load_dataset
from distributed_ignn.runs.node_rows import NodeRows
from distributed_ignn.runs.prediction_file import write_predictions
from tests.api.small_data import QUICK, small_data

DATA = small_data()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _with(**changes: Any) -> Data:
    data = DATA.clone()
    for name, value in changes.items():
        setattr(data, name, value)
    return data


def _print(data: object, **settings: Any) -> str:
    return graph_in_memory(data, DataConfig(**settings)).fingerprint()


def test_memory_and_file_hold_the_same_graph() -> None:
    weight = torch.rand(DATA.edge_index.shape[1])
    for data in (DATA, _with(x=DATA.x.to_sparse()), _with(edge_weight=weight), _with(x=None)):
        torch.save(data, "graph.pt")
        assert _print(data) == load_dataset("graph.pt", Path("data"), DataConfig()).fingerprint()
    assert _print(_with(edge_weight=weight)) != _print(DATA)
    assert _print(_with(edge_weight=weight), edge_weights="ignore") == _print(DATA)


def test_other_forms_of_the_same_graph() -> None:
    arrays = {key: value.numpy() for key, value in DATA.to_dict().items()}
    shown_twice = _with(y=DATA.y.float(), x=DATA.x.T.contiguous().T)
    for data in (DATA.to_dict(), arrays, shown_twice, _with(x=DATA.x.requires_grad_())):
        assert _print(data) == _print(DATA)
    assert _print(DATA) == _print(DATA)  # nothing was written to
    assert DATA.x.is_leaf


def test_words_for_labels_come_back(tmp_path: Path) -> None:
    """In the summary, and as predictions, of another graph, too."""
    words = ["yes" if y else "no" for y in DATA.y.tolist()]
    run, plain = (
        di.fit(data, QUICK, output=name)
        for data, name in (
            (_with(y=words), "words"),
            (DATA, "numbers"),
        )
    )
    assert run.summary["class_names"] == ["no", "yes"]
    assert "class_names" not in plain.summary
    assert run.summary["test_at_best_val"] == plain.summary["test_at_best_val"]
    found = run.predict(Data(x=DATA.x, edge_index=DATA.edge_index))
    assert found.class_names == ("no", "yes")
    names = [("no", "yes")[label] for label in plain.predict().labels.tolist()]
    for kind in ("csv", "npz", "parquet"):
        write_predictions(tmp_path / f"p.{kind}", found, NodeRows.of_one(found.logits))
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == names
    assert set(rows[0]) == {"node", "prediction", "probability_no", "probability_yes"}
    assert np.load(tmp_path / "p.npz", allow_pickle=False)["prediction"].tolist() == names
    assert pq.read_table(tmp_path / "p.parquet")["prediction"].to_pylist() == names
    assert json.loads((tmp_path / "p.csv.json").read_text())["class_names"] == ["no", "yes"]


def test_words_in_the_forms_that_tables_give() -> None:
    """Objects, with None or NaN where a label is not known, and numpy's strings."""
    words = ["yes" if y else "no" for y in DATA.y.tolist()]
    expected = _print(_with(y=words))
    for y in (np.array(words, dtype=object), list(np.array(words)), np.array(words)):
        assert _print(_with(y=y)) == expected
    gaps = _with(y=["", "", *words[2:]])
    for mask in ("train_mask", "val_mask", "test_mask"):
        gaps[mask] = DATA[mask].clone().index_fill_(0, torch.tensor([0, 1]), value=False)
    several = gaps.clone()
    several.y = np.array([None, float("nan"), *words[2:]], dtype=object)
    assert _print(several) == _print(gaps)
    with pytest.raises(
        di.UserError, match=r"tensor is needed of numbers, or words alone, with None"
    ):
        _print(_with(y=np.array([1, "no", *words[2:]], dtype=object)))


@pytest.mark.parametrize(
    ("trained", "settings"), [(True, {}), (True, {"data.edge_weights": "use"}), (False, {})]
)
def test_weights_that_the_model_has_not_seen_are_told(
    trained: bool, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    weighted = _with(edge_weight=torch.rand(DATA.edge_index.shape[1]))
    first, other = (weighted, DATA) if trained else (DATA, weighted)
    run = di.fit(first, QUICK | settings, epochs=1)
    with caplog.at_level("WARNING"):
        run.predict(first)
        assert "weights" not in caplog.text
        run.predict(other)
    assert f"was trained with{'' if trained else 'out'} weights of edges" in caplog.text


def test_a_run_whose_states_waited_beside_a_gpu_predicts_on_a_cpu() -> None:
    run = di.fit(DATA, QUICK, epochs=1)
    expected = run.predict().logits
    file = run.path / "config.yaml"
    text = file.read_text().replace("device: cpu", "device: auto")
    file.write_text(text.replace("offload: false", "offload: true"))
    again = di.load(run.path)
    assert again.config.train.offload
    assert torch.equal(again.predict().logits, expected)


def test_weights_count_for_no_kind_that_reads_none(caplog: pytest.LogCaptureFixture) -> None:
    run = di.fit(DATA, epochs=1, kind="graphsage")
    weighted = _with(edge_weight=torch.rand(DATA.edge_index.shape[1]))
    with caplog.at_level("WARNING"):
        assert torch.equal(run.predict(weighted).logits, run.predict(DATA).logits)
    assert "weights" not in caplog.text


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (_with(x=None), {}),
        (_with(x=DATA.x.abs().to_sparse()), {"feature_norm": "row", "knn": 3}),
        (_with(y=torch.stack([DATA.y, 1 - DATA.y], dim=1)), {}),
        (_with(edge_weight=torch.ones(DATA.edge_index.shape[1]) * 3), {"cell": "mignn"}),
        (DATA, {"forward": {"method": "neural", "tolerance": 1e-8}, "clusters": 4}),
    ],
    ids=["embeddings", "sparse-scaled-knn", "multilabel", "weighted", "learned-solver"],
)
def test_every_kind_trains_and_predicts(data: Data, settings: dict[str, Any]) -> None:
    schedule = {"warmup_epochs": 1}
    run = di.fit(data, {**QUICK, **settings, "schedule": schedule}, epochs=4)
    out = run.predict()
    assert out.converged
    assert out.labels.shape == data.y.shape
    if data.x is None:
        with pytest.raises(di.UserError, match="an embedding for each node of its own graph"):
            run.predict(DATA)
        return
    same = run.predict(data)
    assert torch.allclose(same.logits, out.logits, rtol=0, atol=1e-5)
    small = run.predict(data.subgraph(torch.arange(40)))
    assert small.logits.shape == (40, 2)
    assert small.converged


REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    (
        "several splits",
        lambda: _with(train_mask=torch.ones(60, 3)),
        r"3 splits, one a column; choose one",
    ),
    ("no split", lambda: _with(val_mask=None), "data: val nodes are missing"),
    ("a number", lambda: 3, "data is a int; give a torch_geometric"),
    ("kinds of nodes", HeteroData, "several kinds of nodes; give one kind"),
    ("no such name", lambda: "citeser", r"no dataset \(did you mean 'citeseer'\?\)"),
    ("a name without meaning here", lambda: "memory", "'memory' is no dataset"),
    ("no such file", lambda: "nothing.pt", "nothing.pt does not exist"),
    ("a list", lambda: _with(y=[0, None] * 30), "data: y is a list, a tensor is needed"),
    ("no nodes", lambda: _with(edge_index=DATA.edge_index + 60), r"edges \(60 nodes by y\)"),
    ("negative weights", lambda: _with(edge_weight=-DATA.edge_index[0].float()), "data: edge_w"),
]


@pytest.mark.parametrize(
    ("make", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_other_data_are_refused_in_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(di.UserError, match=message) as caught:
        di.fit(make(), QUICK)
    assert "\n" not in str(caught.value)
    assert list(Path("runs").glob("*")) == []


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"hiden": 3}, r"unknown setting 'hiden' \(did you mean 'hidden'\?\)"),
    ({"model": {"kapa": 0.5}}, r"'model.kapa' \(did you mean 'model.kappa'\?\)"),
    ({"tolerance": 1e-3}, "'tolerance' may be forward.tolerance or adjoint.tolerance"),
    ({"hidden": -1}, "model.hidden = -1 must be at least 1"),
    ({"hidden": 4, "model": {"hidden": 4}}, "model.hidden is given twice"),
    ({"dataset": "acm"}, "the data are an argument of their own"),
    ({"workers": 2}, "ranks=2 instead"),
    ({"partition": {"dir": "shards"}}, "holds shards of a dataset, and this graph is in memory"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(di.UserError, match=message):
        di.fit(DATA, settings)
    for ranks, text in (
        (0, "ranks = 0 must be a whole number, at least 1"),
        (1.5, "ranks = 1.5 must be a whole number"),
        ("2", "ranks = '2' must be a whole number"),
    ):
        with pytest.raises(di.UserError, match=text):
            di.fit(DATA, ranks=ranks)  # type: ignore[arg-type]
    assert list(Path("runs").glob("*")) == []


def test_all_ways_to_name_a_setting() -> None:
    expected = {"model.hidden": 64}
    for given in ({"hidden": 64}, {"model": {"hidden": 64}}, {"model.hidden": 64}):
        assert spelled_out(given) == expected
    assert spelled_out({"train.weight-decay": 1}) == {"train.weight_decay": 1}
    short = spelled_out({"lr": 1, "epochs": 2, "seed": 3, "knn": 4, "learn_kappa": True})
    assert list(short) == ["train.lr", "train.epochs", "seed", "data.knn", "model.learn_kappa"]
    torch_free = {"lr": torch.tensor(0.5).numpy().dtype.type(0.5)}  # a number of numpy
    assert type(spelled_out(torch_free)["train.lr"]) is float


def test_every_short_name_is_clear_or_refused() -> None:
    """A key of both ``model`` and ``train`` would have to be refused: there is none."""
    fields = RunConfig.model_fields
    shared = set(fields["model"].annotation.model_fields) & set(  # type: ignore[union-attr]
        fields["train"].annotation.model_fields  # type: ignore[union-attr]
    )
    assert shared == set()


def test_settings_win_over_the_file_that_is_named() -> None:
    Path("mine.yaml").write_text("model:\n  hidden: 4\n  kappa: 0.5\ndataset: acm\n")
    run = run_from_settings("memory", {"hidden": 8}, Path("mine.yaml"))
    assert (run.dataset, run.model.hidden, run.model.kappa) == ("memory", 8, 0.5)
    shipped, plain = run_from_settings("citeseer", {}), RunConfig(dataset="citeseer")
    assert shipped.train.weight_decay != plain.train.weight_decay


def test_a_path_of_another_ending_is_named_as_the_command_names_it() -> None:
    Path("data.pth").touch()
    for config in ("data.pth", Path("data.pth"), {"dataset": "data.pth"}):
        run = run_from(config, {"hidden": 8})  # as make_trainer takes it
        assert (run.dataset, run.data.path, run.model.hidden) == ("file", Path("data.pth"), 8)
    plain = run_from_settings("graph.npz", {"hidden": 8})
    assert plain.train == run.train  # those for any graph of one's own
    with pytest.raises(di.UserError, match="dataset = absent is not known"):
        run_from("absent", {})
