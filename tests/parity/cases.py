"""Small graphs with every awkward part, and what each rank reports about a run on them.

``report`` runs the same code on any number of ranks. Rows are put at their global ids and the other
rows are zero, so that the sum over ranks is the whole, whatever the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.graph.data import (
    CSRMatrix,
    GraphData,
    csr_from_edges,
    csr_from_entries,
    turned,
)
from distributed_ignn.graph.hashing import hash_uniform
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.propagation.halo import HaloExchange
from distributed_ignn.propagation.propagate import Propagation
from distributed_ignn.propagation.row_sum import RowSum
from distributed_ignn.propagation.sparsify import sparsify
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import Iterate
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.predictors import NeuralShape, build_predictor
from distributed_ignn.training.losses.objective import Objective
from distributed_ignn.training.plans import SolvePlanner
from distributed_ignn.training.trainer import Trainer

NODES, FEATURES, CLASSES, WIDTH = 60, 12, 3, 8
CLUSTERS = 7  # of the coarse level of the cases that have one
_SHAPE = NeuralShape(WIDTH, 4, 6, 3, 4)
_VARIANTS = (
    _SHAPE,
    *(replace(_SHAPE, network=network) for network in ("mlp", "tcn", "gru", "table")),
    *(replace(_SHAPE, network=network, alpha="node") for network in ("graph", "gru")),
)
CASES = (
    *("plain", "awkward", "directed", "channels", "embedding", "multilabel", "dense"),
    *("weights", "lopsided"),  # the directions of an edge weigh the same, or not
    "both",  # in- and out-neighbours of a directed graph with weights, and one more channel
)
# every cell on one channel and, with all options of cells and penalties, on two
_ALL_ON = {
    "model": {"learn_kappa": True, "residual": 0.2},
    "train": {"jacobian_weight": 0.5, "spectral_weight": 0.01},
}
CELLS: dict[str, dict[str, dict[str, Any]]] = {
    "plain/eignn": {"model": {"cell": "eignn"}},
    "awkward/mignn": {"model": {"cell": "mignn"}},
    "channels/ignn": _ALL_ON,
    "channels/eignn": _ALL_ON | {"model": _ALL_ON["model"] | {"cell": "eignn"}},
    "channels/mignn": _ALL_ON | {"model": _ALL_ON["model"] | {"cell": "mignn"}},
}
# what of the learned solver a case adds to its default parts, which are fitted in closed form
_PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "awkward": {
        "solver": {"network": "graph", "sparsifier": "pri"},
        "adjoint": {"method": "neural"},
    },
    "directed": {"solver": {"estimator_hops": 2}, "adjoint": {"method": "neural"}},
    "channels": {"solver": {"network": "gru"}, "adjoint": {"method": "neural"}},
    "embedding": {"solver": {"initialiser": "own", "estimator": "own", "fit_nodes": 40}},
    "multilabel": {"solver": {"network": "table", "sparsifier": "degree"}},
    # nothing of b(X) is dropped and X is dense: its propagated terms are constants
    "dense": {"model": {"input_dropout": 0.0}},
    "weights": {
        "solver": {"network": "graph", "sparsifier": "pri"},
        "adjoint": {"method": "neural"},
    },
    "lopsided": {"solver": {"network": "graph", "sparsifier": "degree"}},
    "both": {
        "model": {"injection_channels": "graph"},
        "solver": {"network": "graph", "sparsifier": "pri"},
        "adjoint": {"method": "neural"},
    },
}


def make_data(case: str) -> GraphData:
    """A random graph; nodes 50 to 59 form an island, nodes 45 to 49 are isolated in ``awkward``."""
    generator = torch.Generator().manual_seed(3)
    source = torch.randint(0, 45, (150,), generator=generator)
    target = torch.randint(0, 45, (150,), generator=generator)
    island = torch.arange(50, 59)
    source, target = torch.cat([source, island]), torch.cat([target, island + 1])
    if case != "awkward":
        linked = torch.arange(45, 50)
        source, target = torch.cat([source, linked]), torch.cat([target, linked - 40])
    undirected = case not in ("directed", "both")
    graphs = [csr_from_edges(source, target, NODES, symmetric=undirected)]
    if case in ("weights", "lopsided", "both"):
        graphs[0] = weighed(graphs[0], symmetric=case == "weights")
    if case == "both":
        graphs.append(turned(graphs[0]))
    graph_channels = len(graphs)
    if case in ("channels", "weights", "both"):  # the last channel has no weights
        other = torch.randint(0, NODES, (2, 80), generator=generator)
        graphs.append(csr_from_edges(other[0], other[1], NODES))
    order = torch.randperm(NODES, generator=generator)
    features = None if case == "embedding" else _features(case, generator)
    labels = torch.randint(0, CLASSES, (NODES,), generator=generator)
    if case == "multilabel":
        labels = torch.randint(0, 2, (NODES, CLASSES), generator=generator).float()
    return GraphData(
        name=case,
        graphs=tuple(graphs),
        features=features,
        labels=labels,
        num_classes=CLASSES,
        task="multilabel" if case == "multilabel" else "multiclass",
        train_nodes=order[:20].sort().values,
        val_nodes=order[20:40].sort().values,
        test_nodes=order[40:].sort().values,
        clusters=_clusters(generator) if case in ("awkward", "channels", "weights") else None,
        graph_channels=graph_channels,
    )


def weighed(graph: CSRMatrix, *, symmetric: bool = True) -> CSRMatrix:
    """``graph`` with weights from 0.01 to 8, of its edges or of each of their directions."""
    row, col = graph.rows(), graph.col.long()
    if symmetric:
        row, col = torch.minimum(row, col), torch.maximum(row, col)
    return replace(graph, value=0.01 + 8.0 * hash_uniform(4, row, col) ** 3)


def _clusters(generator: torch.Generator) -> Tensor:
    """Random ones, so that every part has nodes of many, int64 [n]."""
    return torch.randperm(NODES, generator=generator) % CLUSTERS


def _features(case: str, generator: torch.Generator) -> CSRMatrix | Tensor:
    dense = torch.rand(NODES, FEATURES, generator=generator, dtype=torch.float64)
    if case in ("directed", "dense"):
        return dense
    mask = dense > 0.7
    row, col = mask.nonzero(as_tuple=True)
    return csr_from_entries(row, col, NODES, FEATURES, dense[mask])


def assign(case: str, parts: int) -> Tensor:
    """Random parts; in ``awkward`` one part is an island without halo, and of four the last is
    empty."""
    generator = torch.Generator().manual_seed(5)
    if case != "awkward" or parts == 1:
        return torch.randint(0, parts, (NODES,), generator=generator)
    island = max(parts - 2, 1)
    part = torch.randint(0, island, (NODES,), generator=generator)
    part[50:] = island
    return part


def config_for(dtype: str, case: str = "plain") -> RunConfig:
    """Three epochs that meet everything: both dropouts, warm starts, a solver phase.

    ``case`` may be one of CELLS, whose settings are then added.
    """
    tight = {"tolerance": 1e-12 if dtype == "float64" else 1e-6, "max_steps": 200}
    cell = CELLS.get(case, {})
    model = {"hidden": WIDTH, "kappa": 0.9, "input_dropout": 0.2}
    return RunConfig.model_validate(
        {
            "dataset": "chains",
            "model": model | cell.get("model", {}),
            "forward": {"method": "neural", **tight},
            "adjoint": tight,
            "solver": {"steps": 6, "compress": 3, "hidden": 4, "keep": 0.5},
            "schedule": {"warmup_epochs": 1, "warmup_solver_steps": 2, "model_steps": 1},
            "train": {"epochs": 3, "lr": 0.01, "dtype": dtype} | cell.get("train", {}),
        }
    )


def _config_of(case: str, dtype: str) -> RunConfig:
    """The run of ``report``; cases have further options, networks, and masks of several kinds."""
    changes: dict[str, dict[str, Any]] = {name: dict(part) for name, part in _PARTS[case].items()}
    if case in ("channels", "directed"):
        changes["model"] = {"node_dropout": 0.3, "injection_layers": 2, "injection_norm": "layer"}
        changes["train"] = {"consistency": 0.5, "ema": 0.6, "label_smoothing": 0.1}
    if case == "channels":
        changes["model"]["injection_channels"] = "knn"
    values = config_for(dtype).model_dump()
    for section, keys in changes.items():
        values[section] |= keys
    return RunConfig.model_validate(values)


def report(comm: Communicator, case: str, dtype: str) -> dict[str, Tensor]:
    """Everything that must not depend on the cut, by name."""
    data = make_data(case)
    shard = list(build_shards(data, assign(case, comm.world_size), comm.world_size))[comm.rank]
    config = _config_of(case, dtype)
    shard = shard.normalised(config.model.normalisation)
    kind = getattr(torch, dtype)
    found = _propagation(shard, comm, kind)
    found |= _gradients(shard, comm, config, kind)
    found |= _learned_weights(shard, comm, config, kind)
    found |= _training(shard, comm, config)
    return found


def report_all(
    comm: Communicator, dtype: str, cases: Sequence[str] = CASES
) -> dict[str, dict[str, Tensor]]:
    """``report`` of several cases, in one start of the ranks, on the CPU."""
    return {
        case: {name: value.detach().cpu() for name, value in report(comm, case, dtype).items()}
        for case in cases
    }


def report_cells(comm: Communicator, dtype: str) -> dict[str, dict[str, Tensor]]:
    """Fixed point, gradients and training of every cell."""
    found = {}
    for case in CELLS:
        graph = case.partition("/")[0]
        part = assign(graph, comm.world_size)
        shard = list(build_shards(make_data(graph), part, comm.world_size))[comm.rank]
        config = config_for(dtype, case)
        kind = getattr(torch, dtype)
        found[case] = _gradients(shard, comm, config, kind) | _training(shard, comm, config)
    return found


def sum_reports(reports: list[dict[str, dict[str, Tensor]]]) -> dict[str, dict[str, Tensor]]:
    """The whole from all ranks' reports."""
    return {
        case: {
            name: torch.stack([report[case][name] for report in reports]).sum(dim=0)
            for name in reports[0][case]
        }
        for case in reports[0]
    }


