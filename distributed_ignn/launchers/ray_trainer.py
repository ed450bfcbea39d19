"""The TorchTrainer of every run on Ray: those of the launcher, and of a program of the user's.

Its folder at Ray is the run's own output folder. So Ray refers to our checkpoints as they lie there
and copies none: they may have the size of the graph, and hold what validation chose besides the
newest state. Which of them are kept is the run's business as well (``train.keep_checkpoints``).
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from distributed_ignn.comm.backends import nccl_environment
from distributed_ignn.config import RunConfig
from distributed_ignn.config.keywords import told_in_python
from distributed_ignn.errors import UserError
from distributed_ignn.launchers import ray_cluster as cluster
from distributed_ignn.launchers import ray_messages as messages
from distributed_ignn.launchers.ray_storage import forget, storage_of
from distributed_ignn.launchers.ray_worker import train_worker
from distributed_ignn.runs.output.folder import check_output
from distributed_ignn.runs.output.records import METRICS, read_metrics
from distributed_ignn.urls.object_store import ObjectStore
from distributed_ignn.urls.url import Url

# Ray's list of reported checkpoints. It names folders that our own retention has removed since,
# which a later start on the same output would take for damage.
_SNAPSHOT = "checkpoint_manager_snapshot.json"
_MARKER = ".validate_storage_marker"  # by which Ray has seen that it can write there

# type checkers see the old API's
RayRunConfig: Any = ray.train.RunConfig


class RankTrainer(TorchTrainer):
    """Starts the ranks of one run as workers of Ray Train.

    Args:
        run: settings, with absolute paths; ``output`` is the folder of the run.
        scaling_config: Ray's, of how many workers and what each takes.
        run_config: Ray's, of failures, callbacks and the environment of workers; its name and
            storage path are not read.
        loop: what each worker calls.
        options: more for it.
        verbose: whether to show what ``ignn train`` shows.
        report_every: see ``make_trainer``.
    """

    train_loop_config: dict[str, Any]

    def __init__(
        self,
        run: RunConfig,
        scaling_config: Any,
        run_config: Any,
        *,
        loop: Callable[[dict[str, Any]], Any] = train_worker,
        options: Mapping[str, Any] | None = None,
        verbose: bool = False,
        report_every: int | None = None,
    ) -> None:
        self.run = run
        self._verbose = verbose
        self._callbacks = list(run_config.callbacks)
        self._trains = loop is train_worker
        self._folder = run.output
        if not self._trains:
            self._folder = Path(run_config.storage_path, run_config.name)
        super().__init__(
            loop,
            train_loop_config={
                "run": run.model_dump(mode="json"),
                "verbose": verbose,
                "report_every": report_every,
                "columns": shutil.get_terminal_size().columns,
                "encoding": getattr(sys.stdout, "encoding", None) or "utf-8",
                **(options or {}),
            },
            torch_config=TorchConfig(
                backend=cluster.choose_group_backend(
                    run, fewest(scaling_config), each_of(scaling_config).get("GPU", 0.0)
                ),
                timeout_s=run.comm.timeout_seconds,
            ),
            scaling_config=scaling_config,
            run_config=replace(
                run_config,
                **storage_of(self._folder),
                callbacks=[],
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=None),
                worker_runtime_env=_worker_environment(run, run_config.worker_runtime_env),
            ),
        )

    @told_in_python()
    def fit(self) -> Any:
        """Train, and wait for the end of it.

        Returns:
            Ray's result. ``metrics`` and ``checkpoint`` are the last reported ones,
            ``metrics_dataframe`` has a row for every epoch (Ray's own would have those with a
            checkpoint), ``best_checkpoints`` those that are still there, ``return_value`` (where
            Ray has it, as 2.60 does) the summary of the run, and ``path`` its folder, for ``load``.

        Raises:
            UserError: settings or data are wrong, the folder holds another run, or the cluster can
                never hold the workers; one line.
            ray.train.TrainingFailedError: workers failed more often than the FailureConfig allows.
        """
        screen = messages.Screen(shows=self._verbose)
        bell = messages.make_bell()
        result = None
        try:
            with _own_interrupts():
                result = self.fit_before(screen, bell)
        except ray.train.TrainingFailedError:
            screen.close()  # by then it knows all that was said
            if screen.mistake is None:
                raise
        finally:
            screen.close()
            if not isinstance(self.run.output, Url):
                with suppress(OSError):  # not empty: a run has begun
                    self.run.output.rmdir()
        if screen.mistake is not None:
            raise UserError(screen.mistake)
        return self._completed(result)

    def fit_before(self, screen: messages.Screen, bell: Any) -> Any:
        """As TorchTrainer's ``fit``, with the driver's screen and bell.

        Args:
            screen: what the workers say.
            bell: asks them to stop.

        Raises:
            UserError: see ``fit``; of a worker, it is what the screen knows.
            ray.train.TrainingFailedError: see there.
        """
        scaling = self.scaling_config
        cluster.check_room("workers", fewest(scaling), each_of(scaling))
        if self._trains:
            check_output(self.run)
            forget(self._folder, _SNAPSHOT)
        self.train_loop_config |= {"lines": screen.lines, "bell": bell}
        self.run_config.callbacks = [*self._callbacks, messages.make_failure_reporter(screen.lines)]
        try:
            return super().fit()
        finally:
            forget(self._folder, _MARKER)
            # the actors behind these end with what refers to them
            self.run_config.callbacks = []
            for name in ("lines", "bell"):
                del self.train_loop_config[name]

    def _completed(self, result: Any) -> Any:
        output = self.run.output
        if self._trains and isinstance(output, Url):
            with tempfile.TemporaryDirectory() as folder:
                ObjectStore(output).fetch(METRICS, Path(folder, METRICS))
                result.metrics_dataframe = pd.DataFrame(read_metrics(Path(folder, METRICS)))
        elif self._trains:
            result.metrics_dataframe = pd.DataFrame(read_metrics(output / METRICS))
            kept = [c for c in result.best_checkpoints or [] if Path(c[0].path).exists()]
            result.best_checkpoints = kept
        return result


def fewest(scaling: Any) -> int:
    """With how many workers the run can do."""
    number: int | tuple[int, int] = scaling.num_workers
    return number if isinstance(number, int) else number[0]


def each_of(scaling: Any) -> dict[str, float]:
    """What each worker takes of the cluster."""
    given = scaling.resources_per_worker
    if given is None:
        return {"GPU": 1.0} if scaling.use_gpu else {"CPU": 1.0}
    return {kind: amount for kind, amount in given.items() if amount}


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Ray takes Ctrl-C over for the time of a fit, and keeps it; the program gets it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _worker_environment(run: RunConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """The runtime environment of workers: what the run needs beneath what the user gives."""
    own = dict(given.get("env_vars") or {})
    own["PYTHONPATH"] = os.pathsep.join(
        filter(None, (own.get("PYTHONPATH"), cluster.search_path()))
    )
    # Ray starts the group, before anything of ours runs
    nccl = nccl_environment(watched=run.comm.hang_seconds > 0)
    return {**given, "env_vars": {**nccl, **own}}
