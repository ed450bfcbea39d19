"""The numbers of a checkpoint, as far as restoring reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Numbers(BaseModel):
    """Of ``GuardState``, with the learning rate that its scale belongs to."""

    model_config = ConfigDict(extra="forbid", strict=True)

    lowest_loss: _Number | None = None
    skips: _Count = 0
    skipped: _Count = 0
    rollbacks: _Count = 0
    lr_scale: Annotated[_Number, Field(gt=0, le=1)] = 1.0
    lr: Annotated[_Number, Field(gt=0)] | None = None


class _RunState(BaseModel):
    """Types and ranges; what else a state holds is left to whoever reads that."""

    model_config = ConfigDict(extra="ignore", strict=True)

    epoch: _Count
    best_epoch: _Count
    best_val: _Number | None
    val_metric: _Number | None = None
    numbers: _Numbers = _Numbers()
    stale_validations: _Count
    average_steps: _Count = 0
    seconds_total: Annotated[_Number, Field(ge=0)] = 0.0
    seconds_solver_training: Annotated[_Number, Field(ge=0)]
    solver_steps_done: _Count
    solver_ready: bool


def check_state(state: Mapping[str, Any]) -> None:
    """Refuse a state that lacks a value or holds one of another type.

    Raises:
        ValueError: naming it.
    """
    try:
        _RunState.model_validate(dict(state))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{key}: {first['msg']}") from error
