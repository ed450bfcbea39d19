"""The output folder of a run: whose it is, and what lies where in it.

A folder that holds a run is refused, unless the run is to go on: because the user says so, or
because whoever started the ranks has started them again after a failure. The folder remembers who
that was on every machine, any of which may be lost, so that a second run with the same output is
not mistaken for a second attempt.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, dump_yaml, load_yaml
from distributed_ignn.config.dotted import differences
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_json, atomic_write_text
from distributed_ignn.reading.strict_json import read_json
from distributed_ignn.runs.layout import LOGS, SETTINGS
from distributed_ignn.runs.memory.budget_check import BudgetReport
from distributed_ignn.runs.output.lock import OutputLock
from distributed_ignn.runs.output.records import SUMMARY, RunRecorder
from distributed_ignn.runs.shard_record import ShardRecord, write_record
from distributed_ignn.runs.spool.attempt import Attempt, stated
from distributed_ignn.runs.spool.places import Places
from distributed_ignn.runs.spool.run_place import RunPlace
from distributed_ignn.urls.object_store import ObjectStore
from distributed_ignn.urls.url import Url

BUDGET = "memory.json"
STARTER = "starter.json"
_STARTERS, _FROM = "starters", "from"
_PATIENCE_SECONDS, _LEAVING_SECONDS = 120.0, 10.0

# outputs that this process has claimed: its ranks have not been started again since
_claimed: set[Path] = set()


@contextmanager
def claimed(
    config: RunConfig, comm: Communicator, attempt: Attempt | None = None
) -> Iterator[RunConfig]:
    """Create the output folder, or take it over from an earlier attempt of the same job.

    Other runs are kept out of it until the end of ``with``.

    Args:
        config: the run.
        comm: this rank's communicator.
        attempt: that this is, where the settings name URLs.

    Yields:
        The settings, with ``resume: auto`` where this is such an attempt.

    Raises:
        UserError: the folder holds another run, is in use by one, or cannot be written (on every
            rank).
    """
    attempt = attempt or Attempt(config, Places(comm))
    starters = sorted({starter for starter in comm.gather_json(job_starter()) if starter})
    lock: OutputLock | RunPlace = attempt.output or OutputLock(config.output)
    try:
        again = attempt.places.wait(
            lambda: _claim(config, lock, starters),
            works=comm.is_main,
            doing=f"write to output = {config.output}",
            way_out="choose another --output",
        )
        again = comm.gather_json(again)[0]
        yield config.model_copy(update={"resume": "auto"}) if again else config
    finally:
        if isinstance(lock, OutputLock):  # of a URL, what is left is sent first
            lock.release()
        if comm.is_main:
            with suppress(OSError):  # not empty: a run has begun
                config.output.rmdir()


def _claim(config: RunConfig, lock: OutputLock | RunPlace, starters: Sequence[str]) -> bool:
    """Whether it is an earlier attempt of this job."""
    goes_on = make_output(config, starters) or config.resume is not None
    # ranks of an attempt that was given up may be on a machine that lost its network: they end when
    # they notice that
    patience = (config.comm.hang_seconds or _PATIENCE_SECONDS) + _LEAVING_SECONDS
    lock.take(patience if goes_on else 0.0)
    again = make_output(config, starters)  # once more, now that nobody else changes it
    if starters:
        named = isinstance(config.resume, Path) and not again
        begins = {_FROM: str(config.resume)} if named else {}
        atomic_write_json(config.output / STARTER, {_STARTERS: list(starters), **begins})
    _claimed.add(config.output.absolute())
    return again


def make_output(config: RunConfig, starters: Sequence[str] | None = None) -> bool:
    """Create the output folder, or refuse one that holds another run; so of a URL.

    Args:
        config: the run.
        starters: see ``is_earlier_attempt``.

    Returns:
        Whether it holds an earlier attempt of this job.

    Raises:
        UserError: the folder holds a run that is not to be resumed.
        OSError: it cannot be created.
    """
    url = config.output if isinstance(config.output, Url) else None
    if config.resume != "auto" and url is None and is_earlier_attempt(config.output, starters):
        return True
    if config.resume is None and holds_run(config.output):
        raise UserError(
            f"output = {config.output} already holds a run; choose another --output, or continue "
            "it with --resume auto"
        )
    if url is not None:
        ObjectStore(url).probe()
    else:
        config.output.mkdir(parents=True, exist_ok=True)
    return False


def check_output(config: RunConfig) -> None:
    """Create the output folder, before the ranks of a run are started; of a URL there is none.

    Ranks on Ray take settings that they find there for those of a crashed attempt of their own.

    Raises:
        UserError: it holds another run or cannot be written.
    """
    try:
        make_output(config)
    except OSError as error:
        raise UserError(f"cannot write to output = {config.output}: {error.strerror}") from error


def holds_run(output: Path) -> bool:
    """Whether a run has begun in a folder, or at a URL.

    Raises:
        UserError: the URL refuses, or does not answer.
    """
    if isinstance(output, Url):
        return ObjectStore(output).exists(SETTINGS)
    return (output / SETTINGS).exists()


def is_earlier_attempt(output: Path, starters: Sequence[str] | None = None) -> bool:
    """Whether a folder holds a run of this very job, whose ranks have been started again.

    A run that began from a named checkpoint is none before it has one of its own: until then, the
    newest in the folder may be of the course that it left.

    Args:
        output: the folder.
        starters: of all ranks (``job_starter``), one of which has to be known there; that of this
            process by default.
    """
    if output.absolute() in _claimed or not (output / SETTINGS).exists():
        return False
    own = {job_starter()} if starters is None else set(starters)
    record = _starter_record(output)
    known = record.get(_STARTERS)
    return isinstance(known, list) and not own.isdisjoint(known) and _FROM not in record


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


def _starter_record(output: Path) -> dict[str, Any]:
    try:
        found = read_json(output / STARTER)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def forget_named_checkpoint(output: Path) -> None:
    """From here on a later attempt of this job goes on from the newest checkpoint.

    Raises:
        OSError: the folder cannot be written.
    """
    record = _starter_record(output)
    if record.pop(_FROM, None) is not None:
        atomic_write_json(output / STARTER, record)


def leave(config: RunConfig, comm: Communicator) -> None:
    """Remove what a run has written that never began, so that the next try finds the folder free.

    Shards stay: the next try can use them.
    """
    if not comm.is_main or (config.output / SETTINGS).exists():
        return
    shutil.rmtree(config.output / LOGS, ignore_errors=True)
    (config.output / STARTER).unlink(missing_ok=True)


def changed_settings(config: RunConfig) -> list[str]:
    """What differs from the settings that the run in the output folder has had so far."""
    try:
        return differences(config, load_yaml(config.output / SETTINGS))
    except (UserError, OSError):  # there is none, or it is of another version
        return []


def open_records(
    config: RunConfig,
    comm: Communicator,
    shards: ShardRecord,
    epoch: int,
    budget: BudgetReport,
    attempt: Attempt | None = None,
    *,
    to_come: bool = True,
) -> RunRecorder | None:
    """From here on the folder holds a run; a resumed one with the settings that now apply.

    The summary of the course before goes, if epochs are to come: it would pass for that of the new
    one, which may never come to its end.

    Args:
        config: the run.
        comm: this rank's communicator.
        shards: that it reads.
        epoch: at which it begins.
        budget: what it is expected to hold in memory.
        attempt: that this is, where the settings name URLs.
        to_come: whether there are epochs to train.

    Returns:
        The recorder of rank 0; None on the others.

    Raises:
        UserError: the folder cannot be written (on every rank).
    """
    attempt = attempt or Attempt(config, Places(comm))
    as_given = stated(config, attempt.places)

    def write() -> RunRecorder | None:
        if not comm.is_main:
            return None
        if to_come:
            (config.output / SUMMARY).unlink(missing_ok=True)
        write_record(config.output, shards)
        atomic_write_json(config.output / BUDGET, budget.as_json())
        atomic_write_text(config.output / SETTINGS, dump_yaml(as_given))
        settings = as_given.model_dump(mode="json")
        return RunRecorder(config.output, epoch, loggers=config.train.loggers, settings=settings)

    doing = f"write to output = {config.output}"
    recorder = comm.together(write, doing=doing)
    attempt.begin()
    place = attempt.output
    if place is not None:

        def send() -> None:
            if to_come and comm.is_main:
                place.withdraw(SUMMARY)
            place.push_records()

        attempt.places.wait(send, doing=doing)
    return recorder
