"""What a search may try: every draw is allowed, new, and says something on the graph at hand."""

from __future__ import annotations

import pytest

from distributed_ignn.config import RunConfig
from distributed_ignn.config.explicit import IMPLICIT
from distributed_ignn.config.keywords import setting_names
from distributed_ignn.graph.storage.manifest import DatasetSize
from distributed_ignn.lab.studies.search.space import KNOWN_OWN, SPACE, Settings, Space, restricted
from distributed_ignn.lab.studies.study_runs import with_settings

pytestmark = pytest.mark.cheap

BASE = RunConfig.model_validate({"dataset": "own.npz"})
GRAPH = DatasetSize(
    num_nodes=300,
    num_features=8,
    num_classes=3,
    task="multiclass",
    features="dense",
    feature_dtype="float32",
    symmetric=(True,),
)


def _draws(space: Space, count: int = 150, best: tuple[Settings, ...] = ()) -> list[Settings]:
    found = [space.draw(number, best, lambda config: False) for number in range(count)]
    return [settings for settings in found if settings is not None]


def test_every_line_of_the_space_is_a_setting_with_values_that_are_allowed() -> None:
    names = [axis.name for axis in SPACE]
    assert len(set(names)) == len(names)
    assert set(names) <= set(setting_names())
    for axis in SPACE:
        for value in axis.values:
            with_settings(BASE, {axis.name: value})


def test_draws_are_allowed_and_reach_every_value() -> None:
    draws = _draws(Space(BASE, SPACE, GRAPH, 0), 200)
    assert len(draws) == 200
    for settings in draws:
        assert with_settings(BASE, settings).forward.method == "neural"
    for axis in SPACE:
        tried = {settings.get(axis.name, "as given") for settings in draws}
        assert len(tried) >= min(len(set(axis.values)), 2), axis.name
    assert _draws(Space(BASE, SPACE, GRAPH, 0), 200) == draws
    assert _draws(Space(BASE, SPACE, GRAPH, 1), 200) != draws


def test_settings_that_say_nothing_are_left_out() -> None:
    for settings in _draws(Space(BASE, SPACE, GRAPH, 0)):
        if "train.consistency" not in settings:
            assert not any(name.startswith("train.consistency_") for name in settings)
        if "data.knn" not in settings:
            assert "model.injection_channels" not in settings
    large = _draws(Space(BASE, SPACE, GRAPH.model_copy(update={"num_nodes": 10**6}), 0))
    bare = GRAPH.model_copy(update={"features": "none", "num_features": 0})
    featureless = _draws(Space(BASE, SPACE, bare, 0))
    assert not any("data.knn" in settings for settings in large + featureless)
    assert not any("model.injection" in settings for settings in featureless)
    assert any("model.injection" in settings for settings in large)


def test_cells_that_need_undirected_graphs_are_not_drawn_on_directed_ones() -> None:
    directed = GRAPH.model_copy(update={"symmetric": (False, False), "graph_channels": 2})
    cells = [
        {settings.get("model.cell") for settings in _draws(Space(BASE, SPACE, graph, 0), 200)}
        for graph in (GRAPH, directed)
    ]
    assert "mignn" in cells[0] - cells[1]


def test_a_search_among_kinds_draws_what_each_of_them_reads() -> None:
    axes = restricted({"model.kind": ("implicit", "gcn", "mlp"), "explicit.layers": ("2", "3")})
    draws = _draws(Space(BASE, axes, GRAPH, 0))
    explicit = [settings for settings in draws if settings.get("model.kind", IMPLICIT) != IMPLICIT]
    implicit = [settings for settings in draws if settings.get("model.kind", IMPLICIT) == IMPLICIT]
    assert {settings["model.kind"] for settings in explicit} == {"gcn", "mlp"}
    assert any("forward.method" in settings for settings in implicit)
    assert any("explicit.layers" in settings for settings in explicit)
    assert not any("forward.method" in settings for settings in explicit)
    assert not any("explicit.layers" in settings for settings in implicit)
    assert any("model.dropout" in settings for settings in explicit)
    assert not any("model.kappa" in settings for settings in explicit)


