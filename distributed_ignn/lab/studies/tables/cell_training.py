"""Trains the runs of a table one after the other, and goes on where one of them cannot be had."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import Stopped, UserError
from distributed_ignn.lab.studies.shared_shards import shards_for_all
from distributed_ignn.lab.studies.study_runs import complete_run, is_finished
from distributed_ignn.lab.studies.tables.table_cells import TableCell, on_shards
from distributed_ignn.lab.studies.tables.table_models import MODELS
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.runs.checkpoints.checkpoint_store import keep_newest
from distributed_ignn.runs.layout import CHECKPOINTS
from distributed_ignn.runs.run import Conduct
from distributed_ignn.training.epoch_record import EpochRecord

_TELL_SECONDS = 30.0


@dataclass(slots=True)
class CellTrainer:
    """Trains cells, and knows which of them cannot be had and why.

    Args:
        cells: all of the table.
        out: its folder.
        shows: whether this process says how it goes.

    Attributes:
        missing: why there is no run, by cell.
    """

    cells: Sequence[TableCell]
    out: Path
    shows: bool
    missing: dict[TableCell, str] = field(default_factory=dict)
    _unread: dict[str, str] = field(default_factory=dict)
    _console: Console = field(default_factory=lambda: Console(highlight=False))
    _started: float = field(default_factory=time.perf_counter)

    def begin(self, cell: TableCell) -> None:
        """Say which cell is next."""
        place = f"{self.cells.index(cell) + 1} of {len(self.cells)}"
        self.say(f"run {place}: {cell.name}; {time.perf_counter() - self._started:.0f} s so far")

    def give_up(self, cell: TableCell, reason: str) -> None:
        """Leave a cell out."""
        self.missing[cell] = reason
        self.say(f"{cell.name} is left out: {reason}")

    def say(self, text: str) -> None:
        """One line for people."""
        if self.shows:
            self._console.print(text, soft_wrap=True, markup=False)

    def sharded(self, cell: TableCell, comm: Communicator) -> RunConfig | None:
        """The run with the shards of its dataset; None where that cannot be read.

        Data that could not be read once are not asked for again.
        """
        key = _key(cell)
        if key not in self._unread:
            try:
                return on_shards(cell.run, shards_for_all(cell.run, self.out, comm))
            except UserError as error:  # on every rank alike
                self._unread[key] = str(error)
                alike = (each.model for each in self.cells if _key(each) == key)
                models = ", ".join(dict.fromkeys(MODELS[model].label for model in alike))
                self.say(f"{Path(cell.dataset).stem} ({models}) is left out: {error}")
        self.missing[cell] = self._unread[key]
        return None

    def train(self, comm: Communicator) -> None:
        """Train all that is not finished, on all ranks of the job; every rank calls it.

        Raises:
            Stopped: some rank was asked to stop; the same call goes on.
        """
        for cell in self.cells:
            if _is_finished_for_all(cell, comm):
                _tidy(cell.run.output / CHECKPOINTS, comm)  # it may have been stopped at its end
                continue
            run = self.sharded(cell, comm)
            if run is None:
                continue
            self.begin(cell)
            reason = train_cell(comm, run, shows=self.shows)
            if reason is not None:
                self.give_up(cell, reason)


def _key(cell: TableCell) -> str:
    """Cells of one key read the same data."""
    return cell.dataset + cell.run.data.model_dump_json()


def _is_finished_for_all(cell: TableCell, comm: Communicator) -> bool:
    """What the first rank sees; other machines need not see the folder."""
    found: list[bool | None] = comm.gather_json(is_finished(cell.run) if comm.is_main else None)
    return bool(found[0])


def train_cell(
    comm: Communicator, run: RunConfig, *, shows: bool = False, owns_process: bool = True
) -> str | None:
    """Train a run from where a former call has left it; every rank calls it.

    Args:
        comm: this rank's communicator.
        run: with absolute paths and shards.
        shows: whether this process says how far it is.
        owns_process: see ``Conduct``.

    Returns:
        Why it came to nothing, on every rank alike; None where it is finished.

    Raises:
        Stopped: some rank was asked to stop; a checkpoint is written.
    """
    progress = _Epochs(run.train.epochs, shows=shows)
    try:
        complete_run(run, comm, progress, Conduct(False, owns_process))
        _tidy(run.output / CHECKPOINTS, comm)
    except UserError as error:
        return str(error)
    except torch.OutOfMemoryError as error:
        if comm.world_size > 1:
            raise  # the other ranks wait for this one
        return f"out of memory: {in_one_line(error)}"
    except Stopped as stopped:
        told = f"stopped by {Stopped.name(stopped.signum)}; the same command goes on from here"
        raise Stopped(stopped.signum, told) from stopped
    finally:
        gc.collect()  # a model and its hooks refer to each other
        torch.cuda.empty_cache()  # nothing where CUDA has not been used
    return None


def _tidy(checkpoints: Path, comm: Communicator) -> None:
    """Keep of a finished run what predictions and figures read; a table has many of them."""
    comm.together(
        lambda: keep_newest(checkpoints) if comm.is_main else None, doing=f"tidy {checkpoints}"
    )


class _Epochs:
    """Says now and then how far a run has come.

    Args:
        epochs: of the run.
        shows: whether this process says anything.
    """

    def __init__(self, epochs: int, *, shows: bool) -> None:
        self._epochs, self._shows = epochs, shows
        self._told = time.perf_counter()

    def __call__(self, record: EpochRecord, checkpoint: Path | None) -> None:
        """See ``EpochHook``."""
        now = time.perf_counter()
        if not self._shows or now - self._told < _TELL_SECONDS:
            return
        self._told = now
        val = "" if record.val_metric is None else f", validation {record.val_metric:.4f}"
        print(f"  epoch {record.epoch} of {self._epochs}{val}", flush=True)
