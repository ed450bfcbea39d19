"""What is recorded, and when."""

from __future__ import annotations

from functools import partial

import torch

from distributed_ignn.solvers.captured import Recorder
from tests.pseudo_gpu.emulator import EmulatedGPU


def test_what_belongs_to_a_key_runs_once_before_it_is_recorded(gpu: EmulatedGPU) -> None:
    """Triton may compile for one key what it has not for another, which breaks a recording."""
    z = torch.zeros(2, device="cuda")
    recorder = Recorder(z.device)
    recorded: dict[int, list[bool]] = {0: [], 1: []}

    def add(key: int) -> None:
        recorded[key].append(gpu.capture is not None)
        z.add_(1.0)

    for key in (0, 0, 1, 0, 1, 1):
        recorder.run(key, partial(add, key))
    assert recorded == {0: [False, True], 1: [False, True]}
    assert z.tolist() == [6.0, 6.0]
