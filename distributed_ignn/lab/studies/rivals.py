"""The rivals study: explicit networks (``models/kinds``) beside the implicit model, on any graph.

The implicit model has the settings that the study is given. Each rival has one setting for all
graphs, the one that its own paper or most of the literature takes, and reads the same nodes,
features and split, edges both ways. All are runs of the ordinary trainer: validation chooses the
epoch of each, and test nodes are read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.config.explicit import IMPLICIT
from distributed_ignn.lab.studies.outcome import Outcome, Request, spread
from distributed_ignn.lab.studies.study_runs import train_run, with_settings
from distributed_ignn.plots import COLOURS, Picture, band_note, set_title, style

WIDTH, DROPOUT = 64, 0.5
LR, WEIGHT_DECAY = 0.01, 5e-4
EPOCHS, PATIENCE = 300, 100

_PAPER = "No figure of its own: its Tables 1 and 3 have settings of each graph; see table1, table3."
_POINT = {False: (COLOURS[0], "o"), True: (COLOURS[1], "D")}
_TRAINING = ("loss", "metric", "threads", "dtype", "keep_freed", "memory_limit", "log_level")

RIVALS: Mapping[str, Mapping[str, Any]] = {
    "GCN": {"kind": "gcn"},
    "GAT": {"kind": "gat", "heads": 4},
    "GraphSAGE": {"kind": "graphsage"},
    "APPNP": {"kind": "appnp", "layers": 10, "teleport": 0.1},  # of the APPNP paper
    "GCNII": {"kind": "gcnii", "layers": 16, "teleport": 0.1, "identity": 0.5},
    "MLP": {"kind": "mlp"},
}
"""``model.kind`` and the settings of ``explicit``; two layers where they are silent."""


def run(request: Request, comm: Communicator) -> Outcome:
    """Train every rival, and the implicit model, for every seed; every rank calls it.

    Raises:
        UserError: see ``train_run``.
    """
    configs = {name: settings_of_rival(name, request.config) for name in RIVALS}
    rows: list[dict[str, Any]] = []
    metric = ""
    for model, config in (configs | {IMPLICIT: request.config}).items():
        for seed in request.seeds:
            name = f"seed{seed}" if model == IMPLICIT else f"{model}-seed{seed}"
            found = train_run(config, request.out, name, {"seed": seed}, comm).summary
            rows.append(_row(model, seed, found))
            metric = str(found["metric"])
    return Outcome(
        rows=rows,
        ours=_table(rows),
        caption=f"{metric} in per cent, mean ± std over seeds; seconds of a training",
        paper=_PAPER,
        differs=(
            f"Rivals with one setting each: width {WIDTH}, dropout {DROPOUT}, learning rate {LR}, "
            f"weight decay {WEIGHT_DECAY}, {EPOCHS} epochs at most, {PATIENCE} without a better "
            f"validation; two layers, APPNP with {RIVALS['APPNP']['layers']} steps, "
            f"GCNII with {RIVALS['GCNII']['layers']} layers, GAT with {RIVALS['GAT']['heads']} "
            "heads."
        ),
        figure=_draw(rows, request.config.dataset, metric),
    )


def settings_of_rival(name: str, config: RunConfig) -> RunConfig:
    """The run of a rival on the graph of the implicit model's, with loss and metric of that.

    Args:
        name: a key of ``RIVALS``.
        config: of the implicit model.
    """
    kind, *explicit = RIVALS[name]
    steps = {"lr": LR, "weight_decay": WEIGHT_DECAY, "epochs": EPOCHS, "patience": PATIENCE}
    shape = {"hidden": WIDTH, "dropout": DROPOUT, "input_dropout": DROPOUT}
    unread: dict[str, Any] = {key: {} for key in ("forward", "adjoint", "solver", "schedule")}
    unread |= {"data.directions": "undirected", "data.knn": 0, "partition.clusters": 0}
    unread |= {"comm.halo": "auto", "comm.stale": False}
    return with_settings(
        config,
        {
            **unread,
            "model": {"kind": RIVALS[name][kind], **shape},
            "explicit": {key: RIVALS[name][key] for key in explicit},
            "train": {**{key: getattr(config.train, key) for key in _TRAINING}, **steps},
        },
    )


def _row(model: str, seed: int, summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "seed": seed,
        "val": summary["best_val"],
        "test": summary["test_at_best_val"],
        "best_epoch": summary["best_epoch"],
        "epochs": summary["epochs"],
        "seconds": summary["seconds_total"],
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    def cell(model: str, key: str, scale: float) -> str:
        found = [scale * row[key] for row in rows if row["model"] == model and row[key] is not None]
        if not found:
            return "-"
        mean, deviation = spread(found)
        return f"{mean:.1f} ± {deviation:.1f}" if len(found) > 1 else f"{mean:.1f}"

    scales = {"val": 100.0, "test": 100.0, "seconds": 1.0}
    return {
        model: {key: cell(model, key, scale) for key, scale in scales.items()}
        for model in (*RIVALS, IMPLICIT)
    }


@style()
def _draw(rows: Sequence[Mapping[str, Any]], dataset: str, metric: str) -> Picture:
    """A point per model with its deviation and its mean in figures; the implicit model last."""
    picture = Picture(6.5, 3.4)
    axes = picture.subplots()
    models = (*RIVALS, IMPLICIT)
    for place, model in enumerate(models):
        found = [row["test"] for row in rows if row["model"] == model and row["test"] is not None]
        if not found:
            continue
        mean, deviation = spread([100 * test for test in found])
        colour, marker = _POINT[model == IMPLICIT]
        axes.errorbar(place, mean, deviation or None, color=colour, marker=marker, markersize=6)
        axes.annotate(
            f"{mean:.1f}", (place, mean), (7, 0), textcoords="offset points", va="center", size=8
        )
    axes.set_xticks(range(len(models)), models)
    axes.set_xlim(-0.5, len(models) - 0.3)
    axes.margins(y=0.1)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(f"test {metric}, per cent")
    seeds = len({row["seed"] for row in rows})
    set_title(picture, dataset + band_note(seeds).replace("bands", "bars"))
    return picture
