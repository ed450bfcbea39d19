"""The settings that a search tries, and how it draws them.

A setting is one line of ``SPACE``. The first trial of a search has the settings as they are, the
next have those that served one of the shipped datasets, and each later one takes after such a trial
or, more often the more there is to go by, after one of the best: some of its settings are drawn
anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from distributed_ignn.config import CONFIG_FOLDER, RunConfig, choices
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.dataset import FILE_SUFFIXES, OWN_FILE
from distributed_ignn.config.dotted import dotted
from distributed_ignn.config.explicit import IMPLICIT, reads
from distributed_ignn.config.idle import deciders
from distributed_ignn.errors import UserError
from distributed_ignn.graph.storage.manifest import DatasetSize
from distributed_ignn.lab.studies.study_runs import with_settings
from distributed_ignn.models.cells import CELLS
from distributed_ignn.reading.strict_yaml import read_yaml

Settings = Mapping[str, str]
"""Values by dotted name, as on the command line."""

Lookup = Callable[[str], str]
"""The value of a setting as drawn so far, or as the search was given it."""

_NEIGHBOURS_NODES = 20_000  # all pairs of nodes are compared to find neighbours by features
_TRIES = 200
_ANEW, _CHANGED = 0.5, 3.0  # share of settings drawn anew; mean number of them after a good trial


def _always(value: Lookup, graph: DatasetSize) -> bool:
    return True


def _has_features(value: Lookup, graph: DatasetSize) -> bool:
    return graph.features != "none"


def _compares_features(value: Lookup, graph: DatasetSize) -> bool:
    return graph.features != "none" and graph.num_nodes <= _NEIGHBOURS_NODES


def _on(name: str) -> Callable[[Lookup, DatasetSize], bool]:
    """Whether another setting, which stands before, is not 0."""
    return lambda value, graph: value(name) == "auto" or float(value(name)) > 0.0


def _is_own(value: Lookup, graph: DatasetSize) -> bool:
    dataset = value("dataset")
    return dataset == OWN_FILE or dataset.endswith(FILE_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting of the space.

    Args:
        name: dotted.
        values: to draw from, as on the command line; one that stands twice is drawn twice as often.
        when: whether it says anything, given the settings before it and the graph.
        binding: which trials must have one of the values, also if the search was given another:
            none of them, those that are drawn, or all but the first.
    """

    name: str
    values: tuple[str, ...]
    when: Callable[[Lookup, DatasetSize], bool] = _always
    binding: Literal["none", "drawn", "all"] = "none"


_IS_CONSISTENT = _on("train.consistency")

SPACE: tuple[Axis, ...] = (
    # what learns more slowly does not show at the first rung what it is worth
    Axis("train.lr", ("0.005", "0.01", "0.02"), binding="drawn"),
    Axis("train.weight_decay", ("0", "5e-5", "5e-4", "5e-3", "1e-2")),
    Axis("train.label_smoothing", ("0", "0.1", "0.2")),
    Axis("train.ema", ("0", "0.9")),
    Axis("train.consistency", ("0", "0.5", "1")),
    Axis("train.consistency_samples", ("2", "4"), _IS_CONSISTENT),
    Axis("train.consistency_temperature", ("0.3", "0.5"), _IS_CONSISTENT),
    Axis("train.consistency_warmup", ("0", "20"), _IS_CONSISTENT),
    Axis("model.hidden", ("32", "64", "128", "256")),
    Axis("model.cell", Choice(choices.CELLS).names()),
    Axis("model.kappa", ("0.5", "0.6", "0.8", "0.9", "0.95", "0.98")),
    Axis("model.init", ("glorot", "identity", "signed")),
    Axis("model.residual", ("0", "0", "0.3", "0.6")),
    Axis("model.dropout", ("0", "0.5", "0.7")),
    Axis("model.input_dropout", ("0", "0.2", "0.5", "0.8"), _has_features),
    Axis("model.node_dropout", ("0", "0.3", "0.5"), _has_features),
    Axis("model.injection", ("features", "propagated", "both"), _has_features),
    Axis("model.injection_layers", ("1", "2"), _has_features),
    Axis("data.feature_norm", ("auto", "none", "row", "l2", "standard"), _has_features),
    Axis("data.directions", ("auto", "undirected", "both"), _is_own),
    Axis("data.knn", ("0", "5", "10"), _compares_features),
    Axis("model.injection_channels", ("all", "graph", "knn"), _on("data.knn")),
)

