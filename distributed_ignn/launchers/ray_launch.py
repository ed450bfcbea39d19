"""Ray Train as launcher: workers on a Ray cluster run what a rank runs under torchrun.

The driver, which is the process that a person started, checks what it can before any worker
starts, hands the settings to the workers and shows what rank 0 prints. The workers come back by
themselves after a crash, from the newest checkpoint of the run; the driver says so, waits a limited
time for machines, and passes on a request to stop.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from typing import Any

from distributed_ignn.comm.activity import Activity
from distributed_ignn.comm.backends import nccl_environment
from distributed_ignn.config import RunConfig, absolute_paths
from distributed_ignn.errors import JobError, Stopped, UserError
from distributed_ignn.launchers import ray_cluster as cluster
from distributed_ignn.launchers import ray_messages as messages
from distributed_ignn.launchers.ray_storage import storage_of
from distributed_ignn.launchers.ray_worker import train_worker
from distributed_ignn.runs.output.folder import make_output
from distributed_ignn.runs.stopping import StopRequest
from distributed_ignn.urls.object_store import ObjectStore
from distributed_ignn.urls.url import Url

# Ray's list of reported checkpoints. It names folders that our own retention has removed since,
# which a later start on the same output would take for damage.
_SNAPSHOT = "checkpoint_manager_snapshot.json"
_TURN_SECONDS = 0.2
_LOOK_SECONDS = 10.0
_GO_ON = "go on from the last checkpoint with --resume auto"


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
    for left in range(config.restarts, -1, -1):
        try:
            _train_once(config, run)
        except _LostWhileStartingError as lost:
            if left == 0:
                raise JobError(
                    f"{lost}, after {config.restarts} restarts (restarts = {config.restarts}); "
                    f"{_GO_ON}"
                ) from lost
            print(f"{lost}; starting all again ...", flush=True)
        else:
            return


class _LostWhileStartingError(Exception):
    """A worker died between its start and its first step, where Ray gives up."""


def _train_once(config: RunConfig, run: RunConfig) -> None:
    """Join the cluster, train, and leave it, which gives back whatever the run held there.

    Args:
        config: as the user wrote it.
        run: the same with absolute paths.

    Raises:
        _LostWhileStartingError: see there; other errors as ``train_on_ray``.
    """
    import ray

    cluster.connect()
    try:
        _check_folder(config)
        each = cluster.resources_of_each(run)
        announce_wait(run, each, ray.available_resources())
        if "GPU" not in each:
            run = run.model_copy(update={"device": "cpu"})
        _forget_reports(run)
        _fit(run, each)
    finally:
        ray.shutdown()


def check_output(config: RunConfig) -> None:
    """Refuse an output folder that holds another run or cannot be written.

    Workers take settings that they find in the folder for those of a crashed attempt of their own.
    """
    try:
        make_output(config)
    except OSError as error:
        raise UserError(f"cannot write to output = {config.output}: {error.strerror}") from error


def _forget_reports(config: RunConfig) -> None:
    """Let Ray begin anew with an output folder that it has used before; see ``_SNAPSHOT``."""
    if isinstance(config.output, Url):
        ObjectStore(config.output).remove([_SNAPSHOT])
    else:
        (config.output / _SNAPSHOT).unlink(missing_ok=True)


def _check_folder(config: RunConfig) -> None:
    """See ``check_lasting``."""
    check_lasting("output", config.output)


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


def _fit(config: RunConfig, each: dict[str, float]) -> None:
    """Start the workers, show what rank 0 says, and see the run to its end."""
    screen = messages.Screen()
    bell = messages.make_bell()
    trainer = _trainer(config, each, screen, bell)
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


def _trainer(config: RunConfig, each: dict[str, float], screen: messages.Screen, bell: Any) -> Any:
    import ray.train
    from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray_run_config: Any = ray.train.RunConfig  # type checkers see the old API's
    share = each.get("GPU", 0.0)
    return TorchTrainer(
        train_worker,
        train_loop_config={
            "run": config.model_dump(mode="json"),
            "lines": screen.lines,
            "bell": bell,
            "columns": shutil.get_terminal_size().columns,
            "encoding": sys.stdout.encoding,
        },
        torch_config=TorchConfig(
            backend=cluster.choose_group_backend(config, share),
            timeout_s=config.comm.timeout_seconds,
        ),
        scaling_config=ScalingConfig(
            num_workers=cluster.processes(config), use_gpu=share > 0, resources_per_worker=each
        ),
        # Its folder is the run's own, so that Ray refers to our checkpoints and copies none.
        run_config=ray_run_config(
            **storage_of(config.output),
            failure_config=FailureConfig(max_failures=config.restarts),
            checkpoint_config=CheckpointConfig(num_to_keep=None),  # we remove old ones ourselves
            worker_runtime_env={
                "env_vars": {
                    "PYTHONPATH": search_path(),
                    # Ray starts the group, before anything of ours runs
                    **nccl_environment(watched=config.comm.hang_seconds > 0),
                }
            },
            callbacks=[messages.make_failure_reporter(screen.lines)],
        ),
    )


def search_path() -> str:
    """Where workers find this package when it runs from a folder that is not installed."""
    folders = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, folders))


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
                trainer.fit()
            except BaseException as error:
                outcome.append(error)

        # not in the main thread, where Ray would take over Ctrl-C
        thread = Thread(target=fit, daemon=True, name="fit")
        thread.start()
        activity = Activity()
        request = StopRequest(self._config.train.grace_seconds, activity, announce=True)
        with request.listening(), activity.phase("the workers are starting"):
            self._wait(thread, request)
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
