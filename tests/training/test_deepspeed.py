"""DeepSpeed against plain torch: same weights, same checkpoints; and what it refuses, in one line.

Every case of one number of ranks shares one start of the processes.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, parse_args
from distributed_ignn.config.deepspeed_settings import check_device, offloads, read_settings
from distributed_ignn.config.shipped import shipped_file
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData, csr_from_edges
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.models.cells import IgnnWeights
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.training.engines import deepspeed as deepspeed_engine
from distributed_ignn.training.engines import zero
from distributed_ignn.training.engines.deepspeed import DeepSpeedEngine
from distributed_ignn.training.engines.torch import Engine, TorchEngine
from distributed_ignn.training.losses.objective import Objective
from distributed_ignn.training.numbers import NumbersError
from distributed_ignn.training.plans import SolvePlanner
from distributed_ignn.training.state import State
from distributed_ignn.training.trainer import Trainer
from tests.parity.kind_cases import kind_config
from tests.ranks import run_ranks

pytestmark = pytest.mark.deepspeed
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)

NODES = 24
STEPS = 4
TensorDict = dict[str, Tensor]
EngineMaker = Callable[[ShardModel, RunConfig, Communicator], Engine]


def plain(model: ShardModel, config: RunConfig, comm: Communicator) -> Engine:
    return TorchEngine(model, config.train, comm)


def run_config(path: Path | None = None, **train: Any) -> RunConfig:
    """A bound so small that every step breaks it, and a weight decay that makes Adam sensitive to
    the scale of the gradients."""
    return RunConfig(
        dataset="chains",
        engine="deepspeed",
        deepspeed_config=path,
        model={"hidden": 5, "kappa": 0.3, "dropout": 0.0},
        train={"lr": 0.05, "weight_decay": 0.02, **train},
        # a fresh run has no warm start, and must not depend on it to continue alike
        forward={"tolerance": 1e-6, "warm_start": False},
        adjoint={"tolerance": 1e-6, "warm_start": False},
    )


def graph_data(*, features: bool = True) -> GraphData:
    """The same on every rank; rank 1's training nodes are none."""
    generator = torch.Generator().manual_seed(3)
    edges = torch.randint(0, NODES, (2, 60), generator=generator)
    return GraphData(
        name="random",
        graphs=(csr_from_edges(edges[0], edges[1], NODES, symmetric=True),),
        features=torch.randn(NODES, 3, generator=generator) if features else None,
        labels=torch.randint(0, 3, (NODES,), generator=generator),
        num_classes=3,
        task="multiclass",
        train_nodes=torch.arange(0, 8),
        val_nodes=torch.arange(8, 10),
        test_nodes=torch.arange(10, 14),
    )


