"""Ray Train from a program of the user's: trainers, callbacks, predictions, one cluster for all."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import distributed_ignn as di
from distributed_ignn.cli import LOST_OUTPUT
from distributed_ignn.commands import predict as predict_command
from distributed_ignn.commands import train as train_command
from distributed_ignn.errors import UserError
from tests.jobs import ROOT, descendants, ranks, records
from tests.launch.test_ray import TINY

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
COMMON = {
    "data.chains.length": 5,
    "data.chains.chains_per_class": 20,
    "data.chains.features": 4,
    "data.chains.noise": 0.1,
    "partition.method": "random",
    "model.hidden": 8,
    "train.dtype": "float64",
}
SMALL = COMMON | {"dataset": "chains", "forward.tolerance": 1e-10}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two CPUs of this machine, joined as a user's program would."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'examples'}")
        patch.syspath_prepend(str(ROOT / "examples"))
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR, object_store_memory=2**27,
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
                # of this cluster: all its processes come from the one that started this one
                os.kill(ranks(descendants(os.getppid()))[0], signal.SIGKILL)

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


def test_predictions_of_two_workers_are_those_of_one_process(
    cluster: Any, trained: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """As a command in a process that is in a cluster already, which it uses and does not leave."""
    folder, result = trained
    tables = []
    by_url = f"file://{result.path}"
    for name, run, more in (
        ("one", result.path, ()),
        ("two", result.path, ("--workers", "2")),
        ("url", by_url, ("--workers", "1")),
    ):
        out = folder / f"{name}.parquet"
        arguments = (run, "--device", "cpu", "--tolerance", "1e-12", *more)
        assert predict_command.main([*arguments, "--out", str(out)]) == 0
        tables.append(pq.read_table(out))
    one, two, url = (np.stack(table["probabilities"].to_numpy()) for table in tables)
    for other in (two, url):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    for table in tables[1:]:
        assert tables[0]["prediction"].equals(table["prediction"])
        assert tables[0]["node"].equals(table["node"])
    shown = capsys.readouterr().out
    assert "starting 2 workers on Ray ..." in shown
    # the title is folded at the width of the terminal
    assert "".join(shown.split()).count(f"predictionsof{result.path}") == 2
    assert "".join(shown.split()).count(f"predictionsof{by_url}") == 1
    assert cluster.is_initialized()
    assert not list(Path("/tmp").glob("ignn-predict-*"))


def test_the_launcher_uses_the_cluster_of_its_process_and_needs_no_standard_output(
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "run"
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        code = train_command.main([*TINY, "--workers", "2", "--output", str(output)])
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    told = capsys.readouterr().err
    assert code == LOST_OUTPUT, told
    assert told.count("standard output cannot be written") == 1
    assert "Traceback" not in told
    assert [record["epoch"] for record in records(output)] == [1, 2, 3, 4]
    assert (output / "summary.json").exists()
    assert cluster.is_initialized()


@pytest.mark.long
def test_the_first_program_of_the_page_runs(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (ROOT / "docs" / "ray.md").read_text().split("```python\n")[1].partition("```")[0]
    assert program.count("ray.init()") == program.count("hidden=16, epochs=20") == 1
    short = program.replace("hidden=16, epochs=20", "hidden=8, epochs=2, **SMALL")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "init", lambda: None)  # it has been called
    names: dict[str, Any] = {"SMALL": {k: v for k, v in SMALL.items() if k.startswith("data.")}}
    exec(short, names)
    assert names["result"].metrics_dataframe["epoch"].tolist() == [1, 2]
    assert names["run"].path == tmp_path / "runs" / "chains-seed0"
    # a cell that is run twice gets another folder
    again = di.make_trainer("chains", workers=2)
    assert again.run.output == tmp_path / "runs" / "chains-seed0-2"
    again.run.output.rmdir()


def test_mistakes_are_told_before_anything_waits(cluster: Any, tmp_path: Path) -> None:
    import ray.train

    output = tmp_path / "out"
    wanted: dict[str, Any] = {"output": output, "epochs": 1}
    with pytest.raises(UserError, match="workers = 3 needs 3 CPUs but Ray found 2 CPUs"):
        di.make_trainer(SMALL, workers=3, **wanted)
    large = ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 3})
    with pytest.raises(UserError, match="workers = 1 needs 3 CPUs but Ray found 2 CPUs"):
        di.make_trainer(SMALL, scaling_config=large, **wanted).fit()
    on_gpus = ray.train.ScalingConfig(num_workers=1, use_gpu=True)
    with pytest.raises(UserError, match="workers = 1 needs 1 GPU but Ray found 0 GPUs"):
        di.make_trainer(SMALL, scaling_config=on_gpus, **wanted).fit()
    assert not output.exists()


def test_predictions_for_which_there_is_no_room_are_refused(
    trained: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, result = trained
    out = folder / "none.parquet"
    arguments = [result.path, "--device", "cpu", "--workers", "3", "--out", str(out)]
    assert predict_command.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: workers = 3 needs 3 CPUs but Ray found 2 CPUs; ask for fewer")
    assert told.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "how many processes"),
        ({"workers": 2, "gpus": 1}, "workers and gpus both set the number"),
        ({"workers": 0}, "workers = 0 must be at least 1"),
        ({"gpus": 1, "device": "cpu"}, "use workers=1"),
        ({"workers": 2, "report_every": 0}, "report_every = 0 must be"),
        ({"workers": 2, "hiden": 8}, "unknown setting 'hiden'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as told:
        di.make_trainer(SMALL, **arguments)
    assert "\n" not in str(told.value)


def test_what_ray_s_run_config_cannot_mean_here_is_refused(cluster: Any, tmp_path: Path) -> None:
    from ray.train import CheckpointConfig
    from ray.train import RunConfig as RayRunConfig

    best = CheckpointConfig(checkpoint_score_attribute="val_metric")
    for wrong, line in (
        ({"storage_path": "ftp://host/results"}, "storage_path = ftp://host/results .* understood"),
        ({"storage_path": str(tmp_path), "name": "x", "output": "y"}, "two places for one run"),
        ({"checkpoint_config": best}, "checkpoint_score_attribute = val_metric has no effect"),
    ):
        given: dict[str, Any] = dict(wrong)
        settings = {key: given.pop(key) for key in ("output",) if key in given}
        with pytest.raises(UserError, match=line):
            di.make_trainer(SMALL, settings, workers=2, run_config=RayRunConfig(**given))
    assert list(tmp_path.iterdir()) == []


def test_a_trainer_of_an_explicit_kind_whose_storage_is_a_url(cluster: Any, tmp_path: Path) -> None:
    """Two workers; its numbers are those of one process without Ray."""
    import ray.train

    ray_run_config: Any = ray.train.RunConfig
    where = ray_run_config(name="run", storage_path=f"file://{tmp_path}/results")
    gcn = COMMON | {"model.kind": "gcn", "epochs": 2}
    result = di.make_trainer("chains", gcn, workers=2, run_config=where).fit()
    output = tmp_path / "results" / "run"
    assert result.metrics_dataframe["loss"].tolist() == [r["loss"] for r in records(output)]
    assert Path(result.checkpoint.path) == output / "checkpoints" / "epoch-000002"
    assert (output / "summary.json").is_file()
    assert not (output / ".validate_storage_marker").exists()
    two, one = di.load(output), di.fit("chains", gcn, output=tmp_path / "one", device="cpu")
    assert (two.summary["world_size"], one.summary["world_size"]) == (2, 1)
    for name in ("loss", "train_metric", "val_metric"):
        values = [[record[name] for record in run.history] for run in (two, one)]
        assert values[0] == pytest.approx(values[1], rel=1e-12, abs=0)
    assert torch.allclose(two.predict().logits, one.predict().logits, rtol=0, atol=1e-12)


@pytest.mark.long
def test_a_search_with_tune(cluster: Any, tmp_path: Path) -> None:
    """The example in short: two trials of two workers, chosen by validation."""
    import tune_ray

    grid: Any = tune_ray.search(draws=1, epochs=3, storage=tmp_path)
    found = [grid[index] for index in range(len(grid))]
    assert [(result.error, result.metrics["epoch"]) for result in found] == [(None, 3)] * 2
    runs = [di.load(tmp_path / f"run-{result.metrics['trial_id']}") for result in found]
    best = grid.get_best_result().metrics
    assert best["best_val"] == max(run.summary["best_val"] for run in runs)
    assert {run.summary["world_size"] for run in runs} == {2}
    assert not any("test" in name for result in found for name in result.metrics)
