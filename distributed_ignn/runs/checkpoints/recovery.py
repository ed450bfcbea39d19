"""Going back to a checkpoint when numbers go bad (``train.on_bad_numbers`` rollback).

That is the last whose solves converged: weights whose map has no fixed point within reach are often
weights from which every course leads to bad numbers, whatever its steps.

The retry starts from what is on disk, with a smaller learning rate and, if asked, a tighter bound.
Both are part of the state, which is written at once: a run that is killed after a rollback goes on
with the same numbers. Dropout masks depend on seed and epoch alone, so the retry differs from the
first try in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distributed_ignn.runs.checkpoints.checkpoint import (
    Snapshot,
    checkpoint_name,
    checkpoint_names,
    load_newest,
)
from distributed_ignn.runs.checkpoints.snapshot import restore
from distributed_ignn.runs.spool.places import Places
from distributed_ignn.training.numbers import NumbersError
from distributed_ignn.training.trainer import Trainer


def roll_back(trainer: Trainer, fault: NumbersError, snapshot: Snapshot) -> None:
    """Go back to ``snapshot`` and on from there with a smaller step.

    Raises:
        UserError: there were too many rollbacks; or see ``restore``.
    """
    factor = trainer.guard.roll_back(fault)
    # rollbacks are counted, and the clock runs on
    restore(trainer, snapshot, {"numbers": trainer.guard.go_back, "seconds": lambda state: None})
    trainer.tighten(factor)
    # as a run does that is resumed from here
    trainer.model.reset_links()
    trainer.guard.announce_rollback(fault, trainer.epoch)


class Recovery:
    """Carries out rollbacks; every rank calls it alike.

    Args:
        trainer: in the state that the run begins with.
        folder: of the checkpoints.
        save: writes one of the trainer's present state.
        settle: waits for one that is being written.
        rewind: told the epoch that the run has gone back to, to drop later records.
        places: of the attempt.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        save: Callable[[], object],
        settle: Callable[[], object],
        rewind: Callable[[int], None],
        places: Places,
    ) -> None:
        self._trainer = trainer
        self._folder = folder
        self._save = save
        self._settle = settle
        self._rewind = rewind
        self._places = places

    def begin(self) -> None:
        """See to it that the newest checkpoint is the present state, if rollbacks may come.

        A fresh run writes epoch 0. One that was resumed from an older checkpoint writes that again,
        which removes those of the course that it has left.
        """
        trainer, comm = self._trainer, self._trainer.comm
        if trainer.guard.policy != "rollback":
            return
        names = checkpoint_names(self._folder, comm)
        if names[-1:] != [checkpoint_name(trainer.epoch)]:
            self._save()

    def on_fault(self, fault: NumbersError) -> None:
        """Restore the last checkpoint whose solves converged, scaled, and write it again.

        Without one it is the last.

        Raises:
            UserError: too many rollbacks, or the checkpoint cannot be read or written.
        """
        trainer = self._trainer
        with trainer.comm.activity.phase("going back to a checkpoint"):
            self._settle()
            nodes = trainer.shard.owned_nodes
            snapshot = load_newest(self._folder, trainer.comm, nodes, self._places, converged=True)
            if snapshot is None:
                raise fault
            roll_back(trainer, fault, snapshot)
            self._save()
            self._rewind(trainer.epoch)