class Run:
    """A model with an engine, and steps on the task's loss."""

    def __init__(
        self, comm: Communicator, make: EngineMaker, data: GraphData, config: RunConfig
    ) -> None:
        part = torch.arange(NODES) * comm.world_size // NODES
        shard = list(build_shards(data, part, comm.world_size))[comm.rank]
        self.model = ShardModel(shard, comm, config.model, torch.float32, seed=0)
        self.engine = make(self.model, config, comm)
        self._planner = SolvePlanner(config, None, comm.device)
        self._objective = Objective(shard, comm, "auto")
        self._step = 0

    def train(self, steps: int) -> TensorDict:
        for _ in range(steps):
            plans = self._planner.train(), self._planner.adjoint()
            self.engine.step(self._objective.loss(self.model(self._step, *plans)))
            self._step += 1
        return self.weights()

    def train_unevenly(self, steps: int, comm: Communicator) -> TensorDict:
        """A loss that reaches only one parameter on the last rank, and none of its neighbours."""
        parameters = [self.model.head.bias]
        if comm.rank == 0:
            parameters = list(self.model.parameters())
        for _ in range(steps):
            self.engine.step(torch.stack([((p - 0.5) ** 2).sum() for p in parameters]).sum())
        return self.weights()

    def weights(self) -> TensorDict:
        return {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def state(self) -> tuple[TensorDict, State]:
        """Weights and the engine's state, copied as a checkpoint would."""
        return self.weights(), self.engine.state().copy()

    def restore(self, state: tuple[TensorDict, State]) -> None:
        self.model.load_state_dict(state[0])
        self.engine.load_state(state[1])


def assert_close(actual: TensorDict, expected: TensorDict) -> None:
    assert actual.keys() == expected.keys()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


def assert_equal(actual: TensorDict, expected: TensorDict) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def all_cases(comm: Communicator, folder: Path) -> TensorDict:
    """Everything that these ranks can show, in one start; the plain weights after all steps."""
    weights = check_same_weights(comm, run_config())
    check_clipping(comm, weights)
    with mock.patch.object(deepspeed_engine, "check_device"):
        # what steps on the host is a GPU's in life; the numbers are the same here
        check_resume(comm, graph_data(features=False), run_config(folder / "offload.json"))
    check_rows_that_somebody_writes(comm, folder / "offload.json")
    check_explicit_kind(comm)
    if comm.world_size == 1:
        check_resume(comm, graph_data(features=False))
        return weights
    check_same_weights(comm, run_config(folder / "zero2.json"))
    with mock.patch.dict(zero._FIXED):
        # as releases do that cannot sum
        del zero._FIXED["gradient_allreduce_op"]
        check_same_weights(comm, run_config())
    check_missing_gradients(comm)
    for features in (True, False):
        check_resume(comm, graph_data(features=features))
    check_traffic(comm)
    check_infinite_gradient_on_one_rank(comm)
    check_broken_on_one_rank(comm, folder)
    return weights


def check_same_weights(comm: Communicator, config: RunConfig) -> TensorDict:
    data = graph_data()
    expected = Run(comm, plain, data, config).train(STEPS)
    environment = dict(os.environ)
    run = Run(comm, DeepSpeedEngine, data, config)
    assert dict(os.environ) == environment
    assert logging.root.manager.disable == logging.NOTSET
    start = run.weights()
    actual = run.train(STEPS)
    assert_close(actual, expected)
    columns = actual["cell_weights.weight"].flatten(0, 1).abs().sum(0)
    assert isinstance(run.model.cell_weights, IgnnWeights)
    radius = run.model.cell_weights.radius
    assert float(columns.max()) <= radius * (1 + 1e-6)
    assert float((columns / radius).max()) > 1 - 1e-4, "the bound was never active"
    learned = dict(run.model.named_parameters())
    assert all(not torch.allclose(actual[k], start[k], rtol=0.01) for k in learned)
    return expected


def check_clipping(comm: Communicator, without: TensorDict) -> None:
    config = run_config(clip_norm=0.1)
    clipped = check_same_weights(comm, config)
    name = "head.weight"
    assert not torch.allclose(clipped[name], without[name], rtol=1e-3)
    norms = []
    for make in (plain, DeepSpeedEngine):
        run = Run(comm, make, graph_data(), config)
        run.train(1)
        norms.append(run.engine.gradient_norm())
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert norms[0] > 0.2
    with pytest.raises(UserError, match=r"clip_norm = 0\.1 .*use --engine torch"):
        Run(comm, DeepSpeedEngine, graph_data(features=False), config)


def check_missing_gradients(comm: Communicator) -> None:
    for features in (True, False):
        results = []
        for make in (plain, DeepSpeedEngine):
            run = Run(comm, make, graph_data(features=features), run_config())
            results.append(run.train_unevenly(STEPS, comm))
        assert_close(results[1], results[0])


def check_resume(comm: Communicator, data: GraphData, config: RunConfig | None = None) -> None:
    """Two steps, a checkpoint, two more: as without the checkpoint, in either engine."""
    config = config or run_config()
    run = Run(comm, DeepSpeedEngine, data, config)
    untouched = run.state()
    assert untouched[1].common == {}
    run.train(2)
    saved = run.state()
    expected = run.train(2)
    for make, check in ((DeepSpeedEngine, assert_equal), (plain, assert_close)):
        fresh = Run(comm, make, data, config)
        fresh.restore(saved)
        check(fresh.train(2), expected)
        again = fresh.state()
        assert again[1].common.keys() == saved[1].common.keys()
        assert again[1].rows.keys() == saved[1].rows.keys()
    # an engine that has stepped already takes a checkpoint as well, the other engine's included
    other = Run(comm, plain, data, config)
    other.train(2)
    run.restore(other.state())
    assert_close(run.train(2), other.train(2))
    # and the state before the first step, as a rollback does, to go on with a smaller step
    found = []
    for each in (run, other):
        each.restore(untouched)
        each.engine.scale_lr(0.25)
        found.append(each.train(2))
    assert_close(found[0], found[1])
    smaller = config.model_copy(
        update={"train": config.train.model_copy(update={"lr": config.train.lr / 4})}
    )
    fresh = Run(comm, plain, data, smaller)
    fresh._step = run._step - 2
    assert_close(found[0], fresh.train(2))


def check_rows_that_somebody_writes(comm: Communicator, path: Path) -> None:
    """As local steps put rows back that had no gradient; the host's copy has to follow."""
    found, norms = [], []
    for make, config in ((plain, run_config()), (DeepSpeedEngine, run_config(path))):
        with mock.patch.object(deepspeed_engine, "check_device"):
            run = Run(comm, make, graph_data(features=False), config)
        run.train(1)
        (rows,) = (p for k, p in run.model.named_parameters() if k in run.model.sharded_names())
        with torch.no_grad():
            rows[:3] = 0.25
        found.append(run.train(2))
        norms.append(run.engine.gradient_norm())
    assert_close(found[1], found[0])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def check_explicit_kind(comm: Communicator) -> None:
    """A GCN through the trainer, with features and with rows of nodes, which ZeRO does not see."""
    for features in (True, False):
        data = graph_data(features=features)
        part = torch.arange(NODES) * comm.world_size // NODES
        shard = list(build_shards(data, part, comm.world_size))[comm.rank]
        clip = {"clip_norm": 0.1} if features else {}
        config = kind_config("gcn", "float32", lr=0.05, weight_decay=0.02, **clip)
        found, losses = [], []
        for engine in ("torch", "deepspeed"):
            trainer = Trainer(config.model_copy(update={"engine": engine}), shard, comm)
            start = {k: v.detach().clone() for k, v in trainer.model.named_parameters()}
            losses.append([trainer.train_epoch().loss for _ in range(STEPS)])
            found.append(dict(trainer.model.state_dict()))
            assert isinstance(trainer.engine, DeepSpeedEngine) == (engine == "deepspeed")
        assert_close(found[1], found[0])
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)
        assert all(not torch.allclose(found[1][k], v, rtol=0.01) for k, v in start.items())