def test_the_fast_solver_is_not_forced_on_a_search_that_has_one() -> None:
    given = with_settings(BASE, {"forward.method": "neural", "forward.tolerance": "1e-5"})
    for settings in _draws(Space(given, SPACE, GRAPH, 0)):
        assert "forward.tolerance" not in settings
    # nor on one whose settings contradict it
    other = with_settings(BASE, {"solver.network": "graph", "solver.steps": "9999"})
    assert all("forward.method" not in s for s in _draws(Space(other, SPACE, GRAPH, 0)))


def test_what_was_given_is_not_made_faster() -> None:
    """Neither by the method nor by one of its settings."""
    space = Space(BASE, SPACE, GRAPH, 0, ("forward.method",))
    for settings in [*_draws(space), *space.known.values()]:
        assert not any(name.startswith(("forward.", "adjoint.")) for name in settings)
    for settings in _draws(Space(BASE, SPACE, GRAPH, 0, ("forward.tolerance",))):
        assert settings["forward.method"] == "neural"
        assert "forward.tolerance" not in settings


def test_settings_of_shipped_datasets_are_known_good() -> None:
    space = Space(BASE, SPACE, GRAPH, 0)
    known = space.known
    assert list(known) == [*KNOWN_OWN, "citeseer", "acm", "flickr", "chains"]
    assert known["two layers"]["model.injection_layers"] == "2"
    named = Space(RunConfig(dataset="chains"), SPACE, GRAPH, 0).known
    assert list(named) == ["citeseer", "acm", "flickr", "chains"]
    assert "train.lr" not in known["citeseer"]  # that of the search, .002
    assert all(s["train.lr"] in ("0.005", "0.01", "0.02") for s in _draws(space, 20))
    assert known["citeseer"]["model.injection"] == "propagated"
    assert known["flickr"]["model.injection_channels"] == "knn"
    assert known["chains"]["model.init"] == "identity"
    large = Space(BASE, SPACE, GRAPH.model_copy(update={"num_nodes": 10**6}), 0).known
    assert "data.knn" not in large["citeseer"]
    assert "model.injection_channels" not in large["citeseer"]


def test_a_grid_binds_and_given_settings_stay() -> None:
    axes = restricted(
        {"model.kappa": ("0.3", "0.4"), "solver.keep": ("0.1", "0.2")}, ["model.hidden"]
    )
    space = Space(BASE, axes, GRAPH, 0)
    for settings in [*_draws(space), *space.known.values()]:
        assert settings["model.kappa"] in ("0.3", "0.4")
        assert settings["solver.keep"] in ("0.1", "0.2")
        assert "model.hidden" not in settings
    assert not any(axis.name.startswith("data.") for axis in restricted({}, ["data"]))


def test_later_draws_take_after_the_best() -> None:
    best = {"model.kappa": "0.5", "model.init": "identity", "train.lr": "0.02", "data.knn": "5"}
    near = _draws(Space(BASE, SPACE, GRAPH, 0), best=(best,))
    far = _draws(Space(BASE, SPACE, GRAPH, 0))

    def alike(draws: list[Settings]) -> float:
        return sum(d.get(k) == v for d in draws for k, v in best.items()) / len(draws)

    assert alike(near) > alike(far) + 1


def test_a_space_can_be_drawn_out() -> None:
    axes = restricted({"model.hidden": ("3", "4")})[:1]
    space, taken = Space(BASE, axes, GRAPH, 0), []
    for number in range(4):
        settings = space.draw(number, (), lambda config: config in taken)
        if settings is None:
            break
        taken.append(with_settings(BASE, settings))
    assert number == 2
    assert {config.model.hidden for config in taken} == {3, 4}
