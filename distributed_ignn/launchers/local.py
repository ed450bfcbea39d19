"""A Python function on several ranks of this machine: from a script, a notebook or a Ray task.

Every rank is a fresh interpreter that imports the function by its name and nothing of the caller's
script, so that neither a ``__main__`` guard is needed nor a cell runs twice. Ranks die with the
caller, also when it is killed.
"""

from __future__ import annotations

import ctypes
import math
import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distributed_ignn.cli import leave
from distributed_ignn.config import CommConfig
from distributed_ignn.errors import JobError, Stopped, UserError
from distributed_ignn.launchers.local_job import Job, RanksFailed, run_job
from distributed_ignn.launchers.this_rank import on_this_rank
from distributed_ignn.resident import use_huge_pages

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_TASK = "task"


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a rank raised.

    Args:
        error: where it is meant for users.
        trace: of anything else.
    """

    error: UserError | JobError | Stopped | None
    trace: str = ""


def run_local(
    action: Callable[..., Any],
    ranks: int,
    *args: Any,
    device: str = "cpu",
    comm: CommConfig | None = None,
    threads: int = 1,
    timeout: float = math.inf,
    show: bool = False,
) -> list[Any]:
    """What ``action(comm, *args)`` returns on each of ``ranks`` new processes.

    Args:
        action: importable from a module, not defined in a script or a notebook.
        ranks: processes to start, also for a single one, so that its memory is its own.
        args: the same for every rank; they and the results must pickle.
        device: auto, cpu or cuda, see ``choose_device``.
        comm: how the ranks talk; the defaults if None.
        threads: CPU threads of each rank's libraries.
        timeout: seconds for everything.
        show: let the ranks print, instead of nothing.

    Raises:
        UserError, Stopped: a rank raised it; or ``action`` is not importable, or the time is up.
        JobError: a rank was lost, as when memory runs out.
        RuntimeError: a rank raised anything else; its stack trace is the message.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        task = action, args, device, comm or CommConfig()
        (folder / _TASK).write_bytes(_pickled(action, task))
        command = sys.executable, "-P", "-m", __name__, name
        search = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        job = Job(command, ranks, timeout, threads, show, {"PYTHONPATH": search})
        try:
            run_job(job)
        except RanksFailed as failed:
            raise _reason(failed, folder, ranks) from failed
        return [_load(folder / f"{rank}") for rank in range(ranks)]


def _pickled(action: Callable[..., Any], task: tuple[Any, ...]) -> bytes:
    if getattr(action, "__module__", None) == "__main__":
        raise UserError(
            f"{action.__name__} is defined in a script or notebook, where other processes cannot "
            "find it; put it into a module and import it from there"
        )
    return pickle.dumps(task)


def _load(path: Path) -> Any:
    return pickle.loads(path.read_bytes())  # noqa: S301 - written by this job, in its own folder


def _reason(failed: RanksFailed, folder: Path, ranks: int) -> Exception:
    """What to raise: a rank's own reason, then a death, and last what ranks saw of either."""
    paths = [folder / f"{rank}" for rank in range(ranks)]
    reports = {rank: _load(path) for rank, path in enumerate(paths) if path.exists()}
    failures = {rank: found for rank, found in reports.items() if isinstance(found, _Failure)}
    for rank, failure in failures.items():
        if failure.error is None:
            return RuntimeError(f"rank {rank} of {ranks} failed:\n{failure.trace}")
        if not isinstance(failure.error, JobError):
            return failure.error
    if any(code < 0 for code in failed.codes.values()):
        return JobError(f"{failed}, as when memory runs out")
    for failure in failures.values():
        return JobError(str(failure.error))  # of which the caller has not been told yet
    return JobError(str(failed)) if failed.codes else failed


def _be_a_rank(folder: Path) -> int:
    """Do the task and write what comes of it; the exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    use_huge_pages()
    action, args, device, settings = _load(folder / _TASK)
    code = 0
    try:
        content = pickle.dumps(on_this_rank(partial(_call, action, args), device, settings))
    except (UserError, JobError, Stopped) as error:
        code, content = 1, pickle.dumps(_Failure(error))
    except Exception:
        code, content = 1, pickle.dumps(_Failure(None, traceback.format_exc()))
    path = folder / os.environ["RANK"]
    path.with_suffix(".tmp").write_bytes(content)
    path.with_suffix(".tmp").rename(path)
    return code


def _call(action: Callable[..., Any], args: tuple[Any, ...], comm: Any) -> Any:
    return action(comm, *args)


if __name__ == "__main__":
    from distributed_ignn.launchers import local  # so that a failure has the module's own class

    leave(local._be_a_rank(Path(sys.argv[1])))
