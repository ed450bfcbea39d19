"""The output folder of a run: whose it is, and what lies where in it.

A folder that holds a run is refused, unless the run is to go on: because the user says so, or
because whoever started the ranks has started them again after a failure. The folder remembers who
that was, so that a second run with the same output is not mistaken for a second attempt.
"""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, dump_yaml
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_json, atomic_write_text
from distributed_ignn.reading.strict_json import read_json
from distributed_ignn.training.fit_check import BudgetReport
from distributed_ignn.training.rank_log import LOGS
from distributed_ignn.training.records import RunRecorder
from distributed_ignn.training.shards import ShardRecord, write_record

CHECKPOINTS = "checkpoints"
SETTINGS = "config.yaml"
BUDGET = "memory.json"
STARTER = "starter.json"


def claim(config: RunConfig, comm: Communicator) -> RunConfig:
    """Create the output folder, or take it over from an earlier attempt of the same job.

    Returns:
        The settings, with ``resume: auto`` where this is such an attempt.

    Raises:
        UserError: the folder holds another run, or cannot be written (on every rank).
    """
    again = comm.together(
        lambda: claim_output(config) if comm.is_main else False,
        doing=f"write to output = {config.output}",
        way_out="choose another --output",
    )
    if not comm.gather_json(again)[0]:
        return config
    return config.model_copy(update={"resume": "auto"})


def claim_output(config: RunConfig) -> bool:
    """Create the output folder, or refuse one that holds another run; for one process.

    Returns:
        Whether it holds an earlier attempt of this job.

    Raises:
        UserError: the folder holds a run that is not to be resumed.
        OSError: it cannot be created.
    """
    starter = job_starter()
    if (config.output / SETTINGS).exists() and config.resume is None:
        if starter is not None and starter == _recorded_starter(config.output):
            return True
        raise UserError(
            f"output = {config.output} already holds a run; choose another --output, or continue "
            "it with --resume auto"
        )
    config.output.mkdir(parents=True, exist_ok=True)
    if starter is not None:
        atomic_write_json(config.output / STARTER, {"starter": starter})
    return False


def job_starter() -> str | None:
    """What starts the ranks of this job again when one fails: the torchrun process; None without.

    Told by its host, process id and the time at which it was started, because the name that users
    give to a job may be that of an earlier one.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = os.getppid()
    try:
        # after the name in brackets, which may hold spaces: field 22 is the start time
        status = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{socket.gethostname()}:{parent}:{status[19]}"


def _recorded_starter(output: Path) -> str | None:
    try:
        found = read_json(output / STARTER)
    except (OSError, ValueError):
        return None
    return found.get("starter") if isinstance(found, dict) else None


def leave(config: RunConfig, comm: Communicator) -> None:
    """Remove what a run has written that never began, so that the next try finds the folder free.

    Shards stay: the next try can use them.
    """
    if not comm.is_main or (config.output / SETTINGS).exists():
        return
    shutil.rmtree(config.output / LOGS, ignore_errors=True)
    (config.output / STARTER).unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        config.output.rmdir()


def open_records(
    config: RunConfig,
    comm: Communicator,
    shards: ShardRecord,
    epoch: int,
    budget: BudgetReport,
) -> RunRecorder | None:
    """From here on the folder holds a run; a resumed one with the settings that now apply.

    Returns:
        The recorder of rank 0; None on the others.

    Raises:
        UserError: the folder cannot be written (on every rank).
    """

    def write() -> RunRecorder | None:
        if not comm.is_main:
            return None
        write_record(config.output, shards)
        atomic_write_json(config.output / BUDGET, budget.as_json())
        atomic_write_text(config.output / SETTINGS, dump_yaml(config))
        return RunRecorder(config.output, epoch)

    return comm.together(write, doing=f"write to output = {config.output}")
