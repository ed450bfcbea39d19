"""The long-range study: accuracy over the length of a chain, against explicit networks.

One end of a chain tells the class of all its nodes (``graph/datasets/chains.py``). The implicit
model has the same settings at every length. Each explicit network has the same width and protocol,
more time to train (``baselines.py``), and for each length the depth (and alpha) that the validation
nodes of the first seed choose from a list that reaches past the longest chain.

How far the equilibrium reaches: on a path with W = kappa I the signal falls by a factor of
exp(-theta) per hop, cosh(theta) = 1 + 3 (1 - kappa) / (2 kappa), because A_hat averages over both
neighbours and the node itself: 0.78 at kappa 0.98, but 0.98 at kappa 0.9999. What is left at the
far end must stay above the tolerance of the solve and the rounding of the readout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.config.explicit import IMPLICIT
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_json
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.lab.studies.baselines import (
    BASELINES,
    MORE_EPOCHS,
    Choice,
    Trained,
    WholeGraph,
    accuracy,
    choices,
    train_baseline,
)
from distributed_ignn.lab.studies.outcome import Outcome, Request, spread
from distributed_ignn.lab.studies.study_runs import train_run, with_settings
from distributed_ignn.plots import (
    GREY,
    Picture,
    band_note,
    legend_beside,
    mean_line,
    point_style,
    set_title,
    style,
)
from distributed_ignn.reading.strict_json import read_json

LENGTHS = (10, 25, 50, 100, 150, 200)
DEPTHS = (4, 16, 64, 256)
EXPLICIT_LR = 0.01  # whatever that of the implicit model, whose map may need smaller steps

_PAPER = (
    "No figure of its own: the introduction claims 'global receptive fields within just one layer' "
    "for implicit networks. The task is that of IGNN (Gu et al. 2020), where explicit networks "
    "fail beyond their depth."
)


@dataclass(frozen=True, slots=True)
class Range:
    """What the study varies.

    Args:
        lengths: nodes in a chain.
        depths: offered to every explicit network.
    """

    lengths: tuple[int, ...] = LENGTHS
    depths: tuple[int, ...] = DEPTHS


def run(request: Request, comm: Communicator, extent: Range | None = None) -> Outcome:
    """Train every model at every length for every seed.

    Raises:
        UserError: another dataset than chains, or more than one rank.
    """
    if request.config.dataset != "chains":
        raise UserError(
            f"long-range needs a dataset whose range can be set: chains, not "
            f"{request.config.dataset}"
        )
    if comm.world_size > 1:
        raise UserError(
            "long-range trains its baselines on the whole graph; start it without torchrun"
        )
    extent = extent or Range()
    rows: list[dict[str, Any]] = []
    for length in extent.lengths:
        configs = {
            seed: with_settings(
                request.config,
                {"data.chains.length": length, "data.chains.seed": seed, "seed": seed},
            )
            for seed in request.seeds
        }
        rows += _implicit(request, configs, length, comm)
        graphs = {
            seed: WholeGraph.of(load_dataset(c.dataset, c.data_root, c.data))
            for seed, c in configs.items()
        }
        for name in BASELINES:
            rows += _baseline(request, name, configs, graphs, extent.depths)
    differs = (
        f"Width {request.config.model.hidden} for all; the seed sets weights, split and noise; "
        f"depths offered to the explicit networks: {', '.join(map(str, extent.depths))}; they get "
        f"a learning rate of {EXPLICIT_LR} and {MORE_EPOCHS} times as many epochs as the implicit "
        "model."
    )
    caption = "test accuracy by length, per cent, mean ± std over seeds (depth by validation)"
    return Outcome(rows, _table(rows), caption, _PAPER, differs, _draw(rows, request.config))


def _implicit(
    request: Request, configs: dict[int, RunConfig], length: int, comm: Communicator
) -> list[dict[str, Any]]:
    rows = []
    for seed, config in configs.items():
        found = train_run(config, request.out, f"length{length}-seed{seed}", {}, comm)
        summary = found.summary
        rows.append(
            _row(length, seed, IMPLICIT, None, summary["best_val"], summary["epochs"])
            | {"chosen": True, "test": summary["test_at_best_val"]}
        )
    return rows


def _baseline(
    request: Request,
    name: str,
    configs: dict[int, RunConfig],
    graphs: dict[int, WholeGraph],
    depths: Sequence[int],
) -> list[dict[str, Any]]:
    """A row per seed and choice, trained now or taken from a former call with equal settings."""
    any_config = next(iter(configs.values()))
    length = any_config.data.chains.length
    path = request.out / "runs" / f"length{length}-{name}.json"
    settings = {
        "depths": list(depths),
        "configs": [c.model_dump(mode="json", exclude={"output"}) for c in configs.values()],
    }
    stored = _read_stored(path)
    rows: list[dict[str, Any]] = stored.get("rows", [])
    if stored.get("settings") != settings:
        rows = _train_choices(name, configs, graphs, depths)
        atomic_write_json(path, {"settings": settings, "rows": rows})
    chosen = [row for row in rows if row["chosen"]]
    mean, depth = spread([row["test"] for row in chosen])[0], chosen[0]["depth"]
    console = Console(highlight=False)
    console.print(f"length {length} {name}: depth {depth}, test {mean:.3f}", soft_wrap=True)
    return rows


def _read_stored(path: Path) -> dict[str, Any]:
    """What a former call has kept; nothing where that cannot be read."""
    try:
        stored = read_json(path)
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _train_choices(
    name: str, configs: dict[int, RunConfig], graphs: dict[int, WholeGraph], depths: Sequence[int]
) -> list[dict[str, Any]]:
    """A row per choice of the first seed and one per further seed.

    The first seed's validation nodes choose; the test nodes are looked at for the choice alone.
    """

    def trained(choice: Choice, seed: int) -> Trained:
        model, train = configs[seed].model, configs[seed].train
        usual = train.model_copy(update={"lr": EXPLICIT_LR})
        return train_baseline(name, choice, graphs[seed], model, usual, seed)

    first, *others = configs
    found: dict[Choice, Trained] = {}
    for choice in choices(name, depths, 1.0 - configs[first].model.kappa):
        found[choice] = trained(choice, first)
        if found[choice].val == 1.0:
            break  # the first of the best is chosen, and no later one can be better
    chosen = max(found, key=lambda choice: found[choice].val)
    ends = [(choice, first, end) for choice, end in found.items()]
    ends += [(chosen, seed, trained(chosen, seed)) for seed in others]
    length = configs[first].data.chains.length
    rows = []
    for choice, seed, end in ends:
        row = _row(length, seed, name, choice, end.val, end.epochs)
        if choice == chosen:
            data = graphs[seed].data
            row["test"] = accuracy(end.predictions, data.labels, data.test_nodes)
            row["chosen"] = True
        rows.append(row)
    return rows


def _row(
    length: int, seed: int, model: str, choice: Choice | None, val: float, epochs: int
) -> dict[str, Any]:
    return {
        "length": length,
        "seed": seed,
        "model": model,
        "depth": choice.depth if choice else None,
        "alpha": choice.alpha if choice else None,
        "epochs": epochs,
        "val": val,
        "chosen": False,
        "test": None,
    }


def _accuracies(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, tuple[float, float]]]:
    """Mean and standard deviation of the test accuracy over seeds, by model and length."""
    values: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["chosen"]:
            values.setdefault(row["model"], {}).setdefault(row["length"], []).append(row["test"])
    return {
        model: {length: spread(found) for length, found in by_length.items()}
        for model, by_length in values.items()
    }


def _table(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Test accuracy in per cent, with the chosen depth."""
    depth = {(r["model"], r["length"]): r["depth"] for r in rows if r["chosen"]}
    return {
        model: {
            str(length): f"{100 * mean:.1f} ± {100 * std:.1f}"
            + (f" ({depth[model, length]})" if depth[model, length] else "")
            for length, (mean, std) in by_length.items()
        }
        for model, by_length in _accuracies(rows).items()
    }


@style()
def _draw(rows: Sequence[dict[str, Any]], config: RunConfig) -> Picture:
    picture = Picture(7.0, 3.8)
    axes = picture.subplots()
    lengths = sorted({row["length"] for row in rows})
    chosen = [row for row in rows if row["chosen"]]
    for place, model in enumerate(dict.fromkeys(row["model"] for row in chosen)):
        own = [row for row in chosen if row["model"] == model]
        runs = [
            [(row["length"], 100 * row["test"]) for row in own if row["seed"] == seed]
            for seed in dict.fromkeys(row["seed"] for row in own)
        ]
        mean_line(axes, runs, **point_style(place), label=model)
    chains = config.data.chains
    axes.axhline(100 / chains.classes, color=GREY, linestyle=":", label="chance")
    axes.set_xlabel("length of a chain, nodes")
    axes.set_xticks(lengths)
    axes.set_ylabel("test accuracy, per cent")
    axes.set_ylim(0, 103)
    legend_beside(picture)
    note = band_note(len({row["seed"] for row in chosen}))
    set_title(picture, f"{chains.classes} classes, feature noise {chains.noise:g}{note}")
    return picture
