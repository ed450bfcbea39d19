"""The JSON that users give DeepSpeed, as far as this engine can follow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distributed_ignn.config.shipped import shipped_file
from distributed_ignn.errors import UserError
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.strict_json import read_json

_ZERO = "zero_optimization"
_ZERO_KEYS: dict[str, type] = {
    "stage": int,
    "reduce_bucket_size": int,
    "allgather_bucket_size": int,
    "reduce_scatter": bool,
    "overlap_comm": bool,
    "contiguous_gradients": bool,
}
_KINDS = {int: "a whole number", bool: "true or false"}
_STAGES = (1, 2)
_PRECISIONS = ("fp16", "bf16", "bfloat16")
_BATCH = "the whole graph is the one batch"
_SUM = "gradients are summed over ranks"
_REASONS = {
    "train_batch_size": _BATCH,
    "train_micro_batch_size_per_gpu": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "optimizer": "Adam with train.lr and train.weight_decay is the optimiser",
    "scheduler": "the learning rate is train.lr in every epoch",
    "gradient_allreduce_op": _SUM,
    "prescale_gradients": _SUM,
    "gradient_predivide_factor": _SUM,
    "gradient_clipping": "gradients are used as they are",
}


def read_settings(path: Path | None) -> dict[str, Any]:
    """DeepSpeed's JSON: the given file, or the one shipped.

    Raises:
        UserError: no such file, not JSON, or a key or value that this engine cannot follow.
    """
    chosen = path or shipped_file("deepspeed", "zero1.json")
    settings = _read_json(chosen)
    _check_keys(settings, chosen)
    zero = settings.get(_ZERO, {})
    if not isinstance(zero, dict):
        raise UserError(f"{_ZERO} = {_shown(zero)} in {chosen}: must be an object")
    zero = {"stage": 1} | zero
    _check_zero(zero, chosen)
    return {_ZERO: zero}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        settings = read_json(path, limit=2**20)
    except OSError as error:
        raise UserError(
            f"deepspeed_config = {path} cannot be read ({error.strerror}); name a JSON file, or "
            "drop it for the one shipped"
        ) from error
    except ValueError as error:
        raise UserError(
            f"deepspeed_config = {path} is not JSON ({in_one_line(error)}); correct it"
        ) from error
    if not isinstance(settings, dict):
        raise UserError(f"deepspeed_config = {path} holds {settings!r:.60}; it must be an object")
    return settings


def _shown(value: Any) -> str:
    return in_one_line(json.dumps(value))


def _check_keys(settings: dict[str, Any], path: Path) -> None:
    for key, value in settings.items():
        if key in _PRECISIONS:
            # Files made for other programs often switch both off by name.
            if not isinstance(value, dict) or value.get("enabled", True) is not False:
                raise UserError(
                    f"{key} = {_shown(value)} in {path}: this engine computes in float32; "
                    f"drop {key} or set its enabled to false"
                )
        elif key != _ZERO:
            reason = _REASONS.get(key, f"it is not known here; allowed: {_ZERO}")
            name = in_one_line(key)
            raise UserError(f"{name} = {_shown(value)} in {path}: {reason}; drop {name}")


def _check_zero(zero: dict[str, Any], path: Path) -> None:
    for key, value in zero.items():
        if key not in _ZERO_KEYS:
            raise UserError(
                f"{_ZERO}.{in_one_line(key)} in {path} is not known here; allowed: "
                + ", ".join(_ZERO_KEYS)
            )
        problem = _problem(key, value)
        if problem is not None:
            raise UserError(f"{_ZERO}.{key} = {_shown(value)} in {path}: {problem}")


def _problem(key: str, value: Any) -> str | None:
    """What is wrong with a value of the section ``zero_optimization``."""
    kind = _ZERO_KEYS[key]
    # isinstance alone would not do: true is an int to Python
    right_kind = type(value) is kind
    if not right_kind:
        return f"must be {_KINDS[kind]}"
    if key == "stage" and value not in _STAGES:
        return "this engine does 1 and 2, as the weights stay whole on every rank; set it to 1"
    if key.endswith("size") and value < 1:
        return "must be at least 1; drop it for DeepSpeed's own size"
    if key == "allgather_bucket_size" and value % 2:
        return f"must be even; use {value + 1}"
    return None
