"""A file's name says one thing: no two files have one name and different meanings."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Names that Python or pytest give a meaning of their own.
FIXED = {"__init__.py", "__main__.py", "conftest.py"}

#: Where commands are: one of them has one name in both folders.
COMMANDS = {"launch", "commands"}

#: Files that may share a name, because it means the same in all of them.
SAME_MEANING = {
    # what every member of a family is and does
    "base.py": {"models/cells", "models/kinds", "solvers"},
    # a command, and what it is made of
    "link.py": {"commands", "lab/benchmarks"},
    "partition.py": {"commands", "graph/partitioning"},
    "predict.py": {"commands", "runs"},
    "scaling.py": {"commands", "lab/benchmarks"},
    # the shards of a run, and what can be wrong with them
    "shards.py": {"runs", "tests/inputs/table"},
    # the cells, by themselves and in whole runs
    "test_cells.py": {"tests/parity", "tests/training"},
}


def _folders_by_name() -> dict[str, set[str]]:
    """The folders of every file name, without the package's own name; all commands count as one."""
    found = defaultdict(set)
    for top in ("distributed_ignn", "launch", "tests"):
        for path in (ROOT / top).rglob("*.py"):
            folder = path.parent.relative_to(ROOT).as_posix().removeprefix("distributed_ignn/")
            found[path.name].add("commands" if folder in COMMANDS else folder)
    return found


def test_no_two_files_share_a_name_and_mean_different_things() -> None:
    names = {name: at for name, at in _folders_by_name().items() if name not in FIXED}
    assert len(names) > 200
    shared = {name: at for name, at in names.items() if len(at) > 1}
    assert {k: at for k, at in shared.items() if not at <= SAME_MEANING.get(k, set())} == {}
