"""Every explicit kind through the Trainer, and what each rank reports of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.models.kinds import KINDS
from distributed_ignn.training.trainer import Trainer
from tests.parity.cases import WIDTH, assign, make_data, report_cells, spread

_EPOCHS = 3
# what is awkward of a graph: an empty part, edges with weights, no features
CASES = (
    *(f"awkward/{kind}" for kind in KINDS if kind != "amgcn"),
    *("channels/amgcn", "weights/gcn", "weights/gat", "weights/demonet", "lopsided/graphsage"),
    *("embedding/gcnii", "embedding/mlp", "multilabel/jknet"),
)
_SETTINGS: dict[str, dict[str, Any]] = {
    "gat": {"heads": 3},
    "gcnii": {"layers": 4},
    "jknet": {"layers": 3, "jump": "cat"},
    "demonet": {"hash_width": 7},
    "amgcn": {"similarity": 0.5, "disparity": 0.3},
}


_DROPOUT = {"input_dropout": 0.2, "node_dropout": 0.1, "dropout": 0.4}


def kind_config(kind: str, dtype: str = "float64", **train: Any) -> RunConfig:
    """A few epochs of a kind with all dropouts, for the graphs of ``cases.py``."""
    return RunConfig.model_validate(
        {
            "dataset": "chains",
            "data": {"knn": 2} if kind == "amgcn" else {},
            "model": {"kind": kind, "hidden": WIDTH, **_DROPOUT},
            "explicit": _SETTINGS.get(kind, {}),
            "train": {"epochs": 6, "lr": 0.02, "dtype": dtype} | train,
        }
    )


def kind_trainer(comm: Communicator, case: str, dtype: str = "float64", **train: Any) -> Trainer:
    """A trainer of a case, on this rank's part."""
    graph, _, kind = case.partition("/")
    part = assign(graph, comm.world_size)
    shard = list(build_shards(make_data(graph), part, comm.world_size))[comm.rank]
    return Trainer(kind_config(kind, dtype, **train), shard, comm)


def report_kinds(comm: Communicator) -> dict[str, dict[str, Tensor]]:
    """Logits, gradients of the first step, losses and weights of every case."""
    return {case: _report(comm, case) for case in CASES}


def report_models(comm: Communicator) -> dict[str, dict[str, Tensor]]:
    """The same of explicit kinds and of the implicit one's cells, in one start of the ranks."""
    return report_kinds(comm) | report_cells(comm, "float64")


def _report(comm: Communicator, case: str) -> dict[str, Tensor]:
    trainer, share = kind_trainer(comm, case, consistency=0.3), 1.0 / comm.world_size
    found: dict[str, Tensor] = {}
    losses = []
    for epoch in range(_EPOCHS):
        losses.append(trainer.train_epoch().loss)
        found |= _parameters(trainer, "gradient" if epoch == 0 else "trained", share)
    trainer.model.eval()
    logits = trainer.model.read_out(trainer.model.solve(trainer.planner.evaluate()).image)
    found["logits"] = spread(trainer.shard, logits)
    found["losses"] = torch.tensor(losses, dtype=torch.float64) * share
    found["validation"] = torch.tensor([trainer.val_metric or 0.0], dtype=torch.float64) * share
    return found


def _parameters(trainer: Trainer, what: str, share: float) -> dict[str, Tensor]:
    """Gradients after the sum over ranks, or values, of all parameters."""
    sharded, found = trainer.model.sharded_names(), {}
    for name, parameter in trainer.model.named_parameters():
        value = parameter.grad if what == "gradient" else parameter.detach()
        assert value is not None, name
        rows = name in sharded
        found[f"{what} {name}"] = spread(trainer.shard, value) if rows else value.clone() * share
    return found