def check_traffic(comm: Communicator) -> None:
    run = Run(comm, DeepSpeedEngine, graph_data(), run_config())
    numel = sum(p.numel() for p in run.model.parameters())
    before = comm.traffic.snapshot()
    run.engine.step((run.model.channel_weights()[0] ** 2).sum())
    sent = comm.traffic.since(before)
    assert sent.reductions == 2  # and whether any gradient cannot be used
    # each rank holds an equal part, rounded up to whole alignment units
    assert 4 * numel * (1 + 1 / comm.world_size) <= sent.reduction_bytes
    assert sent.reduction_bytes <= 4 * (numel * (1 + 1 / comm.world_size) + 4)


def check_infinite_gradient_on_one_rank(comm: Communicator) -> None:
    """The weights would otherwise stay as they are for ever, without a word."""
    run = Run(comm, DeepSpeedEngine, graph_data(), run_config())
    scale = float("inf") if comm.rank == 0 else 1.0
    before = run.state()
    with pytest.raises(NumbersError, match="gradients are not finite"):
        run.engine.step((run.model.channel_weights()[0] * scale).sum())
    after = run.state()
    assert_equal(after[0], before[0])
    assert_equal(after[1].tensors, before[1].tensors)
    # the step is left out, and the next one is as if it had not been tried
    other = Run(comm, plain, graph_data(), run_config())
    assert_close(run.train(2), other.train(2))


@pytest.mark.parametrize(
    ("solves", "message"),
    [
        (True, "lower train.lr or model.kappa, and keep model.constraint projection"),
        (False, "lower train.lr"),
    ],
)
def test_a_sum_that_is_not_finite_names_settings_that_the_model_has(
    solves: bool, message: str
) -> None:
    engine = mock.Mock(_model=mock.Mock(solves=solves))
    engine._common.step.return_value = False
    with pytest.raises(UserError) as caught:
        DeepSpeedEngine._step_replicated(engine, [])
    assert str(caught.value) == f"the gradients are not finite; {message}"


def check_broken_on_one_rank(comm: Communicator, folder: Path) -> None:
    """All ranks report the mistake of one, instead of waiting for it."""
    path = folder / ("stage3.json" if comm.rank else "zero2.json")
    with pytest.raises(UserError, match=r"stage = 3"):
        Run(comm, DeepSpeedEngine, graph_data(), run_config(path))


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_same_as_plain_torch_on_one_and_two_ranks(tmp_path: Path) -> None:
    write(tmp_path / "zero2.json", {"zero_optimization": {"stage": 2, "reduce_bucket_size": 40}})
    away = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    write(tmp_path / "offload.json", away)
    write(tmp_path / "stage3.json", {"zero_optimization": {"stage": 3}})
    alone = run_ranks(all_cases, 1, tmp_path, timeout=110)
    ranks = run_ranks(all_cases, 2, tmp_path, timeout=110)
    assert_equal(ranks[0], ranks[1])
    torch.testing.assert_close(alone[0], ranks[0], rtol=1e-3, atol=1e-4)


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_shipped_settings_are_zero_stage_1() -> None:
    assert read_settings(None)["zero_optimization"]["stage"] == 1


