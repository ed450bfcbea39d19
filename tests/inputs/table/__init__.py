"""The table of bad inputs, by what is wrong."""

from __future__ import annotations

from tests.inputs.case import Case
from tests.inputs.table.checkpoints import CHECKPOINTS
from tests.inputs.table.commands import COMMANDS
from tests.inputs.table.datasets import DATASETS
from tests.inputs.table.launch import LAUNCH
from tests.inputs.table.settings import SETTINGS
from tests.inputs.table.shards import SHARDS

TABLES: dict[str, list[Case]] = {
    "settings": SETTINGS,
    "datasets": DATASETS,
    "shards": SHARDS,
    "checkpoints": CHECKPOINTS,
    "launch": LAUNCH,
    "commands": COMMANDS,
}
CASES = [case for cases in TABLES.values() for case in cases]