FAST = {"forward.method": "neural", "forward.tolerance": "1e-3", "adjoint.tolerance": "1e-3"}
"""Of all trials but the first, where the search is not given a learned solver already."""

KNOWN = ("citeseer", "acm", "flickr", "chains")
"""Shipped settings that are tried before any are drawn: of like and of unlike neighbours."""

KNOWN_OWN: Mapping[str, Settings] = {
    "unlike neighbours": {"model.init": "signed"},
    "wide": {
        "model.hidden": "128",
        "model.kappa": "0.95",
        "model.init": "glorot",
        "model.dropout": "0.2",
        "model.input_dropout": "0",
        "train.weight_decay": "5e-5",
    },
    "two layers": {"model.injection_layers": "2", "train.weight_decay": "2e-3"},
}
"""Tried before those on a graph of one's own: what the defaults for any graph are not, and what was
better than they are on some graph."""


def restricted(grid: Mapping[str, tuple[str, ...]], pinned: Sequence[str] = ()) -> tuple[Axis, ...]:
    """The space, with the values of a grid in the place of its own.

    Args:
        grid: values by name; a name that is not in the space is added to it.
        pinned: settings that stay as the search was given them; a name of a section is all in it.
    """
    rest = [axis for axis in SPACE if axis.name not in grid and not _is_any(axis.name, pinned)]
    return (*(Axis(name, values, binding="all") for name, values in grid.items()), *rest)


def _is_any(name: str, pinned: Sequence[str]) -> bool:
    return any(_is_in(name, section) for section in pinned)


def _is_in(name: str, section: str) -> bool:
    return name == section or name.startswith(f"{section}.")


def variants(
    base: RunConfig, grid: Mapping[str, tuple[str, ...]], pinned: Sequence[str], *, exhaustive: bool
) -> Iterator[RunConfig]:
    """Runs that trials may be, by every setting that decides whether another one is read.

    Args:
        base: settings as the search was given them.
        grid, pinned: see ``restricted``.
        exhaustive: whether the combinations of the grid are all that is tried.
    """
    axes = restricted(grid, pinned)[: len(grid) if exhaustive else None]
    starts: list[Settings] = [{}] if exhaustive else [{}, fast_settings(base, pinned)]
    for start in starts:
        with suppress(UserError):  # other settings of the search contradict it
            decide = deciders(with_settings(base, start))
            deciding = [axis for axis in axes if axis.name in decide]
            for values in itertools.product(*(axis.values for axis in deciding)):
                chosen = zip((axis.name for axis in deciding), values, strict=True)
                with suppress(UserError):
                    yield with_settings(base, {**start, **dict(chosen)})


def fast_settings(base: RunConfig, pinned: Sequence[str]) -> Settings:
    """Those of ``FAST`` that trials of a search have; none beside a method other than Anderson."""
    free = {name: value for name, value in FAST.items() if not _is_any(name, pinned)}
    return free if base.forward.method == "anderson" and "forward.method" in free else {}


