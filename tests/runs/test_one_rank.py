"""A mistake that one rank alone meets, on its machine, is told in the same line on every rank."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.runs import run
from distributed_ignn.runs.output.rank_log import log_path
from distributed_ignn.runs.spool import attempt
from tests.ranks import run_ranks

LACKING = UserError("not installed here")


def _lacking(comm: Communicator, part: object, name: str) -> AbstractContextManager[Any]:
    return patch.object(part, name, side_effect=LACKING) if comm.rank == 1 else nullcontext()


def _line(output: Path, comm: Communicator) -> str:
    settings = {"output": output, "device": "cpu", "quiet": True}
    train = {"epochs": 1, "threads": 1}
    chains = {"chains_per_class": 2, "length": 3}
    config = RunConfig.model_validate(
        {"dataset": "chains", "data": {"chains": chains}, "train": train, **settings}
    )
    try:
        run.run_training(config, comm)
    except UserError as error:
        return str(error)
    return ""


def _lines(comm: Communicator, folder: Path) -> dict[str, str]:
    found = {}
    for part, name in ((run, "choose_kernel"), (attempt, "expect"), (run, "check_loggers")):
        with _lacking(comm, part, name):
            found[name] = _line(folder / name, comm)
    if comm.rank == 1:
        log_path(folder / "log", 1).mkdir(parents=True)
    comm.barrier()
    found["log"] = _line(folder / "log", comm)
    return found


def test_every_rank_says_what_one_has_met(tmp_path: Path) -> None:
    reports = run_ranks(_lines, 2, tmp_path, timeout=90, limit=30)
    assert reports[0] == reports[1]
    place = log_path(tmp_path / "log", 1)
    assert reports[0] == {
        "choose_kernel": str(LACKING),
        "expect": str(LACKING),
        "check_loggers": "",  # rank 0 alone tells loggers anything
        "log": f"cannot write to {place}: Is a directory",
    }
