"""The rows of the tables: every model, and the settings that its runs have on a dataset.

Explicit models have those of ``configs/baselines/``, with the hidden width of the paper's Table 2;
the paper's implicit ones those of ``configs/paper/DATASET.yaml``, its IGNN-Solver as they are and
the others with another solver or cell; ours those of ``configs/DATASET.yaml``. A dataset that the
paper has not takes the paper's settings of one that is like it, with its own graph, width and
number of epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed_ignn.config import RunConfig, load_yaml, resolve_run
from distributed_ignn.config.idle import refuse_idle
from distributed_ignn.config.shipped import shipped_file
from distributed_ignn.errors import NoEffectError
from distributed_ignn.lab.studies.study_runs import with_settings
from distributed_ignn.lab.studies.tables.paper_figures import paper_name, size_of
from distributed_ignn.models.kinds import KINDS

OURS = "ours"
_LIKE = {"large": "ogbn-products", "small": "citeseer"}


@dataclass(frozen=True, slots=True)
class TableModel:
    """A row.

    Args:
        name: as the command line has it; of an explicit model, its ``model.kind``.
        label: as the tables show it.
        changes: of the paper's own settings; None for a model that has none of these.
        large: settings on large datasets, where the paper has others there.
    """

    name: str
    label: str
    changes: Mapping[str, Any] | None = None
    large: Mapping[str, Any] = field(default_factory=dict)

    @property
    def explicit(self) -> bool:
        """Whether it has finitely many layers."""
        return self.name in KINDS


def _solved(method: str, **model: Any) -> dict[str, Any]:
    """Without a learned solver, by a method, and with other settings of the model."""
    chosen = {f"model.{key}": value for key, value in model.items()}
    return {"solver": {}, "schedule": {}, "forward.method": method, **chosen}


_BOUNDED = {"constraint": "projection"}  # by the way in which the cell is made
_ROWS = (
    TableModel("gcn", "GCN"),
    TableModel("gat", "GAT"),
    TableModel("sgc", "SGC"),
    TableModel("appnp", "APPNP"),
    TableModel("jknet", "JKNet", large={"explicit.layers": 8}),
    TableModel("amgcn", "AM-GCN"),
    TableModel("demonet", "DEMO-Net"),
    TableModel("gcnii", "GCNII"),
    TableModel("acmgcn", "ACM-GCN", large={"explicit.layers": 4}),
    TableModel("graphsage", "GraphSAGE"),
    TableModel("mlp", "MLP"),
    TableModel("ignn", "IGNN", _solved("picard")),
    TableModel("eignn", "EIGNN", _solved("anderson", cell="eignn", kappa=0.8, **_BOUNDED)),
    TableModel("mignn", "MIGNN", _solved("anderson", cell="mignn", **_BOUNDED)),
    TableModel("ignn-aa", "IGNN w. AA", _solved("anderson")),
    TableModel("ignn-nn", "IGNN w. NN", {"solver.graph_layer": False, "solver.sparsifier": "none"}),
    TableModel("ignn-solver", "IGNN-Solver", {}),
    TableModel(OURS, "ours"),
)
_NEW = (TableModel(kind, kind) for kind in KINDS if kind not in {row.name for row in _ROWS})
MODELS: Mapping[str, TableModel] = {
    row.name: row for row in sorted((*_ROWS, *_NEW), key=lambda row: not row.explicit)
}
"""Every row by its name, in the order of the tables; a kind that is new is one too."""

DECIDED = ("model.kind", "model.cell", "forward.method", "solver.kind", "solver.graph_layer")
"""Settings that make a row what it is."""


def settings_of(name: str, dataset: str, size: str) -> RunConfig:
    """The settings of a model's runs on a dataset, of seed 0.

    Args:
        name: of the model, a key of ``MODELS``.
        dataset: name or path.
        size: ``large`` or ``small``, for a dataset that is in neither of the paper's tables.

    Raises:
        UserError: the dataset has no settings, or these do not go together.
    """
    model, size = MODELS[name], size_of(dataset) or size
    if model.changes is not None:
        return with_settings(_of_paper(dataset, size), model.changes)
    if not model.explicit:
        return resolve_run({"dataset": dataset}, None)
    chosen: dict[str, Any] = {"kind": name}
    if size_of(dataset) is not None:
        chosen["hidden"] = _of_paper(dataset, size).model.hidden
    found = resolve_run({"dataset": dataset, "model": chosen}, None)
    return with_settings(found, model.large) if size == "large" else found


def _of_paper(dataset: str, size: str) -> RunConfig:
    if size_of(dataset) is not None:
        found = load_yaml(shipped_file("paper", f"{paper_name(dataset)}.yaml"))
        return with_settings(found, {"dataset": dataset, "output": f"runs/{dataset}"})
    own = resolve_run({"dataset": dataset}, None)
    return with_settings(
        load_yaml(shipped_file("paper", f"{_LIKE[size]}.yaml")),
        {
            "dataset": dataset,
            "data": own.data.model_dump(),
            "partition": own.partition.model_dump(),
            "model.hidden": own.model.hidden,
            "train.epochs": own.train.epochs,
        },
    )


def overridden(config: RunConfig, flags: Mapping[str, Any]) -> tuple[RunConfig, frozenset[str]]:
    """The settings with those of the command line that have an effect, and the names of these.

    Args:
        config: of a model's run.
        flags: by dotted name.

    Raises:
        UserError: a value is wrong, or the settings contradict each other.
    """
    kept = dict(flags)
    while True:
        try:
            run = with_settings(config, kept)
            refuse_idle(run, (*kept, *DECIDED))
            return run, frozenset(kept)
        except NoEffectError as error:
            if error.setting not in kept:
                raise
            del kept[error.setting]
