"""Ray Train as launcher: workers on a Ray cluster do what a rank does under torchrun.

The driver, which is the process that a person started, checks what it can before any worker
starts, hands the settings to the workers and shows what rank 0 prints. The workers come back by
themselves after a crash, from the newest checkpoint of the run; the driver says so, waits a limited
time for machines, and passes on a request to stop.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

from distributed_ignn.comm.activity import Activity
from distributed_ignn.config import CommConfig, RunConfig, absolute_paths
from distributed_ignn.errors import JobError, Stopped, UserError
from distributed_ignn.launchers import ray_cluster as cluster
from distributed_ignn.launchers import ray_messages as messages
from distributed_ignn.runs.output.folder import check_output, holds_run
from distributed_ignn.runs.predict import PredictOptions, fetched_run_config
from distributed_ignn.runs.stopping import StopRequest
from distributed_ignn.urls.url import Url

_TURN_SECONDS = 0.2
_LOOK_SECONDS = 10.0
_GO_ON = "start it again with --resume auto"


def train_on_ray(config: RunConfig) -> None:
    """Train with ``config.workers`` or ``config.gpus`` processes on a Ray cluster.

    Joins the cluster of RAY_ADDRESS or one that runs on this machine; starts a local one otherwise.

    Raises:
        UserError: Ray is missing or not reachable, the cluster is too small, or a worker met a
            mistake of the user.
        Stopped: the driver got SIGTERM or SIGINT; the workers have written a checkpoint.
        JobError: workers were lost more often than ``config.restarts``, or machines to replace them
            did not come within ``config.restart_wait_seconds``.
    """
    cluster.prepare(config)
    run = absolute_paths(config)
    check_output(run)
    starts = count()

    def fit(each: dict[str, float]) -> None:
        # what lies in the output after a start is of this very run
        again = next(starts) and run.resume is None and holds_run(run.output)
        _fit(run.model_copy(update={"resume": "auto"}) if again else run, each)

    _start(config, ("output", config.output), fit)


def predict_on_ray(options: PredictOptions, asked: dict[str, Any]) -> None:
    """Predict with as many processes of a Ray cluster as are asked for; rank 0 writes the file.

    Args:
        options: what is asked; ``out`` as the user wrote it.
        asked: ``workers`` or ``gpus``, and ``device``.

    Raises:
        UserError: see ``train_on_ray`` and ``predict``.
        Stopped: by a signal; nothing is written.
        JobError: see ``train_on_ray``.
    """
    of_run = fetched_run_config(options.run)
    config = of_run.model_copy(update={**asked, "comm": CommConfig()})
    cluster.prepare(config)
    action = partial(_predict, config, options.resolved())
    _start(config, ("out", options.out), action)


_Action = Callable[[dict[str, float]], None]


def _start(config: RunConfig, written: tuple[str, Path], action: _Action) -> None:
    """Join the cluster, act, and leave it, which gives back whatever was held there.

    Args:
        config: how many processes, and of which kind.
        written: the flag that named what will be written, and its value as the user wrote it.
        action: with what each process takes of the cluster.

    Raises:
        UserError, Stopped, JobError: see ``train_on_ray``.
    """
    for left in range(config.restarts, -1, -1):
        try:
            _start_once(config, written, action)
        except _LostWhileStartingError as lost:
            if left == 0 or not lost.left_cluster:
                raise JobError(
                    f"{lost}, after {config.restarts - left} restarts (restarts = "
                    f"{config.restarts}); {_GO_ON}"
                ) from lost
            print(f"{lost}; starting all again ...", flush=True)
        else:
            return


class _LostWhileStartingError(Exception):
    """A worker died between its start and its first step, where Ray gives up.

    What it held is given back once the driver leaves the cluster; see ``left_cluster``.
    """

    left_cluster = True


def _start_once(config: RunConfig, written: tuple[str, Path], action: _Action) -> None:
    """As ``_start``, without another try.

    Raises:
        _LostWhileStartingError: see there.
    """
    import ray

    with cluster.joined() as leaves:
        check_lasting(*written)
        each = cluster.resources_of_each(config)
        announce_wait(config, each, ray.available_resources())
        try:
            action(each)
        except _LostWhileStartingError as lost:
            lost.left_cluster = leaves
            raise


def check_lasting(flag: str, folder: Path) -> None:
    """Refuse to write results into the copy of a working folder that Ray removes after the job.

    Args:
        flag: that named the folder, without its dashes.
        folder: as the user wrote it.
    """
    import ray

    copied = ray.get_runtime_context().runtime_env.get("working_dir")
    if copied and not folder.is_absolute() and not isinstance(folder, Url):
        raise UserError(
            f"{flag} = {folder} is relative, and a job with a working folder runs in a "
            f"temporary copy of it; give an absolute --{flag}"
        )


def announce_wait(config: RunConfig, each: dict[str, float], free: dict[str, float]) -> None:
    """Say why nothing happens while other programs use the cluster, or a machine is gone."""
    missing = cluster.shortage(config, each, free)
    if missing is not None:
        print(f"waiting for {missing} ...", flush=True)


def _fit(run: RunConfig, each: dict[str, float]) -> None:
    """Train; ``run`` has absolute paths."""
    from ray.train import FailureConfig

    from distributed_ignn.launchers import ray_trainer

    config = run if "GPU" in each else run.model_copy(update={"device": "cpu"})
    ray_run = ray_trainer.RayRunConfig(
        failure_config=FailureConfig(max_failures=config.restarts),
    )
    trainer = ray_trainer.RankTrainer(config, cluster.scaling(config, each), ray_run, verbose=True)
    _see_through(config, each, trainer)


def _predict(config: RunConfig, asked: PredictOptions, each: dict[str, float]) -> None:
    """Predict; paths of ``asked`` mean the same everywhere."""
    from ray.train import FailureConfig

    from distributed_ignn.launchers import ray_trainer
    from distributed_ignn.launchers.ray_worker import predict_worker

    if "GPU" not in each:
        config = config.model_copy(update={"device": "cpu"})
    with tempfile.TemporaryDirectory(prefix="ignn-predict-") as folder:  # Ray insists on one
        ray_run = ray_trainer.RayRunConfig(
            storage_path=folder,
            name="ray",
            failure_config=FailureConfig(max_failures=config.restarts),
        )
        trainer = ray_trainer.RankTrainer(
            config,
            cluster.scaling(config, each),
            ray_run,
            loop=predict_worker,
            options={"predict": asked},
            verbose=True,
        )
        _see_through(config, each, trainer)


def _see_through(config: RunConfig, each: dict[str, float], trainer: Any) -> None:
    """Start the workers, show what rank 0 says, and see the run to its end."""
    screen = messages.Screen()
    bell = messages.make_bell()
    print(f"starting {cluster.count(cluster.processes(config), 'worker')} on Ray ...", flush=True)
    watch = _Watch(config, each, screen, bell)
    try:
        watch.see_through(trainer)
    finally:
        screen.close()
        if screen.mistake is not None:
            raise UserError(screen.mistake)
        if screen.stopped is not None:
            raise Stopped(*screen.stopped)


class _Watch:
    """What the driver does while the workers train.

    Args:
        config: the run.
        each: what each process takes of the cluster.
        screen: what the workers say.
        bell: asks them to stop.
    """

    def __init__(
        self, config: RunConfig, each: dict[str, float], screen: messages.Screen, bell: Any
    ) -> None:
        self._config = config
        self._each = each
        self._screen = screen
        self._bell = bell
        self._told = 0  # failures that the user knows of
        self._looked = time.monotonic()
        self._announced = 0

    def see_through(self, trainer: Any) -> None:
        """Return when the run has ended.

        Raises:
            Stopped: by a signal while there was nothing to finish.
            JobError: see ``train_on_ray``.
            _LostWhileStartingError: see there.
        """
        outcome: list[BaseException] = []

        def fit() -> None:
            try:
                trainer.fit_before(self._screen, self._bell)
            except BaseException as error:
                outcome.append(error)

        # not in the main thread, where Ray would take over Ctrl-C
        thread = Thread(target=fit, daemon=True, name="fit")
        thread.start()
        activity = Activity()
        request = StopRequest(self._config.train.grace_seconds, activity, announce=True)
        try:
            with request.listening(), activity.phase("the workers are starting"):
                self._wait(thread, request)
        except Stopped as stopped:
            # for workers that outlive this, in a cluster that is not left
            self._bell.ring.remote(stopped.signum)
            raise
        if outcome and self._screen.mistake is None and self._screen.stopped is None:
            self._tell_failures()
            raise self._explained(outcome[0])

    def _wait(self, thread: Thread, request: StopRequest) -> None:
        rung = False
        while thread.is_alive() and self._screen.stopped is None:
            with request.deferred() if self._screen.training else nullcontext():
                thread.join(_TURN_SECONDS)
            signum = request()
            if signum is not None and not rung:
                self._bell.ring.remote(signum)
                rung = True
            self._tell_failures()
            self._limit_waiting()

    def _tell_failures(self) -> None:
        screen = self._screen
        if screen.failures == self._told:
            return
        self._told = screen.failures
        if screen.repeated:
            raise RuntimeError(f"the workers failed twice without a step forward\n{screen.trace}")
        print(f"{screen.failure}; Ray starts the workers again ...", flush=True)

    def _limit_waiting(self) -> None:
        """Say what the workers wait for after a failure, and end the run when it takes too long.

        Before the first start there is no limit: a run may be queued behind others.
        """
        screen, now = self._screen, time.monotonic()
        if screen.running or not screen.failures or now - self._looked < _LOOK_SECONDS:
            return
        import ray

        self._looked = now
        missing = cluster.shortage(self._config, self._each, ray.available_resources())
        if missing is not None and self._announced < screen.failures:
            self._announced = screen.failures
            print(f"waiting for {missing} ...", flush=True)
        if now - screen.changed > self._config.restart_wait_seconds:
            reason = "the workers did not start" if missing is None else f"waited for {missing}"
            raise JobError(
                f"{screen.failure}, and then for {self._config.restart_wait_seconds:g} s "
                f"(restart_wait_seconds) {reason}; {_GO_ON}"
            )

    def _explained(self, error: BaseException) -> BaseException:
        """What to raise where Ray has given up."""
        import ray

        # of a ControllerError, with which Ray gives up at once
        cause = getattr(error, "controller_failure", None)
        if isinstance(cause, ray.exceptions.RayActorError):
            return _LostWhileStartingError("a worker was lost while starting")
        restarts = self._config.restarts
        if self._screen.failures <= restarts or self._screen.trace is not None:
            return error
        return JobError(
            f"{self._screen.failure}, after {restarts} restarts (restarts = {restarts}); {_GO_ON}"
        )