def test_stage_defaults_to_1_and_disabled_precisions_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"fp16": {"enabled": False}, "bf16": {"enabled": False}})
    assert read_settings(path) == {"zero_optimization": {"stage": 1}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fp16": {"enabled": True}}, "fp16 = .*computes in float32; drop fp16"),
        ({"bf16": {}}, "bf16 = .*computes in float32"),
        ({"fp16": False}, "fp16 = false .*computes in float32"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization.stage = 3 .*set it to 1"),
        ({"zero_optimization": {"stage": 0}}, r"zero_optimization.stage = 0 .*does 1 and 2"),
        ({"zero_optimization": {"stage": True}}, r"zero_optimization.stage = true .*whole number"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "reduce_bucket_size = 0 .*at least 1"),
        ({"zero_optimization": {"stage": "1"}}, r'zero_optimization.stage = "1" .*whole number'),
        ({"zero_optimization": {"overlap_comm": 1}}, r"overlap_comm = 1 .*true or false"),
        ({"zero_optimization": {"offload_param": {}}}, "offload_param .*not known"),
        ({"zero_optimization": {"offload_optimizer": True}}, "true .*must be an object, as in"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            r'offload_optimizer.device = "nvme" .*set it to "cpu"',
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}},
            "offload_optimizer.ratio .*allowed: device, pin_memory",
        ),
        ({"zero_optimization": {"allgather_bucket_size": 7}}, "= 7 .*must be even; use 8"),
        ({"gradient_clipping": 1.0}, "gradient_clipping = 1.0 .*train.clip_norm"),
        ({"zero_optimization": 1}, "zero_optimization = 1 .*must be an object"),
        ({"train_batch_size": 8}, "train_batch_size = 8 .*one batch; drop train_batch_size"),
        ({"train_micro_batch_size_per_gpu": 1}, "train_micro_batch_size_per_gpu = 1 .*one batch"),
        ({"optimizer": {"type": "Adam", "params": {"lr": 1}}}, "optimizer = .*train.lr.*drop"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler = .*train.lr in every epoch"),
        ({"gradient_predivide_factor": 2}, "gradient_predivide_factor = 2 .*summed over ranks"),
        ({"zero_optimisation": {}}, "zero_optimisation = .*allowed: zero_optimization"),
        ([1], r"holds \[1\]; it must be an object"),
    ],
)
def test_unsupported_settings_are_named(tmp_path: Path, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_settings(write(tmp_path / "own.json", settings))
    assert "own.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.json cannot be read \(No such file"):
        read_settings(tmp_path / "absent.json")
    path = tmp_path / "broken.json"
    path.write_text('{"zero_optimization": ')
    with pytest.raises(UserError, match=r"broken.json is not JSON \(.*line 1"):
        read_settings(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"broken.json is not JSON"):
        read_settings(path)


def test_an_optimiser_that_stays_is_no_section(tmp_path: Path) -> None:
    for section in ({}, {"device": "none"}):
        path = write(tmp_path / "a.json", {"zero_optimization": {"offload_optimizer": section}})
        assert read_settings(path) == {"zero_optimization": {"stage": 1}}


def test_the_shipped_offload_is_for_gpus() -> None:
    settings = read_settings(shipped_file("deepspeed", "offload.json"))
    assert offloads(settings)
    check_device(settings, "cuda")
    with pytest.raises(UserError, match=r"offload_optimizer moves .* on a CPU; drop it"):
        check_device(settings, "cpu")


@needs_deepspeed
@pytest.mark.parametrize(
    ("settings", "flags", "message"),
    [
        ({}, "--train.dtype float64", r"train.dtype = float64 .*--train.dtype float32"),
        ({"zero_optimization": {"stage": 3}}, "", r"stage = 3 .*set it to 1"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "--device cpu",
            "this run is on a CPU",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_read(
    tmp_path: Path, settings: Any, flags: str, message: str
) -> None:
    path = write(tmp_path / "own.json", settings)
    line = f"--dataset chains --engine deepspeed --deepspeed-config {path} {flags}"
    with pytest.raises(UserError, match=message):
        parse_args(line.split())


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"pip install 'distributed-ignn\[deepspeed\]'"):
        parse_args(["--dataset", "chains", "--engine", "deepspeed"])
    shard = next(iter(build_shards(graph_data(), torch.zeros(NODES, dtype=torch.int64), 1)))
    comm, config = Communicator(), run_config()
    model = ShardModel(shard, comm, config.model, torch.float32, seed=0)
    with pytest.raises(UserError, match=r"pip install 'distributed-ignn\[deepspeed\]'"):
        DeepSpeedEngine(model, config, comm)
