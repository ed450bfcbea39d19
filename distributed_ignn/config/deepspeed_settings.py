"""The JSON that users give DeepSpeed, as far as the engine can follow it."""

from __future__ import annotations

import importlib.util
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
_OFFLOAD = "offload_optimizer"
_OFFLOAD_KEYS: dict[str, type] = {"device": str, "pin_memory": bool}
_KINDS = {int: "a whole number", bool: "true or false", str: "text"}
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
    "gradient_clipping": "train.clip_norm is the largest norm of gradients",
}


def read_settings(path: Path | None) -> dict[str, Any]:
    """DeepSpeed's JSON: the given file, or the one shipped.

    Raises:
        UserError: no such file, not JSON, or a key or value that the engine cannot follow.
    """
    chosen = path or shipped_file("deepspeed", "zero1.json")
    settings = _read_json(chosen)
    _check_keys(settings, chosen)
    zero = settings.get(_ZERO, {})
    if not isinstance(zero, dict):
        raise UserError(f"{_ZERO} = {_shown(zero)} in {chosen}: must be an object")
    zero = {"stage": 1} | zero
    offload: Any = zero.pop(_OFFLOAD, {})
    _check_section(zero, _ZERO, _ZERO_KEYS, chosen)
    offload = _checked_offload(offload, chosen)
    return {_ZERO: zero | ({_OFFLOAD: offload} if offload else {})}


def require_package() -> None:
    """Refuse the engine where its package is not installed.

    Raises:
        UserError: DeepSpeed cannot be found.
    """
    try:
        found = importlib.util.find_spec("deepspeed") is not None
    except ValueError:  # what it says of a module that is in sys.modules without a spec
        found = False
    if not found:
        raise UserError(
            "engine = deepspeed needs its package, which is not installed; run pip install "
            "'distributed-ignn[deepspeed]', or use --engine torch"
        )


def check_device(settings: dict[str, Any], device: str) -> None:
    """Refuse settings that would have no effect on a device.

    Args:
        settings: of DeepSpeed.
        device: ``cpu``, ``cuda``, or ``auto`` where it is not known yet.

    Raises:
        UserError: the optimiser is to leave a GPU's memory, and there is none.
    """
    if device == "cpu" and offloads(settings):
        raise UserError(
            f"{_ZERO}.{_OFFLOAD} moves the optimiser out of a GPU's memory, and this run is on a "
            "CPU; drop it from the file that deepspeed_config names"
        )


def offloads(settings: dict[str, Any]) -> bool:
    """Whether DeepSpeed's settings keep the optimiser in host memory and step it there."""
    return _OFFLOAD in settings[_ZERO]


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


def _checked_offload(offload: Any, path: Path) -> dict[str, Any]:
    """The section on the optimiser's place; empty where that is the device's own memory."""
    name = f"{_ZERO}.{_OFFLOAD}"
    if not isinstance(offload, dict):
        raise UserError(
            f'{name} = {_shown(offload)} in {path}: must be an object, as in {{"device": "cpu"}}'
        )
    _check_section(offload, name, _OFFLOAD_KEYS, path)
    device = offload.get("device", "none")
    if device not in ("cpu", "none"):
        raise UserError(
            f'{name}.device = {_shown(device)} in {path}: this engine does "cpu" and "none"; set '
            'it to "cpu"'
        )
    return offload if device == "cpu" else {}


def _check_section(section: dict[str, Any], name: str, keys: dict[str, type], path: Path) -> None:
    for key, value in section.items():
        if key not in keys:
            raise UserError(
                f"{name}.{in_one_line(key)} in {path} is not known here; allowed: "
                + ", ".join([*keys, *([_OFFLOAD] if keys is _ZERO_KEYS else [])])
            )
        problem = _problem(key, value, keys[key])
        if problem is not None:
            raise UserError(f"{name}.{key} = {_shown(value)} in {path}: {problem}")


def _problem(key: str, value: Any, kind: type) -> str | None:
    """What is wrong with a value of a section."""
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
