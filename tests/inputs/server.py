"""A process that has imported everything and forks for every command that it is asked to run.

Each command is a process of its own: its session, folder, environment, standard streams and exit
code are those of a program started by a person; only the imports are already done, and what they
made is not taken apart object by object. Standard input brings one JSON object a line, standard
output answers with the process id and, at its end, the exit code.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

_LAUNCH = Path(__file__).resolve().parents[2] / "launch"
# The memory allocator of pyarrow starts it on import, and prepares it for forks by itself.
_HARMLESS = "jemalloc_bg_thd"


_codes: list[object] = []  # of the program that a fork has become


def _leave() -> None:
    """End here and now; Python would copy half a second's worth of pages to free what is on them.

    It comes after the threads of a fork and what the program has registered for its end.
    """
    if _codes and isinstance(_codes[0], int):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_codes[0])


def _import_all() -> None:
    for script in sorted(_LAUNCH.glob("[a-z]*.py")):
        importlib.import_module(f"launch.{script.stem}")
    importlib.import_module("torch_geometric.data")


def _check_threads() -> None:
    """A fork copies one thread alone; what others held would stay locked for ever."""
    own = str(os.getpid())
    others = [path for path in Path("/proc/self/task").iterdir() if path.name != own]
    names = {(path / "comm").read_text().strip() for path in others}
    if names - {_HARMLESS}:
        raise RuntimeError(f"threads run before the first fork: {names}")


def _become(request: dict[str, Any]) -> None:
    """Turn this fork into the program that was asked for; ends with its exit code."""
    os.setsid()
    os.chdir(request["folder"])
    streams = {0: os.devnull, 1: request["out"], 2: request["err"]}
    for number, path in streams.items():
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["environment"])
    script, *arguments = request["command"]
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        _codes.append(end.code)
        raise


def main() -> None:
    """Serve until standard input ends."""
    atexit.register(_leave)  # the first to be registered is the last to be called
    _import_all()
    _check_threads()
    gc.freeze()  # a collection in a fork would copy every page that it looks at
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    print("ready", file=answers)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            answers.close()
            _become(json.loads(line))
            return
        print(child, file=answers)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers)


if __name__ == "__main__":
    main()
