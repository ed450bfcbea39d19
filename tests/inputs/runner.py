"""Runs cases, each as a process of its own, and looks at what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Self

from tests.inputs.case import Case, Outcome
from tests.inputs.place import CHAINS, DIVIDED, MODEL, RUN, SHARDS, Place

ROOT = Path(__file__).resolve().parents[2]
_LAUNCH = ROOT / "launch"
_MARK = "IGNN_INPUT_CASE"
_GRACE_SECONDS = 3.0
_COMMAND_LENGTH = 100  # of a process left behind, in a message
_NOWHERE = "http://127.0.0.1:9"
_TRAIN = (
    f"train.py {CHAINS} {MODEL} --train.epochs 2 --train.checkpoint-every 1 "
    f"--schedule.warmup-epochs 1 --output {RUN}"
)
_PARTITION = f"partition.py {DIVIDED} --parts 2 --out {SHARDS}"


class Runner:
    """Runs cases below a folder; a context, which ends the process that it forks from.

    Args:
        folder: where the cases run, and where the files lie that they copy.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stock = folder / "stock"
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.inputs.server"]
        environment = self.environment()
        self._server = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._stock.mkdir(parents=True)
        if self._answer() != "ready":
            raise AssertionError("the process to fork from did not start")
        for command_line in (_TRAIN, _PARTITION):
            prepared = self._fork(_split(command_line), self._stock, environment, 60.0)
            if prepared[0] != 0:
                raise AssertionError(f"{command_line}: {(self._folder / 'stock.err').read_text()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.communicate()

    def environment(self) -> dict[str, str]:
        """Of every case: nothing of this shell but what finds programs; no network."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return kept | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(self._folder / "cache"),
            "COLUMNS": "100",
            "RAY_AUTH_MODE": "disabled",  # leaves no token in the home folder
            **dict.fromkeys(("http_proxy", "https_proxy"), _NOWHERE),
        }

    def run(self, case: Case) -> Outcome:
        """Prepare the files of ``case``, run it, and look around."""
        name = re.sub(r"\W+", "-", case.name)
        place = Place(self._folder / name, self._stock)
        place.folder.mkdir()
        case.spoil(place)
        before = _listing(place.folder)
        mark = uuid.uuid4().hex
        environment = self.environment() | dict(case.environment) | {_MARK: mark}
        command = [text.replace("{folder}", str(place.folder)) for text in _split(case.command)]
        started = time.monotonic()
        code: int | str
        if case.ranks:
            code, session, errors = self._torchrun(case, command, place.folder, environment)
        elif case.fresh:
            program = [sys.executable, *command]
            code, session = _start(program, place.folder, environment, case.seconds)
            errors = _errors(place.folder)
        else:
            code, session = self._fork(command, place.folder, environment, case.seconds)
            errors = _errors(place.folder)
        seconds = time.monotonic() - started
        after = _listing(place.folder)
        changed = sorted(
            path
            for path in before.keys() | after.keys()
            if before.get(path) != after.get(path) and not _kept(path, case.keeps)
        )
        left = _left(mark, session)
        return Outcome(code, errors, tuple(changed), left, str(place.folder), seconds)

    def _fork(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float
    ) -> tuple[int, int]:
        """Exit code and session of a fork that has become the program."""
        if self._server is None or self._server.stdin is None:
            raise AssertionError("enter the context first")
        request = {
            "command": command,
            "folder": str(folder),
            "environment": environment,
            "out": f"{folder}.out",
            "err": f"{folder}.err",
        }
        print(json.dumps(request), file=self._server.stdin)
        process = int(self._answer())
        limit = Timer(seconds, os.killpg, (process, signal.SIGKILL))
        limit.start()
        code = int(self._answer())
        limit.cancel()
        return code, process

    def _answer(self) -> str:
        if self._server is None or self._server.stdout is None:
            raise AssertionError("enter the context first")
        return self._server.stdout.readline().strip()

    def _torchrun(
        self, case: Case, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> tuple[int | str, int, str]:
        """Exit code of the ranks, session, and what they wrote apart from torchrun's report."""
        logs = Path(f"{folder}.logs")
        options = ["--standalone", "--nproc-per-node", str(case.ranks)]
        options += ["--log-dir", str(logs), "--tee", "3"]
        starter = [sys.executable, "-m", "torch.distributed.run", *options]
        session = _start([*starter, *command], folder, environment, case.seconds)[1]
        # torchrun itself ends with 1, and ends ranks that are still at work when one has failed
        codes = set(re.findall(r"exitcode\s*: (-?\d+)", _errors(folder))) - {"-15"}
        written = "".join(path.read_text() for path in sorted(logs.rglob("stderr.log")))
        code = int(*codes) if len(codes) == 1 else f"of the ranks: {sorted(codes)}"
        return code, session, written


def _split(command: str) -> list[str]:
    script, *arguments = shlex.split(command)
    return [str(_LAUNCH / script), *arguments]


def _start(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float
) -> tuple[int, int]:
    """Exit code and session of a program, which ends with all it has started when time is up."""
    with open(f"{folder}.out", "wb") as out, open(f"{folder}.err", "wb") as err:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            return process.wait(seconds), process.pid
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait(), process.pid


def _errors(folder: Path) -> str:
    return Path(f"{folder}.err").read_text(errors="replace")


def _listing(folder: Path) -> dict[str, str]:
    """Every path below ``folder`` and what is there."""
    found = {}
    for path in folder.rglob("*"):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(folder))] = content
    return found


def _kept(path: str, keeps: Sequence[str]) -> bool:
    """Whether a case may leave ``path``: complete and below what it names, or a folder above."""
    whole = not Path(path).name.endswith(".tmp")
    return whole and any(path.startswith(kept) or kept.startswith(f"{path}/") for kept in keeps)


def _left(mark: str, session: int) -> tuple[str, ...]:
    """What a case leaves behind, apart from helpers that end a moment after their program."""
    deadline = time.monotonic() + _GRACE_SECONDS
    while found := _processes(mark, session):
        if time.monotonic() > deadline:
            return found
        time.sleep(0.05)
    return ()


def _processes(mark: str, session: int) -> tuple[str, ...]:
    """Command lines of what still runs of a case: by its environment, or its session."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()
            ended, own_session = state[0] in "ZX", int(state[3]) == session
            if not ended and (own_session or mark.encode() in (entry / "environ").read_bytes()):
                words = (entry / "cmdline").read_text().split("\0")
                found.append(" ".join(words).strip()[:_COMMAND_LENGTH])
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return tuple(found)
