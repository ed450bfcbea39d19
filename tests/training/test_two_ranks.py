"""Two ranks: they resume, fail and count together; and one rank continues what two have begun.

Starting ranks costs seconds, so all checks share one start.
"""

from __future__ import annotations

import resource
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.runs.checkpoints import checkpoint
from distributed_ignn.runs.checkpoints.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_newest,
)
from distributed_ignn.runs.checkpoints.checkpoint_store import CheckpointStore
from distributed_ignn.runs.checkpoints.snapshot import restore, take_snapshot
from distributed_ignn.runs.predict import load_run
from distributed_ignn.runs.run import run_training
from distributed_ignn.training.engines.gradients import sum_gradients
from distributed_ignn.training.losses.objective import Objective
from tests.parity.cases import CLASSES, NODES, make_data
from tests.ranks import run_ranks
from tests.training.small_trainers import (
    EPOCHS,
    assert_equal,
    everything,
    numbers,
    small_config,
    small_trainer,
    train,
)

CASES = ("plain", "embedding")
SPLITS = ("train", "val", "test")
CUT = 3
CLIP_NORM = 1e-3
# the number format's own rounding, amplified by Adam, and tight solves
TIGHT = {
    "forward": {"tolerance": 1e-11, "max_steps": 300},
    "adjoint": {"tolerance": 1e-11, "max_steps": 300},
}


def _chains(output: Path, **changes: Any) -> RunConfig:
    values = {
        "dataset": "chains",
        "output": output,
        "data": {"chains": {"length": 5, "chains_per_class": 8, "features": 4}},
        "partition": {"method": "contiguous"},
        "model": {"hidden": 4},
        "train": {"epochs": 2, "checkpoint_every": 1, "threads": 1},
        **changes,
    }
    return RunConfig.model_validate(values)


def _all_checks(comm: Communicator, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"gradients": _gradients(comm), "objective": _objective(comm)}
    for case in CASES:
        found[case] = _resume(comm, case, folder / case)
    found["float32"] = _float32_losses(comm)
    found["clipped"] = _clipped(comm)
    found["not finite"] = _not_finite(comm)
    found |= _store_errors(comm, folder)
    found |= _run_errors(comm, folder / "run")
    return found


def _line(action: Any) -> str:
    """The message of the UserError that ``action`` raises."""
    try:
        action()
    except UserError as error:
        return str(error)
    return "no error"


def _gradients(comm: Communicator) -> list[Any]:
    """Three parameters; rank 1 has no gradient for the first, no rank for the last."""
    parameters = [Parameter(torch.zeros(2)), Parameter(torch.zeros(1, 3)), Parameter(torch.ones(2))]
    if comm.is_main:
        parameters[0].grad = torch.tensor([1.0, 2.0])
    parameters[1].grad = torch.full((1, 3), comm.rank + 1.0)
    before = comm.traffic.snapshot()
    sum_gradients(parameters, comm)
    grads = [None if p.grad is None else p.grad.tolist() for p in parameters]
    return [grads, comm.traffic.since(before).reductions]


def _objective_data(multilabel: bool, unknown: float = 0.0) -> tuple[GraphData, Tensor]:
    """Training and validation nodes on rank 0 alone; logits of all nodes.

    Args:
        multilabel: several labels a node.
        unknown: share of them that is not known.
    """
    data = make_data("plain")
    nodes = torch.arange(NODES)
    generator = torch.Generator().manual_seed(0)
    data = replace(data, train_nodes=nodes[:10], val_nodes=nodes[10:20], test_nodes=nodes[20:])
    if multilabel:
        labels = (torch.rand(NODES, CLASSES, generator=generator) > 0.5).float()
        labels[torch.rand(NODES, CLASSES, generator=generator) < unknown] = -1.0
        data = replace(data, labels=labels, task="multilabel")
    return data, torch.randn(NODES, CLASSES, generator=generator)


def _objective(comm: Communicator) -> list[Any]:
    """Loss summed over ranks and metrics, for one, for several, for several known labels a node."""
    results = []
    for multilabel, unknown in ((False, 0.0), (True, 0.0), (True, 0.4)):
        data, logits = _objective_data(multilabel, unknown)
        part = (torch.arange(NODES) >= 30).long() * (comm.world_size - 1)
        shard = list(build_shards(data, part, comm.world_size))[comm.rank]
        objective = Objective(shard, comm, "auto")
        own = logits[shard.owned_nodes].requires_grad_()
        share = objective.loss(own)
        share.backward()
        loss = float(comm.sum(share.detach().double().reshape(1)))
        found = {"auto": objective.metrics(own, SPLITS)}
        tied = own.detach().mul(2.0).round()
        for metric in ("macro_f1", "roc_auc") if multilabel else ("macro_f1",):
            found[metric] = Objective(shard, comm, "auto", metric=metric).metrics(tied, SPLITS)
        results.append([loss, found])
    return results


