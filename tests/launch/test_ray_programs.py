"""Ray Train from a program of the user's: trainers, callbacks, predictions, one cluster for all."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import distributed_ignn as di
from distributed_ignn.commands import predict as predict_command
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.launchers import ray_cluster
from tests.jobs import ROOT, ranks, records

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed; pip install 'distributed-ignn[ray]'",
    ),
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:::ray"),  # it warns of its own code
]
SMALL = {
    "dataset": "chains",
    "data.chains.length": 5,
    "data.chains.chains_per_class": 20,
    "data.chains.features": 4,
    "data.chains.noise": 0.1,
    "partition.method": "random",
    "model.hidden": 8,
    "train.dtype": "float64",
    "forward.tolerance": 1e-10,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two CPUs of this machine, joined as a user's program would."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR", object_store_memory=2**27,
        )  # fmt: skip
        try:
            yield ray
        finally:
            ray.shutdown()


def make_killer(folder: Path) -> Any:
    """A callback of the user's: notes what is reported, and kills a worker after a checkpoint."""
    from ray.train import UserCallback

    class Killer(UserCallback):
        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            with (folder / "reports").open("a") as file:
                file.write(f"{metrics[0]['epoch']} {checkpoint.path if checkpoint else ''}\n")
            if checkpoint is not None and not (folder / "killed").exists():
                (folder / "killed").touch()
                pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
                os.kill(ranks(pids)[0], signal.SIGKILL)

    return Killer()


@pytest.fixture(scope="module")
def trained(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of two workers, one of which was lost on the way, and what Ray says of it."""
    import ray.train

    folder = tmp_path_factory.mktemp("programs")
    ray_run_config: Any = ray.train.RunConfig
    trainer = di.make_trainer(
        SMALL,
        epochs=4,
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray_run_config(
            name="lost",
            storage_path=str(folder / "results"),
            failure_config=ray.train.FailureConfig(max_failures=1),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[make_killer(folder)],
        ),
        checkpoint_every=2,
        report_every=1,
    )
    return folder, trainer.fit()


def test_a_trainer_reports_every_epoch_and_goes_on_after_a_loss(
    trained: tuple[Path, Any],
) -> None:
    folder, result = trained
    output = folder / "results" / "lost"
    assert (folder / "killed").exists()
    assert Path(result.path) == output
    assert result.metrics["epoch"] == 4
    assert result.metrics_dataframe["epoch"].tolist() == [1, 2, 3, 4]
    assert result.metrics_dataframe["loss"].tolist() == [r["loss"] for r in records(output)]
    # a reference to the run's own, and only what is still there
    assert Path(result.checkpoint.path) == output / "checkpoints" / "epoch-000004"
    assert all(Path(checkpoint.path).exists() for checkpoint, _ in result.best_checkpoints)
    assert result.return_value["world_size"] == 2
    reports = [line.split(" ") for line in (folder / "reports").read_text().splitlines()]
    assert [int(epoch) for epoch, _ in reports] == [1, 2, 3, 4]
    assert [Path(path).name for _, path in reports if path] == ["epoch-000002", "epoch-000004"]
    run = di.load(result.path)
    assert run.config.train.threads == 1  # what each worker has
    assert run.summary["epochs"] == 4
    assert not (output / ".validate_storage_marker").exists()
