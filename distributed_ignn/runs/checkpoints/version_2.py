"""Checkpoints of format 2: their values, which lay side by side, by the part that they belong to.

Runs that were trained before each part kept its own state go on from them. Tensors have the names
that they had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VERSION = 2
#: For every part, its values and what they were called; those in ``_OPTIONAL`` may be missing.
_PARTS = {
    "epochs": {"epoch": "epoch", "val_metric": "val_metric"},
    "best": {"epoch": "best_epoch", "val_metric": "best_val", "stale": "stale_validations"},
    "average": {"steps": "average_steps"},
    "seconds": {"total": "seconds_total", "solver_training": "seconds_solver_training"},
    "solver": {"steps": "solver_steps_done", "ready": "solver_ready"},
}
_OPTIONAL = {"val_metric", "average_steps", "seconds_total"}
_NUMBERS = "numbers"


def parts_of(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the values of each part.

    Raises:
        ValueError: one is missing; it is named.
    """
    lacking = [
        key
        for keys in _PARTS.values()
        for key in keys.values()
        if key not in state and key not in _OPTIONAL
    ]
    if lacking:
        raise ValueError(f"{lacking[0]}: missing")
    found = {
        part: {name: state[key] for name, key in keys.items() if key in state}
        for part, keys in _PARTS.items()
    }
    return found | {_NUMBERS: state.get(_NUMBERS, {})}
