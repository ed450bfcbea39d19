"""Settings that a graph decides, and the defaults for a graph of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distributed_ignn.config import decided, parse_args, said_of_features, what_was_decided
from distributed_ignn.config.keywords import run_from_settings
from distributed_ignn.errors import UserError


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file that settings may name; nothing is read of it here."""
    path = tmp_path / "own.npz"
    np.savez(path, y=np.zeros(2, np.int64))
    return path


def test_few_labels_are_helped_by_the_unlabelled_nodes(own: Path) -> None:
    run = parse_args(["--dataset", str(own)])
    few, many = decided(run, trained=140, classes=7), decided(run, trained=700, classes=7)
    assert (few.train.consistency, few.train.weight_decay) == (1.0, 5e-3)
    assert (many.train.consistency, many.train.weight_decay) == (0.0, 5e-4)
    assert few.train.label_smoothing == 0.1
    assert many.train.label_smoothing == 0.0
    assert run.train.weight_decay == "auto"  # the run says what was asked for
    assert what_was_decided(run, trained=140, classes=7) == (
        "20 training nodes a class: train's auto is weight_decay 0.005, label_smoothing 0.1, "
        "consistency 1"
    )


def test_a_number_that_is_given_stays(own: Path) -> None:
    run = parse_args(["--dataset", str(own), "--train.weight-decay", "0.25"])
    assert decided(run, trained=140, classes=7).train.weight_decay == 0.25


def test_nothing_is_decided_where_nothing_is_open() -> None:
    run = parse_args(["--dataset", "chains"])
    assert decided(run, trained=10, classes=2) is run
    assert what_was_decided(run, trained=10, classes=2) is None


def test_without_features_nothing_is_said_of_them(own: Path) -> None:
    """An embedding is not dropped by the implicit model; explicit kinds map and drop it as X."""
    counts = {"trained": 140, "classes": 7}
    run = parse_args(["--dataset", str(own), "--model.dropout", "0.3"])
    assert run.model.input_dropout == 0.5
    without, given = (decided(run, **counts, features=columns) for columns in (0, 3))
    assert given.model == run.model
    assert without.model == run.model.model_copy(update={"input_dropout": 0.0})
    assert without.model.fixed_injection
    assert not given.model.fixed_injection
    explicit = parse_args(["--dataset", str(own), "--model.kind", "gcn"])
    assert decided(explicit, **counts, features=0).model == explicit.model


def test_what_a_user_says_of_features_is_told_from_the_defaults(own: Path) -> None:
    start = ["--dataset", str(own)]
    words = ["--model.node-dropout", "0.2", "--model.bias", "false", "--model.hidden", "8"]
    assert said_of_features(parse_args(start)) == {}
    found = said_of_features(parse_args([*start, *words]))
    assert found == {"model.node_dropout": 0.2, "model.bias": False}
    assert said_of_features(parse_args([*start, "--model.input-dropout", "0"])) == {}
    kind = ["--model.kind", "gcn", "--model.input-dropout", "0.1"]
    assert said_of_features(parse_args([*start, *kind])) == {}


def test_the_defaults_of_own_graphs_lie_beneath_a_file_and_the_command_line(
    own: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"dataset: {own}\nmodel: {{hidden: 32, kappa: 0.5}}\n")
    run = parse_args(["--config", str(file), "--model.kappa", "0.7"])
    assert (run.model.hidden, run.model.kappa, run.model.init) == (32, 0.7, "identity")
    assert run.forward.method == "neural"
    assert run_from_settings("memory", {"hidden": 16}).model.init == "identity"
    assert parse_args(["--dataset", "citeseer"]).model.init == "glorot"


@pytest.mark.parametrize("name", ["weight-decay", "consistency", "label-smoothing"])
def test_another_word_is_refused_in_one_line(own: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"train.{name.replace('-', '_')} = 'some' must .* 'auto'"):
        parse_args(["--dataset", str(own), f"--train.{name}", "some"])
