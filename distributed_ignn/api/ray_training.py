"""``make_trainer``: a run as a trainer of Ray Train, for a driver program of the user's own.

The launcher (``ignn train --workers N``) starts its workers by the same trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed_ignn.api.fitting import fresh_folder
from distributed_ignn.config import RunConfig, absolute_paths
from distributed_ignn.config.keywords import run_from, spelled_out, told_in_python
from distributed_ignn.config.paths import absolute
from distributed_ignn.errors import UserError
from distributed_ignn.launchers import ray_cluster as cluster
from distributed_ignn.urls.url import as_path, lacking, url_scheme

if TYPE_CHECKING:
    from distributed_ignn.launchers.ray_trainer import RankTrainer

_UNNAMED = "ray_train_run-"  # what Ray calls a run to which nobody has given a name


@told_in_python()
def make_trainer(
    config: RunConfig | Mapping[str, Any] | str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    workers: int | None = None,
    gpus: int | None = None,
    scaling_config: Any = None,
    run_config: Any = None,
    report_every: int | None = None,
    verbose: bool = False,
    **keywords: Any,
) -> RankTrainer:
    """A ``ray.train.torch.TorchTrainer`` whose ``fit()`` trains a run on the workers of a cluster.

    It takes the cluster that this process is in, by ``ray.init``, or joins the one of RAY_ADDRESS
    or of this machine, or starts one; none of them is left or shut down. The workers read settings
    and data by their paths, so that those, and the results, belong on storage that all machines
    share.

    Every epoch is reported to Ray: its record, as ``metrics.jsonl`` has it. A report waits until
    Ray has fetched the one before, which it does twice a second, so that of epochs that are shorter
    about one in a second is reported; ``metrics_dataframe`` of the result has all of them. A
    checkpoint is reported as a reference to the run's own, in ``checkpoints/`` of its folder:
    nothing is copied, and no other form of it is written. When workers fail, Ray starts them again
    as the FailureConfig says, and they go on from the newest of these. Mistakes of the user are not
    tried again.

    Args:
        config: a YAML file with settings, the name of a dataset, the path of a graph of one's own,
            the settings themselves (``{"dataset": "chains", "model.hidden": 64}``), or a
            ``RunConfig``.
        settings: those of ``ignn train --help``; they win over those of ``config``.
        workers: processes, on CPUs and what GPUs there are, as ``ignn train --workers`` has it.
        gpus: processes with a GPU each, instead.
        scaling_config: Ray's ScalingConfig, instead of either. Each worker computes with as many
            threads as it has CPUs, unless ``train.threads`` is set.
        run_config: Ray's RunConfig. Name and storage path, a shared folder or a URL, say where the
            run goes, and nothing of it goes elsewhere; without them it is ``output`` or a fresh
            folder under runs/. ``num_to_keep`` of its CheckpointConfig is
            ``train.keep_checkpoints``, and the best by validation stays besides. Without a
            RunConfig, workers are started again as often as ``restarts`` says.
        report_every: report the epochs that it divides, however short they are; one that takes less
            than half a second then takes that.
        verbose: whether to show what ``ignn train`` shows.
        keywords: more settings, by short names where these are clear, as in ``hidden=64``.

    Returns:
        The trainer. For what ``fit()`` returns and raises, see ``RankTrainer.fit``.

    Raises:
        UserError: a setting is wrong, Ray is missing, the cluster cannot be reached or can never
            hold the workers; one line.
    """
    run = run_from(config, {**spelled_out(settings or {}), **spelled_out(keywords)})
    _check_number(run, workers, gpus, scaling_config)
    if report_every is not None and report_every < 1:
        raise UserError(f"report_every = {report_every} must be at least 1, or None")
    cluster.prepare(run)
    cluster.connect()
    from distributed_ignn.launchers.ray_trainer import RankTrainer

    number = {"workers": workers or run.workers, "gpus": gpus or run.gpus}
    sized = run.model_copy(update=number)
    scaling = scaling_config or cluster.scaling(sized, cluster.resources_of_each(sized))
    run = _kept(_sized(run, scaling, given=scaling_config is not None), run_config)
    run = _placed(run, run_config)
    return RankTrainer(
        run, scaling, _ray_run(run, run_config), verbose=verbose, report_every=report_every
    )


def _check_number(
    run: RunConfig, workers: int | None, gpus: int | None, scaling_config: Any
) -> None:
    """Refuse two answers to how many processes there are, or none."""
    given = {
        "workers": workers,
        "gpus": gpus,
        "scaling_config": scaling_config,
        "workers of the settings": run.workers,
        "gpus of the settings": run.gpus,
    }
    named = [name for name, value in given.items() if value is not None]
    if not named:
        raise UserError("how many processes? give workers=2, gpus=8 or a scaling_config of Ray's")
    if len(named) > 1:
        raise UserError(
            f"{named[0]} and {named[1]} both set the number of processes; give one of them"
        )
    for name, number in (("workers", workers), ("gpus", gpus)):
        if number is not None and number < 1:
            raise UserError(f"{name} = {number} must be at least 1")
    if gpus is not None and run.device == "cpu":
        raise UserError(f"gpus = {gpus} and device = cpu contradict each other; use workers={gpus}")


def _sized(run: RunConfig, scaling: Any, *, given: bool) -> RunConfig:
    """With the device that the workers have, and the threads where the user says what each has."""
    if scaling.num_workers == 0:
        raise UserError(
            "num_workers = 0 of the scaling_config starts none; give 1 or more, or use fit"
        )
    if run.device == "cpu" and scaling.use_gpu:
        raise UserError("device = cpu and use_gpu of the scaling_config contradict each other")
    device = run.device if scaling.use_gpu else "cpu"
    if run.device == "cuda" and not scaling.use_gpu:
        raise UserError("device = cuda needs use_gpu=True in the scaling_config")
    update: dict[str, Any] = {"device": device, "workers": None, "gpus": None}
    cpus = (scaling.resources_per_worker or {}).get("CPU", 0 if scaling.use_gpu else 1)
    if given and cpus and not run.train.threads:
        threads = {"threads": max(1, int(cpus))}
        update["train"] = run.train.model_copy(update=threads)
    return run.model_copy(update=update)


def _placed(run: RunConfig, run_config: Any) -> RunConfig:
    """With the output folder that Ray's RunConfig names, if it does, or a fresh one by default."""
    named = "output" in run.model_fields_set
    folder = None if run_config is None else _folder(run_config)
    if folder is not None:
        if named and absolute(run.output) != folder:
            raise UserError(
                f"output = {run.output} and the run_config, which says {folder}, are two places "
                "for one run; drop one of them"
            )
        run = run.model_copy(update={"output": folder})
    elif not named and run.resume is None:
        run = run.model_copy(update={"output": fresh_folder(absolute(run.output))})
    return absolute_paths(run)