def _resume(comm: Communicator, case: str, folder: Path) -> dict[str, Any]:
    """All epochs without and with an interruption; the checkpoint stays in ``folder``."""
    config = small_config(TIGHT)
    whole = small_trainer(comm, config, case)
    expected = train(whole, EPOCHS)
    first = small_trainer(comm, config, case)
    train(first, CUT)
    path = CheckpointStore(folder, comm, 1).save(CUT, take_snapshot(first), first.shard.owned_nodes)
    resumed = small_trainer(comm, config, case)
    restore(resumed, load_checkpoint(path, comm, resumed.shard.owned_nodes))
    found = train(resumed, EPOCHS - CUT)
    assert [numbers(r) for r in found] == [numbers(r) for r in expected[CUT:]]
    assert_equal(everything(resumed), everything(whole))
    return {"losses": [r.loss for r in expected], "solver": [r.solver_loss for r in expected]}


def _float32_losses(comm: Communicator) -> list[float]:
    solves = {"tolerance": 1e-6, "max_steps": 200}
    config = small_config({"forward": solves, "adjoint": solves}, dtype="float32")
    return [record.loss for record in train(small_trainer(comm, config), EPOCHS)]


def _clipped(comm: Communicator, clip_norm: float = CLIP_NORM) -> list[list[float]]:
    """Losses, and norms of gradients before they are clipped; embedding rows differ by rank."""
    config = small_config({**TIGHT, "train": {"clip_norm": clip_norm}})
    trainer = small_trainer(comm, config, "embedding")
    losses, norms = [], []
    for _ in range(EPOCHS):
        losses.append(trainer.train_epoch().loss)
        norms.append(trainer.engine.gradient_norm())
    return [losses, norms]


def _not_finite(comm: Communicator) -> str:
    """A weight of rank 1 alone is broken."""
    trainer = small_trainer(comm, small_config())
    if comm.rank == 1:
        with torch.no_grad():
            trainer.implicit.head.bias[0] = float("nan")
    return _line(trainer.train_epoch)


