"""The epochs of a run: what is written after each, and its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distributed_ignn.cli import LOG_ONLY
from distributed_ignn.errors import Stopped
from distributed_ignn.runs.checkpoints.checkpoint_store import CheckpointStore
from distributed_ignn.runs.checkpoints.recovery import Recovery
from distributed_ignn.runs.checkpoints.snapshot import take_snapshot
from distributed_ignn.runs.layout import CHECKPOINTS
from distributed_ignn.runs.memory.budget_check import BudgetReport
from distributed_ignn.runs.output.folder import forget_named_checkpoint
from distributed_ignn.runs.output.progress import Progress
from distributed_ignn.runs.output.records import RunRecorder
from distributed_ignn.runs.shard_record import ShardRecord
from distributed_ignn.runs.spool.attempt import Attempt
from distributed_ignn.runs.stopping import StopPoll
from distributed_ignn.runs.summary import summarise
from distributed_ignn.training.epoch_record import EpochRecord
from distributed_ignn.training.numbers import warn_unconverged
from distributed_ignn.training.trainer import Trainer

logger = logging.getLogger(__name__)

EpochHook = Callable[[EpochRecord, Path | None], None]
"""Told each epoch's record: with its checkpoint where that is there before the next epoch begins,
else with None. Where one is written in the background, it is told again once that is there.

