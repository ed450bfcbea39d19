"""This machine as a hardware profile, ``configs/hardware/here-gpu.yaml``.

The planner's own calibration, with the name of the GPU, the seconds of an evaluation by every
kernel, which ``train.kernel auto`` reads, and the launches and syncs that were counted. What is no
GPU's is written beside the report instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.planning.calibration import calibrate, known_link
from distributed_ignn.lab.planning.hardware import (
    FOLDER,
    Link,
    Profile,
    load_profile,
    write_profile,
)
from tests.gpu.sections.ceilings import sheet_of
from tests.gpu.setting import Budget, Setting, kept
from tests.gpu.verdicts import Check, holds

NAME = "here-gpu"


def look(budget: Budget) -> Iterator[Check]:
    """Measure, write, and read again."""
    setting = budget.setting
    # in a process of its own, which ends in time, and takes with it what it has started
    (text,) = budget.ranks(calibrated, 1, device="cpu")
    profile = Profile.model_validate_json(text)
    own = {key: kept(setting, key) for key in ("kernels", "asked")}
    if setting.real:
        own |= {
            "device": torch.cuda.get_device_name(0),
            "sync_seconds": kept(setting, "sync_seconds"),
        }
    # validated again: what other sections left is text
    profile = Profile.model_validate(profile.model_dump() | own)
    folder = FOLDER if setting.real else budget.report.parent
    path = folder / f"{NAME}.yaml"
    write_profile(path, profile)
    yield holds("profile is read as it was written", load_profile(str(path)) == profile, str(path))


def calibrated(comm: Communicator, setting: Setting) -> str:
    """The profile as JSON."""
    return calibrate(NAME, lambda text: None, **_options(setting)).model_dump_json()


def _options(setting: Setting) -> dict[str, Any]:
    """Of the calibration; a GPU alone has no link to measure, and is given that of its kind."""
    options: dict[str, Any] = {"sizes": setting.sizes.probes} if setting.sizes.probes else {}
    if setting.device == "cuda":
        options["device"] = "cuda"
        if setting.gpus == 1:
            options["link"] = _link(torch.cuda.get_device_name(0))
    return options


def _link(name: str) -> Link:
    """Between boxes of such GPUs by their data sheet; 100 Gbit/s where it is not known."""
    kind = sheet_of(name)
    return known_link(100.0, 30e-6) if kind is None else kind.outside
