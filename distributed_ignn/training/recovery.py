"""Going back to the last checkpoint when numbers go bad (``train.on_bad_numbers`` rollback).

The retry starts from what is on disk, with a smaller learning rate and, if asked, a tighter bound.
Both are part of the state, which is written at once: a run that is killed after a rollback goes on
with the same numbers. Dropout masks depend on seed and epoch alone, so the retry differs from the
first try in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distributed_ignn.training.checkpoint import CheckpointStore, load_checkpoint
from distributed_ignn.training.numbers import NumbersError
from distributed_ignn.training.trainer import Trainer


class Recovery:
    """Carries out rollbacks; every rank calls it alike.

    Args:
        trainer: in the state that the run begins with.
        store: of the run's checkpoints.
        last: the checkpoint that the run was resumed from; None for a fresh one, whose first state
            is then written as epoch 0 if it may be needed.
        rewind: told the epoch that the run has gone back to, to drop later records.
    """

    def __init__(
        self,
        trainer: Trainer,
        store: CheckpointStore,
        last: Path | None,
        rewind: Callable[[int], None],
    ) -> None:
        self._trainer = trainer
        self._store = store
        self._rewind = rewind
        self.last = last
        if last is None and trainer.guard.policy == "rollback":
            self._save()

    def on_fault(self, fault: NumbersError) -> None:
        """Restore the last checkpoint, scaled, and write it again.

        Raises:
            UserError: too many rollbacks, or the checkpoint cannot be read or written.
        """
        trainer, path = self._trainer, self.last
        if path is None:
            raise fault
        nodes = trainer.shard.owned_nodes
        snapshot = trainer.comm.together(lambda: load_checkpoint(path, trainer.comm, nodes))
        trainer.roll_back(fault, snapshot)
        self._save()
        self._rewind(trainer.epoch)

    def _save(self) -> None:
        trainer = self._trainer
        self.last = self._store.save(trainer.epoch, trainer.snapshot(), trainer.shard.owned_nodes)