def _store_errors(comm: Communicator, folder: Path) -> dict[str, str]:
    """A folder below a file; and a disk that is full on rank 1 alone."""
    trainer = small_trainer(comm, small_config())
    state, nodes = take_snapshot(trainer), trainer.shard.owned_nodes
    if comm.is_main:
        (folder / "file").touch()
    comm.barrier()
    below = CheckpointStore(folder / "file" / "checkpoints", comm, 1)
    full = CheckpointStore(folder / "full", comm, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    found = {"below a file": _line(lambda: below.save(1, state, nodes))}
    if comm.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    found["full disk"] = _line(lambda: full.save(1, state, nodes))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return found


def _run_errors(comm: Communicator, output: Path) -> dict[str, Any]:
    """Runs that refuse to go on, and what they leave in their folder."""
    run_training(_chains(output), comm)
    settings = (output / "config.yaml").read_text()
    found: dict[str, Any] = {
        "occupied": _line(lambda: run_training(_chains(output), comm)),
        "other shape": _line(
            lambda: run_training(_chains(output, resume="auto", model={"hidden": 5}), comm)
        ),
        "below a file run": _line(
            lambda: run_training(_chains(output / "config.yaml" / "run"), comm)
        ),
    }
    found["settings kept"] = (output / "config.yaml").read_text() == settings
    comm.barrier()
    if comm.is_main:
        shutil.copytree(output, output.with_name("damaged"))
        for path in list_checkpoints(output.with_name("damaged") / "checkpoints"):
            (path / "rank-00001-of-00002.safetensors").write_bytes(b"nothing")
    comm.barrier()
    damaged = output.with_name("damaged")
    found["damaged resume"] = _line(lambda: run_training(_chains(damaged, resume="auto"), comm))
    found["damaged predict"] = _line(lambda: load_run(damaged, comm))
    found["newest"] = _blind_rank(comm, output)
    return found


def _blind_rank(comm: Communicator, output: Path) -> list[Any]:
    """Resume and load where the folder listing of rank 1 is behind, as on a network file system.

    Without an agreement rank 1 would start anew, and wait in another collective than rank 0.
    """
    blind: AbstractContextManager[Any] = nullcontext()
    if comm.rank == 1:
        blind = patch.object(checkpoint, "list_checkpoints", lambda folder: [])
    with blind:
        nodes = torch.zeros(0, dtype=torch.int64)
        found = load_newest(output / "checkpoints", comm, nodes)
        nothing = load_newest(output / "absent", comm, nodes)
        train = {"epochs": 3, "checkpoint_every": 1, "threads": 1}
        summary = run_training(_chains(output, resume="auto", train=train), comm)
        loaded = load_run(output, comm)
    return [found and found.state["epoch"], nothing, summary["epochs"], loaded.epoch]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def reports(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(_all_checks, 2, folder, timeout=110)


def test_missing_gradients_count_as_zero_in_one_reduction(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["gradients"] == [[[1.0, 2.0], [[3.0] * 3], [0.0, 0.0]], 1]


def test_loss_and_metrics_are_those_of_the_whole(reports: list[dict[str, Any]]) -> None:
    """Although rank 1 has neither training nor validation nodes."""
    expected = _objective(Communicator())
    assert expected[0][1] != expected[1][1]
    areas = expected[1][1]["roc_auc"]
    assert len(set(areas.values()) - {0.0, 0.5, 1.0}) == len(SPLITS)
    for report in reports:
        for (loss, metrics), (whole, whole_metrics) in zip(
            report["objective"], expected, strict=True
        ):
            assert loss == pytest.approx(whole, rel=1e-6)
            assert metrics == whole_metrics


@pytest.mark.parametrize("case", CASES)
def test_one_rank_continues_what_two_have_begun(
    reports: list[dict[str, Any]], folder: Path, case: str
) -> None:
    """The bit-for-bit comparison at two ranks is made by the ranks themselves."""
    assert reports[0][case] == reports[1][case]
    config = small_config(TIGHT)
    comm = Communicator()
    trainer = small_trainer(comm, config, case)
    (path,) = list_checkpoints(folder / case)
    restore(trainer, load_checkpoint(path, comm, trainer.shard.owned_nodes))
    assert trainer.epoch == CUT
    losses = [record.loss for record in train(trainer, EPOCHS - CUT)]
    assert losses == pytest.approx(reports[0][case]["losses"][CUT:], rel=1e-8)
    # weights that are not restored give other losses
    fresh = [record.loss for record in train(small_trainer(comm, config, case), EPOCHS - CUT)]
    assert fresh != pytest.approx(losses, rel=1e-4)


def test_losses_in_float32_are_those_of_one_rank(reports: list[dict[str, Any]]) -> None:
    assert reports[0]["float32"] == reports[1]["float32"]
    expected = _float32_losses(Communicator())
    assert reports[0]["float32"] == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]


def test_gradients_are_clipped_by_the_norm_over_all_ranks(reports: list[dict[str, Any]]) -> None:
    assert reports[0]["clipped"] == reports[1]["clipped"]
    losses, norms = _clipped(Communicator())
    assert reports[0]["clipped"][0] == pytest.approx(losses, rel=1e-8)
    assert reports[0]["clipped"][1] == pytest.approx(norms, rel=1e-7)
    assert min(norms) > 2 * CLIP_NORM
    assert losses != pytest.approx(_clipped(Communicator(), 0.0)[0], rel=1e-4)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "not finite",
            "epoch 1: the training loss is nan: NaN or Inf in weights head.bias on rank 1 (1 of ",
        ),
        ("below a file", "checkpoints: Not a directory"),
        ("full disk", "File too large"),
        ("occupied", "already holds a run"),
        ("other shape", "belongs to a model of another shape"),
        ("below a file run", "Not a directory"),
        ("damaged resume", "rank-00001-of-00002.safetensors is damaged"),
        ("damaged predict", "rank-00001-of-00002.safetensors is damaged"),
    ],
)
def test_every_rank_reports_the_same_mistake(
    reports: list[dict[str, Any]], what: str, message: str
) -> None:
    assert message in reports[0][what]
    assert reports[0][what] == reports[1][what]
    assert "\n" not in reports[0][what]


def test_a_refused_run_leaves_the_settings_of_the_folder(reports: list[dict[str, Any]]) -> None:
    assert all(report["settings kept"] for report in reports)


def test_rank_0_chooses_the_checkpoint(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["newest"] == [2, None, 3, 3]