def _folder(run_config: Any) -> Path | None:
    """Where a RunConfig of Ray's puts a run; None if it leaves that open."""
    from ray.train.constants import DEFAULT_STORAGE_PATH

    storage, name = str(run_config.storage_path), str(run_config.name)
    if run_config.storage_filesystem is not None:
        raise UserError(
            "storage_filesystem of the run_config is not read; name a folder that all machines "
            "share, or a URL, as storage_path"
        )
    if url_scheme(storage) is not None:
        try:
            place = as_path(storage) / name
        except ValueError as error:
            raise UserError(f"storage_path = {storage} of the run_config {error}") from error
        if (problem := lacking(place)) is not None:
            raise UserError(f"storage_path = {storage} of the run_config {problem}")
        return place
    if storage == DEFAULT_STORAGE_PATH and name.startswith(_UNNAMED):
        return None
    return Path(storage).expanduser().absolute() / name


def _kept(run: RunConfig, run_config: Any) -> RunConfig:
    """With as many checkpoints as a CheckpointConfig of Ray's wants to keep."""
    asked = None if run_config is None else run_config.checkpoint_config
    if asked is None:
        return run
    if asked.checkpoint_score_attribute is not None:
        raise UserError(
            f"checkpoint_score_attribute = {asked.checkpoint_score_attribute} has no effect: the "
            "best by validation is kept besides the newest; drop it"
        )
    if asked.num_to_keep is None:
        return run
    update = {"keep_checkpoints": asked.num_to_keep}
    return run.model_copy(update={"train": run.train.model_copy(update=update)})


def _ray_run(run: RunConfig, run_config: Any) -> Any:
    """Ray's RunConfig: the user's, or one that starts workers again as the settings say."""
    from ray.train import FailureConfig

    from distributed_ignn.launchers.ray_trainer import RayRunConfig

    if run_config is not None:
        return run_config
    return RayRunConfig(failure_config=FailureConfig(max_failures=run.restarts))