def worst_differences(
    found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]
) -> dict[tuple[str, str], float]:
    """Of each tensor, the largest difference over the largest entry, by case and name."""
    assert found.keys() == expected.keys()
    worst = {}
    for case, values in expected.items():
        assert found[case].keys() == values.keys(), case
        for name, value in values.items():
            scale = max(float(value.abs().max()), 1e-30)
            worst[case, name] = float((found[case][name] - value).abs().max()) / scale
    return worst


def spread(shard: GraphShard, rows: Tensor) -> Tensor:
    """Rows [O, ...] at their global ids, the others zero: [n, ...] on the CPU."""
    whole = torch.zeros((shard.num_nodes, *rows.shape[1:]), dtype=rows.dtype)
    whole[shard.owned_nodes] = rows.detach().cpu()
    return whole


def _rows(shard: GraphShard, width: int, kind: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(NODES, width, generator=generator, dtype=torch.float64)
    return whole[shard.owned_nodes].to(kind)


def _propagation(shard: GraphShard, comm: Communicator, kind: torch.dtype) -> dict[str, Tensor]:
    """Products and their transposes; names with "<" are zero in the sum over ranks."""
    propagation = Propagation(shard, comm, kind)
    x = _rows(shard, 5, kind, 1).to(comm.device)
    ys = [_rows(shard, 5, kind, 2 + c).to(comm.device) for c in range(propagation.num_channels)]
    forward = propagation.apply(x)
    back = _home(propagation, ys)
    found = {f"propagate {c}": spread(shard, f) for c, f in enumerate(forward)}
    images = _iterated(propagation, x)
    found |= {f"iterate {c}": spread(shard, f) for c, f in enumerate(images)}
    found["transpose"] = spread(shard, back)
    found["<Ax, y> - <x, A'y>"] = _dot(ys, forward) - _dot([x], [back])
    # columns of different widths, so that a wrong split is noticed
    xs = [y[:, : 3 + c].requires_grad_() for c, y in enumerate(ys)]
    each = propagation(xs)
    probes = [_rows(shard, 3 + c, kind, 8 + c).to(comm.device) for c in range(len(xs))]
    grads = torch.autograd.grad(each, xs, probes)
    found |= {f"propagate each {c}": spread(shard, rows) for c, rows in enumerate(each)}
    found |= {f"transpose each {c}": spread(shard, rows) for c, rows in enumerate(grads)}
    return found | _exchange(shard, comm, propagation.halo, x)


def _iterated(propagation: Propagation, x: Tensor) -> list[Tensor]:
    """A_hat_c x as an iteration computes it, run by run."""
    products = [torch.full_like(x, torch.nan) for _ in range(propagation.num_channels)]

    def finish(rows: slice, sums: list[RowSum]) -> None:
        for product, part in zip(products, sums, strict=True):
            product[rows] = part.product()

    propagation.iterate_sums(x, finish)
    return products


def _home(propagation: Propagation, ys: Sequence[Tensor]) -> Tensor:
    """sum_c A_hat_c' y_c as an iteration computes it, run by run."""
    total = torch.full_like(ys[0], torch.nan)

    def finish(rows: slice, parts: list[Tensor]) -> None:
        total[rows] = parts[0]

    propagation.iterate_home(ys, finish)
    return total


def _exchange(
    shard: GraphShard, comm: Communicator, halo: HaloExchange, x: Tensor
) -> dict[str, Tensor]:
    """The differentiable exchange against what ids say: row i arrives wherever i is a halo node."""
    whole = comm.sum(spread(shard, x))
    readers = torch.zeros(shard.num_nodes, 1, dtype=x.dtype)
    readers[shard.halo_nodes] = 1.0
    comm.sum(readers)
    x = x.clone().requires_grad_()
    arrived = halo(x)
    y = whole[shard.halo_nodes].sin().to(comm.device)
    (back,) = torch.autograd.grad(arrived, x, y)
    expected = readers[shard.owned_nodes] * whole[shard.owned_nodes].sin()
    return {
        "<Hx, y> - <x, H'y>": _dot([arrived], [y]) - _dot([x], [back]),
        "<|Hx - expected|>": (arrived.detach().cpu() - whole[shard.halo_nodes]).abs().sum(),
        "<|H'y - expected|>": (back.cpu() - expected).abs().sum(),
    }


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """This rank's share of the inner product, float64 on the CPU."""
    shares = [(a.detach() * b.detach()).sum() for a, b in zip(left, right, strict=True)]
    return torch.stack(shares).sum().double().cpu()


def _gradients(
    shard: GraphShard, comm: Communicator, config: RunConfig, kind: torch.dtype
) -> dict[str, Tensor]:
    """Fixed point and gradient of every parameter."""
    model = ShardModel(shard, comm, config.model, kind, 0)
    planner = SolvePlanner(config, None, comm.device)
    Objective(shard, comm, "auto").loss(model(0, planner.train(), planner.adjoint())).backward()
    point = planner.states["evaluate" if config.model.fixed_injection else "train"]
    found = {"fixed point": spread(shard, point)}
    for name, parameter in model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        rows = name in model.sharded_names()
        # a replicated parameter's gradient is the sum of the ranks' shares, like rows of nodes
        found[f"grad {name}"] = spread(shard, grad) if rows else grad.clone()
    return found


def _learned_weights(
    shard: GraphShard, comm: Communicator, config: RunConfig, kind: torch.dtype
) -> dict[str, Tensor]:
    """alpha and beta of Anderson and of a learned solver whose heads are not zero."""
    sparsified = sparsify(shard, comm, "pri", config.solver.keep, kind)
    model = ShardModel(shard, comm, config.model, kind, 0, sparsified)
    injection = model.injection().detach()
    cell = model.layer.cell(injection, model.channel_weights())
    found: dict[str, Tensor] = {}
    share = 1.0 / comm.world_size  # every rank has the same numbers, and ranks are summed
    with torch.no_grad():
        anderson, z = Anderson(4), torch.relu(injection)
        state = anderson.init(z)
        for k in range(5):
            evaluation = cell(z, None)
            residual = anderson.observe(state, evaluation, comm.sum)
            alpha = anderson.weights(state)
            if alpha is None:
                raise AssertionError("the history of a random map is not singular")
            found[f"anderson {k}"] = alpha * share
            z = anderson.advance(state, Iterate(evaluation, residual))
        for shape in _VARIANTS:
            found |= _learned_steps(shape, shard, comm, cell, torch.relu(injection))
    return found


def _learned_steps(
    shape: NeuralShape, shard: GraphShard, comm: Communicator, cell: EquilibriumCell, z: Tensor
) -> dict[str, Tensor]:
    """alpha and beta of every learned step from ``z``."""
    torch.manual_seed(7)
    predictor = build_predictor(shape).to(z.dtype)
    for name, parameter in predictor.named_parameters():
        if name.startswith("head") or shape.network == "table":
            torch.nn.init.normal_(parameter, std=0.05 if shape.network != "table" else 0.005)
    predictor = predictor.to(z.device)  # only now: a GPU's random numbers are others
    learned, share = NeuralSolver(predictor, shard.num_nodes, 1e-10), 1.0 / comm.world_size
    run = learned.init(z)
    found: dict[str, Tensor] = {}
    plain = (shape.network, shape.alpha) == ("graph", "global")
    prefix = "learned" if plain else f"{shape.network} {shape.alpha}"
    for k in range(6):
        evaluation = cell(z, learned.rider(run))
        residual = learned.observe(run, evaluation, comm.sum)
        z = learned.advance(run, Iterate(evaluation, residual))
        if run.alpha is not None and run.beta is not None:
            per_node = run.alpha.dim() == 2
            found[f"{prefix} alpha {k}"] = (
                spread(shard, run.alpha) if per_node else run.alpha * share
            )
            found[f"{prefix} beta {k}"] = run.beta.reshape(1) * share
    return found


def _training(shard: GraphShard, comm: Communicator, config: RunConfig) -> dict[str, Tensor]:
    """Losses and weights of three epochs with a solver phase."""
    trainer = Trainer(config, shard, comm)
    losses, residuals = [], []
    for _ in range(3):
        record = trainer.train_epoch()
        losses.append(record.loss)
        residuals.append(record.val_metric or 0.0)
    share = 1.0 / comm.world_size
    found = {
        "losses": torch.tensor(losses, dtype=torch.float64) * share,
        "validation": torch.tensor(residuals, dtype=torch.float64) * share,
    }
    sharded = trainer.model.sharded_names()
    for name, parameter in trainer.model.named_parameters():
        if name in sharded:
            found[f"trained {name}"] = spread(shard, parameter)
        else:
            found[f"trained {name}"] = parameter.detach() * share
    found |= {f"average {k}": v * share for k, v in trainer.average.mean.items()}
    if trainer.learned is None:
        raise AssertionError("the run must have a learned solver")
    for part, module in trainer.learned.modules().items():
        for name, parameter in module.named_parameters():
            found[f"solver {part} {name}"] = parameter.detach() * share
    return found
