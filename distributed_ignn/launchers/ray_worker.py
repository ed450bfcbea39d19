"""One rank of a Ray run: what Ray Train calls in each worker process."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from distributed_ignn.cli import shown_log
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import JobError, Stopped, UserError
from distributed_ignn.launchers import ray_messages as messages
from distributed_ignn.launchers.ray_storage import reference_to
from distributed_ignn.launchers.this_rank import on_this_rank
from distributed_ignn.resident import use_huge_pages
from distributed_ignn.runs.output.folder import holds_run
from distributed_ignn.runs.predict import PredictOptions, predict
from distributed_ignn.runs.run import Conduct, run_training
from distributed_ignn.training.epoch_record import EpochRecord

_MEETING_SECONDS = 1.0
_MOST_EPOCHS = 200
_BELL_SECONDS = 60.0


def train_worker(settings: dict[str, Any]) -> dict[str, Any] | None:
    """Train as one rank.

    Args:
        settings: see ``_as_rank``; besides ``run`` (settings as JSON), ``verbose`` and
            ``report_every`` of a ``RankTrainer``.

    Returns:
        The summary of the run.

    Raises:
        RuntimeError, RayActorError: see ``_as_rank``.
    """
    return _as_rank(settings, partial(_train, settings))


def predict_worker(settings: dict[str, Any]) -> None:
    """Predict as one rank.

    Args:
        settings: see ``_as_rank``; besides ``run`` (as JSON; its device and way to talk) and
            ``predict``, the ``PredictOptions``.

    Raises:
        RuntimeError: see ``_as_rank``.
    """
    _as_rank(settings, partial(_predict, settings))


def _as_rank(
    settings: dict[str, Any], work: Callable[[_StopPoll], dict[str, Any] | None]
) -> dict[str, Any] | None:
    """Do what a rank does, in the place that Ray Train has for it; what comes of it.

    What a user has to change and a request to stop are known to all ranks, so they all return;
    raising them would make Ray start the workers again.

    Args:
        settings: ``lines`` and ``bell`` (of ``ray_messages``), ``columns`` and ``encoding`` of the
            driver's screen.
        work: of this rank.

    Raises:
        RuntimeError: another rank was lost; Ray starts all of them again.
        RayActorError: a machine of the run is about to be taken away. Ray starts the workers again
            on others and does not count it as a failure.
    """
    import ray.train

    use_huge_pages()
    context = ray.train.get_context()
    rank, lines = context.get_world_rank(), settings["lines"]
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "COLUMNS": str(settings["columns"]),
    }
    stop = _StopPoll(settings["bell"], listens=rank == 0)
    with ExitStack() as screen:
        if rank == 0:
            lines.put((messages.STARTED, ""))
            shown = messages.Lines(lines, settings["encoding"])
            screen.enter_context(redirect_stdout(shown))
            screen.enter_context(shown_log(shown))
        try:
            return work(stop)
        except UserError as error:
            lines.put((messages.MISTAKE, str(error)))
        except Stopped as stopped:
            if stop.leaving:
                raise ray.exceptions.RayActorError(error_msg=stop.leaving, preempted=True) from None
            if rank == 0:
                lines.put((messages.STOPPED, f"{stopped.signum} {stopped}"))
        except JobError as error:
            lines.put((messages.LOST, str(error)))
            # a plain one, which Ray's controller can read without this package
            raise RuntimeError(str(error)) from None
        except Exception:
            lines.put((messages.TRACE, traceback.format_exc()))
            raise
    return None


def _train(settings: dict[str, Any], stop: _StopPoll) -> dict[str, Any]:
    main = os.environ["RANK"] == "0"
    config = _continue_own_run(RunConfig.model_validate(settings["run"]), main=main)
    report = _Report(settings["lines"] if main else None, stop, settings["report_every"])
    conduct = Conduct(shows=settings["verbose"])

    def run(comm: Communicator) -> dict[str, Any]:
        _tell_of_loss(comm, settings["lines"])
        return run_training(config, comm, report, stop, conduct=conduct)

    return on_this_rank(run, config.device, config.comm)


def _predict(settings: dict[str, Any], stop: _StopPoll) -> None:
    config = RunConfig.model_validate(settings["run"])
    options: PredictOptions = settings["predict"]

    def run(comm: Communicator) -> None:
        _tell_of_loss(comm, settings["lines"])
        predict(options, comm)

    on_this_rank(run, config.device, config.comm)


def _tell_of_loss(comm: Communicator, lines: Any) -> None:
    """Let the driver know of a lost rank also where this process ends before it can raise."""
    if comm.watchdog is not None:
        comm.watchdog.before_exit.append(lambda line: lines.put((messages.LOST, line)))


def _continue_own_run(config: RunConfig, *, main: bool) -> RunConfig:
    """The settings, with ``resume: auto`` when an earlier attempt of this run has failed."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    again = ray.train.get_checkpoint() is not None
    if main and config.resume is None:
        with suppress(UserError):  # of a URL, which every rank is told when the run begins
            again = again or holds_run(config.output)
    if not broadcast_from_rank_zero(again):
        return config
    return config.model_copy(update={"resume": "auto"})