Called on every rank, in the same order.
"""


@dataclass(slots=True, eq=False)
class PreparedRun:
    """Holds a run that is ready for its next epoch."""

    trainer: Trainer
    shards: ShardRecord
    budget: BudgetReport
    attempt: Attempt


class RunSession:
    """Goes through the epochs of a run, what is written after each, and its end.

    Args:
        run: what to train.
        recorder: of rank 0.
        progress: for people.
        hook: told every epoch, or None.
        until: the epoch at which to pause; None for none.
    """

    def __init__(
        self,
        run: PreparedRun,
        recorder: RunRecorder | None,
        progress: Progress,
        hook: EpochHook | None,
        until: int | None = None,
    ) -> None:
        self._run = run
        self._until = until
        self._trainer = run.trainer
        self._config = run.trainer.config
        self._comm = run.trainer.comm
        self._recorder = recorder
        self._progress = progress
        self._hook = hook
        self._places = run.attempt.places
        self._store = CheckpointStore(
            self._config.output / CHECKPOINTS,
            self._comm,
            self._config.train.keep_checkpoints,
            self._places,
            run.attempt.output,
        )
        self._newest: EpochRecord | None = None  # whose checkpoint is being written
        asked = self._config.train.async_checkpoints
        # a checkpoint that the run goes on from, which its first own one takes the place of
        self._from_named = isinstance(self._config.resume, Path)
        on_gpu = self._comm.device.type == "cuda"
        self._in_background = on_gpu if asked == "auto" else asked == "true"

    def fit(self, polls: list[StopPoll]) -> None:
        """Train until the last epoch or a pause, or until some rank is asked to stop.

        Raises:
            Stopped: it was, and a checkpoint is written.
        """
        recovery = Recovery(
            self._trainer,
            self._config.output / CHECKPOINTS,
            save=lambda: self._save(None, wait=True),
            settle=self._settle,
            rewind=self._rewind,
            places=self._places,
        )
        recovery.begin()
        after = partial(self._after, polls=polls)
        self._trainer.fit(after, recovery.on_fault, self._until)

    def _after(self, record: EpochRecord, polls: list[StopPoll]) -> None:
        """Write, show and decide what has to be after an epoch."""
        if self._recorder is not None:
            self._recorder.epoch(record)
        self._progress.epoch(record)
        figures = (record.loss, record.val_metric, record.residual, record.seconds)
        line = "loss %s, validation %s, residual %s, %.2f s"
        logger.info(line, *figures, extra=LOG_ONLY)
        signum, written = self._agree(polls)
        if written:
            self._publish()
        finished = self._trainer.finished
        last = finished or bool(signum) or record.epoch == self._until
        saves = last or record.epoch % self._config.train.checkpoint_every == 0
        waits = last or not self._in_background
        if self._hook is not None and not (saves and waits):
            self._hook(record, None)
        if saves:
            self._save(record, wait=waits)
        if signum and not finished:
            raise Stopped(
                signum,
                f"stopped by {Stopped.name(signum)} after epoch {record.epoch} with a "
                "checkpoint; go on with --resume auto",
            )

    def _rewind(self, epoch: int) -> None:
        """Drop the records after ``epoch``: the run has gone back to it, and writes them again."""
        self._comm.together(
            lambda: self._recorder.rewind(epoch) if self._recorder is not None else None,
            doing=f"write to output = {self._config.output}",
        )

    def _agree(self, polls: list[StopPoll]) -> tuple[int, bool]:
        """Let all ranks know the same after an epoch.

        Returns:
            The signal that some rank was asked to stop by, or 0; and whether every rank has written
            its part of a checkpoint.

        Raises:
            UserError: rank 0 cannot write its records (on every rank).
        """
        own = max((poll() or 0 for poll in polls), default=0)
        problem = self._recorder.problem if self._recorder is not None else None
        known = torch.tensor([own, int(problem is not None), int(not self._store.written)])
        signum, failed, unfinished = self._comm.max(known).tolist()
        if failed:
            self._comm.agree(problem)
        return int(signum), not unfinished

    def _settle(self) -> None:
        """Leave no checkpoint half written."""
        if self._store.writing:
            self._publish()

    def _save(self, record: EpochRecord | None, *, wait: bool) -> None:
        """Begin a checkpoint after the one before, and wait until it is there if that is asked.

        Args:
            record: of its epoch, for the hook; None if that need not know.
            wait: see above.
        """
        self._settle()
        trainer = self._trainer
        with self._comm.activity.phase("writing a checkpoint"):
            snapshot = take_snapshot(trainer)
            if not wait:
                snapshot = snapshot.apart()
            self._store.begin(trainer.epoch, snapshot, trainer.shard.owned_nodes)
        self._newest = record
        # a run resumed from here begins like this too
        trainer.model.reset_links()
        if wait:
            self._publish()

    def _publish(self) -> None:
        """Finish the checkpoint that is being written."""
        with self._comm.activity.phase("writing a checkpoint"):
            path = self._places.origin(self._store.finish())
            if self._from_named:
                self._take_own_course()
        logger.info("wrote %s", path, extra=LOG_ONLY)
        if self._hook is not None and self._newest is not None:
            self._hook(self._newest, path)

    def _take_own_course(self) -> None:
        """Let an attempt after this one go on from what this one has written."""
        output = self._config.output
        place = self._run.attempt.output

        def forget() -> None:
            forget_named_checkpoint(output)
            if place is not None:
                place.push_records()

        self._places.wait(forget, works=self._comm.is_main, doing=f"write to output = {output}")
        self._from_named = False

    def finish(self) -> dict[str, Any]:
        """Evaluate on the test nodes, and write the summary."""
        budget, recorder = self._run.budget, self._recorder
        with self._comm.activity.phase("evaluating on the test nodes"):
            summary = summarise(self._trainer) | {
                "memory_budget_bytes": budget.total,
                "memory_bound_bytes": budget.bound,
            }
        self._comm.together(
            lambda: recorder.summary(summary) if recorder is not None else None,
            doing=f"write to output = {self._config.output}",
        )
        output = self._run.attempt.output
        if output is not None:
            with self._comm.activity.phase("sending what is left"):
                self._places.wait(output.push_records)
        return summary

    def show(self, summary: dict[str, Any]) -> None:
        """Show the summary."""
        self._progress.close()
        self._progress.table(summary, self._places.origin(self._config.output))
        warn_unconverged(summary, self._config)

    def close(self) -> None:
        """Leave terminal and files as they should be."""
        self._progress.close()
        self._store.close()
        if self._recorder is not None:
            self._recorder.close()