def identity(config: RunConfig) -> str:
    """A short name for settings, the same for all ways to write them."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Space:
    """Draws the settings of trials.

    Args:
        base: settings as the search was given them.
        axes: what may change.
        graph: what is trained on.
        seed: of the draws.
        pinned: names of settings and sections that stay as they are given.
    """

    def __init__(
        self,
        base: RunConfig,
        axes: Sequence[Axis],
        graph: DatasetSize,
        seed: int,
        pinned: Sequence[str] = (),
    ) -> None:
        self._base, self._axes, self._graph, self._seed = base, axes, graph, seed
        self._given = {name: str(value) for name, value in dotted(base.model_dump(mode="json"))}
        fast = fast_settings(base, pinned)
        self._fast = self._allowed(fast) if fast else {}

    def _allowed(self, settings: Settings) -> Settings:
        try:
            config = with_settings(self._base, settings)
        except UserError:  # other settings of the search contradict them
            return {}
        return settings if self._suits(config) else {}

    def _suits(self, config: RunConfig) -> bool:
        """Whether the map can be of this graph: some cells need channels without a direction."""
        return all(self._graph.symmetric) or CELLS[config.model.cell].directed_norm is not None

    @cached_property
    def known(self) -> dict[str, Settings]:
        """Settings that have served, by what they served, those of the shipped files last."""
        names = {axis.name for axis in self._axes}
        random, found = np.random.default_rng(self._seed), {}
        for origin, served in self._served().items():
            chosen = {name: value for name, value in served.items() if name in names}
            bound = self._changed(chosen, 0.0, random, binding=("all",))
            settings = self._allowed(self._told(bound))
            if settings:
                found[origin] = settings
        return found

    def _served(self) -> dict[str, Settings]:
        """As ``known``, with what the search may not change."""
        served: dict[str, Settings] = {}
        if _is_own(self._given.__getitem__, self._graph):
            served |= KNOWN_OWN
        for dataset in KNOWN:
            shipped = read_yaml(CONFIG_FOLDER / f"{dataset}.yaml") or {}
            served[dataset] = {name: str(value) for name, value in dotted(shipped)}
        return served

    def draw(
        self, number: int, best: Sequence[Settings], taken: Callable[[RunConfig], bool]
    ) -> Settings | None:
        """Settings of the trial of that number, or None where there are hardly any new ones.

        Args:
            number: decides the draw, together with the seed.
            best: those of the best trials so far.
            taken: whether a search has such a trial already.
        """
        random = np.random.default_rng((self._seed, number))
        starts: list[Settings] = [{}, *self.known.values()]
        for _ in range(_TRIES):
            takes_after = bool(best) and random.random() < 0.7
            parents = best if takes_after else starts
            share = _CHANGED / max(len(self._axes), 1) if takes_after else _ANEW
            parent = parents[int(random.integers(len(parents)))]
            settings = self._told(self._changed(parent, share, random))
            try:
                config = with_settings(self._base, settings)
            except UserError:  # values that contradict each other
                continue
            if self._suits(config) and not taken(config):
                return settings
        return None

    def _changed(
        self,
        parent: Settings,
        share: float,
        random: np.random.Generator,
        binding: Sequence[str] = ("drawn", "all"),
    ) -> dict[str, str]:
        """The parent's settings, each drawn anew with a probability of ``share``.

        Args:
            parent: settings.
            share: see above.
            random: draws.
            binding: see ``Axis``; those that are to be heeded.
        """
        drawn = dict(parent)
        for axis in self._axes:
            own = drawn.get(axis.name, self._given.get(axis.name))
            free = axis.binding not in binding or any(_same(v, own) for v in axis.values)
            if random.random() < share or not free:
                drawn[axis.name] = axis.values[int(random.integers(len(axis.values)))]
        return drawn

    def _told(self, drawn: Settings) -> dict[str, str]:
        """What of the drawn settings says anything and is not so anyway."""
        kind = drawn.get("model.kind", self._given["model.kind"])
        told: dict[str, str] = dict(self._fast) if kind == IMPLICIT else {}

        def value(name: str) -> str:
            return told.get(name, self._given[name])

        for axis in self._axes:
            chosen = drawn.get(axis.name)
            section, _, key = axis.name.partition(".")
            if chosen is None or not reads(kind, section, key):
                continue
            if not axis.when(value, self._graph):
                continue
            if axis.binding == "all" or not _same(chosen, self._given.get(axis.name)):
                told[axis.name] = chosen
        return told


def _same(text: str, other: str | None) -> bool:
    """Whether two texts are one value: ``5e-4`` and ``0.0005``."""
    try:
        return other is not None and float(text) == float(other)
    except ValueError:
        return text == other