class _Report:
    """Tells Ray what an epoch came to, with its checkpoint if there is one; every rank in step.

    A report waits until Ray has fetched the one before, which it does every half second, so that of
    epochs that are shorter about one in a second is reported, besides those with a checkpoint.

    Args:
        lines: of the driver's Screen, on rank 0; None on the others.
        stop: asked before, after every epoch.
        every: report the epochs that this number divides, however long they take; None for the
            above.
    """

    def __init__(self, lines: Any, stop: _StopPoll, every: int | None) -> None:
        self._lines = lines
        self._stop = stop
        self._every = every
        self._begun = False

    def __call__(self, record: EpochRecord, checkpoint: Path | None) -> None:
        import ray.train

        if not self._begun:
            self._tell(messages.TRAINING)
        self._begun = True
        if checkpoint is None:
            due = record.epoch % self._every == 0 if self._every else self._stop.met
            if not due:
                return
        else:
            self._tell(messages.CHECKPOINT)
        folder = None
        if checkpoint is not None and ray.train.get_context().get_world_rank() == 0:
            folder = reference_to(checkpoint)
        ray.train.report(
            asdict(record),
            checkpoint=folder,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )

    def _tell(self, kind: str) -> None:
        if self._lines is not None:
            self._lines.put((kind, ""))


class _StopPoll:
    """Whether this rank is asked to stop: by the driver, or because a machine will be taken away.

    Args:
        bell: of ``ray_messages``.
        listens: whether this rank asks the driver; one is enough, because the ranks agree.

    Attributes:
        leaving: why the run has to leave, if a machine of it is about to be taken away.
        met: whether the ranks have met after the newest epoch, as they do about once a second.
    """

    def __init__(self, bell: Any, *, listens: bool) -> None:
        self.leaving: str | None = None
        self.met = False
        self._bell = bell
        self._signum: int | None = None
        self._polls, self._stride = 0, 1
        self._next, self._last = 1, time.monotonic()
        if listens:
            Thread(target=self._listen, daemon=True, name="bell").start()

    def __call__(self) -> int | None:
        """See ``StopPoll``; every rank calls it after the same epochs."""
        self._polls += 1
        self.met = self._polls == self._next
        if self.met:
            self._look_for_notice()
            self._meet_again()
        if self._signum is not None:
            self.leaving = None  # the user's wish; not to be started again
            return self._signum
        return signal.SIGTERM if self.leaving else None

    def _listen(self) -> None:
        import ray

        try:
            while self._signum is None:
                self._signum = ray.get(self._bell.wait.remote(_BELL_SECONDS))
        except ray.exceptions.RayError:  # the driver is gone, and soon so is this process
            return

    def _look_for_notice(self) -> None:
        """Ask Ray whether it has been told that a machine of the run will be taken away.

        The question is a meeting of all ranks that costs milliseconds.
        """
        import ray.train

        ask = getattr(ray.train, "get_preemption_info", None)  # older releases have none
        notice = ask() if ask is not None else None
        if notice is not None:
            ranks = " and ".join(map(str, notice.preempted_ranks))
            self.leaving = f"the machine of rank {ranks} is about to be taken away"

    def _meet_again(self) -> None:
        """Agree on the epoch after which that is asked again; rank 0 says after how many."""
        from ray.train.collective import broadcast_from_rank_zero

        now = time.monotonic()
        each = (now - self._last) / self._stride
        self._stride = broadcast_from_rank_zero(
            max(1, min(_MOST_EPOCHS, int(_MEETING_SECONDS / max(each, 1e-6))))
        )
        self._last, self._next = now, self._polls + self._stride
