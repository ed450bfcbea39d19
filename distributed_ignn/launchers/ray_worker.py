"""One rank of a Ray run: what Ray Train calls in each worker process."""

from __future__ import annotations

import os
import signal
import time
import traceback
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import asdict
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
from distributed_ignn.runs.run import run_training
from distributed_ignn.training.epoch_record import EpochRecord

_NOTICE_SECONDS = 1.0
_MOST_EPOCHS = 50
_BELL_SECONDS = 60.0


def train_worker(settings: dict[str, Any]) -> None:
    """Train as one rank.

    What a user has to change and a request to stop are known to all ranks, so they all return;
    raising them would make Ray start the workers again.

    Args:
        settings: ``run`` (settings as JSON), ``lines`` and ``bell`` (of ``ray_messages``),
            ``columns`` and ``encoding`` of the driver's screen.

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
            _train(settings, rank, stop)
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


def _train(settings: dict[str, Any], rank: int, stop: _StopPoll) -> None:
    config = _continue_own_run(RunConfig.model_validate(settings["run"]), rank)
    lines = settings["lines"]
    report = _Report(lines if rank == 0 else None)

    def run(comm: Communicator) -> None:
        if comm.watchdog is not None:
            comm.watchdog.before_exit.append(lambda line: lines.put((messages.LOST, line)))
        run_training(config, comm, report, stop)

    on_this_rank(run, config.device, config.comm)


def _continue_own_run(config: RunConfig, rank: int) -> RunConfig:
    """The settings, with ``resume: auto`` when an earlier attempt of this run has failed."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    again = ray.train.get_checkpoint() is not None
    if rank == 0 and config.resume is None:
        with suppress(UserError):  # of a URL, which every rank is told when the run begins
            again = again or holds_run(config.output)
    if not broadcast_from_rank_zero(again):
        return config
    return config.model_copy(update={"resume": "auto"})


class _Report:
    """Tells Ray about a checkpoint and the epoch it belongs to; every rank calls it in step.

    Ray keeps metrics only together with a checkpoint, and each report is a barrier that may wait
    for Ray's next poll, so epochs without one are not reported.

    Args:
        lines: of the driver's Screen, on rank 0; None on the others.
    """

    def __init__(self, lines: Any) -> None:
        self._lines = lines
        self._begun = False

    def __call__(self, record: EpochRecord, checkpoint: Path | None) -> None:
        import ray.train

        if not self._begun:
            self._tell(messages.TRAINING)
        self._begun = True
        if checkpoint is None:
            return
        self._tell(messages.CHECKPOINT)
        folder = None
        if ray.train.get_context().get_world_rank() == 0:
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
    """

    def __init__(self, bell: Any, *, listens: bool) -> None:
        self.leaving: str | None = None
        self._bell = bell
        self._signum: int | None = None
        self._polls, self._stride = 0, 1
        self._next, self._last = 1, time.monotonic()
        if listens:
            Thread(target=self._listen, daemon=True, name="bell").start()

    def __call__(self) -> int | None:
        """See ``StopPoll``; every rank calls it after the same epochs."""
        self._polls += 1
        if self._polls == self._next:
            self._look_for_notice()
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

        The question is a meeting of all ranks that costs milliseconds, so it is asked about once
        a second; rank 0 says after how many epochs that is.
        """
        import ray.train
        from ray.train.collective import broadcast_from_rank_zero

        ask = getattr(ray.train, "get_preemption_info", None)  # older releases have none
        if ask is None:
            return
        notice = ask()
        if notice is not None:
            ranks = " and ".join(map(str, notice.preempted_ranks))
            self.leaving = f"the machine of rank {ranks} is about to be taken away"
        now = time.monotonic()
        each = (now - self._last) / self._stride
        self._stride = broadcast_from_rank_zero(
            max(1, min(_MOST_EPOCHS, int(_NOTICE_SECONDS / max(each, 1e-6))))
        )
        self._last, self._next = now, self._polls + self._stride
