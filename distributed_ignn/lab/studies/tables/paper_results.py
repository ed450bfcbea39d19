"""Tables 1 and 3 and Figures 2 and 6 of the IGNN-Solver paper, from the request to the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.studies.study_runs import refuse_other_data, with_settings
from distributed_ignn.lab.studies.tables.cell_training import CellTrainer
from distributed_ignn.lab.studies.tables.ray_cells import train_on_ray
from distributed_ignn.lab.studies.tables.table_cells import (
    TableCell,
    TableRequest,
    check_folders,
    plan_cells,
)
from distributed_ignn.lab.studies.tables.written_results import write_figure, write_table
from distributed_ignn.launchers.this_rank import on_this_rank


@dataclass(frozen=True, slots=True)
class PaperResult:
    """One of the paper's results.

    Args:
        size: ``large`` or ``small``: which of its datasets it is about.
        write: writes its files, of what is finished.
        runs: the table whose runs it shows, and in whose folder it is by default.
    """

    size: str
    write: Callable[[TableRequest, CellTrainer, Communicator], None]
    runs: str


RESULTS: Mapping[str, PaperResult] = {
    "table1": PaperResult("large", write_table, "table1"),
    "table3": PaperResult("small", write_table, "table3"),
    "figure2": PaperResult("large", write_figure, "table1"),
    "figure6": PaperResult("small", write_figure, "table3"),
}


def reproduce_result(request: TableRequest, processes: Mapping[str, Any]) -> None:
    """Train what is missing, and write what was asked for.

    Args:
        request: what that is.
        processes: ``workers`` or ``gpus``, where Ray is to train so many runs at a time.

    Raises:
        UserError: a mistake in the request, before anything is trained; or see ``train_on_ray``.
        IncompleteError: everything is written, and runs are missing.
        Stopped: by a signal; the same call goes on.
    """
    cells = plan_cells(request)
    asked = with_settings(cells[0].run, processes)
    trained: CellTrainer | None = None
    if processes and request.train:
        trained = _trainer(request, cells, Communicator())
        train_on_ray(trained, asked)

    def act(comm: Communicator) -> None:
        trainer = trained or _trainer(request, cells, comm)
        if request.train and not trained:
            trainer.train(comm)
        RESULTS[request.study].write(request, trainer, comm)

    on_this_rank(act, asked.device, asked.comm)


def _trainer(request: TableRequest, cells: Sequence[TableCell], comm: Communicator) -> CellTrainer:
    """Make the folder, and look at what is in it; every rank calls it."""

    def prepare() -> None:
        if comm.is_main:
            request.out.mkdir(parents=True, exist_ok=True)
            check_folders(cells)

    comm.together(prepare, doing=f"write to --out {request.out}", way_out="choose another --out")
    for cell in cells:
        refuse_other_data(cell.run, comm)
    return CellTrainer(cells, request.out, comm.is_main)
