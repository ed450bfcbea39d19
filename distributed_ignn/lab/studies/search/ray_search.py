"""A search on a Ray cluster: Ray Tune places the trials, our halving says which they are.

To Tune, each rung of a trial is a trial of its own, whose search algorithm is ours: it suggests the
next step of the halving and is told what came of it. Tune keeps the processes between steps, gives
each trial its places on the cluster, and starts again what is lost with a machine; a run then goes
on from its checkpoint.

Tune's own scheduler of this kind (``ASHAScheduler``) is not used. It decides whether a trial that
has come to a rung may stay, where the algorithm decides which of all trials goes on: its first
trials run to the end whatever they are worth, it pauses none, so that a promising trial cannot be
taken up later, and it knows of no time that the best trial still needs, only of one at which
everything is stopped. What a search finds on a cluster and in one process would be two things.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed_ignn.config import RunConfig
from distributed_ignn.errors import Stopped, UserError
from distributed_ignn.lab.studies.search.halving import Job
from distributed_ignn.lab.studies.search.session import Driver, Request, Search
from distributed_ignn.launchers import ray_cluster as cluster
from distributed_ignn.launchers.ray_launch import announce_wait, check_lasting

_TUNE = "ray"
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a little whatever it is told
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",  # we say ourselves what is waited for
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def search_on_ray(request: Request, out: Path) -> Search:
    """Search with as many processes of a Ray cluster as ``workers`` or ``gpus`` of the run say.

    Without either it takes all GPUs of the cluster, or all CPUs where there are none.

    Args:
        request: what to search; its ``config`` says what each process takes.
        out: its folder as the user wrote it.

    Returns:
        The search, which is over.

    Raises:
        UserError: Ray Tune is missing or no cluster is reached, it is too small, or see ``Search``.
        Stopped: by Ctrl-C; the same call goes on.
    """
    _prepare(request.config)
    import ray

    with cluster.joined():
        check_lasting("out", out)
        config = _sized(request.config, ray.cluster_resources())
        each = cluster.resources_of_each(config)
        slots = cluster.processes(config) // request.ranks
        if slots == 0:
            raise UserError(
                f"--ranks-per-trial {request.ranks} is more than the "
                f"{cluster.count(cluster.processes(config), 'process')} of the search; give it "
                f"--workers {request.ranks} or fewer ranks"
            )
        announce_wait(config, each, ray.available_resources())
        return _search(replace(request, config=_of_trials(config, each), slots=slots), each)


def _prepare(config: RunConfig) -> None:
    os.environ |= {name: os.environ.get(name, value) for name, value in _QUIET.items()}
    cluster.prepare(config)
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise UserError(
            "a search on a Ray cluster needs Ray Tune; install it with pip install "
            "'distributed-ignn[ray]', or use --jobs N on this machine"
        ) from error


def _sized(config: RunConfig, found: Mapping[str, float]) -> RunConfig:
    """With the number of processes, where the user has left it to the cluster."""
    if config.workers or config.gpus:
        return config
    gpus = 0 if config.device == "cpu" else int(found.get("GPU", 0))
    return config.model_copy(
        update={"gpus": gpus} if gpus else {"workers": max(1, int(found.get("CPU", 1)))}
    )


def _of_trials(config: RunConfig, each: Mapping[str, float]) -> RunConfig:
    device = config.device if "GPU" in each else "cpu"
    return config.model_copy(update={"workers": None, "gpus": None, "device": device})


def _search(request: Request, each: dict[str, float]) -> Search:
    from ray import tune

    driver = Driver(request)
    steps = Steps(driver)
    folder = request.out / _TUNE
    tuner = tune.Tuner(
        tune.with_resources(
            _make_trainable(cluster.search_path(), request.ranks, each),
            tune.PlacementGroupFactory([each] * request.ranks),
        ),
        tune_config=tune.TuneConfig(
            search_alg=_make_algorithm(steps),
            num_samples=-1,
            max_concurrent_trials=request.slots,
            reuse_actors=True,
            trial_name_creator=_step_name,
            trial_dirname_creator=_step_name,
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            name="steps",
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=request.config.restarts),
        ),
    )
    with driver.search.board.shown():
        tuner.fit()
    shutil.rmtree(folder, ignore_errors=True)
    if steps.problem is not None:
        raise steps.problem
    if not steps.over:
        raise Stopped(signal.SIGINT, "stopped by SIGINT; the same command goes on from here")
    return driver.search


def _step_name(step: Any) -> str:
    return f"step-{step.trial_id}"


class Steps:
    """The steps of a search by the names that Tune has for them.

    Args:
        driver: of the search.

    Attributes:
        over: whether the search has come to its end.
        problem: why it cannot go on.
    """

    def __init__(self, driver: Driver) -> None:
        self.over = False
        self.problem: UserError | None = None
        self._driver = driver
        self._jobs: dict[str, Job] = {}

    def next(self, name: str) -> dict[str, str] | None:
        """What Tune is to do under a name; None if nothing, at least until a step ends."""
        step = None
        if self.problem is None:
            with self._noted():
                step = self._driver.next()
        if step is None:
            self.over = not self._jobs and self.problem is None
            return None
        self._jobs[name], rung = step
        return {"rung": json.dumps(rung.as_json())}

    def are_done(self) -> bool:
        """Whether nothing is left to wait for."""
        return not self._jobs and (self.over or self.problem is not None)

    def ended(self, name: str, result: Mapping[str, Any] | None, *, lost: bool) -> None:
        """Take what became of a step.

        Args:
            name: of it.
            result: what it returned; None, or without ``found``, where it was broken off.
            lost: whether Tune has given it up.
        """
        job = self._jobs.pop(name)
        text = (result or {}).get("found")
        found = json.loads(text) if text else None
        if lost:
            found = {"failure": "its processes were lost more often than restarts allows"}
        if found is not None:
            with self._noted():
                self._driver.search.told(job, found)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Keep a mistake for the end, because Tune would take it for one of its own."""
        try:
            yield
        except UserError as problem:
            self.problem = problem


def _make_algorithm(steps: Steps) -> Any:
    """The search algorithm that Tune asks; see the head of this file."""
    from ray.tune.search import Searcher

    class Algorithm(Searcher):
        def __init__(self, source: Steps) -> None:
            super().__init__()
            self._steps = source

        def suggest(self, trial_id: str) -> Any:
            found = self._steps.next(trial_id)
            return Searcher.FINISHED if self._steps.are_done() else found

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            self._steps.ended(trial_id, result, lost=error)

        def set_search_properties(self, *args: Any, **spec: Any) -> bool:
            return True

        def save(self, checkpoint_path: str) -> None:
            """search.json has it all."""

        def restore(self, checkpoint_path: str) -> None:
            """See ``save``."""

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune keeps a copy for searches that it restores itself

    return Algorithm(steps)


def _make_trainable(path: str, ranks: int, each: Mapping[str, float]) -> Any:
    """What Tune runs for each step; sent as it is, so that it finds the package by ``path``."""
    from ray import tune

    class Step(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            import sys

            sys.path[:0] = path.split(":")
            from distributed_ignn.lab.studies.search.ray_ranks import Ranks

            self._ranks = Ranks(path, ranks, each)
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._rung = new_config["rung"]
            return True

        def step(self) -> dict[str, Any]:
            # as text: Tune would flatten it
            return {"found": json.dumps(self._ranks.train(self._rung)), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}  # the run has its own

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            """See ``save_checkpoint``."""

    return Step
