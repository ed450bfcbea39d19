"""What a rank does for a search: train a trial's run up to a rung, in a folder of its own.

The run is one of ``ignn train`` that pauses there with a checkpoint. It evaluates nothing on the
test nodes and writes no summary, also where it comes to its end.
"""

from __future__ import annotations

import math
import signal
import time
from dataclasses import dataclass
from typing import Any

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import Stopped, UserError
from distributed_ignn.lab.studies.study_runs import is_same_run, with_settings
from distributed_ignn.runs.run import Conduct, run_training

_TIME_IS_UP = signal.SIGXCPU  # nobody sends it: by it all ranks know which of them asks, and why


@dataclass(frozen=True, slots=True)
class Rung:
    """A run, and how far to train it.

    Args:
        run: its settings, with absolute paths; ``run.output`` is its folder.
        until: the epoch at which to pause.
        limit: seconds after which to give it up; infinity for no limit.
    """

    run: RunConfig
    until: int
    limit: float = math.inf

    def as_json(self) -> dict[str, Any]:
        """For a process that knows no infinity."""
        limit = None if math.isinf(self.limit) else self.limit
        return {"run": self.run.model_dump(mode="json"), "until": self.until, "limit": limit}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Rung:
        """What ``as_json`` gave."""
        limit = math.inf if found["limit"] is None else found["limit"]
        return cls(RunConfig.model_validate(found["run"]), found["until"], limit)


def train_rung(comm: Communicator, rung: Rung, owns_process: bool = False) -> dict[str, Any]:
    """Train a run up to a rung, from where a former call has left it; every rank calls it.

    Args:
        comm: this rank's communicator.
        rung: the same on every rank.
        owns_process: whether the process is there for the search alone, see ``Conduct``.

    Returns:
        On every rank: ``standing`` and ``seconds``; or ``failure``, why it came to nothing.

    Raises:
        Stopped: some rank was asked to stop; a checkpoint is written.
        JobError: another rank was lost.
    """
    late = _Late(rung.limit)
    conduct = Conduct(shows=False, owns_process=owns_process, more_follows=True)
    try:
        begun = comm.together(lambda: is_same_run(rung.run))
        run = with_settings(rung.run, {"resume": "auto"}) if begun else rung.run
        found = run_training(run, comm, stop=late, conduct=conduct, until=rung.until)
    except UserError as error:  # on every rank alike
        return {"failure": str(error)}
    except Stopped as stopped:
        if stopped.signum != _TIME_IS_UP:
            raise
        return {"failure": f"given up after {late.seconds:.0f} s, no time was left for it"}
    return {**found, "seconds": late.seconds}


class _Late:
    """A ``StopPoll`` that asks for the end of a run once its time is up.

    Args:
        limit: seconds from now.
    """

    def __init__(self, limit: float) -> None:
        self._started, self._limit = time.perf_counter(), limit

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    def __call__(self) -> int | None:
        """See ``StopPoll``."""
        return _TIME_IS_UP if self.seconds > self._limit else None
